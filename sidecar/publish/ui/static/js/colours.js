// Colours of the page and of its heatmaps, by theme.
// The ramps run through OKLab, so that equal steps look equal (B. Ottosson, 2020,
// https://bottosson.github.io/posts/oklab/); hue and lightness both change, so that they can be read
// with any colour vision, and in grey. Zero of the diverging ramp is the surface itself: usual is quiet.

export const STEPS = 256;

const ANCHORS = {
  light: {
    value: ["#f2efe6", "#bcd8c4", "#5fa8a0", "#2c6e8c", "#24316b", "#150f38"],
    score: ["#123f86", "#4a8aca", "#d3e0e6", "#f5f3ed", "#f2dfc8", "#db7a36", "#8a2c0d"],
    missing: "#ffffff",
  },
  dark: {
    value: ["#161b22", "#1d3b57", "#22667f", "#3d9a8f", "#a5c977", "#f6e8a6"],
    score: ["#a8d5ff", "#3f86cc", "#21405d", "#191e25", "#4d3422", "#d2752f", "#ffdcae"],
    missing: "#101419",
  },
};

const ramps = new Map();

/** The theme in force. */
export function theme() {
  const chosen = document.documentElement.dataset.theme;
  if (chosen === "light" || chosen === "dark") return chosen;
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

/** A custom property of the stylesheet that is no colour, such as `--sans`. */
export const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const probe = document.createElement("i");
probe.hidden = true;

/** A colour of the stylesheet in the theme in force, such as `--ink`, as a canvas understands it. */
export function colour(name) {
  if (!probe.isConnected) document.body.append(probe);
  probe.style.color = `var(${name})`; // the property itself holds the colours of both themes
  return getComputedStyle(probe).color;
}

/** 256 colours of a ramp as pixels (little-endian RGBA), and the pixel of what is missing. */
export function ramp(kind) {
  const key = `${theme()} ${kind}`;
  if (!ramps.has(key)) ramps.set(key, made(ANCHORS[theme()][kind], ANCHORS[theme()].missing));
  return ramps.get(key);
}

/** CSS colour of step `at` (0 to 255) of a ramp. */
export function cssColour({ pixels }, at) {
  const pixel = pixels[at];
  return `rgb(${pixel & 255} ${(pixel >> 8) & 255} ${(pixel >> 16) & 255})`;
}

function made(anchors, missing) {
  const stops = anchors.map(oklab);
  const pixels = new Uint32Array(STEPS);
  for (let step = 0; step < STEPS; step += 1) {
    const place = (step / (STEPS - 1)) * (stops.length - 1);
    const left = Math.min(stops.length - 2, Math.floor(place));
    const share = place - left;
    pixels[step] = pixel(stops[left].map((low, axis) => low + share * (stops[left + 1][axis] - low)));
  }
  return { pixels, missing: pixel(oklab(missing)) };
}

function oklab(hex) {
  const [r, g, b] = [1, 3, 5].map((at) => linear(Number.parseInt(hex.slice(at, at + 2), 16) / 255));
  const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return [
    0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
    1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
    0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s,
  ];
}

function pixel([lightness, a, b]) {
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const red = byte(4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s);
  const green = byte(-1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s);
  const blue = byte(-0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s);
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);

function byte(c) {
  const encoded = c <= 0.0031308 ? 12.92 * c : 1.055 * c ** (1 / 2.4) - 0.055;
  return Math.round(255 * Math.min(1, Math.max(0, encoded)));
}
