// The charts: uPlot, drawn in the page's colours, told apart by dashes too.

/* global uPlot */
import { at, mark, say } from "./dom.js";
import { bytes, milliseconds, rate, time } from "./format.js";
import { history } from "./history.js";

const LOOKS = [
  { colour: "--ink-soft", dash: [2, 3], line: "dotted" },
  { colour: "--ink", dash: [], line: "solid" },
  { colour: "--accent", dash: [], line: "solid" },
  { colour: "--accent", dash: [7, 4], line: "dashed" },
  { colour: "--ink", dash: [7, 4], line: "dashed" },
];

const sinkSeries = (column) => (names) => names.map((name, place) => ({
  label: name,
  values: () => history.sinks[place]?.[column] ?? [],
  ...LOOKS[place % LOOKS.length],
}));
const single = (label, column) => () => [{ label, values: () => history[column], ...LOOKS[2], fill: true }];

const CHARTS = {
  "chart-events": { format: rate, series: single("events/s", "events_per_second") },
  "chart-latency": { format: milliseconds, series: sinkSeries("p99_ms"), logarithmic: true },
  "chart-retained": { format: bytes, series: single("kept", "retained_bytes") },
  "chart-safe": { format: bytes, series: single("may still be written", "safe_wal_bytes") },
  "chart-rows": { format: rate, series: sinkSeries("rows_per_second") },
  "chart-queue": { format: bytes, series: sinkSeries("queue_bytes") },
};

/** 1, 2, 4, 8 … so that bytes are read in whole units. */
const BYTE_STEPS = Array.from({ length: 50 }, (_, power) => 2 ** power);
const isDecade = (number) => Math.abs(Math.log10(number) % 1) < 1e-9;

const HEIGHT = 180;
const drawn = new Map();
let shape = "";
let seconds = 300;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Draws what the history has now. */
export function drawCharts({ at_ms, status }) {
  const names = status.sinks.map((sink) => sink.name);
  rebuildIf(names.join());
  const data = history.at_ms.map((ms) => ms / 1000);
  for (const [id, { chart, series }] of drawn) {
    chart.now = at_ms / 1000;
    chart.setData([data, ...series.map(({ values }) => padded(values(), data.length))]);
    queueMicrotask(() => tellNewest(chart)); // after the chart's own, which empties its legend
    describe(id, series);
  }
  const bounded = status.source.slot === null || status.source.slot.safe_wal_bytes !== null;
  at("chart-safe").hidden = !bounded;
  at("no-bound").hidden = bounded;
  say(at("no-bound"), bounded ? "" : "There is no bound: max_slot_wal_keep_size is -1, so PostgreSQL keeps WAL until its disk is full.");
}

/** While nobody points at a moment the legend has the newest. */
function tellNewest(chart) {
  if (typeof chart.cursor.idx !== "number") chart.setLegend({ idx: chart.data[0].length - 1 }, false);
}

const padded = (values, length) => (values.length === length ? values : Array.from({ length }, (_, place) => values[place] ?? null));

/** The series are those of the sinks, the colours those of the theme: when either changes all is drawn anew. */
function rebuildIf(names) {
  const wanted = `${names} ${matchMedia("(prefers-color-scheme: dark)").matches}`;
  if (wanted === shape) return;
  shape = wanted;
  for (const { chart } of drawn.values()) chart.destroy();
  drawn.clear();
  for (const [id, kind] of Object.entries(CHARTS)) {
    const series = kind.series(names === "" ? [] : names.split(","));
    drawn.set(id, { chart: new uPlot(options(id, kind, series), [[]], at(id)), series });
  }
}

function options(id, { format, logarithmic }, series) {
  const axis = { stroke: colour("--ink-soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  const value = (_, number) => (number === null || number === undefined ? "–" : format(number));
  return {
    width: Math.max(240, at(id).clientWidth),
    height: HEIGHT,
    cursor: { points: { size: 6 }, drag: { x: false, y: false } },
    scales: {
      x: { time: true, range: (chart) => [(chart.now ?? Date.now() / 1000) - seconds, chart.now ?? Date.now() / 1000] },
      y: logarithmic ? { distr: 3, range: decades } : { range: (_, __, high) => [0, high > 0 ? high * 1.1 : 1] },
    },
    axes: [
      { ...axis, grid: { show: false }, size: 28, space: 70, values: (_, splits) => splits.map((at_s) => time(at_s * 1000).slice(0, 5)) },
      heights(axis, format, logarithmic),
    ],
    legend: { markers: { width: 2, stroke: (chart, place) => chart.series[place].stroke(), dash: (_, place) => series[place - 1]?.line } },
    series: [
      { label: "time", value: (_, at_s) => (at_s === null || at_s === undefined ? "–" : time(at_s * 1000)) },
      ...series.map(({ label, colour: name, dash, fill }) => ({
        label, value, dash, stroke: colour(name), width: 1.5, spanGaps: false, points: { show: false },
        fill: fill ? colour("--accent-faint") : undefined,
      })),
    ],
  };
}

/** Of a logarithmic scale only the decades are drawn. */
function heights(axis, format, logarithmic) {
  const decadesOnly = (_, splits) => splits.map((number) => (isDecade(number) ? number : null));
  const shared = { ...axis, size: 68, space: 26, values: (_, splits) => splits.map((number) => (number === null ? "" : format(number))) };
  if (logarithmic) return { ...shared, filter: decadesOnly, grid: { ...axis.grid, filter: decadesOnly } };
  return format === bytes ? { ...shared, incrs: BYTE_STEPS } : shared;
}

/** Whole decades around what there is. */
function decades(_, low, high) {
  if (low === null || high === null) return [1, 10_000];
  return [10 ** Math.floor(Math.log10(Math.max(low, 0.1))), 10 ** Math.ceil(Math.log10(Math.max(high, 1) * 1.05))];
}

function describe(id, series) {
  mark(at(id), "role", "img");
  const newest = series.map(({ label, values }) => {
    const last = values().at(-1);
    return `${label} ${last === null || last === undefined ? "not known" : CHARTS[id].format(last)}`;
  });
  mark(at(id), "aria-label", `Chart; newest: ${newest.join(", ")}`);
}

at("spans").addEventListener("change", (event) => {
  seconds = Number(event.target.value);
  for (const { chart } of drawn.values()) chart.setData(chart.data);
});

new ResizeObserver(() => {
  for (const [id, { chart }] of drawn) {
    if (at(id).clientWidth > 0) chart.setSize({ width: at(id).clientWidth, height: HEIGHT });
  }
}).observe(at("main"));
