/* The rows of the tables: what each says of a layer, a head, an event, a token. */
const TableRows = (() => {
  function meanOf(count, value) {
    let sum = 0;
    for (let index = 0; index < count; index++) sum += value(index);
    return sum / count;
  }

  function layers(sample, { event, layer }) {
    const at10 = sample.settings.sparsity_thresholds.indexOf(0.1);
    const evicted = (one, stage) =>
      sample.compressed
        ? sample.events.number.reduce(
            (sum, _, index) => (index <= event ? sum + sample.tensors.evictions.at(index, one, stage) : sum),
            0,
          )
        : NaN;
    return Array.from({ length: sample.layers }, (_, one) => ({
      index: one,
      chosen: one === layer,
      layer: sample.layerIndices[one],
      name: sample.ownName(one),
      held: sample.held(event, one),
      share: sample.held(event, one) / sample.seen(event),
      budget:
        sample.compressed && sample.tensors["compression.budget"].at(one) >= 0
          ? sample.tensors["compression.budget"].at(one)
          : NaN,
      preference: sample.compressed ? sample.tensors["compression.preference"].at(one) : NaN,
      prefill: evicted(one, 0),
      cascade: evicted(one, 1),
      decode: evicted(one, 2),
      entropy: sample.tensors["over_time.entropy"].at(event, one),
      ...Object.fromEntries(
        ["key", "value"].map((side) => [
          `${side}Sparsity`,
          at10 < 0 ? NaN : meanOf(sample.kvHeads, (head) => sample.tensors[`kv.${side}_sparsity`].at(one, head, at10)),
        ]),
      ),
    }));
  }

  function heads(sample, { event, layer, head }) {
    const { at } = sample.stored(event, "statisticsEvents");
    const percent = sample.settings.coverage_percent;
    const rows = [];
    for (let one = 0; one < sample.layers; one++) {
      for (let h = 0; h < sample.heads; h++) {
        const of = (name) => sample.tensors[`attention.${name}`].at(at, one, h);
        const keys = (share) => sample.tensors["attention.coverage"].at(at, one, h, percent.indexOf(share));
        rows.push({
          index: one,
          chosen: one === layer && h === head,
          layer: sample.layerIndices[one],
          head: h,
          kv: sample.kvHead(h),
          entropy: of("entropy"),
          maximum: of("maximum"),
          density: of("density"),
          sink_mass: of("sink_mass"),
          recent_mass: of("recent_mass"),
          diagonal_mass: of("diagonal_mass"),
          keys50: keys(50),
          keys90: keys(90),
        });
      }
    }
    return rows;
  }

  function events(sample, { event }) {
    const list = sample.events;
    return list.number.map((number, index) => ({
      index,
      chosen: index === event,
      number,
      kind: Format.kind(list.kind[index]),
      step: list.step[index],
      block: list.block[index],
      first: list.first_query[index],
      queries: list.queries[index],
      observed: list.observed_queries[index],
      tokens: list.tokens[index],
      held: sample.heldMean(index),
      bytes: list.held_bytes[index],
      share: list.held_bytes[index] / list.full_bytes[index],
      evicted: sample.compressed ? sample.tensors.evictions.row(index).reduce((sum, count) => sum + count, 0) : NaN,
    }));
  }

  function tokens(sample, { event, layer, head, pinned }) {
    const kvHead = State.kvHead();
    const of = (key) =>
      TokenValues.kinds(sample).some((kind) => kind.key === key)
        ? TokenValues.values(sample, { key }, layer, head, event)
        : null;
    const columns = {
      mass: of("mass"),
      score: of("score"),
      influence: of("influence"),
      key: of("key_norm"),
      value: of("value_norm"),
    };
    const rows = [];
    for (let token = 0; token < sample.seen(event); token++) {
      const fate = Fate.overHeads(sample, layer, kvHead, token, event);
      const numbers = Object.fromEntries(
        Object.entries(columns).map(([key, values]) => [key, values ? values[token] : NaN]),
      );
      rows.push({
        token,
        chosen: token === pinned,
        text: Format.label(sample.text(token)),
        ...numbers,
        heads: fate.held,
        fate: fate.held > 0 && fate.held < fate.of ? "held by some heads" : Fate.name(fate.code),
      });
    }
    return rows;
  }

  return { layers, heads, events, tokens };
})();
