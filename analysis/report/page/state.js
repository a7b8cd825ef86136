/* What is chosen, and who wants to know. Changes of one moment are told once, before the next frame. */
const State = (() => {
  const values = {
    sample: null,
    event: 0,
    layer: 0,
    head: -1,
    token: 0,
    pinned: 0,
    colourBy: "mass",
    scale: "log",
    metric: "entropy_normalised",
    showEvicted: true,
  };
  const listeners = [];
  let pending = null;

  function set(changes) {
    const changed = Object.keys(changes).filter((key) => values[key] !== changes[key]);
    if (!changed.length) return;
    Object.assign(values, changes);
    announce(changed);
  }

  function announce(changed) {
    if (pending) {
      changed.forEach((key) => pending.add(key));
      return;
    }
    pending = new Set(changed);
    requestAnimationFrame(flush);
  }

  function flush() {
    const keys = pending;
    pending = null;
    for (const { wanted, handler } of listeners) if (wanted.some((key) => keys.has(key))) handler(keys);
  }

  /* Calls a handler at a change of one of some keys; "look" is a change of theme or width. */
  function on(wanted, handler) {
    listeners.push({ wanted: [...wanted, "sample", "look"], handler });
  }

  const clamp = (value, count) => Math.max(0, Math.min(count - 1, value));
  const event = (index) => set({ event: clamp(index, values.sample.eventCount) });
  const layer = (index) => set({ layer: clamp(index, values.sample.layers) });
  const head = (index) => set({ head: Math.max(-1, Math.min(values.sample.heads - 1, index)) });

  /* The kv head that is looked at; with all heads chosen, null. */
  const kvHead = () => (values.head < 0 ? null : values.sample.kvHead(values.head));

  return { values, set, on, announce, event, layer, head, kvHead };
})();
