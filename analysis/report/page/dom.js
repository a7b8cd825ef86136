"use strict";
/* Elements without markup: what comes from a prompt becomes a text node and is never parsed. */
const Dom = (() => {
  const SVG = "http://www.w3.org/2000/svg";

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
      else if (name === "style") for (const [key, text] of Object.entries(value)) node.style.setProperty(key, text);
      else node.setAttribute(name, value === true ? "" : String(value));
    }
    node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
    return node;
  }

  const make = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

  function replace(node, ...children) {
    node.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  }

  /* A section of the page with a heading, a sentence on how to read it, and a body. */
  function section(id, title, hint, ...children) {
    return make(
      "section",
      { id, class: "section", "aria-labelledby": `${id}-title` },
      make("h2", { id: `${id}-title` }, title),
      hint ? make("p", { class: "hint" }, hint) : null,
      children,
    );
  }

  function figure(title, hint, ...children) {
    return make(
      "figure",
      { class: "figure" },
      make("figcaption", {}, make("h3", {}, title), hint ? make("span", { class: "quiet" }, hint) : null),
      children,
    );
  }

  function choice(label, options, value, onChange, attributes) {
    const select = make(
      "select",
      { ...attributes, on: { change: () => onChange(select.value) } },
      options.map(([key, text]) => make("option", { value: key, selected: String(key) === String(value) }, text)),
    );
    return { node: make("label", { class: "choice" }, make("span", {}, label), select), select };
  }

  const button = (text, label, onClick, attributes) =>
    make("button", { type: "button", "aria-label": label, title: label, on: { click: onClick }, ...attributes }, text);

  let tipNode = null;

  function tip(lines, x, y) {
    if (!tipNode) document.body.append((tipNode = make("div", { class: "tip", "aria-hidden": "true" })));
    tipNode.hidden = !lines;
    if (!lines) return;
    replace(
      tipNode,
      lines.map((line, index) => make(index ? "div" : "strong", {}, line)),
    );
    const box = tipNode.getBoundingClientRect();
    const left = x + 14 + box.width > innerWidth ? x - 14 - box.width : x + 14;
    const top = y + 14 + box.height > innerHeight ? y - 14 - box.height : y + 14;
    tipNode.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(4, top)}px)`;
  }

  return { make, svg, replace, section, figure, choice, button, tip };
})();
