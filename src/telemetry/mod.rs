//! Logs, metrics, and the state that operators see.
pub mod metrics;
pub mod status;

use crate::error::{Error, Kind, Result};

/// Logs to stderr.
pub fn init_logging(filter: &str) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .map_err(|error| Error::new(Kind::Config, "--log is not a filter").because(error))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    Ok(())
}
