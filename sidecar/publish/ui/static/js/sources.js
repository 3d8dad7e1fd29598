// The section of sources: which taps send, whether they are heard, and what they leave out.

import { badge, table } from "./controls.js";
import { byId, fill, h } from "./dom.js";
import { NONE, number, percent, span } from "./format.js";

const COLUMNS = [
  { title: "Source" }, { title: "Tap" }, { title: "Last heard" },
  { title: "Frames", isNumber: true, help: "received since its boot" },
  { title: "Lost", isNumber: true, help: "frames that never arrived, by cause in the tooltip" },
  { title: "Cost", isNumber: true, help: "the tap's own time over the engine's, last minute" },
  { title: "Left out", help: "what the tap sheds to stay within its budget" },
  { title: "Rows measured", isNumber: true, help: "token rows measured since its boot, and the share of all" },
  { title: "What it says" },
];

/** Show the sources of /v1/status. */
export function showSources(status) {
  const place = byId("sources-table");
  const reasons = status.reasons.map((reason) => h("li", {}, reason));
  const trust = status.ready
    ? h("p", { class: "quiet" }, badge("ok", "trustworthy"), " Every stage works: the numbers on this page can be trusted.")
    : h("div", { class: "quiet" }, h("p", {}, badge("ticket", "not to be trusted"), " Because:"), h("ul", {}, reasons));
  if (!status.sources.length) return void fill(place, trust);
  const coverage = new Map(status.coverage.map((each) => [each.source, each]));
  fill(place, trust, table("Sources", COLUMNS, status.sources.map((source) => row(source, coverage.get(source.source)))));
}

function row(source, coverage) {
  const lost = Object.entries(source.frames_lost).filter(([, count]) => count > 0);
  const numLost = lost.reduce((sum, [, count]) => sum + count, 0);
  const why = lost.map(([cause, count]) => `${cause} ${count}`).join(", ");
  return [
    h("code", {}, source.source), tapOf(source),
    source.last_frame_age_seconds === null ? NONE : `${span(source.last_frame_age_seconds)} ago`,
    number(source.frames_received), h("span", { title: why }, number(numLost)), percent(source.cost_share),
    source.shed_level ? `level ${source.shed_level}` : "nothing", covered(coverage), remarks(source),
  ];
}

function tapOf(source) {
  if (source.role !== "engine") return "front end";
  return badge(stateOf(source), source.state ?? "not heard");
}

function stateOf({ state }) {
  if (state === "live") return "ok";
  return state === null || state === "starting" ? "collecting" : "page";
}

function covered(coverage) {
  if (!coverage) return NONE;
  const seen = Object.values(coverage.observed).flatMap((phase) => Object.values(phase)).reduce((sum, rows) => sum + rows, 0);
  const all = seen + coverage.prefix_cached + coverage.lost + coverage.shed + coverage.opted_out;
  return all ? `${number(seen)} (${percent(seen / all)})` : NONE;
}

function remarks(source) {
  const absent = Object.entries(source.absent).map(([group, reason]) => `no ${group}: ${reason}`);
  const dead = source.dead_layers.length ? [`dead layers ${source.dead_layers.join(", ")}`] : [];
  const errors = Object.entries(source.errors).filter(([, count]) => count).map(([site, count]) => `${count} errors at ${site}`);
  const told = [source.reason, source.detail, ...dead, ...errors, ...absent].filter(Boolean);
  return told.length ? h("span", { class: "remarks" }, told.join("; ")) : "all well";
}
