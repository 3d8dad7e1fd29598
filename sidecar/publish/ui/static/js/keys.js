// Keyboard shortcuts, and the dialog that lists them.

import { byId, fill, h } from "./dom.js";

const SECTIONS = ["headline", "drift", "layers", "lines", "requests", "sources"];

/** Listen for keys; actions: {key: [what it does, function]}. */
export function listenToKeys(actions) {
  const dialog = byId("help-dialog");
  const known = {
    ...Object.fromEntries(SECTIONS.map((id, at) => [String(at), [`go to ${id === "lines" ? "trends" : id}`, () => goTo(id)]])),
    ...actions,
    "?": ["show these keys", () => dialog.showModal()],
  };
  const rows = Object.entries(known).map(([key, [what]]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)]);
  fill(byId("help-body"), h("dl", { class: "keys" }, rows, h("dt", {}, h("kbd", {}, "arrows")), h("dd", {}, "in a heatmap, go from cell to cell; with Shift, ten at a time")));
  byId("help").addEventListener("click", () => dialog.showModal());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target) || document.querySelector("dialog[open]")) return;
    const action = known[event.key];
    if (!action) return;
    event.preventDefault();
    action[1]();
  });
}

function goTo(id) {
  const section = byId(id);
  section.setAttribute("tabindex", "-1");
  section.focus({ preventScroll: true });
  section.scrollIntoView({ block: "start" });
}

const isTyping = (target) => target.closest("select, input, textarea") !== null;
