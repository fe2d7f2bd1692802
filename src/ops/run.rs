//! `walcast run`.

use crate::config::Config;
use crate::error::Result;
use crate::pipeline;
use crate::shutdown::Shutdown;
use crate::telemetry::status::Board;

/// Streams until `shutdown`, with health, metrics and status over HTTP beside it.
pub async fn run(config: &Config, shutdown: Shutdown) -> Result<()> {
    let board = Board::new();
    let ended = pipeline::run(config, &board, shutdown).await;
    ended
}
