// Small controls that several sections share: choices, and the switch between figure and table.

import { fill, h } from "./dom.js";

/** A list to choose from; `update(options, chosen)` where options are [value, text]. */
export function chooser(label, onChoose) {
  const select = h("select", { on: { change: () => onChoose(select.value) } });
  const node = h("label", { class: "choice" }, h("span", {}, label), select);
  let known = "";
  return {
    node,
    update(options, chosen) {
      const key = JSON.stringify(options);
      if (key !== known) {
        known = key;
        fill(select, options.map(([value, text]) => h("option", { value }, text)));
      }
      if (select.value !== chosen) select.value = chosen;
    },
  };
}

/** A few exclusive choices side by side; `update(chosen)`. options: [value, text, title]. */
export function segments(label, options, onChoose) {
  const buttons = options.map(([value, text, title]) =>
    h("button", { type: "button", title, data: { value }, on: { click: () => onChoose(value) } }, text),
  );
  const node = h("div", { class: "segments", role: "group", "aria-label": label }, buttons);
  return {
    node,
    update(chosen, disabled = []) {
      for (const button of buttons) {
        button.setAttribute("aria-pressed", String(button.dataset.value === chosen));
        button.disabled = disabled.includes(button.dataset.value);
      }
    },
  };
}

/** A button that shows a table in place of a figure; `onSwitch(isTable)` afterwards. */
export function tableSwitch(figure, table, onSwitch) {
  const button = h("button", { type: "button", "aria-pressed": "false", title: "The same as a table" }, "Table");
  button.addEventListener("click", () => {
    const isTable = table.hidden;
    table.hidden = !isTable;
    figure.hidden = isTable;
    button.setAttribute("aria-pressed", String(isTable));
    onSwitch(isTable);
  });
  return button;
}

/** A table. columns: [{title, is_number, help}]; rows: arrays of text or nodes. */
export function table(caption, columns, rows, rowAttributes = () => ({})) {
  const head = columns.map(({ title, isNumber, help }) =>
    h("th", { scope: "col", class: isNumber ? "num" : null, title: help }, title),
  );
  const body = rows.map((cells, index) =>
    h("tr", rowAttributes(index), cells.map((cell, at) => h("td", { class: columns[at].isNumber ? "num" : null }, cell))),
  );
  return h(
    "table",
    {},
    h("caption", { class: "sr" }, caption),
    h("thead", {}, h("tr", {}, head)),
    h("tbody", {}, body),
  );
}

/** A word with its state's colour and shape. */
export const badge = (state, text = state) => h("span", { class: "badge", data: { state } }, text);
