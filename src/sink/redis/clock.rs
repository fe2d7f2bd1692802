//! What time it is at Redis. Keys expire by its clock, so windows move by it, and what is too far ahead or too late is decided
//! by it: our own clock may be wrong, be set, or differ from that of an instance before us.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::Clock;
use super::connection::Connection;
use crate::clock::ServerClock;
use crate::error::Result;

/// What Redis's clock shows is asked anew when this has passed.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// The time by which keys expire.
pub enum RedisClock {
    /// As it is given.
    Given(Clock),
    /// Redis's own, and when it was asked for.
    Asked(ServerClock, Instant),
    /// Ours, as this user may not ask.
    Ours,
}

impl RedisClock {
    /// The given one, or what Redis says.
    pub async fn new(given: Option<&Clock>, connection: &mut Connection) -> Result<RedisClock> {
        if let Some(given) = given {
            return Ok(RedisClock::Given(given.clone()));
        }
        let clock = ServerClock::default();
        Ok(match ask(&clock, connection).await? {
            true => RedisClock::Asked(clock, Instant::now()),
            false => RedisClock::Ours,
        })
    }

    /// The time now, microseconds since 1970. Asks, when that was long ago.
    pub async fn time(&mut self, connection: &mut Connection) -> Result<i64> {
        if let RedisClock::Asked(clock, asked) = self
            && asked.elapsed() >= ASK_EVERY
        {
            ask(clock, connection).await?;
            *asked = Instant::now();
        }
        Ok(self.now())
    }

    /// The time now, as far as is known without asking.
    pub fn now(&self) -> i64 {
        match self {
            RedisClock::Given(clock) => clock(),
            RedisClock::Asked(clock, _) => clock.now(),
            RedisClock::Ours => system_micros(),
        }
    }
}

/// Whether this user may ask.
async fn ask(clock: &ServerClock, connection: &mut Connection) -> Result<bool> {
    let asked = Instant::now();
    let time: Option<(i64, i64)> = connection.ask_if_allowed(&redis::cmd("TIME")).await?;
    let Some((seconds, micros)) = time else { return Ok(false) };
    clock.showed(seconds.saturating_mul(1_000_000).saturating_add(micros), asked, Instant::now());
    // keys expire by what it shows now, whenever they were written
    clock.turn();
    Ok(true)
}

/// Our own clock, microseconds since 1970.
pub fn system_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
