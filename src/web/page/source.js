// The source: who holds the WAL, and what is known of the slot.

import { at, keyed, make, mark, say } from "./dom.js";
import { bytes, count, lsn, span } from "./format.js";

/** A segment or two are always kept. */
const LITTLE_BYTES = 64 * 2 ** 20;

/**
 * From the head of the WAL down to where the slot would start again: `[key, { name, text, place, holds }]`. A sink with a slot of
 * its own may stand below that.
 */
function rungs({ status, figures }) {
  const { slot, received_lsn } = status.source;
  const rung = (key, name, text, holds = false) => [key, { name, text, place: lsn(text ?? "0/0"), holds }];
  const held = (sinks) => sinks
    .map((sink) => rung(`sink ${sink.name}`, `${sink.name} holds`, sink.durable_lsn, figures.holders.includes(sink.name)))
    .sort(([, one], [, other]) => other.place - one.place);
  const ladder = [
    rung("head", "head of the WAL", slot?.wal_lsn),
    rung("sent", "sent to walcast", slot?.sent_lsn),
    rung("received", "received", received_lsn),
    ...held(status.sinks.filter((sink) => sink.lane === null)),
    rung("confirmed", "confirmed", slot?.confirmed_lsn ?? status.confirmed_lsn),
    rung("restart", "restart", slot?.restart_lsn),
  ].filter(([, { place }]) => place > 0);
  const apart = held(status.sinks.filter((sink) => sink.lane !== null)).filter(([, { place }]) => place > 0);
  return [...lifted(ladder), ...apart].sort(([, one], [, other]) => other.place - one.place);
}

/** These figures are up to a second older than those of the sinks: what a sink holds has been received and sent. */
function lifted(ladder) {
  for (let place = ladder.length - 2; place >= 0; place -= 1) {
    const [[key, upper], [, lower]] = [ladder[place], ladder[place + 1]];
    if (upper.place < lower.place) ladder[place] = [key, { ...upper, text: lower.text, place: lower.place }];
  }
  return ladder;
}

function rung() {
  const name = make("th", { scope: "row" });
  const text = make("td", { class: "lsn" });
  const behind = make("td", { class: "number" });
  const bar = make("span", { class: "bar" });
  const row = make("tr", {}, name, text, behind, make("td", { class: "bars", "aria-hidden": "true" }, bar));
  row.show = ({ name: shown, text: place, behind: far, share, holds }) => {
    say(name, shown);
    say(text, place);
    say(behind, far > 0 ? bytes(far) : "0");
    bar.style.width = `${share * 100}%`;
    mark(row, "data-holds", holds || null);
  };
  return row;
}

function facts({ status }) {
  const { slot, heartbeat_age_seconds } = status.source;
  const heartbeat = heartbeat_age_seconds === null ? "none yet" : `${span(heartbeat_age_seconds)} ago`;
  if (!slot) return [["Heartbeat", heartbeat], ["Slot", "not seen yet"]];
  return [
    ["Slot", slot.name],
    ["Read", slot.active ? "yes" : `no, for ${span(slot.inactive_seconds)}`],
    ["WAL status", slot.invalidation_reason ? `${slot.wal_status} (${slot.invalidation_reason})` : slot.wal_status],
    ["Kept for it", bytes(slot.retained_bytes)],
    ["May still be written", slot.safe_wal_bytes === null ? "no bound" : bytes(slot.safe_wal_bytes)],
    ["Heartbeat", heartbeat],
    ...further(slot),
    ["Looked at", slot.age_seconds < 2 ? "now" : `${span(slot.age_seconds)} ago`],
  ];
}

/** Facts that not every server tells, or not every role is told, or that are seldom of interest. */
function further(slot) {
  const told = [
    ["Database", slot.database],
    ["Walsender", slot.active_pid && [slot.walsender_state, `process ${slot.active_pid}`].filter(Boolean).join(", ")],
    ["Last reply", slot.reply_age_seconds === null ? null : `${span(slot.reply_age_seconds)} ago`],
    ["Bound", slot.keep_bytes_max && `${bytes(slot.keep_bytes_max)} (max_slot_wal_keep_size)`],
    ["On standbys too", slot.failover === null ? null : slot.failover ? "yes" : "no (failover is off)"],
    ["Waits for standby", slot.missing_standbys.length && `${slot.missing_standbys.join(", ")}, for ${span(slot.standby_wait_seconds)}`],
    ["Catalog rows kept", slot.catalog_xmin_age_transactions && `for ${count(slot.catalog_xmin_age_transactions)} transactions`],
    ["Beyond work_mem", slot.memory_exceeded_total && `${count(slot.memory_exceeded_total)} times`],
    ["Spilled to disk", slot.spill_bytes_total && `${bytes(slot.spill_bytes_total)}, ${count(slot.spill_transactions_total)} transactions`],
  ];
  return told.filter(([, value]) => value);
}

function fact(name) {
  const value = make("dd");
  const pair = make("div", {}, make("dt", {}, name), value);
  pair.show = (text) => say(value, text);
  return pair;
}

const showRungs = keyed(at("ladder").tBodies[0], rung);
const showFacts = keyed(at("slot"), fact);

export function showSource(state) {
  const all = rungs(state);
  const head = Math.max(...all.map(([, { place }]) => place));
  const depth = Math.max(1, ...all.map(([, { place }]) => head - place));
  showRungs(all.map(([key, one]) => [key, { ...one, behind: head - one.place, share: (head - one.place) / depth }]));
  showFacts(facts(state));
  say(at("holder"), sentence(state));
}

const sentence = (state) => [ofSlot(state), ...ofLanes(state)].join(" ");

/** What is kept for sinks alone. */
const ofLanes = ({ status }) => status.sinks
  .filter((sink) => sink.lane?.kept)
  .map(({ name, lane }) => `For ${name} alone it keeps ${bytes(lane.kept.retained_bytes)} by a slot of its own.`);

function ofSlot({ status, figures }) {
  const { slot } = status.source;
  if (!slot) return "PostgreSQL has not been asked about the slot yet.";
  const kept = `PostgreSQL keeps ${bytes(slot.retained_bytes)} of WAL for the slot.`;
  const below = lsn(slot.confirmed_lsn) - lsn(slot.restart_lsn ?? slot.confirmed_lsn);
  if (below > slot.retained_bytes / 2 && below > LITTLE_BYTES) {
    return `${kept} Most of it (${bytes(below)}) lies below the confirmed LSN: a transaction at the server was open then, or the server has not moved the restart LSN yet.`;
  }
  const holders = listed(figures.holders);
  if (holders === "") return `${kept} No sink holds it back.`;
  return `${kept} ${holders} ${figures.holders.length > 1 ? "hold" : "holds"} it; ${status.sinks.length > figures.holders.length ? "the others are further" : "all alike"}.`;
}

const listed = (names) => new Intl.ListFormat("en").format(names);
