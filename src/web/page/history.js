// The last hour as columns, filled from the service and then a step a second.

const SAMPLES_MAX = 3_600;
const NUMBERS = ["events_per_second", "retained_bytes", "safe_wal_bytes"];
const SINK_NUMBERS = ["rows_per_second", "lag_ms", "queue_bytes", "p99_ms"];

const columns = { at_ms: [], sinks: [] };
for (const name of NUMBERS) columns[name] = [];
let loading = null;

/** The columns: `at_ms`, the numbers of the whole, and `sinks[n]` with the numbers of one sink. */
export const history = columns;

/** Takes one state's step; what was missed before it is asked for first. */
export async function advance(state) {
  if (loading) return;
  const last = columns.at_ms.at(-1) ?? 0;
  if (state.at_ms - last < 1_900 && last > 0) {
    append(state.step);
    return;
  }
  loading = load(last).finally(() => {
    loading = null;
  });
  await loading;
}

async function load(after) {
  try {
    const answer = await fetch(`/api/history?after=${after}`);
    if (answer.ok) append(await answer.json());
  } catch {
    // the stream tells that there is no connection; the next state asks again
  }
}

function append(more) {
  const known = columns.at_ms.length;
  const last = columns.at_ms.at(-1) ?? 0;
  const fresh = more.at_ms.findIndex((at) => at > last);
  if (fresh < 0) return;
  while (columns.sinks.length < more.sinks.length) columns.sinks.push(empty(known));
  columns.at_ms.push(...more.at_ms.slice(fresh));
  for (const name of NUMBERS) columns[name].push(...more[name].slice(fresh));
  columns.sinks.forEach((sink, place) => {
    const added = more.sinks[place] ?? empty(more.at_ms.length);
    for (const name of SINK_NUMBERS) sink[name].push(...added[name].slice(fresh));
  });
  forget(columns.at_ms.length - SAMPLES_MAX);
}

const empty = (length) => Object.fromEntries(SINK_NUMBERS.map((name) => [name, new Array(length).fill(null)]));

function forget(surplus) {
  if (surplus <= 0) return;
  columns.at_ms.splice(0, surplus);
  for (const name of NUMBERS) columns[name].splice(0, surplus);
  for (const sink of columns.sinks) for (const name of SINK_NUMBERS) sink[name].splice(0, surplus);
}
