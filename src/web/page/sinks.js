// A line for each sink, and what was wrong with it the last time.

import { at, badge, keyed, make, say } from "./dom.js";
import { bytes, count, milliseconds, rate, span } from "./format.js";
import { laneFacts, laneState, nextProbe, sinkState } from "./pipeline.js";

function line(name) {
  const state = badge();
  const cells = Array.from({ length: 7 }, () => make("td", { class: "number" }));
  const guarantee = make("div", { class: "muted guarantee" });
  const apart = make("div", { class: "muted apart" });
  const row = make("tr", {}, make("th", { scope: "row" }, name, guarantee), make("td", {}, state, apart), ...cells);
  row.show = ({ sink, figures }) => {
    say(guarantee, sink.guarantee);
    state.show(sinkState(sink, figures));
    say(apart, [nextProbe(sink), ...(sink.lane ? [`own slot ${laneState(sink).word}`, ...laneFacts(sink)] : [])].filter(Boolean).join(", "));
    const numbers = [
      rate(figures?.rows_per_second),
      count(sink.rows_total),
      rate(figures?.writes_per_second),
      count(figures?.rows_per_write),
      milliseconds(figures?.write_ms ?? undefined),
      count(figures?.retries_total),
      sink.backpressure ? `${bytes(sink.queue_bytes)} full` : bytes(sink.queue_bytes),
    ];
    numbers.forEach((text, place) => say(cells[place], text));
  };
  return row;
}

function failure(name) {
  const when = make("span", { class: "muted" });
  const why = make("dd");
  const pair = make("div", {}, make("dt", {}, `${name}, `, when), why);
  pair.show = ({ at_ms, last_failure, ongoing }) => {
    const ago = span(Math.max(0, (at_ms - Date.parse(last_failure.at)) / 1000));
    say(when, ongoing ? "now" : `last error ${ago} ago`);
    say(why, last_failure.why);
  };
  return pair;
}

const showLines = keyed(at("sink-table").tBodies[0], line);
const showFailures = keyed(at("errors"), failure);

/** Rows of before walcast on their way. */
function showBackfill(open) {
  at("backfill").hidden = !open;
  if (!open) return;
  const { state, sinks, rows, estimated_rows: about, rebuild, missing } = open;
  const what = rebuild ? "Rebuild" : "Backfill";
  const done = rebuild === "counting" ? "counted for" : "sent to";
  const begins = rebuild && rebuild !== "emptied" && rebuild !== "counting";
  const step = begins ? `, which ${missing ? "begins anew" : "is being emptied"}` : missing ? ", which lacks them" : "";
  say(at("backfill"), `${what} ${state}: ${count(rows)} of about ${count(about)} rows ${done} ${sinks.join(", ")}${step}`);
}

export function showSinks({ at_ms, status, figures }) {
  showBackfill(status.backfill);
  const sinks = status.sinks.map((sink, place) => [sink.name, { sink, figures: figures.sinks[place], at_ms }]);
  showLines(sinks);
  const failed = sinks.filter(([, { figures: known }]) => known?.last_failure);
  showFailures(failed.map(([name, { sink, figures: known }]) =>
    [name, { at_ms, last_failure: known.last_failure, ongoing: sink.state !== "ok" }]));
  at("errors").hidden = failed.length === 0;
}

