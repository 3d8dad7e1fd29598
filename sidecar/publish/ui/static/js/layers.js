// The section of layers over time: a heatmap, its choices, its readout and its table.

import { chooser, segments, table, tableSwitch } from "./controls.js";
import { clampedRange, CAPACITY, Columns } from "./columns.js";
import { cssColour, ramp } from "./colours.js";
import { byId, fill, h, say } from "./dom.js";
import { NONE, number, signed, span, time, words } from "./format.js";
import { Heatmap, niceStep } from "./heatmap.js";

const SCORE_LIMIT = 6; // |z| at which the colour is full
const SECOND = 1e9;
const MINUTES = [["auto", "All there is"], ["2", "2 min"], ["5", "5 min"], ["10", "10 min"]];
const OTHERS = { phase: [["prefill", "Prefill", "Rows of prompts"], ["decode", "Decode", "Rows of generated tokens"]],
  position: [["first", "First 4", "Attention sinks: the first four positions"], ["rest", "Rest", "All other positions"]],
  scale: [["z", "Deviation", "Standard deviations from what is usual for the layer"], ["value", "Value", "The measured value"]] };
const REFERENCES = {
  baseline: "the baseline",
  "own start": "this source's own first minutes, for want of a baseline",
};

/** What the heatmap asks and shows; signals: [{id, formula, unit, help, normal, change}]. */
export class LayersSection {
  constructor(settings, link) {
    Object.assign(this, { settings, link });
    this.columns = new Columns();
    this.signals = [];
    this.sources = [];
    this.isTable = false;
    this.problem = null;
    this.wanted = null; // the layer to point at in the next picture
    this.isHeld = false;
    this.heldNs = null; // the end of the picture while it is held
    this.heatmap = new Heatmap(byId("heat"), byId("heat-cross"), (cell) => this.#read(cell));
    this.#makeTools();
  }

  /** The question that the choices make, for what came after the latest column. */
  question() {
    const asked = Object.fromEntries(["signal", "phase", "position", "source"].map((name) => [name, this.settings.get(name)]));
    asked.signal ||= this.signals[0]?.id ?? "residual_rms";
    return { ...asked, after: this.columns.lastNs === null ? null : String(this.columns.lastNs) };
  }

  /** Whether the picture is held and there is one: then nothing need be asked. */
  get isStill() {
    return this.isHeld && this.heldNs !== null;
  }

  /** An answer to the question. */
  take(answer) {
    if (this.isStill) return;
    this.problem = null;
    this.columns.take(answer);
    if (this.isHeld && this.columns.lastNs !== null) this.heldNs = this.#endNs();
    this.show();
  }

  /** No answer: why. */
  refuse(error) {
    this.problem = error;
    this.show();
  }

  /** Another question was chosen. */
  reset() {
    this.columns.clear();
    this.heldNs = null;
    this.show();
  }

  /** The page has just been opened: show the foremost cause, unless somebody chose what to see. */
  openOn({ signal, phase, layer }) {
    this.wanted = layer;
    const isNews = this.settings.suggest({ ...(signal ? { signal } : {}), ...(signal && phase ? { phase } : {}) });
    if (!isNews) this.show();
  }

  /** Show a signal of a phase, with the cursor on a layer as soon as its picture is there. */
  showCause(signal, phase, layer) {
    this.wanted = layer;
    this.settings.set("signal", signal);
    if (phase) this.settings.set("phase", phase);
    this.settings.set("position", "rest");
    byId("layers").scrollIntoView({ block: "start" });
    this.show();
  }

  /** What can be chosen, as /v1/timeline/signals tells it. */
  offer(signals, sources) {
    Object.assign(this, { signals, sources });
    this.#updateTools();
    this.heatmap.point(this.heatmap.at); // its normal values are known now
  }

  /** Stand still, or go on. */
  hold(isHeld) {
    this.isHeld = isHeld;
    this.heldNs = isHeld && this.columns.lastNs !== null ? this.#endNs() : null;
    this.show();
  }

  /** Draw what is here. */
  show() {
    this.#updateTools();
    this.#tellEmpty();
    if (!this.columns.layers.length) {
      this.heatmap.canvas.classList.add("blank");
      fill(byId("heat-legend"));
      return;
    }
    this.heatmap.canvas.classList.remove("blank");
    this.#showPicture();
    if (this.isTable) this.#showTable();
  }

  get scale() {
    const chosen = this.settings.get("scale");
    const hasScores = this.columns.columns.some((column) => column.z);
    if (chosen === "auto") return hasScores ? "z" : "value";
    return chosen === "z" && !hasScores ? "value" : chosen;
  }

  #showPicture() {
    const { columns } = this;
    const scale = this.scale;
    const numColumns = this.#numColumns();
    const endNs = this.#endNs();
    const { cells, at } = columns.slots(numColumns, endNs, scale === "z" ? "z" : "values");
    this.at = at;
    this.endNs = endNs;
    this.heatmap.canvas.style.maxHeight = `${60 + 46 * columns.layers.length}px`; // few layers: low rows
    const [low, high] = scale === "z" ? [-SCORE_LIMIT, SCORE_LIMIT] : clampedRange(cells);
    const colours = ramp(scale === "z" ? "score" : "value");
    this.heatmap.show({
      cells, numColumns, low, high, ramp: colours,
      numRows: columns.layers.length,
      rowLabels: columns.layers.map(String),
      columnTicks: timeTicks(numColumns, endNs, columns.seconds),
    });
    this.#showLegend(scale, low, high, colours);
    this.#pointAtWanted();
  }

  #pointAtWanted() {
    const row = this.columns.layers.indexOf(this.wanted);
    const column = this.at.findLastIndex((each) => each?.values[row] === each?.values[row] && each);
    if (row < 0 || column < 0) return;
    this.wanted = null;
    this.heatmap.point({ row, column });
  }

  #numColumns() {
    const chosen = this.settings.get("minutes");
    const { seconds } = this.columns;
    const first = this.columns.columns.find((column) => column.rows);
    if (chosen !== "auto") return Math.min(CAPACITY, Math.round((Number(chosen) * 60) / seconds));
    const here = first ? (this.#endNs() - first.t_ns) / SECOND / seconds + 1 : 0;
    return Math.min(CAPACITY, Math.max(60, Math.ceil(here / 30) * 30));
  }

  #endNs() {
    if (this.heldNs !== null) return this.heldNs;
    const step = this.columns.seconds * SECOND;
    const now = Math.floor(this.link.nowNs() / step - 3) * step; // a column takes a moment to arrive
    return Math.max(now, this.columns.lastNs ?? 0);
  }

  #signal() {
    const id = this.question().signal;
    return this.signals.find((signal) => signal.id === id) ?? { id, unit: this.columns.unit, normal: "", positions: ["first"] };
  }

  #read(cell) {
    const readout = byId("heat-readout");
    const column = cell && this.at?.[cell.column];
    if (!cell) return say(readout, this.#hint());
    const layer = `Layer ${this.columns.layers[cell.row]}`;
    const ns = this.endNs - (this.at.length - 1 - cell.column) * this.columns.seconds * SECOND;
    if (!column) return say(readout, `${layer}, ${time(ns)}: nothing was measured`);
    const value = `${words(this.#signal().id)} ${number(column.values[cell.row])}`;
    const z = column.z ? `, deviation ${signed(column.z[cell.row])}` : "";
    return say(readout, `${layer}, ${time(column.t_ns)}: ${value}${z}, over ${number(column.rows)} token rows`);
  }

  #hint() {
    const { normal } = this.#signal();
    const about = this.scale === "z" ? `Deviation from ${REFERENCES[this.columns.reference] ?? "what is usual"}.` : "";
    return `${about} ${normal ? `Normal: ${normal}` : ""}`.trim() || "Point at a cell to read it; arrow keys work too.";
  }

  #tellEmpty() {
    const empty = byId("heat-empty");
    const { columns, problem } = this;
    let text = "";
    if (problem) text = problem.remedy ? `${problem.message}: ${problem.remedy}.` : "";
    else if (!columns.layers.length) text = "No layer has been measured yet. It fills with the first request.";
    else if (!columns.columns.length) text = "No token row of this kind in the last ten minutes.";
    empty.hidden = !text;
    say(empty, text);
  }

  #showLegend(scale, low, high, colours) {
    const stops = Array.from({ length: 24 }, (_, at) => {
      const cell = h("i");
      cell.style.backgroundColor = cssColour(colours, Math.round((at / 23) * 255));
      return cell;
    });
    const unit = this.columns.unit ? ` ${this.columns.unit}` : "";
    const [from, to] = scale === "z" ? [`${low} below usual`, `above +${high}`] : [number(low), `${number(high)}${unit}`];
    fill(byId("heat-legend"), h("span", {}, from), h("span", { class: "ramp", "aria-hidden": "true" }, stops), h("span", {}, to));
  }

  #showTable() {
    const { columns } = this;
    const last = columns.columns.at(-1);
    const heads = ["Layer", "Latest", "Least", "Mean", "Largest", "Deviation now", "Largest deviation", "at"];
    const rows = columns.layers.map((layer, row) => {
      const values = columns.ofLayer(row);
      const mean = values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
      const worst = worstScore(columns.columns, row);
      return [String(layer), number(last?.values[row]), number(least(values)), number(mean), number(most(values)),
        last?.z ? signed(last.z[row]) : NONE, worst ? signed(worst.z[row]) : NONE, worst ? time(worst.t_ns) : NONE];
    });
    const caption = `${words(this.#signal().id)} by layer over the last ${span(columns.columns.length * columns.seconds)}`;
    fill(byId("layers-table"), table(caption, heads.map((title) => ({ title, isNumber: true })), rows));
  }

  #makeTools() {
    const choose = (name) => (value) => this.settings.set(name, value);
    this.tools = {
      signal: chooser("Signal", choose("signal")),
      source: chooser("Source", choose("source")),
      minutes: chooser("Span", choose("minutes")),
      ...Object.fromEntries(Object.entries(OTHERS).map(([name, options]) => [name, segments(name, options, choose(name))])),
    };
    const toTable = tableSwitch(byId("layers-figure"), byId("layers-table"), (isTable) => {
      this.isTable = isTable;
      byId("heat-readout").parentElement.hidden = isTable;
      this.show();
    });
    const order = ["signal", "phase", "position", "scale", "source", "minutes"];
    fill(byId("layers-tools"), order.map((name) => this.tools[name].node), toTable);
  }

  #updateTools() {
    const { tools, settings } = this;
    const signals = this.signals.length ? this.signals : [{ id: this.question().signal }];
    tools.signal.update(signals.map(({ id }) => [id, words(id)]), this.question().signal);
    const sources = [["", "First engine"], ...this.sources.map((name) => [name, name])];
    tools.source.update(sources, settings.get("source"));
    tools.source.node.hidden = this.sources.length < 3; // one engine and its only rank
    tools.minutes.update(MINUTES, settings.get("minutes"));
    tools.phase.update(settings.get("phase"));
    tools.position.update(settings.get("position"));
    tools.position.node.hidden = !this.#signal().positions.length;
    tools.scale.update(this.scale, this.columns.columns.some((column) => column.z) ? [] : ["z"]);
  }
}

function timeTicks(numColumns, endNs, seconds) {
  const every = niceTime((numColumns * seconds) / 7);
  const ticks = [];
  const offset = new Date().getTimezoneOffset() * 60;
  const endSeconds = endNs / SECOND;
  for (let t = Math.floor((endSeconds - offset) / every) * every + offset; ; t -= every) {
    const column = numColumns - 1 - (endSeconds - t) / seconds;
    if (column < 0) return ticks;
    ticks.push({ column, text: time(t * SECOND, every < 60) });
  }
}

function niceTime(seconds) {
  return [5, 10, 15, 30, 60, 120, 300, 600].find((step) => step >= seconds) ?? niceStep(Math.ceil(seconds / 60)) * 60;
}

function worstScore(columns, row) {
  let worst = null;
  for (const column of columns) {
    const size = Math.abs(column.z?.[row] ?? Number.NaN);
    if (size === size && (!worst || size > Math.abs(worst.z[row]))) worst = column;
  }
  return worst;
}

const least = (values) => (values.length ? Math.min(...values) : null);
const most = (values) => (values.length ? Math.max(...values) : null);
