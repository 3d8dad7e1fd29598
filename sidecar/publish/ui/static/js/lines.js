// The section of trends: small charts of serving, confidence and attention over time.
// Guarantee: charts follow what /v1/timeline/lines tells; a line that this page has never heard of
// gets a chart of its own unit.

import { CAPACITY } from "./columns.js";
import { table, tableSwitch } from "./controls.js";
import { colour, token } from "./colours.js";
import { byId, fill, h } from "./dom.js";
import { duration, number, time, words } from "./format.js";
import uPlot from "../vendor/uPlot.esm.js";

const HEIGHT = 150;
const COLOURS = ["--line-1", "--line-2", "--line-3", "--line-4"];
// What belongs on one chart: lines of one unit that are read together.
const CHARTS = [
  { title: "Entropy of the next token", names: ["token_entropy"] },
  { title: "Probability of the likeliest token", names: ["token_top1_probability"] },
  { title: "Entropy of attention", names: ["attention_entropy"] },
  { title: "Tokens attended to", names: ["attention_effective_tokens"] },
  { title: "Time to first token", names: ["first_token_p50", "first_token_p99"] },
  { title: "Tokens", names: ["tokens", "prompt_tokens"] },
  { title: "Requests", names: ["running", "waiting"] },
  { title: "Requests finished", names: ["finished"] },
  { title: "KV cache in use", names: ["kv_cache_usage"] },
];

/** Charts side by side with one cursor. */
export class LinesSection {
  constructor() {
    this.answer = null;
    this.isHeld = false;
    this.charts = new Map(); // by title: {plot, names}
    this.isTable = false;
    fill(byId("lines-tools"), tableSwitch(byId("lines-figure"), byId("lines-table"), (isTable) => {
      this.isTable = isTable;
      this.show();
    }));
    new ResizeObserver(() => this.#resize()).observe(byId("lines-figure"));
  }

  /** The question for what came after the latest second that is here. */
  question() {
    return { after: !this.answer?.t_ns.length ? null : String(this.answer.t_ns.at(-1)) };
  }

  /** An answer of /v1/timeline/lines to it. */
  take(answer) {
    if (this.isHeld && this.answer) return;
    this.answer = this.answer ? joined(this.answer, answer) : answer;
    this.show();
  }

  /** Why there is none. */
  refuse(error) {
    if (!this.answer && error.remedy) fill(byId("lines-figure"), h("p", { class: "quiet" }, `${error.message}: ${error.remedy}`));
  }

  /** Stand still, or go on. */
  hold(isHeld) {
    this.isHeld = isHeld;
  }

  /** Draw anew in the colours of the theme in force. */
  recolour() {
    for (const { plot } of this.charts.values()) plot.destroy();
    this.charts.clear();
    fill(byId("lines-figure"));
    this.show();
  }

  show() {
    if (!this.answer) return;
    if (this.isTable) this.#showTable();
    else this.#showCharts();
  }

  #showCharts() {
    const groups = grouped(this.answer.lines);
    const figure = byId("lines-figure");
    if (!this.answer.t_ns.length) return void fill(figure, h("p", { class: "quiet" }, "Nothing has been served yet."));
    const from = firstKnown(this.answer);
    const x = this.answer.t_ns.slice(from).map((ns) => ns / 1e9);
    for (const [title, names] of groups) {
      const data = [x, ...names.map((name) => this.answer.lines[name].values.slice(from))];
      const known = this.charts.get(title);
      if (known && known.names.join() === names.join()) known.plot.setData(data);
      else this.#make(title, names, data);
    }
    for (const stray of figure.querySelectorAll(":scope > p")) stray.remove();
  }

  #make(title, names, data) {
    const known = this.charts.get(title);
    known?.plot.destroy();
    known?.box.remove();
    const lines = this.answer.lines;
    const unit = lines[names[0]].unit;
    const box = h("figure", { class: "chart" }, h("figcaption", { title: names.map((name) => lines[name].help).join("\n") }, title, unit === "ratio" ? null : h("small", {}, unit)));
    byId("lines-figure").append(box);
    const readout = h("p", { class: "now" });
    box.append(readout);
    const options = optionsOf(names, widthOf(box));
    const read = (plot) => fill(readout, readings(plot, names, unit));
    options.hooks = { setCursor: [read], setData: [read] };
    this.charts.set(title, { plot: new uPlot(options, data, box), names, box });
  }

  #resize() {
    for (const { plot, box } of this.charts.values()) {
      const width = widthOf(box);
      if (width > 40 && width !== plot.width) plot.setSize({ width, height: HEIGHT });
    }
  }

  #showTable() {
    const { t_ns: times, lines } = this.answer;
    const names = Object.keys(lines);
    const columns = [{ title: "When" }, ...names.map((name) => ({ title: `${words(name)} ${lines[name].unit}`, isNumber: true, help: lines[name].help }))];
    const rows = times.map((ns, at) => [time(ns), ...names.map((name) => number(lines[name].values[at]))]).toReversed().slice(0, 120);
    fill(byId("lines-table"), table("Trends, latest first", columns, rows));
  }
}

/** The first second of which anything is known: an engine that loads has nothing to tell. */
function firstKnown({ t_ns: times, lines }) {
  const all = Object.values(lines);
  const found = times.findIndex((_, at) => all.some(({ values }) => values[at] !== null));
  return Math.max(0, found);
}

/** Lines with what came after them, the last CAPACITY seconds. */
export function joined(before, after) {
  const from = after.t_ns.length ? before.t_ns.findIndex((ns) => ns >= after.t_ns[0]) : -1;
  const kept = from < 0 ? before.t_ns.length : from;
  const join = (old, young) => [...old.slice(0, kept), ...young].slice(-CAPACITY);
  const lines = Object.entries(after.lines).map(([name, line]) => {
    const old = before.lines[name]?.values ?? before.t_ns.map(() => null);
    return [name, { ...line, values: join(old, line.values) }];
  });
  return { ...after, t_ns: join(before.t_ns, after.t_ns), lines: Object.fromEntries(lines) };
}

/** [[title, names]]: the charts that these lines make. */
export function grouped(lines) {
  const left = new Set(Object.keys(lines));
  const groups = [];
  for (const { title, names: wanted } of CHARTS) {
    const names = wanted.filter((name) => left.has(name));
    names.forEach((name) => left.delete(name));
    if (names.length) groups.push([title, names]);
  }
  const byUnit = Map.groupBy ? Map.groupBy(left, (name) => lines[name].unit) : new Map([...left].map((name) => [name, [name]]));
  for (const [unit, names] of byUnit) groups.push([names.length > 1 ? `Other, ${unit || "counts"}` : words(names[0]), names]);
  return groups;
}

const widthOf = (box) => Math.max(120, Math.floor(box.clientWidth - 2 * Number.parseFloat(getComputedStyle(box).paddingLeft)));

/** The values under the cursor, or the latest ones that there are. */
function readings(plot, names, unit) {
  const at = plot.cursor.idx ?? null;
  const latest = (values) => values.findLast((value) => value !== null && value !== undefined);
  const told = names.map((name, line) => {
    const values = plot.data[line + 1];
    const swatch = h("i");
    swatch.style.borderColor = colour(COLOURS[line]);
    const value = at === null ? latest(values) : values[at];
    const text = unit === "seconds" ? duration(value) : number(value);
    return h("span", {}, swatch, names.length > 1 ? shortName(name) : null, h("b", {}, text));
  });
  return [told, at === null ? null : h("time", {}, time(plot.data[0][at] * 1e9))];
}

function optionsOf(names, width) {
  const axis = { stroke: () => colour("--muted"), font: `11px ${token("--sans")}`, grid: { stroke: () => colour("--grid"), width: 1 }, ticks: { show: false } };
  return {
    width,
    height: HEIGHT,
    cursor: { sync: { key: "trends" }, drag: { x: false, y: false }, points: { size: 6 } },
    legend: { show: false },
    scales: { y: { range: (_, low, high) => padded(low, high) } },
    axes: [
      { ...axis, space: 70, size: 26, values: (_, at) => at.map((t) => time(t * 1e9, at.length > 1 && at[1] - at[0] < 60)) },
      { ...axis, size: 48, space: 22, values: (_, at) => at.map(number) },
    ],
    series: [
      {},
      ...names.map((_, at) => ({
        stroke: colour(COLOURS[at % COLOURS.length]),
        width: 1.5,
        dash: at === 1 ? [5, 3] : undefined,
        points: { show: false },
      })),
    ],
  };
}

function padded(low, high) {
  if (low === null || high === null) return [0, 1];
  const pad = 0.08 * (high - low || Math.abs(high) || 1);
  return [low >= 0 && low < 3 * pad ? 0 : low - pad, high + pad];
}

function shortName(name) {
  const quantile = /_(p\d+)/.exec(name);
  const generic = { tokens: "generated", prompt_tokens: "of prompts", p50: "half within", p99: "99 % within" };
  return generic[quantile?.[1] ?? name] ?? words(name);
}
