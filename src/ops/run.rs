//! `walcast run`.

use crate::config::Config;
use crate::error::Result;
use crate::pipeline;
use crate::shutdown::Shutdown;
use crate::telemetry::board::Board;
use crate::telemetry::{lag, metrics};
use crate::web::Web;

/// Streams until `shutdown`, with health, metrics and status over HTTP beside it.
pub async fn run(config: &Config, shutdown: Shutdown) -> Result<()> {
    let web = Web::bind(&config.web).await?;
    if let Ok(address) = web.address() {
        tracing::info!("health, metrics and status on http://{address}");
    }
    let recorder = metrics::install()?;
    let board = Board::new();
    let watch = tokio::spawn(lag::watch(config.postgres.clone(), board.clone()));
    // Asked until the very end: a walcast that drains says so.
    let (stop, mut stopped) = Shutdown::manual();
    let serving = tokio::spawn(web.serve(board.clone(), recorder, async move { stopped.wait().await }));
    let ended = pipeline::run(config, &board, shutdown).await;
    watch.abort();
    stop.signal();
    if let Ok(Err(error)) = serving.await {
        tracing::warn!(
            error = error.chain(),
            "health, metrics and status were not served: {}",
            error.advice()
        );
    }
    ended
}
