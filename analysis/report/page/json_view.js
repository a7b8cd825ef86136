/* Any JSON: objects as names and values, lists of alike objects as tables, what is deeper to be opened. */
const JsonView = (() => {
  const MOST = 200; // entries of a list that are shown
  const title = (key) => key.replace(/_/g, " ");
  const isLeaf = (value) => value === null || typeof value !== "object";
  const isRow = (value) => !isLeaf(value) && !Array.isArray(value);
  const text = (value) => String(value ?? "–");

  function leaf(value) {
    if (typeof value === "number") return Number.isInteger(value) ? Format.whole(value) : Format.number(value);
    return typeof value === "boolean" ? (value ? "yes" : "no") : text(value);
  }

  function view(value) {
    if (isLeaf(value)) return Dom.make("span", { dir: "auto" }, leaf(value));
    if (Array.isArray(value)) return list(value);
    const entries = Object.entries(value);
    const short = entries.filter(([, item]) => isLeaf(item));
    const long = entries.filter(([, item]) => !isLeaf(item));
    return Dom.make(
      "div",
      { class: "json" },
      pairs(short),
      long.map(([key, item]) => fold(title(key), item)),
    );
  }

  function pairs(entries) {
    if (!entries.length) return null;
    const shown = entries.map(([key, item]) => [Dom.make("dt", {}, title(key)), Dom.make("dd", {}, view(item))]);
    return Dom.make("dl", { class: "facts-list" }, shown);
  }

  /* A part that is drawn when it is opened. */
  function fold(name, value) {
    const node = Dom.make("details", { class: "fold" }, Dom.make("summary", {}, name));
    node.addEventListener("toggle", () => node.childElementCount === 1 && node.append(view(value)));
    return node;
  }

  function list(values) {
    if (values.length && values.every(isRow)) return rows(values);
    const more = values.length > MOST ? `, … (${Format.whole(values.length)} in all)` : "";
    if (values.every(isLeaf)) {
      return Dom.make(
        "span",
        { class: "list", dir: "auto" },
        values.slice(0, MOST).map(leaf).join(", ") || "none",
        more,
      );
    }
    const items = values.slice(0, MOST).map((item) => Dom.make("li", {}, view(item)));
    return Dom.make("ol", { start: 0 }, items, more ? Dom.make("li", {}, more) : null);
  }

  function rows(values) {
    const names = [...new Set(values.flatMap((row) => Object.keys(row)))];
    const columns = names.filter((key) => values.every((row) => isLeaf(row[key] ?? null)));
    const isText = (key) => values.some((row) => typeof row[key] === "string");
    const table = new SortableTable(
      "Table",
      columns.map((key) => ({ key, title: title(key), text: isText(key), format: leaf })),
    );
    table.update(values);
    const deeper = values.slice(0, MOST).map((row, index) => {
      const inner = Object.entries(row).filter(([key]) => !columns.includes(key));
      const name = Object.values(row)
        .filter((item) => typeof item === "string")
        .slice(0, 2)
        .join(", ");
      return inner.length ? fold(name || `row ${index + 1}`, Object.fromEntries(inner)) : null;
    });
    return Dom.make("div", { class: "json" }, columns.length ? table.node : null, deeper);
  }

  return { view, fold };
})();
