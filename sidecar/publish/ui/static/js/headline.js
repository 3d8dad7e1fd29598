// The answer that the page exists for: is the model behaving as usual, if not since when, and in
// which layers. Guarantee: the sentence is the sidecar's own (`summary` of /v1/status), never made
// here; what the page adds is only that it hears nothing, and since when.

import { badge } from "./controls.js";
import { byId, fill, h, say } from "./dom.js";
import { layerRanges, NONE, span, time, zone } from "./format.js";

const WORDS = {
  ok: "As usual",
  collecting: "Still learning what is usual",
  ticket: "Worth a look",
  page: "Not as usual",
  blind: "Not known: nothing is heard",
  unknown: "Asking the sidecar",
};

/** Show the summary of /v1/status. */
export function showHeadline(status) {
  const { level, sentence, since_ns: sinceNs, layers } = status.summary;
  byId("headline").dataset.level = level;
  say(byId("level-word"), WORDS[level] ?? level);
  const [claim, more] = split(sentence);
  say(byId("sentence"), claim);
  say(byId("more"), more);
  say(byId("since"), sinceNs ? `${time(sinceNs)} (${span((status.now_ns - sinceNs) / 1e9)} ago)` : NONE);
  say(byId("since-what"), level === "ok" ? "Watched since" : "Since when");
  say(byId("where"), whereabouts(level, layers));
  document.title = `${WORDS[level] ?? level} · ${modelOf(status)}`;
  say(byId("model"), modelOf(status));
  say(byId("version"), `llm-internals-sidecar ${status.version}, schema ${status.schema_version}; times in ${zone()}`);
}

/** Show which channels judge, from /v1/drift. */
export function showWatchers(drift) {
  const channels = drift.channels.filter((channel) => channel.is_configured);
  const chips = channels.map(({ channel, state, reason }) =>
    h("a", { class: "chip", href: "#drift", title: reason }, badge(state, channel), ` ${state}`),
  );
  fill(byId("watchers"), chips.length ? chips : "no channel is configured");
}

/** The strip of all layers, those that stand out marked; scores: {layer: share of the limit}. */
export function showStrip(layers, standingOut) {
  const marked = new Set(standingOut);
  const strip = byId("strip");
  const key = JSON.stringify([layers, standingOut]);
  if (strip.dataset.key === key) return;
  strip.dataset.key = key;
  strip.setAttribute("aria-label", marked.size ? `${layers.length} layers, of which ${layerRanges(standingOut)} stand out` : `${layers.length} layers, none stands out`);
  fill(strip, layers.map((layer) => h("i", { title: `layer ${layer}`, data: marked.has(layer) ? { marked: "" } : {} })));
}

/** Show that the sidecar does not answer, or that it does again. */
export function showLink(link, isPaused) {
  const silent = link.failingSince !== null && Date.now() - link.failingSince > 4000;
  const notice = byId("notice");
  notice.hidden = !silent && !link.refusal;
  if (link.refusal) say(notice, `The sidecar does not let this browser in: ${link.refusal.message}. For a browser, \`sidecar open\` prints an address that works once.`);
  if (silent) {
    const since = link.heardAt === null ? "It has not answered yet" : `Its last answer was at ${time(link.heardAt * 1e6)}, ${span((Date.now() - link.heardAt) / 1000)} ago`;
    say(notice, `The sidecar does not answer. ${since}; what stands below is from then. Is it running, and is its API port reachable?`);
  }
  const place = byId("link");
  place.dataset.state = silent || link.refusal ? "silent" : isPaused ? "paused" : link.heardAt === null ? "connecting" : "live";
  const text = silent ? "no answer" : link.refusal ? "locked out" : isPaused ? "paused" : link.heardAt === null ? "connecting" : "live";
  say(place.querySelector(".words"), text);
}

/** The claim, which is set large, and the reasons that follow it. */
function split(sentence) {
  const found = /^(.+?)(\.\s|:\s|\s\()(.+)$/s.exec(sentence);
  if (!found) return [sentence, ""];
  const rest = found[2].trim() === "(" ? found[3].replace(/\)\.(?=\s|$)/, ".") : found[3];
  return [`${found[1].replace(/\.$/, "")}.`, rest.charAt(0).toUpperCase() + rest.slice(1)];
}

function whereabouts(level, layers) {
  if (layers?.length) return `Layer${layers.length > 1 ? "s" : ""} ${layerRanges(layers)}`;
  if (level === "ok") return "None stands out";
  return level === "ticket" || level === "page" ? "It belongs to no single layer" : NONE;
}

function modelOf(status) {
  const names = status.sources.map((source) => source.model_name).filter(Boolean);
  return [...new Set(names)].join(", ") || "no model heard yet";
}
