/* Recommendations, the analysis report and the pictures of the folder. */
const Documents = (() => {
  const given = JSON.parse(document.getElementById("documents").textContent);
  const recommendations = Dom.section(
    "recommendations",
    "Recommendations",
    "From compression_recommendations.json of the folder.",
  );
  const analysis = Dom.section("analysis", "Analysis report", null);
  const pictures = Dom.section("pictures", "Pictures and interactive plots", null);
  const title = (key) => key.replace(/_/g, " ");
  const isRow = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
  const isLeaf = (value) => value === null || typeof value !== "object";

  function leaf(value) {
    if (value === null) return "–";
    if (typeof value === "number") return Number.isInteger(value) ? Format.whole(value) : Format.number(value);
    return typeof value === "boolean" ? (value ? "yes" : "no") : value;
  }

  /* Any JSON: objects as names and values, lists of alike objects as tables, the rest as text. */
  function view(value, depth = 0) {
    if (isLeaf(value)) return Dom.make("span", { dir: "auto" }, leaf(value));
    if (Array.isArray(value)) return list(value, depth);
    const entries = Object.entries(value);
    const short = entries.filter(([, item]) => isLeaf(item));
    const long = entries.filter(([, item]) => !isLeaf(item));
    return Dom.make(
      "div",
      {},
      short.length
        ? Dom.make(
            "dl",
            { class: "facts-list" },
            short.map(([key, item]) => [Dom.make("dt", {}, title(key)), Dom.make("dd", {}, view(item))]),
          )
        : null,
      long.map(([key, item]) =>
        depth
          ? Dom.make("details", {}, Dom.make("summary", {}, title(key)), view(item, depth + 1))
          : Dom.make("div", {}, Dom.make("h3", {}, title(key)), view(item, depth + 1)),
      ),
    );
  }

  function list(values, depth) {
    if (values.length && values.every(isRow)) return rows(values);
    if (values.every(isLeaf)) {
      const shown = values.slice(0, 200).map(leaf).join(", ");
      return Dom.make(
        "span",
        { class: "list", dir: "auto" },
        shown + (values.length > 200 ? `, … (${values.length} in all)` : ""),
      );
    }
    return Dom.make(
      "ol",
      { start: 0 },
      values.slice(0, 100).map((item) => Dom.make("li", {}, view(item, depth + 1))),
    );
  }

  function rows(values) {
    const keys = [...new Set(values.flatMap((row) => Object.keys(row).filter((key) => isLeaf(row[key]))))].slice(0, 16);
    const text = (key) => values.some((row) => typeof row[key] === "string");
    const table = new SortableTable(
      "Table",
      keys.map((key) => ({ key, title: title(key), text: text(key), format: (value) => String(leaf(value ?? null)) })),
    );
    table.update(values);
    return Dom.make("div", {}, table.node, values.slice(0, 200).map(nested));
  }

  /* What a row of a table holds that is no single value, to be opened. */
  function nested(row, index) {
    const inner = Object.entries(row).filter(([, item]) => !isLeaf(item));
    if (!inner.length) return null;
    const name = Object.values(row).find((item) => typeof item === "string") || `row ${index + 1}`;
    return Dom.make("details", {}, Dom.make("summary", {}, name), view(Object.fromEntries(inner), 1));
  }

  function picture({ name, href, data }) {
    const link = Dom.make("a", { href }, name);
    if (!data) return Dom.make("li", {}, link);
    return Dom.make(
      "li",
      { class: "picture" },
      Dom.make(
        "figure",
        {},
        Dom.make("img", { src: `data:image/png;base64,${data}`, alt: name, loading: "lazy" }),
        Dom.make("figcaption", {}, link),
      ),
    );
  }

  function render(keys) {
    if (!keys.has("sample")) return;
    const report = given.analyses[String(State.values.sample.index)];
    analysis.hidden = report === undefined;
    Dom.replace(analysis, analysis.firstElementChild, report === undefined ? [] : view(report));
  }

  recommendations.hidden = given.recommendations === null;
  if (!recommendations.hidden) recommendations.append(view(given.recommendations));
  pictures.hidden = given.pictures.length === 0 && given.notes.length === 0;
  pictures.append(
    Dom.make("ul", { class: "pictures" }, given.pictures.map(picture)),
    ...given.notes.map((note) => Dom.make("p", { class: "hint" }, note)),
  );
  analysis.hidden = true;
  State.on([], render);
  return { nodes: [recommendations, analysis, pictures] };
})();
