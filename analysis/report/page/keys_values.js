/* How sparse, large and low-rank keys and values are, by layer and head. */
const KeysValues = (() => {
  const SIDES = ["key", "value"];
  let metric = "sparsity_2";
  const toolbar = Dom.make("div", { class: "toolbar" });
  const grids = SIDES.map(
    (side) =>
      new CellGrid({
        label: `Statistic of ${side}s by layer and head`,
        rowTitle: "layer",
        columnTitle: "key/value head",
        cell: { least: 4, most: 20 },
        onSelect: (layer, kvHead) => {
          State.layer(layer);
          State.head(kvHead * State.values.sample.group);
        },
      }),
  );
  const singular = Charts.place("Singular values");
  const energy = Charts.place("Energy per dimension");
  const hint = Dom.make("p", { class: "hint" });
  const node = Dom.section(
    "keys-values",
    "Keys and values",
    "Of all tokens seen, as cached. A click chooses layer and head.",
    toolbar,
    Dom.make(
      "div",
      { class: "columns two" },
      SIDES.map((side, index) => Dom.figure(side === "key" ? "Keys" : "Values", "", grids[index].node)),
    ),
    hint,
    Dom.make(
      "div",
      { class: "columns two" },
      Dom.figure(
        "Singular values",
        "of the chosen head's tokens × dimensions, over the largest; strong: keys, dashed: values",
        singular,
      ),
      Dom.figure("Energy per dimension", "mean square, sorted; strong: keys, dashed: values", energy),
    ),
  );

  function metrics(sample) {
    const thresholds = sample.settings.sparsity_thresholds.map((share, index) => [
      `sparsity_${index}`,
      `sparsity: entries below ${Format.number(100 * share)} % of the head's scale`,
    ]);
    return [
      ...thresholds,
      ["scale", "scale: root mean square"],
      ["rank", "effective rank of its singular values"],
      ["norm", "mean norm of a token"],
    ];
  }

  /* exp of the entropy of the singular values as shares (Roy and Vetterli, 2007). */
  function effectiveRank(values) {
    const total = values.reduce((sum, value) => sum + value, 0);
    if (!(total > 0)) return NaN;
    const entropy = values.reduce(
      (sum, value) => (value > 0 ? sum - (value / total) * Math.log(value / total) : sum),
      0,
    );
    return Math.exp(entropy);
  }

  function meanNorm(sample, side, layer, kvHead) {
    let [sum, count] = [0, 0];
    for (let token = 0; token < sample.tokenCount; token++) {
      const value = sample.perHead(`kv.${side}_norm`, layer, kvHead, token);
      if (Number.isFinite(value)) [sum, count] = [sum + value, count + 1];
    }
    return count ? sum / count : NaN;
  }

  function value(sample, side, key, layer, kvHead) {
    if (key === "scale") return sample.tensors[`kv.${side}_scale`].at(layer, kvHead);
    if (key === "rank") return effectiveRank(sample.tensors[`kv.${side}_singular_values`].row(layer, kvHead));
    if (key === "norm") return sample.has(`kv.${side}_norm`) ? meanNorm(sample, side, layer, kvHead) : NaN;
    return sample.tensors[`kv.${side}_sparsity`].at(layer, kvHead, Number(key.split("_")[1]));
  }

  function drawGrid(sample, side, grid) {
    const rows = Array.from({ length: sample.layers }, (_, layer) =>
      Array.from({ length: sample.kvHeads }, (_head, kvHead) => value(sample, side, metric, layer, kvHead)),
    );
    const finite = rows.flat().filter(Number.isFinite);
    const [low, high] = finite.length ? [Math.min(...finite), Math.max(...finite)] : [0, 1];
    grid.update({
      rows: sample.layers,
      columns: sample.kvHeads,
      rowName: (layer) => String(sample.layerIndices[layer]),
      columnName: String,
      selected: [State.values.layer, State.kvHead()],
      share: (layer, head) => (rows[layer][head] - low) / (high - low || 1),
      describe: (layer, head) => [
        `${sample.layerName(layer)}, kv head ${head}: ${side}s`,
        Format.number(rows[layer][head]),
      ],
      legend: Legend.ramp(
        Format.number(low),
        Format.number(high),
        metric.startsWith("sparsity") ? "share of entries" : "",
      ),
    });
  }

  function drawLines(sample, layer, kvHead) {
    const lines = (name, shape) =>
      SIDES.map((side, index) => {
        const values = shape([...sample.tensors[`kv.${side}_${name}`].row(layer, kvHead)]);
        return {
          x: values.map((_, at) => at + 1),
          values,
          colour: index ? Ramps.token("--second") : Ramps.token("--accent"),
          strong: !index,
          dashed: Boolean(index),
        };
      }).sort((one, other) => other.x.length - one.x.length);
    Charts.lines(singular, {
      lines: lines("singular_values", (values) => values.map((one) => one / (values[0] || 1))),
      xLabel: "index",
      yLabel: "over the largest",
      fromZero: true,
    });
    Charts.lines(energy, {
      lines: lines("energy", (values) => values.sort((one, other) => other - one)),
      xLabel: "dimension, by energy",
      yLabel: "mean square",
      fromZero: true,
    });
  }

  function render(keys) {
    const { sample, layer } = State.values;
    if (keys.has("sample")) {
      Dom.replace(
        toolbar,
        Dom.choice("Statistic", metrics(sample), metric, (key) => {
          metric = key;
          SIDES.forEach((side, index) => drawGrid(State.values.sample, side, grids[index]));
        }).node,
      );
    }
    SIDES.forEach((side, index) => drawGrid(sample, side, grids[index]));
    const kvHead = State.kvHead() || 0;
    const first = State.kvHead() === null ? ", the first (all heads are chosen)" : "";
    hint.textContent = `Below: ${sample.layerName(layer)}, key/value head ${kvHead}${first}.`;
    drawLines(sample, layer, kvHead);
  }

  State.on(["layer", "head"], render);
  return { node, value, effectiveRank };
})();
