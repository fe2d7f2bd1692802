// The leaderboards, as Redis has them.

import { at, keyed, make, say } from "./dom.js";
import { span } from "./format.js";

const EVERY_MS = 2_000;

let chosen = "10min";
let askedAt = 0;
let asking = false;

function row() {
  const [rank, title, type, seconds] = ["number", "", "", "number"].map((kind) => make("td", kind ? { class: kind } : {}));
  const bar = make("span", { class: "bar" });
  const element = make("tr", {}, rank, title, type, seconds, make("td", { class: "bars", "aria-hidden": "true" }, bar));
  element.show = ({ place, id, title: text, content_type, seconds: engaged, share }) => {
    say(rank, String(place));
    say(title, text ?? `unknown content ${id}`);
    title.classList.toggle("muted", text === null);
    say(type, content_type ?? "");
    say(seconds, span(engaged));
    bar.style.width = `${share * 100}%`;
  };
  return element;
}

const showRows = keyed(at("board").tBodies[0], row);

/** Asks again when the last answer is old enough. */
export function showBoard() {
  if (!asking && Date.now() - askedAt >= EVERY_MS) ask();
}

async function ask() {
  const name = chosen;
  asking = true;
  askedAt = Date.now();
  try {
    const answer = await fetch(`/api/boards/${name}`);
    if (answer.ok && name === chosen) show(await answer.json());
  } catch {
    // there is no connection, which the head of the page tells
  } finally {
    asking = false;
    if (name !== chosen) ask();
  }
}

function show({ places, why }) {
  const most = places[0]?.seconds ?? 1;
  showRows(places.map((place, index) => [place.id, { ...place, place: index + 1, share: place.seconds / most }]));
  at("board").hidden = places.length === 0;
  say(at("board-note"), why ?? (places.length === 0 ? "Nothing has been engaged with in this time." : ""));
}

at("windows").addEventListener("change", (event) => {
  chosen = event.target.value;
  if (!asking) ask();
});
