// One request, token by token: a heatmap of layers by positions, where the request was scanned.
// Guarantee: a request that was not scanned, or only in part, is told as such with what to do.

import { segments, table } from "./controls.js";
import { clampedRange } from "./columns.js";
import { cssColour, ramp } from "./colours.js";
import { fill, h, say } from "./dom.js";
import { number, words } from "./format.js";
import { Heatmap, niceStep } from "./heatmap.js";

/** The scan of a request in `place`. */
export class ScanView {
  constructor(place, link, id) {
    Object.assign(this, { place, link, id, answer: null, signal: null, hasEnded: false });
  }

  /** Ask for it, and show it. */
  async load() {
    fill(this.place, h("p", { class: "quiet" }, "Looking for its scan…"));
    try {
      this.answer = await this.link.get(`requests/${encodeURIComponent(this.id)}/scan`);
    } catch (error) {
      if (!this.hasEnded) fill(this.place, h("p", { class: "quiet" }, error.remedy ? `Not scanned. ${capital(error.remedy)}.` : error.message));
      return;
    }
    if (!this.hasEnded) this.#build();
  }

  /** Its dialog was closed. */
  end() {
    this.hasEnded = true;
  }

  #build() {
    const { answer } = this;
    if (!answer.positions.length) {
      fill(this.place, h("p", { class: "quiet" }, "It was scanned, and none of its rows arrived."));
      return;
    }
    this.signal = Object.keys(answer.signals)[0];
    const options = Object.keys(answer.signals).map((id) => [id, words(id)]);
    this.tabs = segments("Signal", options, (id) => {
      this.signal = id;
      this.show();
    });
    this.canvas = h("canvas", { tabindex: "0", role: "img", class: "scan-canvas", "aria-label": "Layers by tokens of this request" });
    this.readout = h("p", { class: "readout", "aria-live": "polite" });
    this.legend = h("div", { class: "legend" });
    const cross = h("div", { class: "cross", hidden: true });
    this.tableBox = h("details", {}, h("summary", {}, "The same as a table"), h("div", { class: "table-wrap" }));
    this.tableBox.addEventListener("toggle", () => this.#showTable());
    fill(this.place, h("h3", {}, "Layer by token"), this.tabs.node, h("div", { class: "figure heat" }, this.canvas, cross), h("div", { class: "under" }, this.readout, this.legend), this.tableBox);
    this.heatmap = new Heatmap(this.canvas, cross, (cell) => this.#read(cell));
    this.show();
  }

  /** Draw the signal chosen. */
  show() {
    const { answer } = this;
    if (!this.heatmap) return;
    const columns = answer.signals[this.signal].values;
    const numRows = answer.layers.length;
    const cells = new Float32Array(numRows * columns.length).fill(Number.NaN);
    columns.forEach((values, column) => values.forEach((value, row) => {
      if (value !== null) cells[row * columns.length + column] = value;
    }));
    const [low, high] = clampedRange(cells);
    const colours = ramp("value");
    this.tabs.update(this.signal);
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
    const parts = Object.entries(told).map(([id, entry]) => [id, (entry.values ?? entry)[column]]).filter(([, value]) => value !== null && value !== undefined);
    return parts.length ? `; ${parts.slice(0, 2).map(([id, value]) => `${words(id)} ${number(value)}`).join(", ")}` : "";
  }

  #showLegend(low, high, colours) {
    const stops = Array.from({ length: 24 }, (_, at) => {
      const cell = h("i");
      cell.style.backgroundColor = cssColour(colours, Math.round((at / 23) * 255));
      return cell;
    });
    fill(this.legend, h("span", {}, number(low)), h("span", { class: "ramp", "aria-hidden": "true" }, stops), h("span", {}, number(high)));
  }

  #showTable() {
    if (!this.tableBox.open) return;
    const { answer } = this;
    const columns = [{ title: "Position", isNumber: true }, { title: "Phase" }, ...answer.layers.map((layer) => ({ title: `Layer ${layer}`, isNumber: true }))];
    const rows = answer.positions.slice(0, 512).map((position, at) => [String(position), answer.phases[at], ...answer.signals[this.signal].values[at].map(number)]);
    fill(this.tableBox.querySelector(".table-wrap"), table(`${words(this.signal)} by position and layer`, columns, rows));
  }
}

function positionTicks({ positions, phases }) {
  const every = niceStep(Math.ceil(positions.length / 12));
  const ticks = positions.map((position, column) => ({ column, text: String(position) })).filter((_, column) => column % every === 0);
  const decode = phases.indexOf("decode");
  return decode > 0 ? [...ticks.filter(({ column }) => Math.abs(column - decode) > every / 2), { column: decode, text: "generated" }] : ticks;
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1).replace(/\.$/, "");
