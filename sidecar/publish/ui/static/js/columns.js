// Columns of layer values over time, as /v1/timeline tells them, ready to be drawn.
// Guarantees: at most CAPACITY columns, in order of time; an answer to another question starts anew.

export const CAPACITY = 600;
const SECOND = 1e9;

export class Columns {
  constructor() {
    this.clear();
  }

  /** Forget everything. */
  clear() {
    this.columns = []; // {t_ns, rows, values: Float32Array, z: Float32Array or null}
    this.layers = [];
    this.unit = "";
    this.reference = "none";
    this.seconds = 1;
  }

  /** Unix ns of the latest column, null without one. */
  get lastNs() {
    return this.columns.at(-1)?.t_ns ?? null;
  }

  /** Take an answer: its columns come after those that are here, or replace the latest. */
  take(answer) {
    if (!sameLayers(answer.layers, this.layers)) this.clear();
    this.layers = answer.layers;
    this.unit = answer.unit;
    this.reference = answer.reference;
    this.seconds = answer.seconds_per_column || 1;
    for (const column of answer.columns) {
      while (this.columns.length && this.columns.at(-1).t_ns >= column.t_ns) this.columns.pop();
      this.columns.push({
        t_ns: column.t_ns,
        rows: column.rows,
        values: numbers(column.values, answer.layers.length),
        z: column.z ? numbers(column.z, answer.layers.length) : null,
      });
    }
    if (this.columns.length > CAPACITY) this.columns.splice(0, this.columns.length - CAPACITY);
  }

  /**
   * Row-major cells of the last `numColumns` slots of time that end at `endNs`, the first layer
   * first: {cells: Float32Array, at: column or undefined by slot}. A slot without data is NaN.
   */
  slots(numColumns, endNs, key) {
    const numRows = this.layers.length;
    const cells = new Float32Array(numRows * numColumns).fill(Number.NaN);
    const at = new Array(numColumns);
    for (const column of this.columns) {
      const slot = numColumns - 1 - Math.round((endNs - column.t_ns) / (this.seconds * SECOND));
      const values = column[key];
      if (slot < 0 || slot >= numColumns || !values) continue;
      at[slot] = column;
      for (let row = 0; row < numRows; row += 1) cells[row * numColumns + slot] = values[row];
    }
    return { cells, at };
  }

  /** One layer's [value] over all columns, without what is missing. */
  ofLayer(row, key = "values") {
    return this.columns.map((column) => column[key]?.[row]).filter((value) => value === value && value !== undefined);
  }
}

/** The range of values that a picture shows: all but the most extreme `share` on each side. */
export function clampedRange(cells, share = 0.01) {
  const sample = [];
  const step = Math.max(1, Math.floor(cells.length / 5000));
  for (let at = 0; at < cells.length; at += step) if (cells[at] === cells[at]) sample.push(cells[at]);
  if (!sample.length) return [0, 1];
  sample.sort((a, b) => a - b);
  const low = sample[Math.floor(share * (sample.length - 1))];
  const high = sample[Math.ceil((1 - share) * (sample.length - 1))];
  return high > low ? [low, high] : [low - 0.5, high + 0.5];
}

function numbers(values, count) {
  const made = new Float32Array(count).fill(Number.NaN);
  (values ?? []).forEach((value, at) => {
    if (value !== null) made[at] = value;
  });
  return made;
}

const sameLayers = (a, b) => a.length === b.length && a.every((layer, at) => layer === b[at]);
