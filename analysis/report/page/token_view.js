/* The text, coloured by a number and marked by what the chosen layer and head hold of it. */
const TokenView = (() => {
  const PAGE = 1200; // tokens in the document at a time
  const BINS = 200; // of the strip that shows the whole text

  let page = 0;
  let look = null;
  const toolbar = Dom.make("div", { class: "toolbar" });
  const caption = Dom.make("p", { class: "hint", "aria-live": "polite" });
  const legend = Dom.make("div", { class: "legend-row" });
  const pager = Dom.make("div", { class: "pager" });
  const strip = new CellGrid({
    label: "The whole text in pieces",
    cell: { least: 12, most: 18 },
    columnTitle: "position",
    onSelect: (_, bin) => goTo(tokensOf(bin)[0]),
  });
  const text = new TokenText({
    onHover: (token) => State.set({ token: token === null ? State.values.pinned : token }),
    onPick: (token) => State.set({ token, pinned: token }),
    onPage: (step) => turn(step, true),
  });
  const node = Dom.section(
    "tokens",
    "Tokens",
    "Every token of the text. Its colour is a number of your choice: it fills " +
      "tokens that are held and underlines the others. Hover, or use the arrow keys, to read why; a click pins.",
    toolbar,
    strip.node,
    caption,
    Dom.make("div", { class: "token-columns" }, Dom.make("div", {}, legend, text.node, pager), TokenDetail.node),
  );

  const pages = () => Math.ceil(State.values.sample.tokenCount / PAGE);

  function tokensOf(bin) {
    const { tokenCount } = State.values.sample;
    const bins = Math.min(BINS, tokenCount);
    return [Math.floor((bin * tokenCount) / bins), Math.floor(((bin + 1) * tokenCount) / bins)];
  }

  function goTo(token) {
    State.set({ token, pinned: token });
    show(Math.floor(token / PAGE));
    paint();
    const span = text.span(token);
    if (span) span.scrollIntoView({ block: "nearest" });
  }

  function turn(step, focus) {
    const target = Math.max(0, Math.min(pages() - 1, page + step));
    if (target === page) return;
    State.set({ token: target * PAGE, pinned: target * PAGE });
    show(target);
    paint();
    if (focus) text.span(target * PAGE).focus();
  }

  function show(wanted) {
    const { sample } = State.values;
    page = wanted;
    text.show(sample, page * PAGE, PAGE);
    text.node.scrollTop = 0;
    const last = Math.min((page + 1) * PAGE, sample.tokenCount) - 1;
    Dom.replace(
      pager,
      pages() < 2
        ? []
        : [
            Dom.button("◀", "Earlier tokens", () => turn(-1), { disabled: page === 0 }),
            Dom.make(
              "span",
              {},
              `Tokens ${Format.whole(page * PAGE)} to ${Format.whole(last)} of ${Format.whole(sample.tokenCount)}`,
            ),
            Dom.button("▶", "Later tokens", () => turn(1), { disabled: page === pages() - 1 }),
          ],
    );
  }

  /* What all tokens look like at the chosen layer, head and step. */
  function compute() {
    const { sample, layer, head, event, colourBy, scale } = State.values;
    const kind = TokenValues.kindOf(sample, colourBy);
    const numbers = TokenValues.values(sample, kind, layer, head, event);
    return {
      sample,
      layer,
      event,
      kind,
      numbers,
      kvHead: State.kvHead(),
      ramp: TokenValues.ramp(numbers, kind, scale),
    };
  }

  function lookOf(token) {
    const { sample, layer, event, kind, numbers, kvHead, ramp } = look;
    const { held, of, code } = Fate.overHeads(sample, layer, kvHead, token, event);
    const name = Format.label(sample.text(token));
    const partly = held > 0 && held < of;
    const classes =
      code < 0 ? "later" : !State.values.showEvicted || code === 0 ? "" : partly ? "partly" : `gone gone-${code}`;
    const state =
      code < 0 ? "not there yet" : held === of ? "held" : partly ? `held by ${held} of ${of} heads` : Fate.name(code);
    return {
      share: code < 0 ? NaN : ramp.share(numbers[token]),
      classes,
      label: `token ${token}, ${name}, ${kind.title} ${Format.number(numbers[token])}, ${state}`,
    };
  }

  function paint() {
    look = compute();
    text.paint(lookOf, State.values.pinned);
    paintStrip();
    tell();
  }

  function paintStrip() {
    const { sample, layer, event, numbers, kvHead, ramp, kind } = look;
    const bins = Math.min(BINS, sample.tokenCount);
    const most = new Float64Array(bins);
    const share = new Float64Array(bins);
    for (let bin = 0; bin < bins; bin++) {
      const [begin, end] = tokensOf(bin);
      let [largest, held, seen] = [NaN, 0, 0];
      for (let token = begin; token < end; token++) {
        if (!(numbers[token] <= largest) && Number.isFinite(numbers[token])) largest = numbers[token];
        const fate = Fate.overHeads(sample, layer, kvHead, token, event);
        if (fate.code >= 0) [held, seen] = [held + fate.held / fate.of, seen + 1];
      }
      [most[bin], share[bin]] = [largest, seen ? held / seen : NaN];
    }
    const pinned = Math.min(bins - 1, Math.floor((State.values.pinned * bins) / sample.tokenCount));
    strip.update({
      rows: sample.compressed ? 2 : 1,
      columns: bins,
      rowName: (row) => ["largest", "held"][row],
      columnName: (bin) => Format.whole(tokensOf(bin)[0]),
      selected: [null, pinned],
      share: (row, bin) => (row ? share[bin] : ramp.share(most[bin])),
      describe: (row, bin) => {
        const [begin, end] = tokensOf(bin);
        return [
          end - begin > 1 ? `tokens ${begin} to ${end - 1}` : `token ${begin}`,
          `largest: ${Format.number(most[bin])} (${kind.title})`,
          `held: ${Format.percent(share[bin])}`,
        ];
      },
    });
  }

  function tell() {
    const { sample, layer, event, kind, kvHead, ramp } = look;
    const { head } = State.values;
    const mass = sample.mass(event);
    const other =
      kind.key === "mass" && mass && !mass.exact
        ? ` Masses of event ${mass.number}: none is stored for event ${sample.number(event)}.`
        : "";
    const heads = kvHead === null ? "all heads" : `head ${head} (key/value head ${kvHead})`;
    const held = sample.compressed
      ? ` The layer holds ${Format.number(sample.held(event, layer))} of ` +
        `${Format.whole(sample.seen(event))} tokens per head.`
      : " Nothing is evicted.";
    caption.textContent = `${sample.layerName(layer)}, ${heads}, event ${sample.number(event)}.${held}${other}`;
    const marks = !sample.compressed
      ? []
      : [
          mark("gone gone-1", "evicted in its layer's prefill"),
          mark("gone gone-2", "by the cascade"),
          mark("gone gone-3", "while decoding"),
          ...(kvHead === null && sample.kvHeads > 1 ? [mark("partly", "held by some heads")] : []),
        ];
    Dom.replace(
      legend,
      Legend.ramp((ramp.log ? "≤ " : "") + Format.number(ramp.low), Format.number(ramp.high), kind.unit),
      marks,
    );
  }

  const mark = (classes, meaning) =>
    Dom.make(
      "span",
      { class: "legend" },
      Dom.make("span", { class: `token ${classes}`, "aria-hidden": "true" }, "token"),
      meaning,
    );

  function choices() {
    const { sample, colourBy, scale, showEvicted } = State.values;
    const kinds = TokenValues.kinds(sample).map((kind) => [kind.key, kind.title]);
    const box = Dom.make("input", {
      type: "checkbox",
      checked: showEvicted,
      on: { change: () => State.set({ showEvicted: box.checked }) },
    });
    Dom.replace(
      toolbar,
      Dom.choice("Colour by", kinds, colourBy, (key) => State.set({ colourBy: key }), { id: "colour-by" }).node,
      Dom.choice(
        "Scale",
        [
          ["log", "logarithmic"],
          ["linear", "linear"],
        ],
        scale,
        (key) => State.set({ scale: key }),
        { id: "scale" },
      ).node,
      sample.compressed
        ? Dom.make("label", { class: "choice" }, box, Dom.make("span", {}, "mark what was evicted"))
        : [],
    );
  }

  State.on([], (keys) => {
    if (!keys.has("sample")) return;
    choices();
    show(0);
  });
  State.on(["layer", "head", "event", "colourBy", "scale", "showEvicted", "pinned"], paint);
  return { node, goTo };
})();
