/* A sample of the capture, as the views ask for it. Layers, heads, events are indices; `number` is an event's own. */
class Sample {
  static async read(index) {
    const described = JSON.parse(document.getElementById(`sample-${index}`).textContent);
    return new Sample(described, await Arrays.decodeAll(described.arrays));
  }

  constructor(described, tensors) {
    Object.assign(this, described, { arrays: null, tensors });
    this.layers = this.model.layers;
    this.heads = this.model.queryHeads;
    this.kvHeads = this.model.kvHeads;
    this.group = this.heads / this.kvHeads;
    this.compressed = this.policy !== null;
    this.eventCount = this.events.number.length;
    this.knowsEvictions = Boolean(tensors["compression.evicted_event"] && tensors["compression.evicted_stage"]);
    this.window = Number((this.policy || {}).window_size) || 0;
    this.sinks = Number((this.policy || {}).sink_tokens) || 0;
    const style = Format.artefacts(this.tokens || []);
    this.spaceless = !(this.tokens || []).some((text) => text.length > 1 && /[ Ġ▁]/.test(text)); // words alone
    this.texts = this.tokens ? this.tokens.map((text) => Format.readable(text, style)) : null;
  }

  has(name) {
    return Boolean(this.tensors[name]);
  }

  text(token) {
    if (this.texts) return this.texts[token];
    const id = this.tensors["token.ids"].at(token);
    return id < 0 ? `#${token}` : String(id); // a model without a vocabulary has positions alone
  }

  kvHead(head) {
    return Math.floor(head / this.group);
  }

  number(event) {
    return this.events.number[event];
  }

  seen(event) {
    return this.events.tokens[event];
  }

  layerName(layer) {
    return `layer ${this.layerIndices[layer]}`;
  }

  /* What the model calls a layer, where that says more than its number. */
  ownName(layer) {
    const name = this.layerNames[layer] || "";
    return name === this.layerName(layer) ? "" : name;
  }

  /* The last of some stored events that is not after an event; the first where all are after it. */
  static nearest(stored, number) {
    let found = stored.length ? stored[0] : null;
    for (const candidate of stored) if (candidate <= number) found = candidate;
    return found;
  }

  /* Mass per token at the nearest stored event: {number, exact, tensor [layers, tokens]}, or null. */
  mass(event) {
    const number = Sample.nearest(this.massEvents, this.number(event));
    if (number === null) return null;
    return { number, exact: number === this.number(event), tensor: this.tensors[`mass.${number}`] };
  }

  /* Where in the statistics (or profiles) the nearest stored event is: {number, exact, at}. */
  stored(event, which) {
    const number = Sample.nearest(this[which], this.number(event));
    return { number, exact: number === this.number(event), at: this[which].indexOf(number) };
  }

  /* tensor[layer, head, token], for the loops over all tokens. */
  static pick({ data, strides }, layer, head, token) {
    return data[layer * strides[0] + head * strides[1] + token];
  }

  evictedEvent(layer, kvHead, token) {
    return this.knowsEvictions ? Sample.pick(this.tensors["compression.evicted_event"], layer, kvHead, token) : -1;
  }

  /* 0 held, 1 to 3 the stage in which it had been evicted by then, -1 not there yet. */
  fate(layer, kvHead, token, event) {
    if (token >= this.seen(event)) return -1;
    const evicted = this.evictedEvent(layer, kvHead, token);
    if (evicted < 0 || evicted > this.number(event)) return 0;
    return Sample.pick(this.tensors["compression.evicted_stage"], layer, kvHead, token);
  }

  /* Tokens that a layer holds per head after an event, mean over its heads. */
  held(event, layer) {
    if (!this.has("compression.held")) return this.seen(event);
    const row = this.tensors["compression.held"].row(event, layer);
    return row.reduce((sum, value) => sum + value, 0) / row.length;
  }

  heldMean(event) {
    let sum = 0;
    for (let layer = 0; layer < this.layers; layer++) sum += this.held(event, layer);
    return sum / this.layers;
  }

  /* A number per kv head that may have been averaged over heads to fit the page. */
  perHead(name, layer, kvHead, token) {
    const tensor = this.tensors[name];
    return tensor ? Sample.pick(tensor, layer, Math.min(kvHead, tensor.shape[1] - 1), token) : NaN;
  }

  averaged(name) {
    return (this.codings[name] || "").startsWith("mean");
  }
}
