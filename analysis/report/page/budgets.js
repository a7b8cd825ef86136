/* How the policy shared its budget over the layers, and what it saw there. */
const Budgets = (() => {
  const CHARTS = [
    {
      key: "budget",
      title: "Budget",
      hint: "tokens kept per head after the last prefill, window excluded",
      yLabel: "tokens",
    },
    { key: "preference", title: "Preference", hint: "the layer's weight in the allocation", yLabel: "weight" },
    { key: "entropy", title: "Entropy", hint: "of attention, as the allocation saw it", yLabel: "entropy" },
    { key: "variance", title: "Variance", hint: "of attention, as the allocation saw it", yLabel: "variance" },
  ];
  const places = CHARTS.map((chart) => ({ ...chart, place: Charts.place(`${chart.title} by layer`) }));
  const figures = places.map(({ title, hint, place }) => Dom.figure(title, hint, place));
  const none = Dom.make("p", { class: "message" });
  const node = Dom.section(
    "budgets",
    "Budgets",
    "How the layers share what may be kept. A click chooses the layer.",
    none,
    Dom.make("div", { class: "columns two" }, figures),
  );

  function render() {
    const { sample, layer } = State.values;
    none.hidden = sample.compressed;
    none.textContent = "The full cache was captured: there are no budgets.";
    places.forEach(({ key, place, yLabel }, index) => {
      const values = sample.compressed ? [...sample.tensors[`compression.${key}`].data] : [];
      const known = values.map((value) => (key === "budget" && value < 0 ? NaN : value));
      figures[index].hidden = !known.some(Number.isFinite);
      if (figures[index].hidden) return;
      Charts.bars(place, {
        bars: known.map((height) => ({ height })),
        names: sample.layerIndices.map(String),
        selected: layer,
        ticks: 12,
        xLabel: "layer",
        yLabel,
        onPick: (one) => State.layer(one),
        describe: (one) => [sample.layerName(one), `${yLabel}: ${Format.number(known[one])}`],
      });
    });
  }

  State.on(["layer"], render);
  return { node };
})();
