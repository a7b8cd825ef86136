/* Everything about one token: its numbers, why each head holds it or not, and its fate in every layer. */
const TokenDetail = (() => {
  const MOST_REASONS = 4; // with all heads chosen; the table has every head
  const body = Dom.make("div");
  const node = Dom.make("aside", { class: "token-detail", "aria-label": "The token" }, body);
  const grid = new CellGrid({
    label: "Fate of the token by layer and key/value head",
    rowTitle: "layer",
    columnTitle: "key/value head",
    cell: { least: 4, most: 16 },
    onSelect: (layer, kvHead) => {
      State.layer(layer);
      State.head(kvHead * State.values.sample.group);
    },
  });

  function numbers(sample, token, layer, event) {
    const mass = sample.mass(event);
    const known = mass && token < mass.tensor.shape[1];
    const rows = [
      ["position", Format.whole(token)],
      [
        mass && !mass.exact ? `mass (event ${mass.number})` : "mass",
        known ? Format.number(mass.tensor.at(layer, token)) : "–",
      ],
    ];
    if (sample.has("token.influence")) {
      rows.push(["mass paid by decoded tokens", Format.number(sample.tensors["token.influence"].at(layer, token))]);
    }
    return Dom.make(
      "dl",
      { class: "token-numbers" },
      rows.map(([name, value]) => [Dom.make("dt", {}, name), Dom.make("dd", { "data-number": name }, value)]),
    );
  }

  function headTable(sample, token, layer, event, chosen) {
    const heads = Array.from({ length: sample.kvHeads }, (_, head) => head);
    const titles = ["kv head", ...(sample.compressed ? ["score", "cut"] : []), "‖key‖", "‖value‖", "fate"];
    return Dom.make(
      "table",
      { class: "head-table" },
      Dom.make("caption", { class: "visually-hidden" }, "Per key/value head of the layer"),
      Dom.make(
        "thead",
        {},
        Dom.make(
          "tr",
          {},
          titles.map((title) => Dom.make("th", { scope: "col" }, title)),
        ),
      ),
      Dom.make(
        "tbody",
        {},
        heads.map((head) => {
          const fate = Fate.explain(sample, layer, head, token, event);
          const scores = sample.compressed ? [fate.score, fate.cut].map(Format.number) : [];
          const norms = ["kv.key_norm", "kv.value_norm"].map((name) =>
            Format.number(sample.perHead(name, layer, head, token)),
          );
          return Dom.make(
            "tr",
            { class: head === chosen ? "chosen" : "" },
            [head, ...scores, ...norms].map((text) => Dom.make("td", {}, String(text))),
            Dom.make("td", {}, mark(fate.code), Fate.short(fate.code)),
          );
        }),
      ),
    );
  }

  function mark(code) {
    const dot = Dom.make("span", { class: "swatch", "aria-hidden": "true" });
    dot.style.backgroundColor = code < 0 ? "transparent" : Ramps.stage(code);
    return dot;
  }

  function reasons(sample, token, layer, event, chosen) {
    const heads = chosen === null ? Array.from({ length: sample.kvHeads }, (_, head) => head) : [chosen];
    const byText = new Map();
    for (const head of heads) {
      const fate = Fate.explain(sample, layer, head, token, event);
      byText.set(fate.why, { fate, heads: [...((byText.get(fate.why) || {}).heads || []), head] });
    }
    return Dom.make(
      "ul",
      { class: "reasons" },
      [...byText.values()]
        .slice(0, MOST_REASONS)
        .map(({ fate, heads: which }) =>
          Dom.make(
            "li",
            { "data-fate": fate.code },
            mark(fate.code),
            Dom.make("span", {}, headline(sample, fate, which), " ", fate.why),
          ),
        ),
    );
  }

  function headline(sample, fate, heads) {
    const all = heads.length === sample.kvHeads && heads.length > 1;
    const which = all ? "all heads" : `kv head ${heads.join(", ")}`;
    return Dom.make("strong", {}, `${Format.capital(fate.name)} (${which}).`);
  }

  function fates(sample, token, event) {
    grid.update({
      rows: sample.layers,
      columns: sample.kvHeads,
      rowName: (layer) => String(sample.layerIndices[layer]),
      columnName: String,
      selected: [State.values.layer, State.kvHead()],
      colour: (layer, head) => {
        const code = sample.fate(layer, head, token, event);
        return code < 0 ? null : Ramps.stage(code);
      },
      describe: (layer, head) => {
        const fate = Fate.explain(sample, layer, head, token, event);
        return [`${sample.layerName(layer)}, kv head ${head}: ${fate.name}`, fate.why];
      },
      legend: Legend.stages(),
    });
  }

  function render() {
    const { sample, token, layer, event } = State.values;
    const chosen = State.kvHead();
    const part = token < sample.promptTokens ? "prompt" : "after the prompt";
    Dom.replace(
      body,
      Dom.make(
        "div",
        { class: "token-title" },
        Dom.make("span", { class: "token-big", dir: "auto" }, Format.label(sample.text(token))),
        Dom.make("span", { class: "quiet" }, `${part} · ${sample.layerName(layer)}`),
      ),
      numbers(sample, token, layer, event),
      reasons(sample, token, layer, event, chosen),
      headTable(sample, token, layer, event, chosen),
      sample.compressed ? [Dom.make("h3", {}, "In every layer"), grid.node] : null,
    );
    if (sample.compressed) fates(sample, token, event);
  }

  State.on(["token", "layer", "head", "event"], render);
  return { node };
})();
