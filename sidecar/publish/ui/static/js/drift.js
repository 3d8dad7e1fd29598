// The section on drift: which state each channel was in over time, and which streams moved most.
// Guarantee: what is drawn is what /v1/drift and its history tell; nothing is drawn of the time before
// which changes are no longer, or not yet, known.

import { badge, chooser, table, tableSwitch } from "./controls.js";
import { byId, fill, h, svg } from "./dom.js";
import { NONE, number, percent, span, time, words } from "./format.js";

const SECOND = 1e9;
// Streams of the detectors that the picture of layers can show, and under which signal.
const PICTURED = [[/influence/, "block_influence"], [/peak/, "residual_peak"], [/rms|^residual$/, "residual_rms"]];
const HOURS = [["0.25", "15 min"], ["1", "1 hour"], ["6", "6 hours"], ["24", "1 day"], ["168", "7 days"]];
const ROW = 30;
const BAR = 16;
const NAMES = 84;
const AXIS = 22;

/** The timeline of channels, the causes, and a table of changes. */
export class DriftSection {
  /** onShow(signal, phase, layer): somebody wants to see a cause in the picture of layers. */
  constructor(settings, link, onShow) {
    Object.assign(this, { settings, link, onShow });
    this.drift = null;
    this.changes = [];
    this.completeNs = null;
    this.span = chooser("Span", (hours) => settings.set("hours", hours));
    const toTable = tableSwitch(byId("drift-figure"), byId("drift-table"), () => this.show());
    fill(byId("drift-tools"), this.span.node, toTable);
    new ResizeObserver(() => this.show()).observe(byId("drift-figure"));
  }

  /** An answer of /v1/drift. */
  take(drift) {
    this.drift = drift;
    this.show();
  }

  /** An answer of /v1/drift/history: its changes, and since when they are all that there were. */
  takeChanges({ changes, complete_ns: completeNs }) {
    this.completeNs = completeNs;
    this.changes = [...changes].sort((a, b) => a.t_ns - b.t_ns);
    this.show();
  }

  /** The foremost cause that has a layer, of the channel that found most: {signal, phase, layer}. */
  get topCause() {
    const cause = this.#worst(isAlarmed)?.causes.find(({ layer }) => layer !== null);
    return cause ? { signal: picturedBy(cause), phase: cause.phase, layer: cause.layer } : null;
  }

  /** Layers whose streams passed their limit, of channels that found something. */
  get layers() {
    const found = (this.drift?.channels ?? []).filter(isAlarmed);
    const layers = found.flatMap(({ causes }) => causes.filter((cause) => cause.share >= 1).map((cause) => cause.layer));
    return [...new Set(layers.filter((layer) => layer !== null))].sort((a, b) => a - b);
  }

  show() {
    this.span.update(HOURS, this.settings.get("hours"));
    if (!this.drift) return;
    this.#showFigure();
    this.#showCauses();
    if (!byId("drift-table").hidden) this.#showTable();
  }

  #showFigure() {
    const figure = byId("drift-figure");
    const width = Math.max(320, figure.clientWidth);
    const channels = this.drift.channels.filter((channel) => channel.is_configured);
    const height = channels.length * ROW + AXIS;
    const toNs = this.link.nowNs();
    const fromNs = toNs - Number(this.settings.get("hours")) * 3600 * SECOND;
    const place = (ns) => NAMES + ((Math.max(fromNs, Math.min(toNs, ns)) - fromNs) / (toNs - fromNs)) * (width - NAMES - 2);
    const rows = channels.map((channel, at) => this.#row(channel, at * ROW, place, fromNs, toNs));
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": this.#described() },
      rows, this.#deployments(place, fromNs, height - AXIS), ticks(place, fromNs, toNs, height, width));
    fill(figure, picture, legend(), notSetUp(this.drift.channels));
  }

  #row(channel, y, place, fromNs, toNs) {
    const label = svg("text", { x: 0, y: y + ROW / 2 + 4 }, channel.channel);
    const parts = this.#stretches(channel, fromNs, toNs).map(({ state, from, to, reason }) =>
      svg("rect", { x: place(from), y: y + (ROW - BAR) / 2, width: Math.max(2, place(to) - place(from) - 1), height: BAR, rx: 2, class: "state", "data-state": state },
        svg("title", {}, `${channel.channel}: ${state}, ${time(from)} to ${to >= toNs ? "now" : time(to)}${reason ? `. ${reason}` : ""}`)),
    );
    const marks = isAlarmed(channel) && channel.since_ns > fromNs ? [changeMark(place(channel.since_ns), y)] : [];
    return svg("g", {}, label, parts, marks);
  }

  /** States of a channel within the span: [{state, from, to, reason}]. */
  #stretches(channel, fromNs, toNs) {
    const changes = this.changes.filter((change) => change.channel === channel.channel && change.t_ns < toNs);
    const before = changes.filter((change) => change.t_ns <= fromNs).at(-1);
    const within = changes.filter((change) => change.t_ns > fromNs);
    const start = before?.to ?? within[0]?.from ?? channel.state;
    const startNs = Math.max(fromNs, Math.min(this.completeNs ?? toNs, within[0]?.t_ns ?? toNs));
    const points = [{ state: start, from: before ? fromNs : startNs, reason: before?.reason ?? "" },
      ...within.map((change) => ({ state: change.to, from: change.t_ns, reason: change.reason }))];
    return points.map((point, at) => ({ ...point, to: points[at + 1]?.from ?? toNs })).filter(({ state }) => state);
  }

  #deployments(place, fromNs, height) {
    return this.drift.deployments.filter(({ t_ns: ns }) => ns > fromNs).map(({ t_ns: ns, note }) =>
      svg("g", {}, svg("title", {}, `${time(ns)}: ${note}`),
        svg("line", { x1: place(ns), x2: place(ns), y1: 0, y2: height, class: "deployment" })));
  }

  #described() {
    return this.drift.channels.filter((each) => each.is_configured).map(({ channel, state }) => `${channel} ${state}`).join(", ");
  }

  #showCauses() {
    const worst = this.#worst();
    const place = byId("causes");
    if (!worst) {
      fill(place, h("p", { class: "quiet" }, "Nothing moved towards a limit."));
      return;
    }
    const rows = worst.causes.slice(0, 8).map((cause) => [
      cause.layer === null ? NONE : String(cause.layer), this.#signalOf(cause),
      cause.side === "high" ? "above" : "below", shareBar(cause.share), cause.since_ns ? time(cause.since_ns, false) : NONE,
    ]);
    const columns = [{ title: "Layer" }, { title: "Signal" }, { title: "Against usual", help: "above or below what is usual" },
      { title: "Of its limit" }, { title: "Since" }];
    fill(place, h("p", { class: "quiet", title: worst.reason }, badge(worst.state, worst.channel), ` ${worst.state}`), table("What moved most", columns, rows));
  }

  /** Of the channels that tell causes, and are as asked for, the one that found most. */
  #worst(isWanted = () => true) {
    const told = (this.drift?.channels ?? []).filter((each) => each.is_configured && each.causes.length && isWanted(each));
    return told.sort((a, b) => rank(b) - rank(a) || (b.level ?? 0) - (a.level ?? 0))[0];
  }

  /** A cause in words; where the picture of layers can show it, a button that does. */
  #signalOf(cause) {
    const text = words([cause.signal || cause.stream, cause.phase].filter(Boolean).join(", "));
    const signal = cause.layer === null ? null : picturedBy(cause);
    if (!signal) return text;
    const show = () => this.onShow(signal, cause.phase, cause.layer);
    return h("button", { type: "button", class: "link-like", title: "Show it over time", on: { click: show } }, text);
  }

  #showTable() {
    const now = this.link.nowNs();
    const columns = [{ title: "When" }, { title: "Channel" }, { title: "From" }, { title: "To" }, { title: "Why" }];
    const changes = this.changes.toReversed().slice(0, 200).map(({ t_ns: ns, channel, from, to, reason }) =>
      [`${time(ns)} (${span((now - ns) / SECOND)} ago)`, channel, from ? badge(from) : NONE, badge(to), reason]);
    const present = this.drift.channels.map(({ channel, state, is_configured: isSet, reason }) =>
      ["now", channel, NONE, isSet ? badge(state) : "not set up", reason]);
    fill(byId("drift-table"), table("States now, and every change that is kept", columns, [...present, ...changes]));
  }
}

function legend() {
  const states = [["collecting", "learning"], ["armed", "armed, nothing found"], ["ticket", "ticket"], ["page", "page"]];
  return h("p", { class: "states" }, states.map(([state, text]) => h("span", {}, h("i", { data: { state } }), text)));
}

function notSetUp(channels) {
  const missing = channels.filter((channel) => !channel.is_configured);
  if (!missing.length) return null;
  const list = missing.map(({ channel, reason }) => h("li", {}, h("b", {}, channel), `: ${reason}`));
  const isOpen = document.querySelector("#drift-figure details")?.open ?? false;
  const names = missing.map(({ channel }) => channel).join(", ");
  return h("details", { open: isOpen }, h("summary", {}, `Not set up: ${names}`), h("ul", { class: "quiet" }, list));
}

const picturedBy = ({ signal }) => PICTURED.find(([pattern]) => pattern.test(signal))?.[1] ?? null;
const RANKS = ["collecting", "armed", "ticket", "page"];
const rank = ({ state }) => RANKS.indexOf(state);
const isAlarmed = ({ state }) => state === "ticket" || state === "page";

function changeMark(x, y) {
  const title = svg("title", {}, "when it began to change, as estimated");
  return svg("path", { d: `M${x - 5} ${y + 1}h10l-5 7z`, class: "began" }, title);
}

function shareBar(share) {
  const bar = h("i");
  bar.style.width = `${Math.min(100, 50 * (share ?? 0))}%`; // the limit is at half of the bar
  return h("span", { class: "share", data: share >= 1 ? { over: "" } : {} }, h("span", { class: "rail" }, bar), share >= 2 ? `${number(share)} times` : percent(share));
}

function ticks(place, fromNs, toNs, height, width) {
  const count = Math.max(2, Math.min(7, Math.floor(width / 130)));
  return Array.from({ length: count }, (_, at) => {
    const ns = fromNs + ((toNs - fromNs) * at) / (count - 1);
    const anchor = at === 0 ? "start" : at === count - 1 ? "end" : "middle";
    return svg("text", { x: place(ns), y: height - 4, "text-anchor": anchor, class: "tick" }, at === count - 1 ? "now" : time(ns, toNs - fromNs < 3000 * SECOND));
  });
}
