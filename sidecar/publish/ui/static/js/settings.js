// What the user chose to see, kept in the address, so that a view can be sent to somebody.

const DEFAULTS = { signal: "", phase: "decode", position: "rest", source: "", scale: "auto", minutes: "auto", hours: "1" };

/** The choices; `onChange(name)` after each. */
export class Settings {
  constructor(onChange) {
    this.onChange = onChange;
    this.chosen = new URLSearchParams(location.search);
  }

  /** What was chosen, or the default. */
  get(name) {
    return this.chosen.get(name) ?? DEFAULTS[name];
  }

  /** Choose, and write it into the address. */
  set(name, value) {
    if (value === this.get(name)) return;
    if (value === DEFAULTS[name]) this.chosen.delete(name);
    else this.chosen.set(name, value);
    const query = this.chosen.toString();
    history.replaceState(null, "", `${location.pathname}${query ? `?${query}` : ""}${location.hash}`);
    this.onChange(name);
  }
}
