// Figures for people. What is not known is a dash.

export const NONE = "–";

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

const known = (format) => (number) => (Number.isFinite(number) ? format(number) : NONE);

export const count = known((number) => whole.format(number));

/** A rate: small ones with a decimal. */
export const rate = known((number) => (number > 0 && number < 10 ? tenth : whole).format(number));

export const milliseconds = known((ms) => {
  if (ms < 1) return ms > 0 ? "<1 ms" : "0 ms";
  if (ms < 1000) return `${whole.format(ms)} ms`;
  if (ms < 60_000) return `${tenth.format(ms / 1000)} s`;
  if (ms < 3_600_000) return `${tenth.format(ms / 60_000)} min`;
  return `${tenth.format(ms / 3_600_000)} h`;
});

/** As src/size.rs does it. */
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

export const bytes = known((number) => {
  let unit = 0;
  while (Math.abs(number) >= (unit > 0 ? 1023.95 : 1024) && unit < UNITS.length - 1) {
    number /= 1024;
    unit += 1;
  }
  return `${(unit > 0 ? tenth : whole).format(number)} ${UNITS[unit]}`;
});

/** A time in its two largest units. */
export const span = known((seconds) => {
  const parts = [["d", 86_400], ["h", 3_600], ["min", 60], ["s", 1]];
  const first = parts.findIndex(([, length]) => seconds >= length);
  if (first < 0) return "0 s";
  const [unit, length] = parts[first];
  const major = Math.floor(seconds / length);
  if (first === 3 || (unit === "d" && major >= 10)) return `${whole.format(major)} ${unit}`;
  const [minorUnit, minorLength] = parts[first + 1];
  const minor = Math.floor((seconds % length) / minorLength);
  return minor > 0 ? `${major} ${unit} ${minor} ${minorUnit}` : `${major} ${unit}`;
});

/** The time of day, here. */
export const time = known((ms) => new Date(ms).toLocaleTimeString("en-GB"));

/** `16/B374D848` as a number of bytes. */
export function lsn(text) {
  const [high, low] = String(text).split("/");
  return Number.parseInt(high, 16) * 2 ** 32 + Number.parseInt(low, 16);
}
