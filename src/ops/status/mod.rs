//! `walcast status`: asks the running walcast how it is doing, once or every second.

mod text;

use std::io::{IsTerminal, stdout};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use reqwest::{Client, StatusCode};
use serde_json::json;
use tokio::time::MissedTickBehavior;

use self::text::{clock, line, render, seconds};
use crate::config::Config;
use crate::error::{Code, Error, Kind, Result};
use crate::ops::terminal::{Paint, print};
use crate::shutdown::Shutdown;
use crate::telemetry::status::Status;
use crate::web::WebConfig;

const ANSWER_WITHIN: Duration = Duration::from_secs(4);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Prints the state; exit code 1 when events do not flow into every sink, or nothing answers.
pub async fn status(config: &Config, json: bool) -> Result<ExitCode> {
    let (text, status) = ask(&client()?, &config.web).await?;
    match json {
        true => print(&format!("{text}\n")),
        false => print(&render(&status, Timestamp::now(), Paint::for_stdout())),
    };
    Ok(ExitCode::from(if status.is_ready() { 0 } else { 1 }))
}

/// Shows the state every second until `shutdown`, or until nobody reads it any more: in place on a terminal, else a
/// line each time. While no walcast answers it says so, and goes on.
pub async fn watch(config: &Config, json: bool, mut shutdown: Shutdown) -> Result<ExitCode> {
    let form = match (json, stdout().is_terminal()) {
        (true, _) => Form::Json,
        (false, true) => Form::Screen(Paint::for_stdout()),
        (false, false) => Form::Lines,
    };
    let (client, mut silent_since) = (client()?, None);
    let mut due = tokio::time::interval(LOOK_EVERY);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let asked = async {
            due.tick().await;
            ask(&client, &config.web).await
        };
        let answer = tokio::select! {
            answer = asked => answer,
            () = shutdown.wait() => return Ok(ExitCode::SUCCESS),
        };
        let shown = match answer {
            Ok((text, status)) => {
                silent_since = None;
                form.state(&text, &status)
            }
            Err(error) if error.kind() == Kind::Config => return Err(error),
            Err(error) => form.silence(&error, silent_since.get_or_insert_with(Instant::now).elapsed()),
        };
        if !print(&shown) {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// How a watcher is shown the state.
enum Form {
    Screen(Paint),
    Lines,
    Json,
}

impl Form {
    fn state(&self, text: &str, status: &Status) -> String {
        let now = Timestamp::now();
        match self {
            Form::Screen(paint) => in_place(&render(status, now, *paint)),
            Form::Lines => line(status, now),
            Form::Json => format!("{text}\n"),
        }
    }

    fn silence(&self, error: &Error, silent: Duration) -> String {
        let what = error.told();
        match self {
            Form::Screen(paint) => {
                let since = seconds(silent.as_secs_f64());
                in_place(&format!("{}\n\nfor {since} now; asked again every second\n", paint.bad(&what)))
            }
            Form::Lines => format!("{}  {what}\n", clock(Timestamp::now())),
            Form::Json => format!("{}\n", json!({ "error": what, "code": error.code() })),
        }
    }
}

/// Over what stood there, without the flicker of an empty screen.
fn in_place(text: &str) -> String {
    // to the upper left; each line's rest is cleared, and what lies below the last
    format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"))
}

fn client() -> Result<Client> {
    // it asks in clear: there is nobody to trust
    let built = Client::builder().no_proxy().timeout(ANSWER_WITHIN).tls_built_in_root_certs(false).build();
    built.map_err(|error| Error::new(Code::Prerequisite, "no HTTP client").because(error))
}

/// What walcast answers, and what it means.
async fn ask(client: &Client, web: &WebConfig) -> Result<(String, Status)> {
    let listen = &web.listen;
    let silent = |error| {
        Error::new(Code::WalcastUnreachable, format!("no walcast answers on {listen}"))
            .because(error)
            .hint("start `walcast run`; web.listen (WEB_LISTEN) says where it is asked")
    };
    let url = format!("http://{}/api/status", reachable(listen));
    let answer = client.get(url).bearer_auth(web.token.expose()).send().await.map_err(silent)?;
    if answer.status() == StatusCode::UNAUTHORIZED {
        return Err(Error::new(Code::TokenRefused, format!("walcast on {listen} asks for another token"))
            .hint("set WEB_TOKEN (web.token) to the token of the walcast that runs"));
    }
    let text = answer.error_for_status().map_err(silent)?.text().await.map_err(silent)?;
    let status = serde_json::from_str(&text).map_err(|error| {
        Error::new(Code::Protocol, format!("what answers on {listen} is not this walcast"))
            .because(error)
            .hint("use the `walcast` that is running; web.listen (WEB_LISTEN) says where it is asked")
    })?;
    Ok((text, status))
}

/// Where to ask somebody who listens everywhere.
fn reachable(listen: &str) -> String {
    match listen.rsplit_once(':') {
        Some(("0.0.0.0" | "[::]", port)) => format!("localhost:{port}"),
        _ => listen.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_is_drawn_over() {
        assert_eq!(in_place("a\nb\n"), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
    }

    #[test]
    fn whoever_listens_everywhere_is_asked_here() {
        assert_eq!(reachable("0.0.0.0:8080"), "localhost:8080");
        assert_eq!(reachable("[::]:81"), "localhost:81");
        assert_eq!(reachable("10.0.0.5:8080"), "10.0.0.5:8080");
    }
}
