/* The chosen layer and head: where its attention goes, by position, by distance, and to which tokens. */
const HeadView = (() => {
  const ROWS = 64; // of the map of decoded tokens
  const map = new CellGrid({
    label: "Attention by query and key",
    rowTitle: "query position",
    columnTitle: "key position",
    square: true,
  });
  const decoded = new CellGrid({
    label: "Attention of later events by key",
    rowTitle: "event",
    columnTitle: "key position",
    onSelect: (row) => State.event(State.values.sample.events.number.indexOf(rowsOf(State.values.sample)[row])),
  });
  const distance = Charts.place("Attention mass by distance");
  const mapHint = Dom.make("p", { class: "hint" });
  const facts = Dom.make("div", { class: "facts" });
  const top = new SortableTable(
    "Tokens with the largest mass",
    [
      { key: "token", title: "position", format: Format.whole },
      { key: "text", title: "token", text: true, format: String },
      { key: "mass", title: "mass", unit: "share" },
    ],
    { shown: 8, onRow: (row) => TokenView.goTo(row.token) },
  );
  const mapFigure = Dom.figure("Queries by keys", "mean mass per bin", map.node, mapHint);
  const decodedFigure = Dom.figure("Later events by keys", "a row per event: mass per bin of positions", decoded.node);
  const title = Dom.make("h3");
  const summary = Dom.make("div", {}, title, facts);
  const node = Dom.make(
    "div",
    {},
    Dom.make(
      "div",
      { class: "columns two" },
      mapFigure,
      Dom.make(
        "div",
        {},
        Dom.figure("By distance", "mass on keys so many tokens away", distance),
        Dom.figure("Most attended", "at this step; a click goes to the token", top.node),
      ),
    ),
    decodedFigure,
  );

  const rowsOf = (sample) => {
    const later = sample.profileEvents.filter(
      (number) => sample.events.queries[sample.events.number.indexOf(number)] === 1,
    );
    const step = Math.max(1, Math.ceil(later.length / ROWS));
    return later.filter((_, index) => index % step === 0);
  };

  /* The mean over heads where all are chosen. */
  function ofHead(sample, name, at, layer, head) {
    const tensor = sample.tensors[name];
    if (head >= 0) return tensor.row(at, layer, head);
    const sum = new Float64Array(tensor.shape[3]);
    for (let one = 0; one < sample.heads; one++)
      tensor.row(at, layer, one).forEach((value, index) => (sum[index] += value / sample.heads));
    return sum;
  }

  function mapOf(sample, tensor, layer, head) {
    const width = tensor.shape[3];
    const sum = new Float64Array(tensor.shape[2] * width);
    const heads =
      head >= 0 ? [Math.min(head, tensor.shape[1] - 1)] : Array.from({ length: tensor.shape[1] }, (_, one) => one);
    for (const one of heads) tensor.row(layer, one).forEach((value, index) => (sum[index] += value / heads.length));
    return { at: (row, column) => sum[row * width + column], rows: tensor.shape[2], columns: width };
  }

  /* A logarithmic ramp over some masses, of four decades at most: {low, high, share(mass), legend}. */
  function decades(masses) {
    const positive = masses.filter((mass) => mass > 0);
    const high = positive.reduce((most, mass) => Math.max(most, mass), 1e-12);
    const low = positive.reduce((least, mass) => Math.min(least, mass), high);
    const from = Math.max(low, high * 1e-4);
    const span = Math.log(high / from) || 1;
    const share = (mass) => (mass > 0 ? Math.max(0, 1 - Math.log(high / mass) / span) : mass === 0 ? 0 : NaN);
    const legend = Legend.ramp(`≤ ${Format.number(from)}`, Format.number(high), "share of mass, logarithmic");
    return { share, legend };
  }

  function drawMap(sample, layer, head, event) {
    const number = Sample.nearest(sample.heatmapEvents, sample.number(event));
    mapFigure.hidden = number === null;
    if (number === null) return;
    const { at, rows } = mapOf(sample, sample.tensors[`heatmap.${number}`], layer, head);
    const tokens = sample.seen(Math.max(0, sample.events.number.indexOf(number)));
    const begin = (bin) => Math.ceil((bin * tokens) / rows);
    const used = Array.from({ length: rows }, (_, bin) => bin).filter((bin) => begin(bin) < begin(bin + 1));
    const ramp = decades(used.flatMap((row) => used.map((column) => at(row, column))));
    const name = (place) => String(begin(used[place]));
    const span = (place) => {
      const [first, last] = [begin(used[place]), begin(used[place] + 1) - 1];
      return last > first ? `${first}–${last}` : String(first);
    };
    map.update({
      rows: used.length,
      columns: used.length,
      rowName: name,
      columnName: name,
      share: (row, column) => {
        const mass = at(used[row], used[column]);
        return mass === 0 && column > row ? NaN : ramp.share(mass); // keys after the query: nothing to see there
      },
      describe: (row, column) => [
        `queries ${span(row)}, keys ${span(column)}`,
        `mass ${Format.number(at(used[row], used[column]))}`,
      ],
      legend: ramp.legend,
    });
    mapHint.textContent =
      number === sample.number(event) ? "" : `Of event ${number}, the nearest with more than one query.`;
  }

  function drawDecoded(sample, layer, head) {
    const numbers = rowsOf(sample);
    decodedFigure.hidden = numbers.length === 0;
    if (!numbers.length) return;
    const place = (number) => sample.profileEvents.indexOf(number);
    const rows = numbers.map((number) => ofHead(sample, "attention.position_mass", place(number), layer, head));
    const ramp = decades(rows.flatMap((row) => [...row]));
    const bins = rows[0].length;
    const edge = (row, bin) => Math.ceil((bin * sample.seen(sample.events.number.indexOf(numbers[row]))) / bins);
    const chosen = numbers.indexOf(sample.number(State.values.event));
    decoded.update({
      rows: numbers.length,
      columns: bins,
      rowName: (row) => String(numbers[row]),
      columnName: (bin) => Format.whole(edge(numbers.length - 1, bin)),
      selected: chosen < 0 ? null : [chosen, null],
      share: (row, bin) => ramp.share(rows[row][bin]),
      describe: (row, bin) => [
        `event ${numbers[row]}, keys ${edge(row, bin)}–${Math.max(edge(row, bin), edge(row, bin + 1) - 1)}`,
        `mass ${Format.number(rows[row][bin])}`,
      ],
      legend: ramp.legend,
    });
  }

  const bin = (index) => (index === 0 ? "0" : index === 1 ? "1" : `${2 ** (index - 1)}–${2 ** index - 1}`);

  function drawDistance(sample, layer, head, stored, event) {
    const masses = ofHead(sample, "attention.distance_mass", stored.at, layer, head);
    const reach = Math.max(2, Math.ceil(Math.log2(Math.max(2, sample.seen(event)))) + 1);
    const bars = [...masses.slice(0, Math.min(masses.length, reach))].map((height) => ({ height }));
    Charts.bars(distance, {
      bars,
      names: bars.map((_, index) => (index === 0 ? "0" : `${2 ** (index - 1)}+`)),
      ticks: 8,
      xLabel: "distance to the key, tokens",
      yLabel: "share of mass",
      describe: (index) => [`${bin(index)} tokens away`, `mass ${Format.number(bars[index].height)}`],
    });
  }

  function drawFacts(sample, layer, head, event) {
    const { at, number, exact } = sample.stored(event, "statisticsEvents");
    const all = head < 0 ? Array.from({ length: sample.heads }, (_, one) => one) : [head];
    const mean = (metric) =>
      all.reduce((sum, one) => sum + HeadGrid.value(sample, metric, at, layer, one), 0) / all.length;
    const which = head < 0 ? "mean over all heads" : `head ${head}, which reads key/value head ${sample.kvHead(head)}`;
    const name = Format.capital(sample.layerName(layer));
    title.textContent = `${name}, ${which}, event ${exact ? sample.number(event) : number}`;
    Dom.replace(
      facts,
      HeadGrid.metrics(sample).map((metric) =>
        Dom.make(
          "div",
          { class: "fact" },
          Dom.make("span", { class: "quiet" }, metric.title),
          Dom.make("b", { "data-metric": metric.key }, Format.number(mean(metric))),
        ),
      ),
    );
  }

  function drawTop(sample, layer, head, stored) {
    const masses = new Map();
    const all = head < 0 ? Array.from({ length: sample.heads }, (_, one) => one) : [head];
    for (const one of all) {
      const positions = sample.tensors["attention.top_positions"].row(stored.at, layer, one);
      const found = sample.tensors["attention.top_mass"].row(stored.at, layer, one);
      positions.forEach(
        (token, index) => token >= 0 && masses.set(token, (masses.get(token) || 0) + found[index] / all.length),
      );
    }
    top.update(
      [...masses]
        .map(([token, mass]) => ({ token, mass, text: Format.label(sample.text(token)) }))
        .sort((one, other) => other.mass - one.mass),
    );
  }

  function render() {
    const { sample, layer, head, event } = State.values;
    const stored = sample.stored(event, "profileEvents");
    drawFacts(sample, layer, head, event);
    drawMap(sample, layer, head, event);
    drawDistance(sample, layer, head, stored, event);
    drawTop(sample, layer, head, stored);
    drawDecoded(sample, layer, head);
  }

  State.on(["layer", "head", "event"], render);
  return { node, summary };
})();
