/* A table whose headings sort it; long ones show their first rows and a button for more. */
class SortableTable {
  /* columns: [{key, title, unit, format(value), text}], caption; onRow(row): what a click on a row does;
     chosen(row): whether it is marked. */
  constructor(caption, columns, { shown = 50, onRow = null, chosen = () => false } = {}) {
    Object.assign(this, { columns, shown, step: shown, onRow, chosen, rows: [], order: { key: null, down: true } });
    this.body = Dom.make("tbody");
    this.headings = columns.map((column) => this.heading(column));
    this.more = Dom.button("", "Show more rows", () => this.grow(), { class: "more" });
    this.node = Dom.make(
      "div",
      { class: "table-box" },
      Dom.make(
        "div",
        { class: "table-scroll", tabindex: 0, role: "region", "aria-label": caption },
        Dom.make(
          "table",
          {},
          Dom.make("caption", { class: "visually-hidden" }, caption),
          Dom.make("thead", {}, Dom.make("tr", {}, this.headings)),
          this.body,
        ),
      ),
      this.more,
    );
  }

  heading(column) {
    const button = Dom.make(
      "button",
      { type: "button", on: { click: () => this.sortBy(column.key) } },
      column.title,
      column.unit ? Dom.make("span", { class: "quiet" }, ` ${column.unit}`) : null,
    );
    return Dom.make(
      "th",
      { scope: "col", class: column.text ? "text" : "figure-cell", "data-key": column.key },
      button,
    );
  }

  /* Columns without any value are left out. */
  update(rows) {
    this.rows = rows;
    const empty = (value) => value === null || value === undefined || value === "" || Number.isNaN(value);
    this.filled = this.columns.filter(({ key }) => !rows.length || rows.some((row) => !empty(row[key])));
    this.headings.forEach((heading, index) => (heading.hidden = !this.filled.includes(this.columns[index])));
    this.draw();
  }

  sortBy(key) {
    const again = this.order.key === key;
    const text = this.columns.find((column) => column.key === key).text;
    this.order = { key, down: again ? !this.order.down : !text };
    this.draw();
  }

  sorted() {
    const { key, down } = this.order;
    if (!key) return this.rows;
    const missing = (value) => value === null || value === undefined || Number.isNaN(value);
    const compare = (one, other) => (typeof one === "string" ? one.localeCompare(other) : one - other);
    return [...this.rows].sort((one, other) => {
      const [a, b] = [one[key], other[key]];
      if (missing(a) || missing(b)) return missing(a) - missing(b); // what has no value stays at the end
      return down ? compare(b, a) : compare(a, b);
    });
  }

  grow() {
    this.shown += this.step * 4;
    this.draw();
  }

  draw() {
    this.headings.forEach((heading) => {
      const chosen = heading.dataset.key === this.order.key;
      heading.setAttribute("aria-sort", chosen ? (this.order.down ? "descending" : "ascending") : "none");
    });
    const rows = this.sorted();
    Dom.replace(
      this.body,
      rows.slice(0, this.shown).map((row) => this.row(row)),
    );
    this.more.hidden = rows.length <= this.shown;
    this.more.textContent = `Show more (${Format.whole(rows.length - this.shown)} rows are left)`;
  }

  row(row) {
    const node = Dom.make(
      "tr",
      { class: `${this.chosen(row) ? "chosen" : ""} ${this.onRow ? "pickable" : ""}` },
      this.filled.map(({ key, format, text }) =>
        Dom.make("td", { class: text ? "text" : "figure-cell" }, (format || Format.number)(row[key])),
      ),
    );
    if (this.onRow) node.addEventListener("click", () => this.onRow(row));
    return node;
  }
}
