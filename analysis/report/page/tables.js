/* The same numbers as tables: layers, heads at the chosen step, events, tokens at the chosen layer and step. */
const Tables = (() => {
  const whole = Format.whole;
  const chosen = (row) => row.chosen;
  const layers = new SortableTable(
    "Layers",
    [
      { key: "layer", title: "layer", format: whole },
      { key: "name", title: "name", text: true, format: String },
      { key: "held", title: "held", unit: "per head" },
      { key: "share", title: "of seen", format: Format.percent },
      { key: "budget", title: "budget", format: whole },
      { key: "preference", title: "preference" },
      { key: "prefill", title: "evicted: prefill", format: whole },
      { key: "cascade", title: "cascade", format: whole },
      { key: "decode", title: "decode", format: whole },
      { key: "entropy", title: "entropy", unit: "nats" },
      { key: "keySparsity", title: "key sparsity", unit: "10 %", format: Format.percent },
      { key: "valueSparsity", title: "value sparsity", unit: "10 %", format: Format.percent },
    ],
    { shown: 64, chosen, onRow: (row) => State.layer(row.index) },
  );
  const heads = new SortableTable(
    "Heads at the chosen step",
    [
      { key: "layer", title: "layer", format: whole },
      { key: "head", title: "head", format: whole },
      { key: "kv", title: "kv head", format: whole },
      { key: "entropy", title: "entropy", unit: "nats" },
      { key: "maximum", title: "largest", unit: "prob." },
      { key: "density", title: "density" },
      { key: "sink_mass", title: "first tokens", unit: "mass" },
      { key: "recent_mass", title: "recent", unit: "mass" },
      { key: "diagonal_mass", title: "own token", unit: "mass" },
      { key: "keys50", title: "50 % of mass", unit: "keys" },
      { key: "keys90", title: "90 % of mass", unit: "keys" },
    ],
    {
      chosen,
      onRow: (row) => {
        State.layer(row.index);
        State.head(row.head);
      },
    },
  );
  const events = new SortableTable(
    "Events",
    [
      { key: "number", title: "event", format: whole },
      { key: "kind", title: "kind", text: true, format: String },
      { key: "step", title: "step", format: whole },
      { key: "block", title: "block", format: (value) => (value < 0 ? "–" : whole(value)) },
      { key: "first", title: "first query", format: whole },
      { key: "queries", title: "queries", format: whole },
      { key: "observed", title: "observed", format: whole },
      { key: "tokens", title: "tokens seen", format: whole },
      { key: "held", title: "held", unit: "tokens/head, mean" },
      { key: "bytes", title: "memory", format: Format.bytes },
      { key: "share", title: "of full", format: Format.percent },
      { key: "evicted", title: "evicted", unit: "tokens, all heads", format: whole },
    ],
    { chosen, onRow: (row) => State.event(row.index) },
  );
  const tokens = new SortableTable(
    "Tokens at the chosen layer, head and step",
    [
      { key: "token", title: "position", format: whole },
      { key: "text", title: "token", text: true, format: String },
      { key: "mass", title: "mass", unit: "mean over heads" },
      { key: "score", title: "score" },
      { key: "influence", title: "paid by decoded" },
      { key: "key", title: "‖key‖" },
      { key: "value", title: "‖value‖" },
      { key: "heads", title: "held by", unit: "kv heads", format: whole },
      { key: "fate", title: "fate", text: true, format: String },
    ],
    { chosen, onRow: (row) => TokenView.goTo(row.token) },
  );
  const PANELS = [
    ["layers", "Layers", layers, TableRows.layers],
    ["heads", "Heads at this step", heads, TableRows.heads],
    ["events", "Events", events, TableRows.events],
    ["tokens", "Tokens at this layer and step", tokens, TableRows.tokens],
  ];
  let open = "layers";

  const tabs = PANELS.map(([key, title]) =>
    Dom.make(
      "button",
      {
        type: "button",
        role: "tab",
        id: `tab-${key}`,
        "aria-controls": `panel-${key}`,
        on: { click: () => choose(key), keydown: step },
      },
      title,
    ),
  );
  const panels = PANELS.map(([key, , table]) =>
    Dom.make("div", { role: "tabpanel", id: `panel-${key}`, "aria-labelledby": `tab-${key}` }, table.node),
  );
  const node = Dom.section(
    "tables",
    "Tables",
    "A click on a heading sorts; a click on a row chooses it on the whole page.",
    Dom.make("div", { class: "tabs", role: "tablist", "aria-label": "Tables" }, tabs),
    panels,
  );

  function choose(key) {
    open = key;
    draw();
  }

  function step(event) {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    const next = (PANELS.findIndex(([key]) => key === open) + move + PANELS.length) % PANELS.length;
    choose(PANELS[next][0]);
    tabs[next].focus();
    event.preventDefault();
  }

  function draw() {
    PANELS.forEach(([key, , table, rowsOf], index) => {
      const chosen = key === open;
      panels[index].hidden = !chosen;
      tabs[index].setAttribute("aria-selected", String(chosen));
      tabs[index].tabIndex = chosen ? 0 : -1;
      if (chosen) table.update(rowsOf(State.values.sample, State.values));
    });
  }

  State.on(["layer", "head", "event", "pinned"], draw);
  return { node };
})();
