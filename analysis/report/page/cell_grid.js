/* A grid of coloured cells on a canvas, with hover, click and arrow keys. Every map of the page is one. */
class CellGrid {
  /* options: label, rowTitle, columnTitle, onSelect(row, column), cell {least, most} heights in pixels. */
  constructor(options) {
    this.options = { cell: { least: 4, most: 22 }, ...options };
    this.cursor = null;
    this.canvas = Dom.make("canvas", {
      class: "grid-canvas",
      tabindex: 0,
      role: "application",
      "aria-roledescription": "map",
      "aria-label": options.label,
    });
    this.live = Dom.make("div", { class: "visually-hidden", "aria-live": "polite" });
    this.legend = Dom.make("div", { class: "legend-row" });
    this.node = Dom.make("div", { class: "grid" }, this.canvas, this.legend, this.live);
    this.listen();
  }

  listen() {
    this.canvas.addEventListener("pointermove", (event) => this.hover(event));
    this.canvas.addEventListener("pointerleave", () => Dom.tip(null));
    this.canvas.addEventListener("click", (event) => {
      const cell = this.cellAt(event);
      if (cell) this.select(...cell);
    });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("blur", () => {
      Dom.tip(null);
      this.cursor = null;
      this.draw();
    });
  }

  /* data: rows, columns, colour(row, column) or share(row, column), describe(row, column) -> lines,
     rowName(row), columnName(column), selected [row, column] (null: the whole row or column), legend nodes. */
  update(data) {
    this.data = data;
    Dom.replace(this.legend, data.legend || []);
    this.draw();
  }

  measure() {
    const { rows, columns } = this.data;
    const width = Math.max(120, this.node.clientWidth);
    const context = this.canvas.getContext("2d");
    context.font = `11px ${Ramps.token("--font")}`;
    let names = 0;
    for (let row = 0; row < rows; row++) names = Math.max(names, context.measureText(this.data.rowName(row)).width);
    const left = Math.ceil(names) + 8 + (this.options.rowTitle ? 16 : 0);
    const cellWidth = (width - left - 2) / columns;
    const { least, most } = this.options.cell;
    const wished = this.options.square ? cellWidth : Math.min(most, Math.max(least, 320 / rows));
    const cellHeight = Math.max(least, Math.min(wished, this.options.square ? 560 / rows : most));
    const used = this.options.square ? Math.min(cellWidth, cellHeight) : Math.min(cellWidth, 56);
    return { width, left, cellWidth: used, cellHeight, height: Math.ceil(rows * cellHeight) + 34 };
  }

  draw() {
    if (!this.data || !this.node.clientWidth) return;
    const box = (this.box = this.measure());
    const density = devicePixelRatio || 1;
    this.canvas.width = Math.round(box.width * density);
    this.canvas.height = Math.round(box.height * density);
    this.canvas.style.width = `${box.width}px`;
    this.canvas.style.height = `${box.height}px`;
    const context = this.canvas.getContext("2d");
    context.scale(density, density);
    this.drawCells(context, box);
    this.drawNames(context, box);
    this.drawMarks(context, box);
  }

  drawCells(context, box) {
    const { rows, columns } = this.data;
    const gap = box.cellWidth > 7 && box.cellHeight > 7 ? 1 : 0;
    const bleed = gap ? 0 : 0.4; // neighbours overlap a little: no hairlines between them
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        const colour = this.colour(row, column);
        if (!colour) continue;
        context.fillStyle = colour;
        context.fillRect(
          box.left + column * box.cellWidth,
          row * box.cellHeight,
          box.cellWidth - gap + bleed,
          box.cellHeight - gap + bleed,
        );
      }
    }
    context.strokeStyle = Ramps.token("--line");
    context.strokeRect(box.left - 0.5, 0.5, columns * box.cellWidth + 1, rows * box.cellHeight);
  }

  colour(row, column) {
    if (this.data.colour) return this.data.colour(row, column);
    const share = this.data.share(row, column);
    return Number.isNaN(share) ? null : Ramps.colour(share);
  }

  drawNames(context, box) {
    const { rows, columns, rowName, columnName } = this.data;
    context.font = `11px ${Ramps.token("--font")}`;
    context.fillStyle = Ramps.token("--quiet");
    context.textBaseline = "middle";
    context.textAlign = "right";
    const rowStep = Math.ceil(13 / box.cellHeight);
    for (let row = 0; row < rows; row += rowStep) {
      context.fillText(rowName(row), box.left - 6, (row + 0.5) * box.cellHeight);
    }
    context.textAlign = "center";
    const widest = Math.max(...[0, columns - 1].map((column) => context.measureText(columnName(column)).width)) + 10;
    const step = Math.ceil(widest / box.cellWidth);
    const below = rows * box.cellHeight + 10;
    for (let column = 0; column < columns; column += step) {
      const at = box.left + (column + 0.5) * box.cellWidth;
      if (at + context.measureText(columnName(column)).width / 2 <= box.width) {
        context.fillText(columnName(column), at, below);
      }
    }
    context.fillText(this.options.columnTitle || "", box.left + (columns * box.cellWidth) / 2, below + 15);
    if (!this.options.rowTitle) return;
    context.save();
    context.translate(7, (rows * box.cellHeight) / 2);
    context.rotate(-Math.PI / 2);
    if (rows * box.cellHeight > context.measureText(this.options.rowTitle).width) {
      context.fillText(this.options.rowTitle, 0, 0);
    }
    context.restore();
  }

  drawMarks(context, box) {
    const { rows, columns, selected } = this.data;
    const frame = (row, column, colour, width) => {
      const [x, w] = column === null ? [0, columns] : [column, 1];
      const [y, h] = row === null ? [0, rows] : [row, 1];
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.strokeRect(
        box.left + x * box.cellWidth - 0.5,
        y * box.cellHeight - 0.5 + (y ? 0 : 1),
        w * box.cellWidth,
        h * box.cellHeight,
      );
    };
    if (selected) {
      frame(...selected, Ramps.token("--page"), 4);
      frame(...selected, Ramps.token("--accent"), 2);
    }
    if (this.cursor) frame(...this.cursor, Ramps.token("--ink"), 2);
  }

  cellAt(event) {
    if (!this.box) return null;
    const bounds = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - bounds.left - this.box.left) / this.box.cellWidth);
    const row = Math.floor((event.clientY - bounds.top) / this.box.cellHeight);
    return row >= 0 && row < this.data.rows && column >= 0 && column < this.data.columns ? [row, column] : null;
  }

  hover(event) {
    const cell = this.cellAt(event);
    this.canvas.style.cursor = cell && this.options.onSelect ? "pointer" : "default";
    Dom.tip(cell ? this.data.describe(...cell) : null, event.clientX, event.clientY);
  }

  select(row, column) {
    if (this.options.onSelect) this.options.onSelect(row, column);
  }

  key(event) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const move = moves[event.key];
    if (move) {
      const [row, column] = this.cursor || (this.data.selected || [0, 0]).map((value) => (value === null ? 0 : value));
      const clamp = (value, count) => Math.max(0, Math.min(count - 1, value));
      this.cursor = this.cursor
        ? [clamp(row + move[0], this.data.rows), clamp(column + move[1], this.data.columns)]
        : [clamp(row, this.data.rows), clamp(column, this.data.columns)];
      this.draw();
      const lines = this.data.describe(...this.cursor);
      this.live.textContent = lines.join(", ");
      const bounds = this.canvas.getBoundingClientRect();
      Dom.tip(
        lines,
        bounds.left + this.box.left + (this.cursor[1] + 0.5) * this.box.cellWidth,
        bounds.top + (this.cursor[0] + 0.5) * this.box.cellHeight,
      );
    } else if ((event.key === "Enter" || event.key === " ") && this.cursor) this.select(...this.cursor);
    else return;
    event.preventDefault();
  }
}
