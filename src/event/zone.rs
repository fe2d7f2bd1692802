//! The zone whose clock a `timestamp` without time zone shows.
//!
//! One function turns such a time into an instant, for the stream and for what SQL reads alike: PostgreSQL gives both the
//! plain value. It gives what PostgreSQL's `AT TIME ZONE` gives, by the rules of the time-zone database that is linked in.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::error::{Code, Error, Result};

/// After so long the calendar repeats, weekdays and all, and so do the rules that hold for good.
const CYCLE_MICROS: i64 = 146_097 * 86_400_000_000;
/// 2500-01-01, in microseconds since 1970. Every zone's rules are for good at least one cycle before.
const END_MICROS: i64 = 16_725_225_600 * 1_000_000;

/// What PostgreSQL takes for an offset that is the same all year, and IANA's database for a place.
const ABBREVIATIONS: [&str; 7] = ["CET", "EET", "EST", "HST", "MET", "MST", "WET"];

/// A zone's offsets from UTC, each with the local time that it begins at.
#[derive(Clone)]
pub struct Zone {
    name: Arc<str>,
    /// In microseconds, by the clock that shows the new offset; ascending.
    begins: Arc<[(i64, i64)]>,
    first: i64,
}

impl Zone {
    /// The zone with this name of the IANA's database, such as `Europe/Warsaw`. `setting` is where the name comes from.
    pub fn named(name: &str, setting: &str) -> Result<Zone> {
        let refused = |what: String| {
            Error::new(Code::Configuration, format!("{setting}: {what}"))
                .hint("name one as the IANA's database has it: Europe/Warsaw, America/New_York, UTC")
        };
        if ABBREVIATIONS.iter().any(|abbreviation| abbreviation.eq_ignore_ascii_case(name)) {
            return Err(refused(format!("{name} may be a zone or an offset")));
        }
        let zone = TimeZone::get(name).map_err(|_| refused(format!("there is no time zone {name:?}")))?;
        let micros = |seconds: i64| seconds * 1_000_000;
        let begins = zone
            .following(Timestamp::MIN)
            .map(|change| {
                let offset = micros(change.offset().seconds().into());
                (change.timestamp().as_microsecond() + offset, offset)
            })
            .take_while(|(begins, _)| *begins < END_MICROS)
            .collect();
        let first = micros(zone.to_offset(Timestamp::MIN).seconds().into());
        Ok(Zone { name: zone.iana_name().unwrap_or(name).into(), begins, first })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Microseconds since 1970 UTC of a local time in microseconds since 1970. Where clocks are set forward, the times that
    /// they leave out count on from before; where they are set back, what they show twice is taken for the second time:
    /// either way an offset holds from the first time that clocks show with it.
    pub fn instant(&self, local_micros: i64) -> i64 {
        let cycles = match local_micros >= END_MICROS {
            true => (local_micros - END_MICROS) / CYCLE_MICROS + 1,
            false => 0,
        };
        let within = local_micros - cycles * CYCLE_MICROS;
        let after = self.begins.partition_point(|(begins, _)| *begins <= within);
        let offset =
            after.checked_sub(1).and_then(|at| self.begins.get(at)).map_or(self.first, |(_, offset)| *offset);
        local_micros.saturating_sub(offset)
    }
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Zone({})", self.name)
    }
}

#[cfg(test)]
mod tests {
    use jiff::civil::DateTime;

    use super::*;

    fn local(text: &str) -> i64 {
        let time: DateTime = text.parse().unwrap();
        time.duration_since(DateTime::constant(1970, 1, 1, 0, 0, 0, 0)).as_micros() as i64
    }

    #[test]
    fn clocks_that_are_set_are_read_as_postgresql_reads_them() {
        let zone = |name| Zone::named(name, "postgres.timestamp_zone").unwrap();
        for (name, shown, instant) in [
            ("UTC", "2026-03-29T02:30:00", "2026-03-29T02:30:00"),
            ("Europe/Warsaw", "2026-03-29T01:59:59.999999", "2026-03-29T00:59:59.999999"),
            ("Europe/Warsaw", "2026-03-29T02:00:00", "2026-03-29T01:00:00"),
            ("Europe/Warsaw", "2026-03-29T02:30:00", "2026-03-29T01:30:00"),
            ("Europe/Warsaw", "2026-03-29T03:00:00", "2026-03-29T01:00:00"),
            ("Europe/Warsaw", "2026-10-25T01:59:59.999999", "2026-10-24T23:59:59.999999"),
            ("Europe/Warsaw", "2026-10-25T02:00:00", "2026-10-25T01:00:00"),
            ("Europe/Warsaw", "9999-07-01T00:00:00", "9999-06-30T22:00:00"),
            ("europe/warsaw", "9999-12-31T23:59:59.999999", "9999-12-31T22:59:59.999999"),
            ("America/New_York", "9999-12-31T18:59:59.999999", "9999-12-31T23:59:59.999999"),
            ("Asia/Kolkata", "0001-01-01T05:53:28", "0001-01-01T00:00:00"),
            ("Pacific/Apia", "2011-12-30T12:00:00", "2011-12-30T22:00:00"),
        ] {
            assert_eq!(zone(name).instant(local(shown)), local(instant), "{name} {shown}");
        }
        for far in [i64::MIN, i64::MAX] {
            let at = zone("Asia/Tokyo").instant(far);
            assert!((at - far).abs() <= 86_400_000_000, "{at}");
        }
    }

    #[test]
    fn a_zones_offsets_are_in_order() {
        for name in jiff::tz::db().available() {
            let zone = Zone::named(name.as_str(), "test");
            assert!(zone.map_or(true, |zone| zone.begins.is_sorted()), "{name:?}");
        }
    }

    #[test]
    fn a_zone_that_there_is_not_is_a_matter_of_configuration() {
        for name in ["", "CET", "Europe/Warschau", "Europe/Warsaw; DROP TABLE content", "../../etc/passwd"] {
            let error = Zone::named(name, "postgres.timestamp_zone").unwrap_err();
            assert_eq!(error.code(), Code::Configuration, "{name}");
        }
    }
}
