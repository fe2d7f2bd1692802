//! `walcast run`.

use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;
use crate::error::Result;
use crate::ops::check;
use crate::pipeline;
use crate::shutdown::Shutdown;
use crate::sinks;
use crate::telemetry::registry::StatusRegistry;
use crate::telemetry::{lag, metrics};
use crate::web::Web;
use crate::web::checks::Checks;
use crate::web::letters::Letters;
use crate::web::page::Beside;

/// Streams until `shutdown`, with dashboard, health, metrics and status over HTTP beside it.
pub async fn run(config: &Config, shutdown: Shutdown) -> Result<()> {
    raise_open_files();
    let web = Web::bind(&config.web).await?.beside(beside(config));
    if let Ok(address) = web.address() {
        tracing::info!("dashboard, health, metrics and status on http://{address}");
    }
    let recorder = metrics::install()?;
    let registry = StatusRegistry::new();
    let watch = tokio::spawn(lag::watch(config.postgres.clone(), registry.clone()));
    // Asked until the very end: a walcast that drains says so.
    let (stop, mut stopped) = Shutdown::manual();
    let serving = tokio::spawn(web.serve(registry.clone(), recorder, async move { stopped.wait().await }));
    let ended = pipeline::run(config, &registry, shutdown).await;
    watch.abort();
    stop.signal();
    if let Err(error) = serving.await {
        tracing::error!(%error, "the web server broke down");
    }
    ended
}

/// As many open files as the system grants: many are low at first, for programs of another age. Where it grants none, it stays
/// as it is.
fn raise_open_files() {
    let files = getrlimit(Resource::Nofile);
    if files.current != files.maximum {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files });
    }
}

/// What the dashboard shows beside the pipeline.
fn beside(config: &Config) -> Beside {
    let config = Arc::new(config.clone());
    Beside {
        boards: sinks::leaderboards(&config),
        letters: Some(Letters::new(&config.postgres)),
        checks: Checks::new(move || {
            let config = Arc::clone(&config);
            Box::pin(async move { check::findings(&config).await })
        }),
    }
}
