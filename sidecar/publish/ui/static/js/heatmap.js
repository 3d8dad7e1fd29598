// A heatmap on a canvas: rows by columns of numbers, painted as one image and scaled up sharply.
// Guarantee: one paint of 80 rows by 600 columns is far below a frame of 16 ms; pointing at a cell
// paints nothing. It knows nothing of layers, time or the API: who uses it names rows and columns.

import { colour, STEPS, token } from "./colours.js";

const MARGIN = { left: 46, right: 2, top: 4, bottom: 24 };
const TICK_PIXELS = 14; // least distance between two labels of rows

/** A picture: `cells` is row-major, the first row at the bottom; NaN is missing. */
export class Heatmap {
  /** onPoint({row, column} or null): where the pointer or the keyboard is. */
  constructor(canvas, cross, onPoint) {
    Object.assign(this, { canvas, cross, onPoint });
    this.source = document.createElement("canvas"); // one pixel for each cell
    this.picture = null;
    this.at = null;
    this.pointer = ""; // where on the screen the pointer was last
    addEventListener("pointerdown", (event) => this.#hasMoved(event), { capture: true });
    canvas.addEventListener("pointermove", (event) => this.#hasMoved(event) && this.point(this.#cellAt(event)));
    canvas.addEventListener("pointerleave", (event) => this.#hasMoved(event) && this.point(null));
    canvas.addEventListener("keydown", (event) => this.#onKey(event));
    canvas.addEventListener("blur", () => this.point(null));
    new ResizeObserver(() => this.paint()).observe(canvas);
  }

  /**
   * Show a picture: {cells, numRows, numColumns, low, high, ramp, rowLabels, columnTicks}.
   * columnTicks: [{column, text}].
   */
  show(picture) {
    this.picture = picture;
    this.paint();
    if (this.at && (this.at.row >= picture.numRows || this.at.column >= picture.numColumns)) this.at = null;
    this.#mark();
    this.onPoint(this.at);
  }

  /** Point at a cell, or at none. */
  point(cell) {
    this.at = cell;
    this.#mark();
    this.onPoint(cell);
  }

  /** Paint everything anew; its time is a `heatmap` entry of the browser's performance timeline. */
  paint() {
    if (!this.picture) return;
    const started = performance.now();
    this.#resize();
    this.#colour();
    this.#draw();
    performance.clearMeasures("heatmap");
    performance.measure("heatmap", { start: started, end: performance.now() });
  }

  #resize() {
    const scale = window.devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.canvas;
    const [width, height] = [Math.round(clientWidth * scale), Math.round(clientHeight * scale)];
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    this.scale = scale;
    this.plot = {
      x: MARGIN.left,
      y: MARGIN.top,
      width: Math.max(1, clientWidth - MARGIN.left - MARGIN.right),
      height: Math.max(1, clientHeight - MARGIN.top - MARGIN.bottom),
    };
  }

  #colour() {
    const { cells, numRows, numColumns, low, high, ramp } = this.picture;
    if (this.source.width !== numColumns || this.source.height !== numRows) {
      Object.assign(this.source, { width: numColumns, height: numRows });
      this.image = this.source.getContext("2d").createImageData(numColumns, numRows);
      this.pixels = new Uint32Array(this.image.data.buffer);
    }
    const { pixels } = this;
    const perUnit = (STEPS - 1) / (high - low || 1);
    const colours = ramp.pixels;
    for (let row = 0; row < numRows; row += 1) {
      const to = (numRows - 1 - row) * numColumns;
      const from = row * numColumns;
      for (let column = 0; column < numColumns; column += 1) {
        const value = cells[from + column];
        if (value === value) {
          const step = (value - low) * perUnit;
          pixels[to + column] = colours[step <= 0 ? 0 : step >= STEPS - 1 ? STEPS - 1 : (step + 0.5) | 0];
        } else {
          pixels[to + column] = ramp.missing;
        }
      }
    }
    this.source.getContext("2d").putImageData(this.image, 0, 0);
  }

  #draw() {
    const context = this.canvas.getContext("2d");
    const { x, y, width, height } = this.plot;
    context.setTransform(this.scale, 0, 0, this.scale, 0, 0);
    context.clearRect(0, 0, this.canvas.clientWidth, this.canvas.clientHeight);
    context.imageSmoothingEnabled = false;
    context.drawImage(this.source, x, y, width, height);
    context.strokeStyle = colour("--line");
    context.strokeRect(x - 0.5, y - 0.5, width + 1, height + 1);
    this.#label(context);
  }

  #label(context) {
    const { numRows, numColumns, rowLabels, columnTicks } = this.picture;
    const { x, y, width, height } = this.plot;
    context.fillStyle = colour("--muted");
    context.font = `11px ${token("--sans")}`;
    context.textBaseline = "middle";
    context.textAlign = "right";
    const every = niceStep(Math.ceil((TICK_PIXELS * numRows) / height));
    for (let row = 0; row < numRows; row += every) {
      context.fillText(rowLabels[row], x - 7, y + height - ((row + 0.5) * height) / numRows);
    }
    context.textBaseline = "alphabetic";
    context.textAlign = "center";
    for (const { column, text } of columnTicks) {
      const at = x + ((column + 0.5) * width) / numColumns;
      context.fillRect(Math.round(at), y + height + 1, 1, 4);
      // A label at an edge is moved inwards rather than cut off.
      const half = context.measureText(text).width / 2;
      context.fillText(text, Math.min(x + width - half, Math.max(x + half, at)), y + height + 18);
    }
  }

  #mark() {
    this.cross.hidden = !this.at || !this.picture;
    if (this.cross.hidden) return;
    const { numRows, numColumns } = this.picture;
    const { x, y, width, height } = this.plot;
    const cell = { width: width / numColumns, height: height / numRows };
    const { style } = this.cross;
    style.width = `${Math.max(3, cell.width)}px`;
    style.height = `${Math.max(3, cell.height)}px`;
    const left = x + this.at.column * cell.width;
    const top = y + height - (this.at.row + 1) * cell.height;
    style.transform = `translate(${left}px, ${top}px)`;
  }

  /** Whether the pointer has moved, and not only the page beneath it. */
  #hasMoved({ screenX, screenY }) {
    const place = `${screenX} ${screenY}`;
    const hasMoved = place !== this.pointer;
    this.pointer = place;
    return hasMoved;
  }

  #cellAt(event) {
    if (!this.picture) return null;
    const box = this.canvas.getBoundingClientRect();
    const { x, y, width, height } = this.plot;
    const { numRows, numColumns } = this.picture;
    const column = Math.floor(((event.clientX - box.left - x) / width) * numColumns);
    const row = Math.floor(((y + height - (event.clientY - box.top)) / height) * numRows);
    return column >= 0 && column < numColumns && row >= 0 && row < numRows ? { row, column } : null;
  }

  #onKey(event) {
    if (!this.picture) return;
    const { numRows, numColumns } = this.picture;
    const { row, column } = this.at ?? { row: numRows - 1, column: numColumns - 1 };
    const far = event.shiftKey ? 10 : 1;
    const moves = {
      ArrowLeft: [0, -far],
      ArrowRight: [0, far],
      ArrowUp: [far, 0],
      ArrowDown: [-far, 0],
      Home: [0, -numColumns],
      End: [0, numColumns],
    };
    const move = moves[event.key];
    if (event.key === "Escape") this.point(null);
    if (!move) return;
    event.preventDefault();
    this.point({ row: within(row + move[0], numRows), column: within(column + move[1], numColumns) });
  }
}

const within = (index, count) => Math.min(count - 1, Math.max(0, index));

/** 1, 2, 5, 10, 20, ...: the least of them that is not below `least`. */
export function niceStep(least) {
  for (let power = 1; ; power *= 10) {
    for (const step of [1, 2, 5]) if (step * power >= least) return step * power;
  }
}
