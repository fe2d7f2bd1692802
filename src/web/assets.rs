//! The files of the page, as they are in the binary.

use axum::Router;
use axum::http::header;
use axum::routing::get;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! files {
    ($($path:literal: $kind:expr, $file:literal;)*) => {
        const FILES: &[(&str, &str, &str)] = &[$(($path, $kind, include_str!(concat!("page/", $file)))),*];
    };
}

files! {
    "/": HTML, "index.html";
    "/page/icon.svg": "image/svg+xml", "icon.svg";
    "/page/style.css": CSS, "style.css";
    "/page/main.js": SCRIPT, "main.js";
    "/page/stream.js": SCRIPT, "stream.js";
    "/page/dom.js": SCRIPT, "dom.js";
    "/page/format.js": SCRIPT, "format.js";
    "/page/pipeline.js": SCRIPT, "pipeline.js";
    "/page/source.js": SCRIPT, "source.js";
    "/page/sinks.js": SCRIPT, "sinks.js";
    "/page/history.js": SCRIPT, "history.js";
    "/page/charts.js": SCRIPT, "charts.js";
    "/page/boards.js": SCRIPT, "boards.js";
    "/page/letters.js": SCRIPT, "letters.js";
    "/page/checks.js": SCRIPT, "checks.js";
    "/page/uplot/uPlot.iife.min.js": SCRIPT, "uplot/uPlot.iife.min.js";
    "/page/uplot/uPlot.min.css": CSS, "uplot/uPlot.min.css";
    "/page/uplot/LICENSE": "text/plain; charset=utf-8", "uplot/LICENSE";
}

/// A route for each file.
pub fn router() -> Router {
    FILES.iter().fold(Router::new(), |router, (path, kind, text)| {
        router.route(path, get(move || async move { ([(header::CONTENT_TYPE, *kind)], *text) }))
    })
}
