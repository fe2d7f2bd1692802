// The drawing of the pipeline, the headline figures, and what is wrong.

import { at, badge, keyed, make, mark, say } from "./dom.js";
import { bytes, count, milliseconds, rate, span, NONE } from "./format.js";

/** How a sink is, in a word. */
export function sinkState(line, figures) {
  if (isLost(line)) return { level: "fail", word: "lost" };
  if (line.state === "blocked") return { level: "fail", word: "blocked" };
  if (line.breaker === "open") return { level: "fail", word: "breaker open" };
  if (line.breaker === "half-open") return { level: "warn", word: "breaker half open" };
  if (line.state !== "ok") return { level: "fail", word: line.state };
  if (line.lane) return laneState(line);
  if (line.backpressure) return { level: "warn", word: "full" };
  if (isLate(line, figures)) return { level: "warn", word: "behind" };
  return { level: "ok", word: "ok" };
}

/** As src/telemetry/status.rs has it. */
function isLost({ lane }) {
  if (!lane || ["opening", "joining"].includes(lane.state)) return false;
  const resync = /^WC-4/.test(lane.last_error_code ?? "");
  return (lane.state === "lost" && resync) || ["lost", "missing"].includes(lane.kept?.wal_status);
}

/** What a lane does. */
export function laneState(line) {
  if (isLost(line)) return { level: "fail", word: "lost" };
  const { state, last_error } = line.lane;
  const word = { opening: "falls behind", "catching-up": "catching up", lost: "parked" }[state] ?? state;
  if (last_error !== null) return { level: "fail", word };
  return { level: ["catching-up", "joining"].includes(state) ? "ok" : "warn", word };
}

/** What there is to say of a lane, in short: how far it is, and what PostgreSQL keeps for it. */
export function laneFacts({ lane }) {
  return [
    lane.behind_bytes > 0 ? `${bytes(lane.behind_bytes)} behind` : "level",
    lane.catch_up_seconds === null ? "" : `level in ${span(lane.catch_up_seconds)}`,
    lane.kept ? `${bytes(lane.kept.retained_bytes)} of WAL kept` : "",
  ].filter(Boolean);
}

/** When a target that is left alone is asked again. */
export const nextProbe = ({ next_probe_seconds: next }) =>
  next === null ? "" : next < 1 ? "asked again now" : `asked again in ${span(next)}`;

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

function target(line, known, holders) {
  const { lane } = line;
  return {
    name: line.name,
    state: sinkState(line, known),
    rate: `${rate(known?.rows_per_second)} rows/s`,
    lag: lane ? bytes(lane.behind_bytes) : milliseconds(line.lag_seconds * 1000),
    lagOf: "behind",
    note: [holders.includes(line.name) ? "holds the WAL" : "", nextProbe(line)].filter(Boolean).join(", "),
  };
}

/** Those that the stream feeds, and those that a slot of their own does. One that is about to get one is still with the others. */
function targets({ figures, status }) {
  const all = status.sinks.map((line, place) => ({ line, shown: target(line, figures.sinks[place], figures.holders) }));
  const isApart = ({ line }) => line.lane !== null && line.lane.state !== "opening";
  return {
    fed: all.filter((one) => !isApart(one)).map(({ line, shown }) => [line.name, shown]),
    apart: all.filter(isApart).map(({ line, shown }) => [line.name, { line, shown }]),
  };
}

function lane(key) {
  const state = badge();
  const since = make("span", { class: "muted" });
  const slot = make("span", { class: "muted lane-slot" });
  const facts = make("span");
  const sink = node(key, "div");
  const way = make("div", { class: "lane-way" }, make("div", {},
    make("p", {}, make("b", {}, "own slot"), " ", state, " ", since), make("p", {}, facts), make("p", {}, slot)));
  const element = make("li", { class: "lane", "data-lane": key }, way, sink);
  element.show = ({ line, shown }) => {
    const told = laneState(line);
    state.show(told);
    mark(element, "data-level", told.level);
    say(since, `for ${span(line.lane.seconds)}`);
    say(slot, line.lane.slot);
    say(facts, laneFacts(line).join(", "));
    sink.show(shown);
  };
  return element;
}

function node(key, tag = "li") {
  const name = make("h3");
  const state = badge();
  const parts = { rate: make("span"), lag: make("b"), lagOf: make("span", { class: "muted" }), note: make("span", { class: "muted" }) };
  const element = make(tag, { class: "node", "data-node": key }, make("div", { class: "node-head" }, name, state),
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
const showStages = keyed(at("stages"), (key) => node(key));
const showTargets = keyed(at("targets"), (key) => node(key));
const showLanes = keyed(at("lanes"), lane);
const showObjectives = keyed(at("objectives").tBodies[0], objective);

export function showPipeline(state) {
  const { status, figures } = state;
  showProblem(status);
  showStages(stages(state));
  const { fed, apart } = targets(state);
  showTargets(fed);
  showLanes(apart);
  at("branch").hidden = apart.length === 0;
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

/** Nothing is wrong: a word, a sentence and a level for it. */
function calm(status) {
  if (IDLE[status.state]) return [...IDLE[status.state], "idle"];
  const apart = status.sinks.filter((sink) => sink.lane !== null).map((sink) => sink.name);
  if (apart.length === 0) return ["All is well", "every event reaches every sink", "ok"];
  const names = new Intl.ListFormat("en").format(apart);
  const text = `${names} ${apart.length > 1 ? "come" : "comes"} from behind by ${apart.length > 1 ? "slots of their" : "a slot of its"} own; the other sinks go on`;
  return ["Catching up", text, "idle"];
}

function showProblem(status) {
  const [first, ...others] = status.problems;
  const [word, text, level] = calm(status);
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
