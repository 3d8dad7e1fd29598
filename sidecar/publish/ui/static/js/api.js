// What the page asks of the sidecar, and whether it answers.
// Guarantees: one question of a kind at a time; an answer or a failure within TIMEOUT_MS; the page
// always knows since when nothing was heard, and never shows an old answer as a new one silently.

const TIMEOUT_MS = 10_000;
const BASE = new URL("../v1/", document.baseURI);

/** An answer above 399: what is wrong, and the sidecar's own remedy. */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail ?? `status ${status}`);
    this.status = status;
    this.remedy = problem.remedy ?? "";
  }
}

/** The link to the sidecar: asks, and remembers when it last had an answer. */
export class Link {
  constructor() {
    this.heardAt = null; // Date.now() of the last answer
    this.failingSince = null;
    this.refusal = null; // a Refused that concerns everything: the browser is not let in (any more)
    this.offsetMs = 0; // the sidecar's clock less this machine's, as its status tells
  }

  /** The sidecar's time in Unix ns, so that a clock set wrong on either side shifts nothing. */
  nowNs() {
    return (Date.now() + this.offsetMs) * 1e6;
  }

  /** The sidecar has told its time. */
  setClock(nowNs) {
    this.offsetMs = nowNs / 1e6 - Date.now();
  }

  /** GET a path below /v1 as JSON. Throws Refused, or an Error when nothing answers. */
  async get(path, parameters = {}) {
    return this.#ask(withParameters(path, parameters), {});
  }

  /** POST JSON to a path below /v1. */
  async post(path, body) {
    const headers = { "Content-Type": "application/json" };
    return this.#ask(new URL(path, BASE), { method: "POST", headers, body: JSON.stringify(body) });
  }

  async #ask(url, options) {
    try {
      const reply = await fetch(url, { ...options, signal: AbortSignal.timeout(TIMEOUT_MS), cache: "no-store" });
      const answer = await reply.json();
      this.heardAt = Date.now();
      this.failingSince = null;
      this.refusal = reply.status === 401 ? new Refused(reply.status, answer) : null;
      if (!reply.ok) throw this.refusal ?? new Refused(reply.status, answer);
      return answer;
    } catch (error) {
      if (!(error instanceof Refused)) this.failingSince ??= Date.now();
      throw error;
    }
  }
}

/** Asks the same again and again: every `seconds`, and sooner when nudged, `least` seconds apart. */
export class Watcher {
  constructor({ seconds, least = 0.2, ask, take, refuse = () => {} }) {
    Object.assign(this, { seconds, least, ask, take, refuse });
    this.isAsking = false;
    this.isNudged = false;
    this.askedAt = 0;
    this.timer = null;
    this.round = 0;
  }

  /** Ask as soon as may be. */
  nudge() {
    this.isNudged = true;
    if (!this.isAsking) this.#plan();
  }

  /** Ask now and forget the answer under way: the question has changed. */
  restart() {
    this.round += 1;
    this.isAsking = false;
    this.askedAt = 0;
    this.nudge();
  }

  #plan() {
    // A tab in the background asks rarely: nobody looks.
    const wait = document.hidden ? 15 : this.isNudged ? this.least : this.seconds;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#turn(), Math.max(0, this.askedAt + wait * 1000 - performance.now()));
  }

  async #turn() {
    const { round } = this;
    this.isAsking = true;
    this.isNudged = false;
    this.askedAt = performance.now();
    try {
      const answer = await this.ask();
      if (round === this.round) this.take(answer);
    } catch (error) {
      if (round === this.round) this.refuse(error);
    }
    if (round !== this.round) return;
    this.isAsking = false;
    this.#plan();
  }
}

/** The sidecar's events: each nudges who listens to its name. Without them the watchers go on. */
export function listen(listeners) {
  const source = new EventSource(new URL("events", BASE));
  for (const [name, listener] of Object.entries(listeners)) {
    source.addEventListener(name, (event) => listener(parsed(event.data)));
  }
  return source;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return {};
  }
}

function withParameters(path, parameters) {
  const url = new URL(path, BASE);
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, value);
  }
  return url;
}
