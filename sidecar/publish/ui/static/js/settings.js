// What the user chose to see, kept in the address, so that a view can be sent to somebody.

const USUAL = { signal: "", phase: "decode", position: "rest", source: "", scale: "auto", minutes: "auto", hours: "1" };

/** The choices; `onChange(name)` after each. */
export class Settings {
  constructor(onChange) {
    this.onChange = onChange;
    this.defaults = { ...USUAL };
    this.chosen = new URLSearchParams(location.search);
  }

  /** What was chosen, or the default. */
  get(name) {
    return this.chosen.get(name) ?? this.defaults[name];
  }

  /** Choose, and write it into the address. */
  set(name, value) {
    const isNews = value !== this.get(name);
    if (value === USUAL[name] && value === this.defaults[name]) this.chosen.delete(name);
    else this.chosen.set(name, value);
    const query = this.chosen.toString();
    history.replaceState(null, "", `${location.pathname}${query ? `?${query}` : ""}${location.hash}`);
    if (isNews) this.onChange(name);
  }

  /** Other defaults for this visit; nothing where somebody chose one of them. Whether any is news. */
  suggest(defaults) {
    const names = Object.keys(defaults);
    if (names.some((name) => this.chosen.has(name))) return false;
    const news = names.filter((name) => this.defaults[name] !== defaults[name]);
    Object.assign(this.defaults, defaults);
    if (news.length) this.onChange(news[0]);
    return news.length > 0;
  }
}
