/* Lines and bars as SVG, drawn at the width they have. */
const Charts = (() => {
  const MARGIN = { top: 8, right: 14, bottom: 34, left: 58 };

  /* Round values between two bounds. */
  function ticks(low, high, count) {
    const span = high - low || Math.abs(high) || 1;
    const rough = span / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
    const found = [];
    for (let index = Math.ceil(low / step); index * step <= high + step * 1e-9; index++) found.push(index * step);
    return found;
  }

  function frame(node, { height = 190, x, y, xLabel, yLabel, xTicks, formatX, formatY }) {
    const width = Math.max(220, node.clientWidth);
    const [right, bottom] = [width - MARGIN.right, height - MARGIN.bottom];
    const toX = (value) => MARGIN.left + ((value - x[0]) / (x[1] - x[0] || 1)) * (right - MARGIN.left);
    const toY = (value) => bottom - ((value - y[0]) / (y[1] - y[0] || 1)) * (bottom - MARGIN.top);
    const drawing = Dom.svg("svg", {
      width,
      height,
      viewBox: `0 0 ${width} ${height}`,
      role: "img",
      "aria-label": node.dataset.label,
    });
    for (const value of ticks(y[0], y[1], 4)) {
      const at = toY(value);
      drawing.append(
        Dom.svg("line", { x1: MARGIN.left, x2: right, y1: at, y2: at, class: "chart-grid" }),
        Dom.svg("text", { x: MARGIN.left - 7, y: at + 4, class: "chart-text", "text-anchor": "end" }, formatY(value)),
      );
    }
    for (const value of xTicks) {
      drawing.append(
        Dom.svg(
          "text",
          { x: toX(value), y: bottom + 15, class: "chart-text", "text-anchor": "middle" },
          formatX(value),
        ),
      );
    }
    drawing.append(
      Dom.svg(
        "text",
        { x: (MARGIN.left + right) / 2, y: height - 4, class: "chart-text chart-title", "text-anchor": "middle" },
        xLabel,
      ),
      Dom.svg(
        "text",
        {
          transform: `translate(11 ${(MARGIN.top + bottom) / 2}) rotate(-90)`,
          class: "chart-text chart-title",
          "text-anchor": "middle",
        },
        yLabel,
      ),
      Dom.svg("line", { x1: MARGIN.left, x2: right, y1: bottom, y2: bottom, class: "chart-axis" }),
    );
    return { drawing, toX, toY, left: MARGIN.left, right, top: MARGIN.top, bottom };
  }

  const whole = (low, high, count) =>
    [...new Set(ticks(low, high, count).map(Math.round))].filter((value) => value >= low && value <= high);

  function bounds(lines, fromZero) {
    const [low, high] = lines
      .flatMap((line) => [...line.values])
      .filter(Number.isFinite)
      .reduce(([least, most], value) => [Math.min(least, value), Math.max(most, value)], [Infinity, -Infinity]);
    if (low > high) return [0, 1];
    const least = fromZero ? Math.min(0, low) : low;
    return high > least ? [least, high + 0.04 * (high - least)] : [least - (fromZero ? 0 : 0.5), high + 0.5];
  }

  function path(line, place) {
    let text = "";
    line.values.forEach((value, index) => {
      if (!Number.isFinite(value)) return;
      const previous = index > 0 && Number.isFinite(line.values[index - 1]);
      text += `${previous ? "L" : "M"}${place.toX(line.x[index]).toFixed(1)} ${place.toY(value).toFixed(1)}`;
    });
    return text;
  }

  /* options: lines [{x, values, colour, strong, dashed, name}], xLabel, yLabel, formatY, formatX, fromZero,
     marker (x), onPick(x), describe(x) -> lines of the tip. */
  function lines(node, options) {
    const places = options.lines[0].x;
    const x = [places[0], places[places.length - 1]];
    const place = frame(node, {
      ...options,
      x,
      y: options.y || bounds(options.lines, options.fromZero),
      xTicks: options.xTicks || whole(x[0], x[1], 8),
      formatX: options.formatX || Format.whole,
      formatY: options.formatY || Format.tick,
    });
    const ordered = [...options.lines].sort((one, other) => Boolean(one.strong) - Boolean(other.strong));
    for (const line of ordered) {
      const drawn = Dom.svg("path", {
        d: path(line, place),
        class: line.strong ? "line strong" : "line",
        "stroke-dasharray": line.dashed ? "5 4" : null,
      });
      drawn.style.stroke = line.colour;
      place.drawing.append(drawn);
    }
    if (options.marker !== undefined) {
      const at = place.toX(options.marker);
      place.drawing.append(Dom.svg("line", { x1: at, x2: at, y1: place.top, y2: place.bottom, class: "chart-marker" }));
    }
    interact(node, place, options, places);
    Dom.replace(node, place.drawing);
  }

  /* options: bars [{height, colour, parts [{height, colour}]}], names, selected, onPick(index), describe(index). */
  function bars(node, options) {
    const heights = options.bars.map((bar) =>
      bar.parts ? bar.parts.reduce((sum, part) => sum + part.height, 0) : bar.height,
    );
    const places = options.bars.map((_, index) => index);
    const place = frame(node, {
      ...options,
      x: [-0.5, places.length - 0.5],
      y: options.y || bounds([{ values: heights }], true),
      xTicks: whole(0, places.length - 1, options.ticks || 10),
      formatX: (index) => options.names[index],
      formatY: options.formatY || Format.tick,
    });
    const width = Math.max(1, Math.min(40, ((place.right - place.left) / places.length) * 0.78));
    options.bars.forEach((bar, index) => {
      let below = 0;
      for (const part of bar.parts || [bar]) {
        if (!Number.isFinite(part.height) || part.height === 0) continue;
        const [top, bottom] = [place.toY(below + part.height), place.toY(below)].sort((one, other) => one - other);
        const drawn = Dom.svg("rect", {
          x: place.toX(index) - width / 2,
          y: top,
          width,
          height: Math.max(1, bottom - top),
          class: "bar",
        });
        drawn.style.fill = part.colour || Ramps.token("--bar");
        place.drawing.append(drawn);
        below += part.height;
      }
      if (index === options.selected) {
        place.drawing.append(
          Dom.svg("rect", {
            x: place.toX(index) - width / 2 - 2,
            y: place.top,
            width: width + 4,
            height: place.bottom - place.top,
            class: "bar-selected",
          }),
        );
      }
    });
    interact(node, place, options, places);
    Dom.replace(node, place.drawing);
  }

  function interact(node, place, options, places) {
    const nearest = (event) => {
      const at = event.clientX - place.drawing.getBoundingClientRect().left;
      return places.reduce(
        (best, value) => (Math.abs(place.toX(value) - at) < Math.abs(place.toX(best) - at) ? value : best),
        places[0],
      );
    };
    if (options.describe) {
      place.drawing.addEventListener("pointermove", (event) =>
        Dom.tip(options.describe(nearest(event)), event.clientX, event.clientY),
      );
      place.drawing.addEventListener("pointerleave", () => Dom.tip(null));
    }
    if (options.onPick) {
      place.drawing.classList.add("pickable");
      place.drawing.addEventListener("click", (event) => options.onPick(nearest(event)));
    }
  }

  const place = (label) => Dom.make("div", { class: "chart", "data-label": label });

  return { lines, bars, place };
})();
