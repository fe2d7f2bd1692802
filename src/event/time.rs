//! Which times there are, and how they are cut, written and read.

use jiff::civil::DateTime;

const DAY_MICROS: i64 = 86_400_000_000;
/// Half an hour: BigQuery's partitions and verify's report are cut by it.
pub const HALF_HOUR_MICROS: i64 = 1_800_000_000;
/// 0001-01-01, in microseconds since 1970: the first time that RFC 3339 and BigQuery can write.
pub const MICROS_MIN: i64 = -719_162 * DAY_MICROS;
/// The last microsecond of 9999-12-31, in microseconds since 1970.
pub const MICROS_MAX: i64 = 2_932_897 * DAY_MICROS - 1;

/// The nearest time within the years 1 to 9999.
pub fn nearest(micros: i64) -> i64 {
    micros.clamp(MICROS_MIN, MICROS_MAX)
}

/// Microseconds since 1970 as `2026-01-02T03:04:05.678901Z`; `None` outside the years 1 to 9999.
pub fn time_text(micros: i64) -> Option<[u8; 27]> {
    if !(MICROS_MIN..=MICROS_MAX).contains(&micros) {
        return None;
    }
    let (year, month, day) = date_of(micros.div_euclid(DAY_MICROS));
    let of_day = micros.rem_euclid(DAY_MICROS);
    let (seconds, fraction) = ((of_day / 1_000_000) as u32, (of_day % 1_000_000) as u32);
    let mut text = *b"0000-00-00T00:00:00.000000Z";
    text[0..4].copy_from_slice(&digits::<4>(year));
    text[5..7].copy_from_slice(&digits::<2>(month));
    text[8..10].copy_from_slice(&digits::<2>(day));
    text[11..13].copy_from_slice(&digits::<2>(seconds / 3600));
    text[14..16].copy_from_slice(&digits::<2>(seconds / 60 % 60));
    text[17..19].copy_from_slice(&digits::<2>(seconds % 60));
    text[20..26].copy_from_slice(&digits::<6>(fraction));
    Some(text)
}

/// A day since 1970 as `2026-01-02`; `None` outside the years 1 to 9999.
pub fn date_text(day: i64) -> Option<[u8; 10]> {
    let text = time_text(day.checked_mul(DAY_MICROS)?)?;
    text.first_chunk().copied()
}

/// Reads [`time_text`] back. A calendar's date and time, and not its instants: those end before the last day does, so
/// that every time zone has them.
pub fn micros_of(text: &str) -> Option<i64> {
    let time: DateTime = text.strip_suffix('Z')?.parse().ok()?;
    let since_1970 = time.duration_since(DateTime::constant(1970, 1, 1, 0, 0, 0, 0));
    i64::try_from(since_1970.as_micros()).ok().filter(|micros| (MICROS_MIN..=MICROS_MAX).contains(micros))
}

/// Year, month and day of a day since 1970, from the year 0 on. Our own, since a calendar that can do everything
/// took five times as long, three times an event. Years begin in March here, so that the leap day is their last, and
/// are counted in the 400 years (146,097 days) after which the calendar repeats.
fn date_of(day: i64) -> (u32, u32, u32) {
    let day = (day + 719_468) as u32; // since 0000-03-01
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let from_march = (5 * day + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (400 * era + year + u32::from(month <= 2), month, day - (153 * from_march + 2) / 5 + 1)
}

#[inline(always)]
fn digits<const N: usize>(mut number: u32) -> [u8; N] {
    let mut text = [b'0'; N];
    for digit in text.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_day_has_its_date() {
        let mut date = DateTime::constant(1, 1, 1, 0, 0, 0, 0).date();
        for day in MICROS_MIN / DAY_MICROS..=MICROS_MAX / DAY_MICROS {
            assert_eq!(date_of(day), (date.year() as u32, date.month() as u32, date.day() as u32), "{day}");
            date = date.tomorrow().unwrap_or(date);
        }
        assert_eq!(date, DateTime::constant(9999, 12, 31, 0, 0, 0, 0).date());
    }

    #[test]
    fn other_texts_are_no_times() {
        for text in [
            "",
            "Z",
            "2026-01-02",
            "2026-01-02T03:04:05.678901",
            "2026-01-02T03:04:05+01:00",
            "0000-12-31T23:59:59Z",
        ] {
            assert_eq!(micros_of(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_time_that_is_written_is_read_back(micros in prop_oneof![
            MICROS_MIN..=MICROS_MAX,
            MICROS_MIN..=MICROS_MIN + 2 * DAY_MICROS,
            MICROS_MAX - 2 * DAY_MICROS..=MICROS_MAX,
            Just(MICROS_MIN), Just(-1), Just(0), Just(MICROS_MAX),
        ]) {
            let text = String::from_utf8(time_text(micros).unwrap().to_vec()).unwrap();
            prop_assert_eq!(micros_of(&text), Some(micros), "{}", text);
        }
    }

    #[test]
    fn times_outside_the_years_1_to_9999_have_no_text() {
        let text = |micros| time_text(micros).map(|text| String::from_utf8(text.to_vec()).unwrap());
        for (micros, shown) in [
            (i64::MIN, None),
            (MICROS_MIN - 1, None),
            (MICROS_MIN, Some("0001-01-01T00:00:00.000000Z")),
            (-1, Some("1969-12-31T23:59:59.999999Z")),
            (MICROS_MAX, Some("9999-12-31T23:59:59.999999Z")),
            (MICROS_MAX + 1, None),
            (i64::MAX, None),
        ] {
            assert_eq!(text(micros).as_deref(), shown, "{micros}");
        }
    }
}
