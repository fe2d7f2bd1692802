//! `timestamptz`: microseconds, counted by PostgreSQL from 2000-01-01 and by us from 1970-01-01, both UTC.

use std::ops::RangeInclusive;

/// A point in time as `timestamptz` has it. Ordered as PostgreSQL orders it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timestamp {
    /// `-infinity`, before all others.
    NegativeInfinity,
    /// Microseconds since 1970-01-01 00:00 UTC. PostgreSQL has the years 4714 BC to 294276; those from 294247
    /// on do not fit and are all `i64::MAX`.
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

/// Reads the binary form.
pub(super) fn from_wire(wire_micros: i64) -> Timestamp {
    match wire_micros {
        i64::MAX => Timestamp::Infinity,
        i64::MIN => Timestamp::NegativeInfinity,
        _ => Timestamp::At(unix_micros(wire_micros)),
    }
}

/// Reads the text form under `DateStyle = ISO`: `2024-02-29 12:30:00.5+05:45`, perhaps with ` BC` at the end.
/// The offset is that of the session's time zone then, to the second where clocks went by the sun.
pub(super) fn from_text(text: &[u8]) -> Option<Timestamp> {
    match text {
        b"infinity" => return Some(Timestamp::Infinity),
        b"-infinity" => return Some(Timestamp::NegativeInfinity),
        _ => {}
    }
    let mut text = Text(text);
    let year = text.number(4..=6, 1..=YEAR_MAX)?;
    let month = text.eat(b'-')?.number(2..=2, 1..=12)?;
    let day = text.eat(b'-')?.number(2..=2, 1..=31)?;
    let hours = text.eat(b' ')?.number(2..=2, 0..=23)?;
    let minutes = text.eat(b':')?.number(2..=2, 0..=59)?;
    let seconds = text.eat(b':')?.number(2..=2, 0..=59)?;
    let micros = text.fraction()?;
    let offset = text.offset_seconds()?;
    let year = match text.0 {
        b"" => year,
        b" BC" => 1 - year,
        _ => return None,
    };
    let days = days_since_1970(year, month, day)?;
    let seconds = days * 86_400 + hours * 3600 + minutes * 60 + seconds - offset;
    Some(Timestamp::At(seconds.saturating_mul(1_000_000).saturating_add(micros)))
}

/// What is left of the text.
struct Text<'a>(&'a [u8]);

impl Text<'_> {
    /// The next byte, which has to be this one.
    fn eat(&mut self, wanted: u8) -> Option<&mut Self> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        (*first == wanted).then_some(self)
    }

    /// The digits up to the next other byte.
    fn number(&mut self, digits: RangeInclusive<usize>, values: RangeInclusive<i64>) -> Option<i64> {
        let mut value = 0;
        let mut count = 0;
        while let [digit @ b'0'..=b'9', rest @ ..] = self.0 {
            if count == *digits.end() {
                return None;
            }
            value = value * 10 + i64::from(digit - b'0');
            count += 1;
            self.0 = rest;
        }
        (digits.contains(&count) && values.contains(&value)).then_some(value)
    }

    /// Microseconds of `.ffffff`, which is left out when 0 and has no zeros at its end.
    fn fraction(&mut self) -> Option<i64> {
        let [b'.', fraction @ ..] = self.0 else { return Some(0) };
        self.0 = fraction;
        let value = self.number(1..=6, 0..=999_999)?;
        let missing = 6 - (fraction.len() - self.0.len());
        Some((0..missing).fold(value, |value, _| value * 10))
    }

    /// Seconds east of Greenwich of `+HH`, `+HH:MM` or `+HH:MM:SS`.
    fn offset_seconds(&mut self) -> Option<i64> {
        let (sign, rest) = match self.0 {
            [b'+', rest @ ..] => (1, rest),
            [b'-', rest @ ..] => (-1, rest),
            _ => return None,
        };
        self.0 = rest;
        let mut seconds = self.number(2..=2, 0..=15)? * 3600;
        for unit in [60, 1] {
            if let [b':', rest @ ..] = self.0 {
                self.0 = rest;
                seconds += self.number(2..=2, 0..=59)? * unit;
            }
        }
        Some(sign * seconds)
    }
}

/// Days in the Gregorian calendar, which PostgreSQL carries back for ever; the year 0 is 1 BC.
fn days_since_1970(year: i64, month: i64, day: i64) -> Option<i64> {
    if day > days_in(year, month) {
        return None;
    }
    // Years are counted from March, so that the leap day is the last of its year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    Some(365 * year + leap_days + day_of_year - DAYS_TO_1970)
}

/// The last year that PostgreSQL has.
const YEAR_MAX: i64 = 294_276;

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
