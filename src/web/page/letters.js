// Rows that were refused: how many, by sink and reason, and the oldest of them. Values only for the token's holder.

import { at, keyed, make, say } from "./dom.js";
import { count, time } from "./format.js";

let asked = "";

function group() {
  const cells = Array.from({ length: 2 }, () => make("td", { class: "number" }));
  const sink = make("th", { scope: "row" });
  const reason = make("td");
  const row = make("tr", {}, sink, reason, ...cells);
  row.show = (letters) => {
    say(sink, letters.sink);
    say(reason, letters.reason);
    say(cells[0], count(letters.open));
    say(cells[1], count(letters.replaying));
  };
  return row;
}

function field({ name, kind, bytes }) {
  return make("li", {}, make("code", {}, name), ` ${kind}${kind === "null" ? "" : `, ${count(bytes)} bytes`}`);
}

function letter(name) {
  const about = make("summary");
  const message = make("p", { class: "message" });
  const shape = make("ul", { class: "shape-list" });
  const values = make("button", { type: "button" }, "Show values");
  const row = make("pre", { hidden: "" });
  values.addEventListener("click", () => showValues(name, row, message));
  const element = make("li", {}, make("details", {}, about, message, shape, values, row));
  element.show = (found) => {
    const event = found.event_id === null ? "" : `, event ${found.event_id}`;
    say(about, `${name}: ${found.reason}${event}, ${time(Date.parse(found.stored_at))}`);
    if (row.hidden) say(message, found.message ?? "The target's words may quote the row: they are shown with the values.");
    if (shape.childElementCount !== found.fields.length) shape.replaceChildren(...found.fields.map(field));
  };
  return element;
}

async function showValues(name, row, message) {
  row.hidden = false;
  try {
    const answer = await fetch(`/api/dead-letters/${encodeURIComponent(name)}?values=true`);
    if (answer.ok) {
      const found = await answer.json();
      say(message, found.message ?? "");
      say(row, found.row ?? "");
    } else {
      say(row, await answer.text());
    }
  } catch {
    say(row, "The row could not be asked for.");
  }
}

const showGroups = keyed(at("letter-table").tBodies[0], group);
const showList = keyed(at("letter-list"), letter);

/** Counts come with the state; the letters themselves are asked for when the counts have changed. */
export function showLetters({ status }) {
  const groups = status.dead_letters.filter((one) => one.open + one.replaying > 0);
  showGroups(groups.map((one) => [`${one.sink} ${one.reason}`, one]));
  at("letter-table").hidden = groups.length === 0;
  const open = groups.reduce((sum, one) => sum + one.open, 0);
  say(at("letters-note"), groups.length === 0 ? "No row waits: nothing was refused, or all of it is done with." : `${count(open)} open`);
  const now = JSON.stringify(groups);
  if (now !== asked) {
    asked = now;
    look(open);
  }
}

async function look(open) {
  if (open === 0) return showList([]);
  try {
    const answer = await fetch("/api/dead-letters");
    if (!answer.ok) throw new Error(String(answer.status));
    const { letters, max } = await answer.json();
    showList(letters.map((found) => [found.name, found]));
    if (letters.length === max) say(at("letters-note"), `${count(open)} open, the oldest ${max} below`);
  } catch {
    asked = "";
  }
}
