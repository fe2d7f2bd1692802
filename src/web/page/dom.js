// Elements, made and changed. Text from outside only ever becomes text.

/** An element: `make("td", { class: "number" }, "12", other)`. */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

export const at = (id) => document.getElementById(id);

/** Changes the text only when it differs: a reader of screens is not told the same again, and a selection stays. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Sets or removes an attribute. */
export function mark(element, name, value) {
  if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/** The three ways to be; a shape and a word say the same as the colour. */
const SHAPES = { ok: "●", warn: "▲", fail: "■", idle: "○" };

/** A state: `{ level: "ok", word: "streaming" }`. */
export function badge() {
  const shape = make("span", { class: "shape", "aria-hidden": "true" });
  const word = make("span", { class: "word" });
  const element = make("span", { class: "badge" }, shape, word);
  element.show = ({ level, word: text }) => {
    mark(element, "data-level", level);
    say(shape, SHAPES[level]);
    say(word, text);
  };
  return element;
}

/**
 * Keeps one element for each item of a list, in its order. `build(key)` makes one with a method `show(item)`.
 */
export function keyed(parent, build) {
  const known = new Map();
  return (items) => {
    const keys = new Set(items.map(([key]) => key));
    for (const [key, element] of known) {
      if (!keys.has(key)) {
        element.remove();
        known.delete(key);
      }
    }
    items.forEach(([key, item], place) => {
      if (!known.has(key)) known.set(key, build(key));
      const element = known.get(key);
      if (parent.children[place] !== element) parent.insertBefore(element, parent.children[place] ?? null);
      element.show(item);
    });
  };
}
