// Numbers and times as people read them. Guarantee: what does not exist is an en dash, never NaN.

export const NONE = "–";
const MINUTE = 60;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const shortClock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });

/** Three significant digits; large and tiny ones with an exponent, counts whole. */
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE;
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return value.toLocaleString();
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return Number(value.toPrecision(size >= 1000 ? 4 : 3)).toLocaleString(undefined, { maximumFractionDigits: 5 });
}

/** With its sign, for scores about zero. */
export const signed = (value) => (value > 0 ? "+" : "") + number(value);

/** Time of day of Unix nanoseconds, with the date where it is not today. */
export function time(ns, withSeconds = true) {
  const date = new Date(ns / 1e6);
  const told = (withSeconds ? clock : shortClock).format(date);
  return date.toDateString() === new Date().toDateString() ? told : `${day.format(date)}, ${told}`;
}

/** The zone of the times above. */
export const zone = () => Intl.DateTimeFormat().resolvedOptions().timeZone;

/** A length of time in its largest two units. */
export function span(seconds) {
  if (!Number.isFinite(seconds)) return NONE;
  const s = Math.max(0, seconds);
  if (s < 90) return `${Math.round(s)} s`;
  if (s < HOUR) return `${Math.round(s / MINUTE)} min`;
  if (s < 2 * DAY) return pair(s, HOUR, "h", MINUTE, "min");
  return pair(s, DAY, "d", HOUR, "h");
}

/** Short durations of serving. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return NONE;
  return seconds < 1 ? `${number(seconds * 1000)} ms` : `${number(seconds)} s`;
}

/** A share as a percentage. */
export const percent = (share) =>
  share === null || share === undefined || !Number.isFinite(share) ? NONE : `${number(100 * share)} %`;

/** Layers in words: 3, 5 to 8 and 12; few ranges at most. */
export function layerRanges(layers, most = 4) {
  const ranges = [];
  for (const layer of [...new Set(layers)].sort((a, b) => a - b)) {
    const last = ranges.at(-1);
    if (last && layer === last[1] + 1) last[1] = layer;
    else ranges.push([layer, layer]);
  }
  const words = ranges.map(([from, to]) => (from === to ? `${from}` : `${from} to ${to}`));
  if (words.length > most) words.splice(most - 1, words.length, `${words.length - most + 1} more ranges`);
  return words.length > 1 ? `${words.slice(0, -1).join(", ")} and ${words.at(-1)}` : (words[0] ?? NONE);
}

/** A signal's id as words. */
export const words = (id) => id.replaceAll("_", " ");

function pair(seconds, large, largeName, small, smallName) {
  const whole = Math.floor(seconds / large);
  const rest = Math.round((seconds - whole * large) / small);
  return rest ? `${whole} ${largeName} ${rest} ${smallName}` : `${whole} ${largeName}`;
}
