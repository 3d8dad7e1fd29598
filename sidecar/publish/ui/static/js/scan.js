// One request, token by token: a heatmap of layers by positions, where the request was scanned.
// Guarantee: a request that was not scanned, or only in part, is told as such with what to do.

import { segments, table } from "./controls.js";
import { clampedRange } from "./columns.js";
import { cssColour, ramp } from "./colours.js";
import { fill, h, say } from "./dom.js";
import { number, words } from "./format.js";
import { Heatmap, niceStep } from "./heatmap.js";

// The first positions are sinks, tens of times larger: they may saturate, or nothing else is seen.
const CLAMPED_SHARE = 0.06;
const SCALES = [
  ["relative", "Relative to its layer", "Value over the median of the same layer in this request"],
  ["value", "Value", "The measured value"],
];
const NOT_SCANNED =
  "It was not scanned: only sums of its tokens were told. Scan the next request with the button above the list, " +
  "or with `sidecar control --scan 1`.";

/** The scan of a request in `place`. */
export class ScanView {
  constructor(place, link, id) {
    Object.assign(this, { place, link, id, answer: null, signal: null, scale: "relative", hasEnded: false });
  }

  /** Ask for it, and show it. */
  async load() {
    this.#say("Looking for its scan…");
    try {
      const { scans } = await this.link.get("scans");
      if (!scans.some(({ id }) => id === this.id)) return void this.#say(NOT_SCANNED);
      this.answer = await this.link.get(`requests/${encodeURIComponent(this.id)}/scan`);
      if (!this.hasEnded) this.#build();
    } catch (error) {
      this.#say(error.message);
    }
  }

  /** Its dialog was closed. */
  end() {
    this.hasEnded = true;
  }

  #say(text) {
    if (!this.hasEnded) fill(this.place, h("p", { class: "quiet" }, text));
  }

  #build() {
    const { answer } = this;
    if (!answer.positions.length) return void this.#say("It was scanned, and none of its rows arrived.");
    this.signal = Object.keys(answer.signals)[0];
    const options = Object.keys(answer.signals).map((id) => [id, words(id)]);
    this.tabs = segments("Signal", options, (id) => {
      this.signal = id;
      this.show();
    });
    this.scales = segments("Scale", SCALES, (scale) => {
      this.scale = scale;
      this.show();
    });
    this.canvas = h("canvas", { tabindex: "0", role: "img", class: "scan-canvas", "aria-label": "Layers by tokens of this request" });
    this.readout = h("p", { class: "readout", "aria-live": "polite" });
    this.legend = h("div", { class: "legend" });
    const cross = h("div", { class: "cross", hidden: true });
    this.tableBox = h("details", {}, h("summary", {}, "The same as a table"), h("div", { class: "table-wrap" }));
    this.tableBox.addEventListener("toggle", () => this.#showTable());
    fill(this.place, h("h3", {}, "Layer by token"), h("div", { class: "tools" }, this.tabs.node, this.scales.node), h("div", { class: "figure heat" }, this.canvas, cross), h("div", { class: "under" }, this.readout, this.legend), this.tableBox);
    this.heatmap = new Heatmap(this.canvas, cross, (cell) => this.#read(cell));
    this.show();
  }

  /** Draw the signal chosen. */
  show() {
    const { answer } = this;
    if (!this.heatmap) return;
    const columns = answer.signals[this.signal].values;
    const numRows = answer.layers.length;
    const isRelative = this.scale === "relative";
    const cells = isRelative ? relativeToLayer(columns, numRows) : cellsOf(columns, numRows);
    const [low, high] = isRelative ? [-1, 1] : clampedRange(cells, CLAMPED_SHARE);
    const colours = ramp(isRelative ? "score" : "value");
    this.tabs.update(this.signal);
    this.scales.update(this.scale);
    this.heatmap.show({ cells, numRows, numColumns: columns.length, low, high, ramp: colours,
      rowLabels: answer.layers.map(String), columnTicks: positionTicks(answer) });
    this.#showLegend(low, high, colours);
    this.#showTable();
  }

  #read(cell) {
    const { answer } = this;
    if (!cell) {
      const left = answer.num_rows_left_out;
      const all = answer.is_complete ? "All of its rows." : `${left ? `${number(left)} of its rows are not here` : "It is still being told"}.`;
      say(this.readout, `${all} Prompt to the left, generated tokens to the right.`);
      return;
    }
    const unit = answer.signals[this.signal].unit;
    const value = answer.signals[this.signal].values[cell.column][cell.row];
    const where = `Layer ${answer.layers[cell.row]}, position ${answer.positions[cell.column]} (${answer.phases[cell.column]})`;
    say(this.readout, `${where}: ${words(this.signal)} ${number(value)}${unit ? ` ${unit}` : ""}${this.#confidence(cell.column)}`);
  }

  #confidence(column) {
    const told = this.answer.confidence;
    if (!told) return "";
    const parts = Object.entries(told).map(([id, entry]) => [id, entry.values[column]]).filter(([, value]) => value !== null && value !== undefined);
    return parts.length ? `; ${parts.slice(0, 2).map(([id, value]) => `${words(id)} ${number(value)}`).join(", ")}` : "";
  }

  #showLegend(low, high, colours) {
    const stops = Array.from({ length: 24 }, (_, at) => {
      const cell = h("i");
      cell.style.backgroundColor = cssColour(colours, Math.round((at / 23) * 255));
      return cell;
    });
    const [from, to] = this.scale === "relative" ? ["half the median", "twice"] : [number(low), number(high)];
    fill(this.legend, h("span", {}, from), h("span", { class: "ramp", "aria-hidden": "true" }, stops), h("span", {}, to));
  }

  #showTable() {
    if (!this.tableBox.open) return;
    const { answer } = this;
    const columns = [{ title: "Position", isNumber: true }, { title: "Phase" }, ...answer.layers.map((layer) => ({ title: `Layer ${layer}`, isNumber: true }))];
    const rows = answer.positions.slice(0, 512).map((position, at) => [String(position), answer.phases[at], ...answer.signals[this.signal].values[at].map(number)]);
    fill(this.tableBox.querySelector(".table-wrap"), table(`${words(this.signal)} by position and layer`, columns, rows));
  }
}

/** Row-major cells of [columns][rows]; null is NaN. */
function cellsOf(columns, numRows) {
  const cells = new Float32Array(numRows * columns.length).fill(Number.NaN);
  columns.forEach((values, column) => values.forEach((value, row) => {
    if (value !== null) cells[row * columns.length + column] = value;
  }));
  return cells;
}

/** The same as log2 of value over the median of its row. */
function relativeToLayer(columns, numRows) {
  const cells = cellsOf(columns, numRows);
  const width = columns.length;
  for (let row = 0; row < numRows; row += 1) {
    const line = cells.subarray(row * width, (row + 1) * width);
    const known = line.filter((value) => value > 0).sort();
    const median = known[known.length >> 1];
    for (let column = 0; column < width; column += 1) line[column] = Math.log2(line[column] / median);
  }
  return cells;
}

function positionTicks({ positions, phases }) {
  const every = niceStep(Math.ceil(positions.length / 12));
  const ticks = positions.map((position, column) => ({ column, text: String(position) })).filter((_, column) => column % every === 0);
  const decode = phases.indexOf("decode");
  return decode > 0 ? [...ticks.filter(({ column }) => Math.abs(column - decode) > every / 2), { column: decode, text: "generated" }] : ticks;
}
