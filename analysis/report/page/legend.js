/* What a colour stands for: a ramp with its two ends, or a list of marks. */
const Legend = (() => {
  function ramp(low, high, unit) {
    const bar = Dom.make("span", { class: "legend-bar", "aria-hidden": "true" });
    bar.style.backgroundImage = Ramps.gradient();
    return Dom.make(
      "span",
      { class: "legend" },
      Dom.make("span", {}, low),
      bar,
      Dom.make("span", {}, high),
      unit ? Dom.make("span", { class: "quiet" }, unit) : null,
    );
  }

  function swatch(colour, text) {
    const dot = Dom.make("span", { class: "swatch", "aria-hidden": "true" });
    dot.style.backgroundColor = colour;
    return Dom.make("span", { class: "legend" }, dot, text);
  }

  const stages = () =>
    ["held", "evicted in its layer's prefill", "by the cascade", "while decoding"].map((text, code) =>
      swatch(Ramps.stage(code), text),
    );

  /* The colours of lines, from the first layer to the last. */
  function layers(sample) {
    const bar = Dom.make("span", { class: "legend-bar", "aria-hidden": "true" });
    const colours = sample.layerIndices.map((_, layer) => Ramps.line(layer, sample.layers));
    bar.style.backgroundImage = `linear-gradient(to right, ${[colours[0], ...colours].join(", ")})`;
    return [
      Dom.make("span", { class: "legend" }, sample.layerName(0), bar, sample.layerName(sample.layers - 1)),
      swatch(Ramps.token("--accent"), `chosen: ${sample.layerName(State.values.layer)}`),
    ];
  }

  return { layers, ramp, swatch, stages };
})();
