/* Layer, head and step for the whole page, with keys and a play button. */
const Controls = (() => {
  const MILLISECONDS = 450; // from one event to the next while playing
  const KEYS = {
    "[": () => State.layer(State.values.layer - 1),
    "]": () => State.layer(State.values.layer + 1),
    "-": () => State.head(State.values.head - 1),
    "=": () => State.head(State.values.head + 1),
    ",": () => State.event(State.values.event - 1),
    ".": () => State.event(State.values.event + 1),
    p: () => toggle(),
  };
  let timer = null;
  let slider = null;
  let layerSelect = null;
  let headSelect = null;
  const told = Dom.make("output", { class: "told", id: "told", "aria-live": "polite" });
  const play = Dom.button("Play", "Play the events (p)", () => toggle(), { class: "play", id: "play" });

  function build(sample) {
    const layers = sample.layerIndices.map((index, layer) => [
      layer,
      sample.ownName(layer) ? `${index} · ${sample.ownName(layer)}` : index,
    ]);
    const heads = [
      [-1, "all heads"],
      ...Array.from({ length: sample.heads }, (_, head) => [head, `${head} (kv ${sample.kvHead(head)})`]),
    ];
    const layer = Dom.choice("Layer", layers, State.values.layer, (value) => State.layer(Number(value)), {
      id: "layer",
    });
    const head = Dom.choice("Head", heads, State.values.head, (value) => State.head(Number(value)), { id: "head" });
    [layerSelect, headSelect] = [layer.select, head.select];
    slider = Dom.make("input", {
      type: "range",
      id: "event",
      min: 0,
      max: sample.eventCount - 1,
      step: 1,
      value: State.values.event,
      "aria-label": "Event",
      on: { input: () => State.event(Number(slider.value)) },
    });
    const alone = sample.eventCount === 1;
    [slider.disabled, play.disabled] = [alone, alone];
    const move = (text, label, by) =>
      Dom.button(text, label, () => State.event(State.values.event + by), { disabled: alone });
    Dom.replace(
      document.getElementById("controls"),
      Dom.make(
        "div",
        { class: "control-row" },
        stepper(layer.node, "layer", "[ and ]", (by) => State.layer(State.values.layer + by)),
        stepper(head.node, "head", "- and =", (by) => State.head(State.values.head + by)),
        Dom.make(
          "div",
          { class: "stepper wide" },
          move("‹", "Previous event (,)", -1),
          slider,
          move("›", "Next event (.)", 1),
          play,
        ),
      ),
      told,
    );
  }

  const stepper = (node, what, keys, by) =>
    Dom.make(
      "div",
      { class: "stepper" },
      node,
      Dom.button("−", `Previous ${what} (${keys})`, () => by(-1)),
      Dom.button("+", `Next ${what} (${keys})`, () => by(1)),
    );

  function toggle() {
    if (timer) return stop();
    const { sample, event } = State.values;
    if (sample.eventCount < 2) return;
    if (event === sample.eventCount - 1) State.event(0);
    play.textContent = "Pause";
    play.setAttribute("aria-pressed", "true");
    timer = setInterval(() => {
      if (State.values.event === State.values.sample.eventCount - 1) stop();
      else State.event(State.values.event + 1);
    }, MILLISECONDS);
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
    play.setAttribute("aria-pressed", "false");
  }

  function tell(sample, event, layer) {
    const { events } = sample;
    const step =
      events.kind[event] === 0
        ? `prefill of ${Format.plural(events.queries[event], "query", "queries")}`
        : `${Format.kind(events.kind[event])}, step ${events.step[event]}`;
    const block = events.block[event] >= 0 ? `, block ${events.block[event]}` : "";
    Dom.replace(
      told,
      Dom.make("b", {}, `Event ${sample.number(event)}`),
      ` of ${Format.whole(sample.totalEvents - 1)} · ${step}${block} · `,
      `${Format.whole(sample.seen(event))} tokens seen · `,
      Dom.make("b", {}, sample.layerName(layer)),
      ` holds ${Format.number(sample.held(event, layer))} per head · `,
      `cache ${Format.bytes(events.held_bytes[event])} of ${Format.bytes(events.full_bytes[event])}`,
    );
  }

  function render(keys) {
    const { sample, event, layer, head } = State.values;
    if (keys.has("sample")) {
      stop();
      build(sample);
    }
    slider.value = event;
    slider.setAttribute("aria-valuetext", `event ${sample.number(event)}, ${Format.kind(sample.events.kind[event])}`);
    layerSelect.value = layer;
    headSelect.value = head;
    tell(sample, event, layer);
  }

  document.addEventListener("keydown", (event) => {
    const inField = event.target instanceof Element && event.target.closest("input, select, textarea");
    if (inField || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key] || !State.values.sample) return;
    KEYS[event.key]();
    event.preventDefault();
  });
  State.on(["event", "layer", "head"], render);
  return {};
})();
