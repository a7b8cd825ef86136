/* What changes from event to event: tokens and bytes held, evictions, entropy, and which positions are left. */
const Timeline = (() => {
  const COLUMNS = 128; // pieces of the text in the map of held tokens
  const ROWS = 48;
  const heldChart = Charts.place("Tokens held per head by event");
  const byteChart = Charts.place("Bytes held by event");
  const entropyChart = Charts.place("Mean entropy by event");
  const evictionChart = Charts.place("Evictions of the chosen layer by event");
  const left = new CellGrid({
    label: "Share of each piece of the text that is held, by event",
    rowTitle: "event",
    columnTitle: "position",
    onSelect: (row) => State.event(rowsOf(State.values.sample)[row]),
  });
  const series = Dom.make("label", { class: "choice" });
  const heldLegend = Dom.make("div", { class: "legend-row" });
  const evictionLegend = Dom.make("div", { class: "legend-row" });
  const STAGES = ["in its own prefill", "by the cascade", "while decoding"];
  const over = { key: "entropy" };
  const NAMES = [
    ["entropy", "entropy, nats"],
    ["maximum", "largest probability"],
    ["sink_mass", "mass on the first tokens"],
    ["recent_mass", "mass on recent tokens"],
  ];

  const evictionFigure = Dom.figure(
    "Evictions of the chosen layer",
    "tokens, over its key/value heads",
    evictionChart,
    evictionLegend,
  );
  const leftFigure = Dom.figure(
    "What is left of the text",
    "share of tokens held by the chosen layer and head, by event",
    left.node,
  );
  const single = Dom.make(
    "p",
    { class: "message" },
    "This sample has one event: there is nothing to follow over time.",
  );
  const charts = Dom.make(
    "div",
    { class: "columns two" },
    Dom.figure("Tokens held per head", "a line per layer; the chosen one is strong", heldChart, heldLegend),
    Dom.figure("Memory of keys and values", "dashed: the full cache", byteChart),
    Dom.figure("Attention over time", "mean over heads, a line per layer", series, entropyChart),
    evictionFigure,
  );
  const node = Dom.section(
    "timeline",
    "Over time",
    "A click on a chart goes to that event.",
    single,
    charts,
    leftFigure,
  );

  function layerLines(sample, x, value) {
    return Array.from({ length: sample.layers }, (_, layer) => ({
      x,
      values: x.map((_number, event) => value(event, layer)),
      colour: layer === State.values.layer ? Ramps.token("--accent") : Ramps.line(layer, sample.layers),
      strong: layer === State.values.layer,
    }));
  }

  function drawLines(sample, event, layer) {
    const x = sample.events.number;
    const shared = { marker: x[event], xLabel: "event", onPick: (number) => State.event(x.indexOf(number)) };
    const heldLines = layerLines(sample, x, (index, one) => sample.held(index, one));
    Charts.lines(heldChart, {
      ...shared,
      lines: heldLines,
      yLabel: "tokens",
      fromZero: true,
      formatY: Format.whole,
      describe: (number) => [
        `event ${number}`,
        `${sample.layerName(layer)}: ${Format.number(heldLines[layer].values[x.indexOf(number)])} tokens per head`,
        `mean of all layers: ${Format.number(sample.heldMean(x.indexOf(number)))}`,
      ],
    });
    const { held_bytes: held, full_bytes: full } = sample.events;
    Dom.replace(heldLegend, Legend.layers(sample));
    const { name, size } = Format.byteUnit(Math.max(...full, ...held));
    Charts.lines(byteChart, {
      ...shared,
      yLabel: name,
      fromZero: true,
      lines: [
        { x, values: held.map((count) => count / size), colour: Ramps.token("--accent"), strong: true },
        { x, values: full.map((count) => count / size), colour: Ramps.token("--quiet"), dashed: true },
      ],
      describe: (number) => [
        `event ${number}`,
        `held: ${Format.bytes(held[x.indexOf(number)])}`,
        `full cache: ${Format.bytes(full[x.indexOf(number)])}`,
      ],
    });
    const tensor = sample.tensors[`over_time.${over.key}`];
    Charts.lines(entropyChart, {
      ...shared,
      lines: layerLines(sample, x, (index, one) => tensor.at(index, one)),
      yLabel: NAMES.find(([key]) => key === over.key)[1],
      describe: (number) => [
        `event ${number}`,
        `${sample.layerName(layer)}: ${Format.number(tensor.at(x.indexOf(number), layer))}`,
      ],
    });
  }

  function drawEvictions(sample, event, layer) {
    evictionFigure.hidden = !sample.compressed;
    if (!sample.compressed) return;
    const counts = sample.events.number.map((_, index) => [...sample.tensors.evictions.row(index, layer)]);
    const all = counts.map((_, index) => index);
    const later = all.filter((index) => sample.events.kind[index] !== 0);
    const shown = later.length ? later : all; // a prefill evicts so many that the rest could not be seen beside it
    Charts.bars(evictionChart, {
      bars: shown.map((index) => ({
        parts: counts[index].map((height, stage) => ({ height, colour: Ramps.stage(stage + 1) })),
      })),
      names: shown.map((index) => String(sample.number(index))),
      selected: shown.indexOf(event),
      xLabel: "event",
      yLabel: "tokens evicted",
      formatY: Format.tick,
      onPick: (at) => State.event(shown[at]),
      describe: (at) => [
        `event ${sample.number(shown[at])}`,
        ...STAGES.map((text, stage) => `${text}: ${Format.whole(counts[shown[at]][stage])}`),
      ],
    });
    const prefill = STAGES.map(
      (text, stage) =>
        `${Format.whole(
          all.filter((index) => !later.includes(index)).reduce((sum, index) => sum + counts[index][stage], 0),
        )} ${text}`,
    );
    Dom.replace(
      evictionLegend,
      later.length ? Dom.make("span", {}, `Before, while the prompt came in: ${prefill.slice(0, 2).join(", ")}.`) : [],
      later.length ? [] : Legend.stages().slice(1),
    );
  }

  /* Events that are rows of the map: all, or evenly spaced with the first and the last. */
  function rowsOf(sample) {
    const count = Math.min(ROWS, sample.eventCount);
    return [
      ...new Set(
        Array.from({ length: count }, (_, row) => Math.round((row * (sample.eventCount - 1)) / Math.max(1, count - 1))),
      ),
    ];
  }

  function shares(sample, layer, rows, columns) {
    const kvHead = State.kvHead();
    return rows.map((event) =>
      Array.from({ length: columns }, (_, column) => {
        const begin = Math.floor((column * sample.tokenCount) / columns);
        const end = Math.floor(((column + 1) * sample.tokenCount) / columns);
        let [held, seen] = [0, 0];
        const step = Math.max(1, Math.floor((end - begin) / 64)); // of long pieces, some 64 tokens
        for (let token = begin; token < end; token += step) {
          const fate = Fate.overHeads(sample, layer, kvHead, token, event);
          if (fate.code >= 0) [held, seen] = [held + fate.held / fate.of, seen + 1];
        }
        return seen ? held / seen : NaN;
      }),
    );
  }

  function drawLeft(sample, event, layer) {
    leftFigure.hidden = !sample.compressed || !sample.knowsEvictions;
    if (leftFigure.hidden) return;
    const rows = rowsOf(sample);
    const columns = Math.min(COLUMNS, sample.tokenCount);
    const found = shares(sample, layer, rows, columns);
    const begin = (column) => Math.floor((column * sample.tokenCount) / columns);
    left.update({
      rows: rows.length,
      columns,
      rowName: (row) => String(sample.number(rows[row])),
      columnName: (column) => Format.whole(begin(column)),
      selected: rows.includes(event) ? [rows.indexOf(event), null] : null,
      share: (row, column) => found[row][column],
      describe: (row, column) => [
        `event ${sample.number(rows[row])}, tokens ${begin(column)} to ${begin(column + 1) - 1}`,
        Number.isNaN(found[row][column]) ? "not there yet" : `held: ${Format.percent(found[row][column])}`,
      ],
      legend: Legend.ramp("none", "all", "share of the piece that is held"),
    });
  }

  function render(keys) {
    const { sample, event, layer } = State.values;
    if (keys.has("sample")) {
      const choice = Dom.choice("Statistic", NAMES, over.key, (key) => {
        over.key = key;
        drawLines(State.values.sample, State.values.event, State.values.layer);
      });
      Dom.replace(series, [...choice.node.childNodes]);
    }
    const alone = sample.eventCount === 1;
    single.hidden = !alone;
    charts.hidden = alone;
    if (!alone) {
      drawLines(sample, event, layer);
      drawEvictions(sample, event, layer);
    }
    drawLeft(sample, event, layer);
  }

  State.on(["event", "layer", "head"], render);
  return { node };
})();
