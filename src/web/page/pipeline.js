// The drawing of the pipeline, the headline figures, and what is wrong.

import { at, badge, keyed, make, mark, say } from "./dom.js";
import { bytes, count, milliseconds, rate, span, NONE } from "./format.js";

/** How a sink is, in a word. */
export function sinkState(line, figures) {
  if (line.state === "blocked") return { level: "fail", word: "blocked" };
  if (line.state !== "ok") return { level: "fail", word: line.state };
  if (line.backpressure) return { level: "warn", word: "full" };
  if (isLate(line, figures)) return { level: "warn", word: "behind" };
  return { level: "ok", word: "ok" };
}

const isLate = (line, figures) => line.lag_seconds * 1000 > (figures?.latency_objective_ms ?? Infinity);

function streamState({ status }) {
  if (status.state !== "streaming") {
    return { level: status.state === "retrying" ? "fail" : "idle", word: status.state };
  }
  const full = status.sinks.find((sink) => sink.backpressure);
  return full ? { level: "warn", word: `waits for ${full.name}` } : { level: "ok", word: "streaming" };
}

function slotState({ status }) {
  const { slot } = status.source;
  if (!slot) return { level: "idle", word: "not seen yet" };
  if (["lost", "missing"].includes(slot.wal_status)) return { level: "fail", word: `slot ${slot.wal_status}` };
  if (slot.age_seconds > 5) return { level: "fail", word: "no answer" };
  if (!slot.active) return { level: "warn", word: "slot not read" };
  if (slot.wal_status === "unreserved") return { level: "fail", word: "slot at risk" };
  return { level: "ok", word: "answers" };
}

function stages(state) {
  const { figures, status } = state;
  const events = `${rate(figures.events_per_second)} events/s`;
  const stream = streamState(state);
  const joined = stream.word === "streaming" ? { level: "ok", word: "joining" } : stream;
  const heartbeat = status.source.heartbeat_age_seconds;
  return [
    ["postgres", { name: "PostgreSQL", state: slotState(state), rate: events, lag: milliseconds(0), lagOf: "the commit",
      note: heartbeat === null ? "no heartbeat yet" : `heartbeat ${span(heartbeat)} ago` }],
    ["decode", { name: "decode", state: stream, rate: events, lag: milliseconds(figures.received_p50_ms), lagOf: "from commit",
      note: `p99 ${milliseconds(figures.received_p99_ms)}` }],
    // in one step with decoding, in one task: as far from the commit
    ["join", { name: "join", state: joined, rate: events, lag: milliseconds(figures.received_p50_ms), lagOf: "from commit",
      note: `${count(figures.unknown_content_total)} without content` }],
  ];
}

function targets({ figures, status }) {
  return status.sinks.map((line, place) => {
    const known = figures.sinks[place];
    return [line.name, {
      name: line.name,
      state: sinkState(line, known),
      rate: `${rate(known?.rows_per_second)} rows/s`,
      lag: milliseconds(line.lag_seconds * 1000),
      lagOf: "behind",
      note: figures.holders.includes(line.name) ? "holds the WAL" : "",
    }];
  });
}

function node(key) {
  const name = make("h3");
  const state = badge();
  const parts = { rate: make("span"), lag: make("b"), lagOf: make("span", { class: "muted" }), note: make("span", { class: "muted" }) };
  const element = make("li", { class: "node", "data-node": key }, make("div", { class: "node-head" }, name, state),
    make("p", { class: "node-lag" }, parts.lag, " ", parts.lagOf),
    make("p", { class: "node-rate" }, parts.rate), make("p", { class: "node-note" }, parts.note));
  element.show = (shown) => {
    say(name, shown.name);
    state.show(shown.state);
    mark(element, "data-level", shown.state.level);
    for (const [part, place] of Object.entries(parts)) say(place, shown[part]);
  };
  return element;
}

function objective(name) {
  const cells = ["p50", "p99", "objective"].map(() => make("td", { class: "number" }));
  const kept = badge();
  const row = make("tr", {}, make("th", { scope: "row" }, name), ...cells, make("td", {}, kept));
  row.show = ({ p50_ms, p99_ms, latency_objective_ms }) => {
    [p50_ms, p99_ms, latency_objective_ms].forEach((ms, place) => say(cells[place], milliseconds(ms ?? undefined)));
    kept.show(verdict(p99_ms, latency_objective_ms));
  };
  return row;
}

function verdict(p99, objective) {
  if (p99 === null) return { level: "idle", word: "no rows" };
  return p99 <= objective ? { level: "ok", word: "kept" } : { level: "warn", word: "late" };
}

const problemBadge = badge();
const problemText = make("span");
at("problem").append(problemBadge, problemText);
problemBadge.show({ level: "idle", word: "Connecting" });
const showStages = keyed(at("stages"), node);
const showTargets = keyed(at("targets"), node);
const showObjectives = keyed(at("objectives").tBodies[0], objective);

export function showPipeline(state) {
  const { status, figures } = state;
  showProblem(status);
  showStages(stages(state));
  showTargets(targets(state));
  showObjectives(status.sinks.map((line, place) => [line.name, figures.sinks[place]]).filter(([, known]) => known));
  say(at("events-rate"), rate(figures.events_per_second));
  say(at("events-total"), `${count(status.source.events_total)} since the start`);
  showSafety(status.source.slot, figures);
}

/** What nothing is wrong with while it does not stream: a word for it, and what is going on. */
const IDLE = {
  starting: ["Starting", "asking every sink where it stands"],
  waiting: ["Waiting", "another instance reads the slot; this one takes over when that one ends"],
  draining: ["Draining", "the sinks finish what was read"],
};

function showProblem(status) {
  const [first, ...others] = status.problems;
  const [word, text] = IDLE[status.state] ?? ["All is well", "every event reaches every sink"];
  const level = IDLE[status.state] ? "idle" : "ok";
  problemBadge.show(first ? { level: "fail", word: "Problem" } : { level, word });
  const more = others.length > 0 ? ` (and ${others.length} more)` : "";
  say(problemText, first ? `${first}${more}` : text);
  mark(at("problem"), "data-level", first ? "fail" : "ok");
}

function showSafety(slot, figures) {
  const bounded = slot && slot.safe_wal_bytes !== null;
  const safe = bounded ? span(figures.wal_safe_seconds ?? Infinity) : slot ? "no bound" : NONE;
  say(at("wal-safe"), safe === NONE && bounded ? "idle" : safe);
  const written = figures.wal_bytes_per_second === null ? "" : `, at ${bytes(figures.wal_bytes_per_second)}/s`;
  say(at("wal-rate"), bounded ? `should the slot stand still${written}` : slot ? `the disk is the bound${written}` : "");
}
