//! Threads: librdkafka's calls block.

use crate::error::{Code, Error, Result};

/// Runs what blocks on a thread of its own.
pub(super) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    spawned.map(drop).map_err(|error| Error::new(Code::Unavailable, "cannot start a thread").because(error))
}
