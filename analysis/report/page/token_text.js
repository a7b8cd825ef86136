/* One page of the text: a span per token, coloured and marked; one of them can be reached with the tab key. */
class TokenText {
  /* onHover(token or null), onPick(token), onPage(step): pages forward or back. */
  constructor({ onHover, onPick, onPage }) {
    Object.assign(this, { onHover, onPick, onPage, first: 0, spans: [] });
    this.node = Dom.make("div", { class: "token-text", role: "listbox", "aria-label": "Tokens", dir: "auto" });
    const tokenOf = (event) => {
      const span = event.target.closest("[data-token]");
      return span ? Number(span.dataset.token) : null;
    };
    this.node.addEventListener("pointerover", (event) => this.onHover(tokenOf(event)));
    this.node.addEventListener("pointerleave", () => this.onHover(null));
    this.node.addEventListener("click", (event) => {
      const token = tokenOf(event);
      if (token !== null) this.pick(token);
    });
    this.node.addEventListener("focusin", (event) => {
      const token = tokenOf(event);
      if (token !== null) this.onPick(token);
    });
    this.node.addEventListener("keydown", (event) => this.key(event));
  }

  show(sample, first, count) {
    this.first = first;
    const pieces = [];
    this.spans = [];
    for (let token = first; token < Math.min(first + count, sample.tokenCount); token++) {
      const text = sample.text(token);
      const span = Dom.make(
        "span",
        { class: "token", role: "option", "data-token": token, tabindex: -1 },
        TokenText.shown(text),
      );
      this.spans.push(span);
      pieces.push(span);
      const breaks = Math.min(2, (text.match(/\n/g) || []).length);
      for (let at = 0; at < breaks; at++) pieces.push(Dom.make("br"));
      if (token === sample.promptTokens - 1 && token + 1 < sample.tokenCount) {
        pieces.push(Dom.make("span", { class: "boundary", role: "presentation" }, "after the prompt"));
      }
    }
    this.node.classList.toggle("spaceless", sample.spaceless);
    Dom.replace(this.node, pieces);
  }

  static shown(text) {
    if (text === "") return "∅";
    return /^[ \u00a0]+$/.test(text) ? "␣".repeat(text.length) : Format.visible(text);
  }

  /* look(token) -> {share (NaN: no colour), classes, label}. */
  paint(look, pinned) {
    this.spans.forEach((span, index) => {
      const token = this.first + index;
      const { share, classes, label } = look(token);
      const coloured = Number.isFinite(share);
      span.className = `token ${classes}${token === pinned ? " pinned" : ""}`;
      span.style.setProperty("--mass", coloured ? Ramps.colour(share) : "transparent");
      span.style.setProperty("--mass-ink", coloured ? Ramps.ink(share) : "inherit");
      span.setAttribute("aria-label", label);
      span.setAttribute("aria-selected", String(token === pinned));
      span.tabIndex = token === pinned ? 0 : -1;
    });
    if (this.spans.length && !this.span(pinned)) this.spans[0].tabIndex = 0;
  }

  span(token) {
    return this.spans[token - this.first];
  }

  pick(token) {
    this.onPick(token);
    const span = this.span(token);
    if (span) span.focus({ preventScroll: false });
  }

  /* The token above or below, by where the spans stand. */
  vertical(token, direction) {
    const from = this.span(token).getBoundingClientRect();
    const middle = from.left + from.width / 2;
    let best = null;
    for (let at = token + direction; this.span(at); at += direction) {
      const box = this.span(at).getBoundingClientRect();
      const apart = (box.top - from.top) * direction;
      if (apart < from.height / 2) continue;
      if (best !== null && (box.top - best.top) * direction > from.height / 2) break;
      const distance = Math.abs(box.left + box.width / 2 - middle);
      if (best === null || distance < best.distance) best = { at, distance, top: box.top };
    }
    return best === null ? token : best.at;
  }

  key(event) {
    const token = Number(event.target.dataset.token);
    if (!Number.isFinite(token) || event.ctrlKey || event.metaKey || event.altKey) return;
    const last = this.first + this.spans.length - 1;
    const moves = {
      ArrowLeft: () => token - 1,
      ArrowRight: () => token + 1,
      Home: () => this.first,
      End: () => last,
      ArrowUp: () => this.vertical(token, -1),
      ArrowDown: () => this.vertical(token, 1),
    };
    if (event.key === "PageDown" || event.key === "PageUp") this.onPage(event.key === "PageDown" ? 1 : -1);
    else if (moves[event.key]) {
      const target = moves[event.key]();
      if (this.span(target)) this.pick(target);
    } else return;
    event.preventDefault();
  }
}
