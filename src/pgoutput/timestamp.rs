//! `timestamptz`: microseconds, counted by PostgreSQL from 2000-01-01 and by us from 1970-01-01, both UTC.

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

impl Timestamp {
    /// Of the binary form.
    pub fn of_wire(wire_micros: i64) -> Timestamp {
        match wire_micros {
            i64::MAX => Timestamp::Infinity,
            i64::MIN => Timestamp::NegativeInfinity,
            _ => Timestamp::At(unix_micros(wire_micros)),
        }
    }
}

/// Microseconds since 1970 of the wire's microseconds since 2000, for the times of Begin and Commit.
pub fn unix_micros(wire_micros: i64) -> i64 {
    wire_micros.saturating_add(WIRE_EPOCH_MICROS)
}

/// 2000-01-01 UTC in microseconds since 1970.
const WIRE_EPOCH_MICROS: i64 = 946_684_800_000_000;
