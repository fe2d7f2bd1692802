//! What the page asks for: its files, the state as it changes, the last hour.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderValue, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::Semaphore;

use crate::telemetry::live::{Frame, Page};
use crate::web::assets;

/// Everything comes from here; nothing may be written into the page, or around it.
pub const CONTENT_SECURITY_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
);

/// More pages than these are told to come back later.
const READERS_MAX: usize = 64;
/// A comment this often says that the connection is alive, should nothing else be said.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(5);

struct Site {
    page: Page,
    readers: Arc<Semaphore>,
}

/// The page's routes.
pub fn router(page: Page) -> Router {
    let site = Arc::new(Site { page, readers: Arc::new(Semaphore::new(READERS_MAX)) });
    Router::new()
        .route("/api/stream", get(stream))
        .route("/api/history", get(history))
        .with_state(site)
        .merge(assets::router())
}

/// The state, once a second, as server-sent events: the id is the moment, milliseconds since 1970.
async fn stream(State(site): State<Arc<Site>>) -> Response {
    let Ok(reader) = Arc::clone(&site.readers).try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many pages are open; close some\n").into_response();
    };
    let mut frames = site.page.frames();
    if frames.borrow().at_ms > 0 {
        frames.mark_changed();
    }
    let events = stream::unfold((frames, reader), |(mut frames, reader)| async move {
        frames.changed().await.ok()?;
        let event = event(&frames.borrow_and_update());
        Some((Ok::<_, Infallible>(event), (frames, reader)))
    });
    let unbuffered = [("x-accel-buffering", "no")]; // a proxy is to pass each event on at once
    (unbuffered, Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE_EVERY))).into_response()
}

fn event(frame: &Frame) -> Event {
    Event::default().event("live").id(frame.at_ms.to_string()).data(&frame.json)
}

#[derive(Deserialize)]
struct After {
    /// The last moment that is known already.
    #[serde(default)]
    after: i64,
}

async fn history(State(site): State<Arc<Site>>, Query(After { after }): Query<After>) -> impl IntoResponse {
    Json(site.page.columns(after))
}
