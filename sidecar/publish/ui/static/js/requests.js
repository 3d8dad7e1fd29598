// The section of requests: the latest that finished, and one of them in detail.
// Guarantee: an answer is asked for when a request has finished or the user asks, never more often
// than every few seconds, for it holds every layer of every request it lists.

import { table } from "./controls.js";
import { byId, fill, h } from "./dom.js";
import { duration, NONE, number, percent, time, words } from "./format.js";
import { ScanView } from "./scan.js";

const COLUMNS = [
  { title: "Finished" }, { title: "Request" },
  { title: "Prompt", isNumber: true, help: "tokens of the prompt, and those found in the prefix cache" },
  { title: "Generated", isNumber: true, help: "tokens generated" },
  { title: "First token", isNumber: true }, { title: "In all", isNumber: true },
  { title: "Entropy", isNumber: true, help: "mean over its generated tokens, nats" },
  { title: "Likeliest", isNumber: true, help: "mean probability of the likeliest token" },
  { title: "Attends to", isNumber: true, help: "effective tokens, mean over sampled rows" },
  { title: "NaN, Inf", isNumber: true }, { title: "End" }, { title: "Detail" },
];

/** The table of requests and the dialog of one. */
export class RequestsSection {
  constructor(link) {
    this.link = link;
    this.requests = [];
    this.scans = [];
    this.isHeld = false;
    this.dialog = byId("request-dialog");
    this.dialog.addEventListener("close", () => this.scan?.end());
    fill(byId("requests-tools"), scanButton(link));
  }

  /** An answer of /v1/requests. */
  take(answer) {
    if (this.isHeld && this.requests.length) return;
    this.requests = answer.requests;
    this.#show();
  }

  /** An answer of /v1/scans: which requests can be opened token by token. */
  takeScans(answer) {
    this.scans = answer.scans;
    const buttons = this.scans.slice(0, 6).map(({ id }) => this.#opener(id, shortId(id)));
    fill(byId("requests-scans"), buttons.length ? ["Scanned token by token: ", buttons] : []);
  }

  /** Stand still, or go on. */
  hold(isHeld) {
    this.isHeld = isHeld;
  }

  /** Draw anew in the colours of the theme in force. */
  recolour() {
    this.scan?.show();
  }

  #show() {
    const place = byId("requests-table");
    if (!this.requests.length) {
      fill(place, h("p", { class: "quiet" }, "No request has finished yet."));
      return;
    }
    const focused = place.contains(document.activeElement) ? document.activeElement.dataset.id : null;
    const rows = this.requests.map((request) => this.#row(request));
    fill(place, table("Requests that finished last", COLUMNS, rows, (at) => rowClass(this.requests[at])));
    if (focused) place.querySelector(`button[data-id="${CSS.escape(focused)}"]`)?.focus();
  }

  #row(request) {
    const { serving } = request;
    const cached = serving?.cached_tokens ? ` (${number(serving.cached_tokens)} cached)` : "";
    return [
      time(request.end_ns), [h("code", { title: request.id }, shortId(request.id)), canaryMark(request)],
      `${number(request.num_prompt_tokens)}${cached}`, number(serving?.generated_tokens),
      duration(serving?.time_to_first_token), duration(serving?.e2e),
      number(meanOf(request, "confidence", "entropy")), percent(meanOf(request, "confidence", "top1_probability")),
      number(meanOf(request, "attention_mean", "effective_tokens")),
      number(sum(request.nonfinite)), request.aborted ? "aborted" : (serving?.reason ?? NONE),
      this.#opener(request.id, this.scans.some(({ id }) => id === request.id) ? "Open scan" : "Open"),
    ];
  }

  #opener(id, text) {
    return h("button", { type: "button", class: "link-like", data: { id }, on: { click: () => this.open(id) } }, text);
  }

  /** Show one request, by its engine id. */
  async open(id) {
    fill(byId("request-title"), "Request ", h("code", {}, shortId(id)));
    const place = h("div", { class: "scan" });
    const known = this.requests.find((request) => request.id === id);
    fill(byId("request-body"), known ? factList(known) : null, place, known ? profileOf(known) : null);
    if (!this.dialog.open) this.dialog.showModal();
    this.scan?.end();
    this.scan = new ScanView(place, this.link, id);
    await this.scan.load();
  }
}

function scanButton(link) {
  const button = h("button", { type: "button", title: "Measure every token of the next request, layer by layer" }, "Scan the next request");
  const word = h("span", { class: "quiet", role: "status" });
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await link.post("scans", { num_requests: 1 });
      word.textContent = "The next request will be scanned.";
    } catch (error) {
      word.textContent = error.remedy ? `${error.message}: ${error.remedy}` : error.message;
    } finally {
      button.disabled = false;
    }
  });
  return [word, button];
}

function factList(request) {
  const facts = factsOf(request).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)));
  return h("dl", { class: "facts small" }, facts);
}

function factsOf(request) {
  const { serving, coverage } = request;
  const observed = sum(Object.values(coverage.observed).flatMap((phase) => Object.values(phase)));
  return [
    ["Source", request.source], ["Finished", time(request.end_ns)], ["In all", duration(serving?.e2e)],
    ["Queue", duration(serving?.queue)], ["Time per token", duration(serving?.time_per_output_token)],
    ["Rows measured", number(observed)], ["From the prefix cache", number(coverage.prefix_cached)],
    ["Adapter", request.adapter || "none"], ...(request.canary ? [["Canary", request.canary]] : []),
  ];
}

function profileOf(request) {
  const populations = Object.entries(request.populations);
  if (!populations.length) return h("p", { class: "quiet" }, "No row of it was measured.");
  const columns = [{ title: "Layer", isNumber: true }];
  const series = populations.flatMap(([population, signals]) =>
    Object.entries(signals).filter(([id]) => id !== "rows").map(([id, sums]) => {
      columns.push({ title: `${words(id)}, ${population.replace("/", " ")}`, isNumber: true });
      return sums.mean;
    }),
  );
  const rows = request.layers.map((layer, at) => [String(layer), ...series.map((means) => number(means[at]))]);
  return h("details", {}, h("summary", {}, "Its means, layer by layer"), h("div", { class: "table-wrap" }, table("Means by layer", columns, rows)));
}

function meanOf(request, group, signal) {
  const cells = (request.tables[group] ?? []).filter((cell) => cell.labels.phase !== "prefill");
  const count = sum(cells.map((cell) => cell.count));
  return count ? sum(cells.map((cell) => cell.signals[signal].mean * cell.count)) / count : null;
}

function canaryMark({ canary }) {
  return canary ? h("span", { class: "mark-of", title: `A known-safe prompt that the sidecar sent itself: ${canary}` }, "canary") : null;
}

const sum = (values) => values.reduce((total, value) => total + value, 0);
const rowClass = (request) => (sum(request.nonfinite) ? { class: "bad" } : {});

/** An id without the engine's suffix, and with its middle left out where it is long. */
export function shortId(id) {
  const own = id.replace(/-[0-9a-f]{8}$/, "");
  return own.length > 22 ? `${own.slice(0, 12)}…${own.slice(-6)}` : own;
}
