// The live page, put together in one visible place: what is asked, how often, and who shows it.
// Guarantees: it asks the sidecar it came from and nobody else; paused, its graphics stand still
// while the answer at the top stays live; in the background it asks every fifteen seconds.

import { Link, listen, Watcher } from "./api.js";
import { theme } from "./colours.js";
import { byId } from "./dom.js";
import { DriftSection } from "./drift.js";
import { showHeadline, showLink, showStrip, showWatchers } from "./headline.js";
import { listenToKeys } from "./keys.js";
import { LayersSection } from "./layers.js";
import { LinesSection } from "./lines.js";
import { RequestsSection } from "./requests.js";
import { Settings } from "./settings.js";
import { showSources } from "./sources.js";

const NUM_REQUESTS = 12;
const link = new Link();
const settings = new Settings(onChoice);
const layers = new LayersSection(settings, link);
const drift = new DriftSection(settings, link, (...cause) => layers.showCause(...cause));
const lines = new LinesSection();
const requests = new RequestsSection(link);
let isPaused = false;
let standingOut = [];
let isOpened = false;

const watchers = {
  status: new Watcher({ seconds: 2, ask: () => link.get("status"), take: takeStatus }),
  drift: new Watcher({ seconds: 4, ask: () => link.get("drift"), take: takeDrift }),
  history: new Watcher({ seconds: 10, ask: () => link.get("drift/history"), take: (answer) => drift.takeChanges(answer) }),
  signals: new Watcher({ seconds: 20, ask: () => link.get("timeline/signals"), take: (answer) => layers.offer(answer.signals, answer.sources) }),
  columns: new Watcher({ seconds: 1, ask: async () => (layers.isStill ? null : link.get("timeline", layers.question())), take: (answer) => answer && layers.take(answer), refuse: (error) => layers.refuse(error) }),
  lines: new Watcher({ seconds: 2, ask: () => link.get("timeline/lines", lines.question()), take: (answer) => lines.take(answer), refuse: (error) => lines.refuse(error) }),
  scans: new Watcher({ seconds: 5, ask: () => link.get("scans"), take: (answer) => requests.takeScans(answer) }),
  requests: new Watcher({ seconds: 10, least: 4, ask: () => link.get("requests", { limit: NUM_REQUESTS }), take: (answer) => requests.take(answer) }),
};

function takeStatus(status) {
  link.setClock(status.now_ns);
  showHeadline(status);
  showSources(status);
  standingOut = status.summary.layers ?? [];
  const count = Math.max(0, ...status.sources.map((source) => source.num_layers));
  showStrip(Array.from({ length: count }, (_, layer) => layer), standingOut);
}

function takeDrift(answer) {
  showWatchers(answer);
  drift.take(answer);
  // Once: a picture that somebody looks at is not exchanged for another.
  if (!isOpened && !isPaused && drift.topCause) layers.openOn(drift.topCause);
  isOpened = true;
}

function onChoice(name) {
  if (name === "hours") drift.show();
  else if (name === "scale" || name === "minutes") layers.show();
  else {
    layers.reset();
    watchers.columns.restart();
  }
}

function pause() {
  isPaused = !isPaused;
  byId("pause").setAttribute("aria-pressed", String(isPaused));
  byId("pause").textContent = isPaused ? "Go on" : "Pause";
  for (const section of [layers, lines, requests]) section.hold(isPaused);
  for (const watcher of Object.values(watchers)) watcher.nudge();
  showLink(link, isPaused);
}

function changeTheme() {
  const next = theme() === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  remember("theme", next);
  recolour();
}

function recolour() {
  layers.show();
  lines.recolour();
  requests.recolour();
}

function remember(name, value) {
  try {
    localStorage.setItem(`llm-internals-${name}`, value);
  } catch {
    // A browser may forbid it; the choice then lasts as long as the page.
  }
}

function recall(name) {
  try {
    return localStorage.getItem(`llm-internals-${name}`);
  } catch {
    return null;
  }
}

const chosenTheme = new URLSearchParams(location.search).get("theme") ?? recall("theme");
if (chosenTheme) document.documentElement.dataset.theme = chosenTheme;
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
byId("pause").addEventListener("click", pause);
byId("theme").addEventListener("click", changeTheme);
listenToKeys({
  p: ["hold all graphics still, or go on", pause],
  t: ["light or dark", changeTheme],
  z: ["deviation or value", () => settings.set("scale", layers.scale === "z" ? "value" : "z")],
});
for (const watcher of Object.values(watchers)) watcher.nudge();
const hearEvents = () => listen({
  status: () => watchers.status.nudge(),
  column: () => watchers.columns.nudge(),
  drift: () => {
    watchers.drift.nudge();
    watchers.history.nudge();
    watchers.status.nudge();
  },
  request: () => watchers.requests.nudge(),
});
let events = hearEvents();
setInterval(() => showLink(link, isPaused), 1000);
document.addEventListener("visibilitychange", () => {
  // A browser has six connections to a host: tabs that nobody looks at must not hold one each.
  events.close();
  if (document.hidden) return;
  events = hearEvents();
  for (const watcher of Object.values(watchers)) watcher.nudge();
});
