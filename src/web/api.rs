//! What is answered where.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;

use crate::telemetry::gauges;
use crate::telemetry::registry::StatusRegistry;
use crate::web::access::{Access, CHALLENGE};
use crate::web::{is_own_host, page};

const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

struct Site {
    registry: StatusRegistry,
    recorder: PrometheusHandle,
    hosts: Vec<String>,
    access: Access,
}

/// How long a wrong token waits for its answer, so that nobody tries many.
const AFTER_WRONG_TOKEN: Duration = Duration::from_millis(500);

/// Asked by probes, which bring no token: they tell no more than yes or no then.
const PROBES: [&str; 2] = ["/livez", "/readyz"];

/// All routes.
pub fn router(
    registry: StatusRegistry,
    recorder: PrometheusHandle,
    hosts: Vec<String>,
    access: Access,
    page: Router,
) -> Router {
    let site = Arc::new(Site { registry, recorder, hosts, access });
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/api/status", get(status))
        .with_state(Arc::clone(&site))
        .merge(page)
        .layer(middleware::from_fn_with_state(site, guard))
}

/// Refuses requests that a foreign web page made a browser send, and those without the token, and has browsers take
/// answers as what they are said to be.
async fn guard(State(site): State<Arc<Site>>, request: Request, next: Next) -> Response {
    let is_probe = PROBES.contains(&request.uri().path());
    let mut response = if !only_host(request.headers()).is_some_and(|host| is_own_host(host, &site.hosts)) {
        refused().into_response()
    } else if is_probe || site.access.permits(request.headers()) {
        next.run(request).await
    } else {
        if request.headers().contains_key(header::AUTHORIZATION) {
            tokio::time::sleep(AFTER_WRONG_TOKEN).await;
        }
        without_token().into_response()
    };
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::CONTENT_SECURITY_POLICY, page::CONTENT_SECURITY_POLICY);
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

/// The host that was asked, where it is said once: of two, each reader of the request may believe another.
fn only_host(headers: &HeaderMap) -> Option<&str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next()?;
    if hosts.next().is_some() { None } else { host.to_str().ok() }
}

fn refused() -> impl IntoResponse {
    let why =
        "walcast is not asked by this name: use its address, or add the name to web.hosts (WEB_HOSTS)\n";
    (StatusCode::MISDIRECTED_REQUEST, why)
}

fn without_token() -> impl IntoResponse {
    let why =
        "walcast asks for its token: send `Authorization: Bearer <web.token>`, or give it as the password\n";
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, CHALLENGE)], why)
}

async fn livez(State(site): State<Arc<Site>>) -> impl IntoResponse {
    if site.registry.is_live() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the pipeline hangs: restart this process\n")
    }
}

/// Ready while the source streams: no sink's trouble is another's, and a restart mends none. With `?sinks`, only while every
/// sink takes rows with the others.
async fn readyz(State(site): State<Arc<Site>>, RawQuery(query): RawQuery, headers: HeaderMap) -> Response {
    let status = site.registry.status();
    let checks = status.checks();
    let ready = if query.as_deref() == Some("sinks") { status.is_ready() } else { status.is_streaming() };
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if site.access.permits(&headers) {
        (code, Json(json!({ "ready": ready, "checks": checks }))).into_response()
    } else {
        (code, Json(json!({ "ready": ready }))).into_response()
    }
}

async fn metrics(State(site): State<Arc<Site>>) -> impl IntoResponse {
    gauges::set(&site.registry.status());
    ([(header::CONTENT_TYPE, PROMETHEUS_TEXT)], site.recorder.render())
}

async fn status(State(site): State<Arc<Site>>) -> impl IntoResponse {
    Json(site.registry.status())
}
