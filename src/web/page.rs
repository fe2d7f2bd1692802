//! What the page asks for: its files, the state as it changes, the last hour, boards and checks.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::sink::Leaderboards;
use crate::state::dead_letters::LetterId;
use crate::telemetry::live::{Frame, Page};
use crate::web::assets;
use crate::web::checks::Checks;
use crate::web::letters::Letters;

/// Everything comes from here; nothing may be written into the page, or around it.
pub const CONTENT_SECURITY_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
);

/// More pages than these are told to come back later.
const READERS_MAX: usize = 64;
/// A comment this often says that the connection is alive, should nothing else be said.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(5);

/// What the page shows that the pipeline does not tell of itself.
#[derive(Default)]
pub struct Beside {
    /// Where the leaderboards are; `None` when Redis is no sink.
    pub boards: Option<Leaderboards>,
    /// What `walcast check` finds.
    pub checks: Checks,
    /// The rows that were refused.
    pub letters: Option<Letters>,
}

struct Site {
    page: Page,
    beside: Beside,
    /// Whoever gets here has brought a token.
    asks_for_token: bool,
    readers: Arc<Semaphore>,
}

/// The page's routes.
pub fn router(page: Page, beside: Beside, asks_for_token: bool) -> Router {
    let readers = Arc::new(Semaphore::new(READERS_MAX));
    let site = Arc::new(Site { page, beside, asks_for_token, readers });
    Router::new()
        .route("/api/stream", get(stream))
        .route("/api/history", get(history))
        .route("/api/boards/{name}", get(leaderboard))
        .route("/api/checks", get(checks))
        .route("/api/dead-letters", get(dead_letters))
        .route("/api/dead-letters/{name}", get(dead_letter))
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

/// The first places, or why there are none: `{ "places": […], "why": null }`.
async fn leaderboard(State(site): State<Arc<Site>>, Path(name): Path<String>) -> Response {
    let Some(boards) = &site.beside.boards else {
        let why = "Redis is no sink of this walcast (pipeline.sinks), so there are no leaderboards.";
        return Json(json!({ "places": [], "why": why })).into_response();
    };
    match boards.top(&name).await {
        Some(Ok(places)) => Json(json!({ "places": *places, "why": null })).into_response(),
        Some(Err(why)) => Json(json!({ "places": [], "why": why })).into_response(),
        None => (StatusCode::NOT_FOUND, "there is no such leaderboard\n").into_response(),
    }
}

async fn checks(State(site): State<Arc<Site>>) -> impl IntoResponse {
    Json(site.beside.checks.now().await)
}

async fn dead_letters(State(site): State<Arc<Site>>) -> Response {
    let found = match &site.beside.letters {
        Some(letters) => letters.open().await,
        None => None,
    };
    found.map_or_else(|| not_told().into_response(), |found| Json(found).into_response())
}

#[derive(Deserialize)]
struct Values {
    #[serde(default)]
    values: bool,
}

/// A row's values are for whoever has brought a token, and for nobody where none is asked.
async fn dead_letter(
    State(site): State<Arc<Site>>,
    Path(name): Path<String>,
    Query(Values { values }): Query<Values>,
) -> Response {
    if values && !site.asks_for_token {
        let why = "values are shown to whoever brings a token: set web.token (WEB_TOKEN), or run `walcast dead-letters show NAME --values`\n";
        return (StatusCode::FORBIDDEN, why).into_response();
    }
    let (Some(letters), Ok(id)) = (&site.beside.letters, name.parse::<LetterId>()) else {
        return (StatusCode::NOT_FOUND, "there is no such dead letter\n").into_response();
    };
    match letters.one(id, values).await {
        Some(Some(found)) => Json(found).into_response(),
        Some(None) => (StatusCode::NOT_FOUND, "there is no such dead letter\n").into_response(),
        None => not_told().into_response(),
    }
}

fn not_told() -> impl IntoResponse {
    (StatusCode::SERVICE_UNAVAILABLE, "PostgreSQL does not tell the dead letters; `walcast check` says why\n")
}
