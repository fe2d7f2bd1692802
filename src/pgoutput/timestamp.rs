//! `timestamptz`: microseconds, counted by PostgreSQL from 2000-01-01 and by us from 1970-01-01, both UTC.

/// A point in time as `timestamptz` has it. Ordered as PostgreSQL orders it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timestamp {
    /// `-infinity`, before all others.
    NegativeInfinity,
    /// Microseconds since 1970-01-01 00:00 UTC; PostgreSQL has the years 4714 BC to 294276.
    At(i64),
    /// `infinity`, after all others.
    Infinity,
}

/// Microseconds since 1970 of the wire's microseconds since 2000, for the times of Begin and Commit.
pub fn unix_micros(wire_micros: i64) -> i64 {
    wire_micros.saturating_add(WIRE_EPOCH_MICROS)
}

/// 2000-01-01 UTC in microseconds since 1970.
const WIRE_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// Reads the binary form. `None`: no time that PostgreSQL has.
pub(super) fn from_wire(wire_micros: i64) -> Option<Timestamp> {
    match wire_micros {
        i64::MAX => Some(Timestamp::Infinity),
        i64::MIN => Some(Timestamp::NegativeInfinity),
        _ => wire_micros.checked_add(WIRE_EPOCH_MICROS).map(Timestamp::At),
    }
}

/// Reads the text form under `DateStyle = ISO`: `2024-02-29 12:30:00.5+05:45`, perhaps with ` BC` at the end.
/// The offset is that of the session's time zone then, to the second before zones were regular.
pub(super) fn from_text(text: &[u8]) -> Option<Timestamp> {
    match text {
        b"infinity" => return Some(Timestamp::Infinity),
        b"-infinity" => return Some(Timestamp::NegativeInfinity),
        _ => {}
    }
    let text = std::str::from_utf8(text).ok()?;
    let (text, before_christ) = match text.strip_suffix(" BC") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let (date, time) = text.split_once(' ')?;
    let (clock, offset) = time.split_at_checked(time.find(['+', '-'])?)?;
    let days = days_since_1970(date, before_christ)?;
    let micros = clock_micros(clock)? - offset_seconds(offset)? * 1_000_000;
    days.checked_mul(86_400_000_000)?.checked_add(micros).map(Timestamp::At)
}

/// Days of `YYYY-MM-DD` in the Gregorian calendar, which PostgreSQL carries back for ever.
fn days_since_1970(date: &str, before_christ: bool) -> Option<i64> {
    let mut parts = date.split('-');
    let (year, month, day) =
        (number(parts.next()?, 4..=6)?, number(parts.next()?, 2..=2)?, number(parts.next()?, 2..=2)?);
    let year = if before_christ { 1 - year } else { year };
    let within = (1..=12).contains(&month) && (1..=days_in(year, month)).contains(&day);
    if !within || parts.next().is_some() {
        return None;
    }
    // Years are counted from March, so that the leap day is the last of its year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    Some(365 * year + leap_days + day_of_year - DAYS_TO_1970)
}

/// Days from 0000-03-01 to 1970-01-01.
const DAYS_TO_1970: i64 = 719_468;

fn days_in(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Microseconds of `HH:MM:SS` or `HH:MM:SS.ffffff`, with trailing zeros left out.
fn clock_micros(clock: &str) -> Option<i64> {
    let (whole, micros) = match clock.split_once('.') {
        None => (clock, 0),
        Some((whole, fraction)) => {
            let scale = 10_i64.pow(6_u32.checked_sub(fraction.len().try_into().ok()?)?);
            (whole, number(fraction, 1..=6)? * scale)
        }
    };
    Some(sexagesimal(whole, 3..=3, 23)? * 1_000_000 + micros)
}

/// Seconds of `+HH`, `+HH:MM` or `+HH:MM:SS`, east of Greenwich.
fn offset_seconds(offset: &str) -> Option<i64> {
    match offset.strip_prefix('-') {
        Some(west) => sexagesimal(west, 1..=3, 15).map(|seconds| -seconds),
        None => sexagesimal(offset.strip_prefix('+')?, 1..=3, 15),
    }
}

/// Seconds of `HH[:MM[:SS]]`, with so many parts and hours up to `hours_max`.
fn sexagesimal(text: &str, parts: std::ops::RangeInclusive<usize>, hours_max: i64) -> Option<i64> {
    let mut seconds = 0;
    let mut count = 0;
    for (part, (unit, max)) in text.split(':').zip([(3600, hours_max), (60, 59), (1, 59)]) {
        seconds += number(part, 2..=2).filter(|value| *value <= max)? * unit;
        count += 1;
    }
    (parts.contains(&count) && count == text.split(':').count()).then_some(seconds)
}

/// A number without a sign, of so many digits.
fn number(digits: &str, length: std::ops::RangeInclusive<usize>) -> Option<i64> {
    let plain = length.contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok())?
}
