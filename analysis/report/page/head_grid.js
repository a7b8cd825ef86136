/* A statistic of every layer and query head at the chosen step; a click chooses both everywhere. */
const HeadGrid = (() => {
  const METRICS = [
    { key: "entropy_normalised", title: "entropy, normalised", unit: "of ln(keys seen): 0 one key, 1 all alike" },
    { key: "entropy", title: "entropy", unit: "nats" },
    { key: "maximum", title: "largest probability", unit: "probability" },
    { key: "variance", title: "variance", unit: "of the probabilities" },
    { key: "density", title: "density", unit: "share of keys above the even share" },
    { key: "sink_mass", title: "mass on the first tokens", unit: "share of mass" },
    { key: "recent_mass", title: "mass on recent tokens", unit: "share of mass" },
    { key: "diagonal_mass", title: "mass on the query's own token", unit: "share of mass" },
    { key: "prompt_mass", title: "mass on the prompt", unit: "share of mass" },
    { key: "learned_sink_mass", title: "mass on a learned sink", unit: "share of mass" },
  ];
  const grid = new CellGrid({
    label: "Statistic by layer and query head",
    rowTitle: "layer",
    columnTitle: "query head",
    onSelect: (layer, head) => {
      State.layer(layer);
      State.head(head);
    },
  });
  const toolbar = Dom.make("div", { class: "toolbar" });
  const hint = Dom.make("p", { class: "hint" });
  const node = Dom.make("div", {}, toolbar, hint, grid.node);

  /* The built-in statistics, and keys for each percentage of the mass. */
  function metrics(sample) {
    const coverage = sample.settings.coverage_percent.map((percent, index) => ({
      key: `coverage_${percent}`,
      at: index,
      title: `keys that hold ${percent} % of the mass`,
      unit: "keys",
    }));
    return [...METRICS, ...coverage];
  }

  function value(sample, metric, at, layer, head) {
    return metric.at === undefined
      ? sample.tensors[`attention.${metric.key}`].at(at, layer, head)
      : sample.tensors["attention.coverage"].at(at, layer, head, metric.at);
  }

  const names = (sample) => metrics(sample).map((metric) => [metric.key, metric.title]);

  function render(keys) {
    const { sample, layer, head, event, metric: key } = State.values;
    if (keys.has("sample")) {
      Dom.replace(
        toolbar,
        Dom.choice("Statistic", names(sample), key, (chosen) => State.set({ metric: chosen }), { id: "metric" }).node,
      );
    }
    const metric = metrics(sample).find((one) => one.key === key);
    const { number, exact, at } = sample.stored(event, "statisticsEvents");
    const all = [];
    for (let row = 0; row < sample.layers; row++) {
      for (let column = 0; column < sample.heads; column++) all.push(value(sample, metric, at, row, column));
    }
    const finite = all.filter(Number.isFinite);
    const [least, high] = [Math.min(...finite), Math.max(0, ...finite)];
    const low = least > high / 2 ? least : Math.min(0, least); // from zero, unless all would look alike
    grid.update({
      rows: sample.layers,
      columns: sample.heads,
      rowName: (row) => String(sample.layerIndices[row]),
      columnName: String,
      selected: [layer, head < 0 ? null : head],
      share: (row, column) => (all[row * sample.heads + column] - low) / (high - low || 1),
      describe: (row, column) => [
        `${sample.layerName(row)}, head ${column} (kv head ${sample.kvHead(column)})`,
        `${metric.title}: ${Format.number(all[row * sample.heads + column])}`,
        metric.unit,
      ],
      legend: Legend.ramp(Format.number(low), Format.number(high), metric.unit),
    });
    hint.textContent = exact
      ? ""
      : `Statistics of event ${number}: none are on the page for event ${sample.number(event)}.`;
  }

  State.on(["layer", "head", "event", "metric"], render);
  return { node, metrics, value };
})();
