/* What was captured, and what compression left of it. */
const Overview = (() => {
  const node = Dom.section("overview", "Overview", null);
  const body = Dom.make("div");
  node.append(body);

  function card(title, value, detail, share) {
    const bar =
      share === undefined
        ? null
        : Dom.make(
            "div",
            { class: "meter", role: "img", "aria-label": Format.percent(share) },
            Dom.make("div", { style: { width: `${100 * Math.min(1, share)}%` } }),
          );
    return Dom.make(
      "div",
      { class: "card" },
      Dom.make("div", { class: "card-title" }, title),
      Dom.make("div", { class: "card-value" }, value),
      bar,
      Dom.make("div", { class: "quiet" }, detail),
    );
  }

  function cards(sample) {
    const last = sample.eventCount - 1;
    const { events } = sample;
    const total = (list) => list.reduce((sum, value) => sum + value, 0);
    const kinds = [0, 1, 2]
      .map((code) => [events.kind.filter((kind) => kind === code).length, Format.kind(code)])
      .filter(([count]) => count > 0)
      .map(([count, name]) => `${Format.whole(count)} ${name}`)
      .join(", ");
    const held = sample.heldMean(last);
    const [bytes, full] = [events.held_bytes[last], events.full_bytes[last]];
    const generated = sample.tokenCount - sample.promptTokens;
    const thinned = sample.totalEvents > sample.eventCount ? `${sample.eventCount} of them on this page` : kinds;
    return [
      card(
        "Tokens",
        Format.whole(sample.tokenCount),
        `${Format.whole(sample.promptTokens)} of the prompt, ${Format.whole(generated)} after it`,
      ),
      card(
        "Held in the end",
        `${Format.number(held)}`,
        `tokens per head on average, ${Format.percent(held / sample.seen(last))} of those seen`,
        held / sample.seen(last),
      ),
      card(
        "Memory of keys and values",
        Format.bytes(bytes),
        `${Format.percent(bytes / full)} of the full cache's ${Format.bytes(full)}`,
        bytes / full,
      ),
      card("Events", Format.whole(sample.totalEvents), thinned),
      card(
        "Queries observed",
        Format.whole(total(events.observed_queries)),
        `of ${Format.whole(total(events.queries))}; statistics are means over them`,
      ),
    ];
  }

  function pairs(title, entries) {
    return Dom.make(
      "div",
      { class: "pairs" },
      Dom.make("h3", {}, title),
      Dom.make(
        "dl",
        {},
        entries
          .filter(([, value]) => value !== null && value !== undefined && value !== "")
          .map(([name, value]) => [
            Dom.make("dt", {}, name),
            Dom.make("dd", {}, typeof value === "object" ? JSON.stringify(value) : String(value)),
          ]),
      ),
    );
  }

  function policy(sample) {
    if (!sample.compressed) return pairs("Policy", [["name", "none: the full cache"]]);
    const { name, ...parameters } = sample.policy;
    return pairs("Policy", [["name", name], ...Object.entries(parameters)]);
  }

  function model({ model: described, seconds, created }) {
    return pairs("Model and run", [
      ["model", described.name],
      ["class", described.class],
      ["layers captured", described.layers],
      ["heads", `${described.queryHeads} query, ${described.kvHeads} key/value, of ${described.headDim} dimensions`],
      ["dtype, device", `${described.dtype}, ${described.device}`],
      ["attention", described.attention],
      ["captured", created],
      ["took", `${Format.number(seconds)} s`],
    ]);
  }

  function text(sample) {
    return sample.generatedText
      ? Dom.make(
          "details",
          { class: "generated", open: sample.generatedText.length < 400 },
          Dom.make("summary", {}, "Generated text"),
          Dom.make("blockquote", { dir: "auto" }, sample.generatedText),
        )
      : null;
  }

  function render() {
    const { sample } = State.values;
    const notes = sample.notes.length
      ? Dom.make(
          "details",
          { class: "notes", open: sample.notes.length < 12 },
          Dom.make("summary", {}, "What this page leaves out"),
          Dom.make(
            "ul",
            {},
            sample.notes.map((note) => Dom.make("li", {}, note)),
          ),
        )
      : null;
    Dom.replace(
      body,
      Dom.make("div", { class: "cards" }, cards(sample)),
      Dom.make(
        "div",
        { class: "columns three" },
        policy(sample),
        model(sample),
        pairs("Versions", Object.entries(sample.versions)),
      ),
      text(sample),
      notes,
    );
  }

  State.on([], render);
  return { node };
})();
