//! The dashboard, health, metrics and status over HTTP. Reads and changes nothing.

pub mod access;
pub mod api;
pub mod assets;
pub mod checks;
mod connections;
pub mod letters;
pub mod page;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::http::uri::Authority;
use metrics_exporter_prometheus::PrometheusHandle;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::error::{Code, Error, Result};
use crate::secret::Secret;
use crate::telemetry::live;
use crate::telemetry::registry::StatusRegistry;
use crate::web::access::Access;
use crate::web::page::Beside;

/// How long answers under way have at the end.
const GRACE: Duration = Duration::from_secs(3);

/// `[web]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WebConfig {
    /// Address to listen on, `host:port`. Any address but loopback needs a token.
    pub listen: String,
    /// Token that a reader must bring, as bearer token or as the password of any user. Only `/livez` and `/readyz`
    /// answer without it. Empty: no token.
    pub token: Secret,
    /// Names by which readers may ask, besides localhost, IP addresses and the name in `listen`. walcast refuses
    /// other names, so that a foreign web page cannot point its own name here.
    pub hosts: Vec<String>,
}

impl Default for WebConfig {
    fn default() -> Self {
        WebConfig { listen: "127.0.0.1:8080".into(), token: Secret::default(), hosts: Vec::new() }
    }
}

/// A bound listener that does not answer yet.
pub struct Web {
    listener: TcpListener,
    hosts: Vec<String>,
    access: Access,
    beside: Beside,
}

impl Web {
    /// Takes the address; kind `Setup` when it cannot be had, `Config` when others could reach it and no token is
    /// asked of them.
    pub async fn bind(config: &WebConfig) -> Result<Web> {
        let access = Access::new(&config.token)?;
        let Ok(authority) = config.listen.parse::<Authority>() else { return Err(not_an_address(config)) };
        if authority.port_u16().is_none() {
            return Err(not_an_address(config));
        }
        let listener =
            TcpListener::bind(&config.listen).await.map_err(|error| cannot_listen(config, error))?;
        if access.is_open()
            && !listener.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback())
        {
            return Err(open_to_others(config));
        }
        let own = std::iter::once(authority.host().to_owned());
        Ok(Web {
            listener,
            hosts: own.chain(config.hosts.iter().cloned()).collect(),
            access,
            beside: Beside::default(),
        })
    }

    /// Where it listens; for a configured port 0 the port that was found.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The page shows these too.
    #[must_use]
    pub fn beside(self, beside: Beside) -> Web {
        Web { beside, ..self }
    }

    /// Answers until `shutdown`, then completes the answers under way.
    pub async fn serve(
        self,
        registry: StatusRegistry,
        recorder: PrometheusHandle,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) {
        let (closing, closed) = oneshot::channel::<()>();
        let (live, keeping) = live::Page::of(registry.clone());
        let keeping = tokio::spawn(keeping);
        let page = page::router(live, self.beside, !self.access.is_open());
        let router = api::router(registry, recorder, self.hosts, self.access, page);
        let serving = connections::serve(self.listener, router, async move {
            shutdown.await;
            keeping.abort(); // which ends the streams
            drop(closing);
        });
        let too_late = async {
            let _ = closed.await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            () = serving => {}
            () = too_late => {}
        }
    }
}

/// Whether a request's `Host` is one of ours. An IP address always is: only a name can be pointed at another
/// machine after a browser has looked at it.
fn is_own_host(host: &str, hosts: &[String]) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || hosts.iter().any(|own| own.eq_ignore_ascii_case(name))
}

fn not_an_address(config: &WebConfig) -> Error {
    Error::new(Code::Configuration, format!("web.listen is {:?}, and not host:port", config.listen))
        .hint("set web.listen (WEB_LISTEN) to an address such as 127.0.0.1:8080")
}

fn open_to_others(config: &WebConfig) -> Error {
    let message = format!("web.listen is {}, which others can reach, and web.token is empty", config.listen);
    Error::new(Code::TokenMissing, message).hint(
        "set WEB_TOKEN (web.token) to what `openssl rand -hex 16` prints, or web.listen (WEB_LISTEN) to 127.0.0.1:8080",
    )
}

fn cannot_listen(config: &WebConfig, error: io::Error) -> Error {
    let listen = &config.listen;
    let (message, hint) = match error.kind() {
        io::ErrorKind::AddrInUse => (
            format!("{listen} is taken by another program"),
            "stop that program, or set web.listen (WEB_LISTEN) to a free address",
        ),
        io::ErrorKind::PermissionDenied => (
            format!("{listen} may not be listened on by this user"),
            "set web.listen (WEB_LISTEN) to a port of 1024 or above",
        ),
        _ => (
            format!("{listen} cannot be listened on"),
            "set web.listen (WEB_LISTEN) to an address of this machine, such as 127.0.0.1:8080",
        ),
    };
    Error::new(Code::ListenFailed, message).hint(hint).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_hosts_are_loopback_addresses_and_what_is_configured() {
        let hosts = ["walcast.internal".to_owned(), "walcast".to_owned()];
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1:8080",
            "[::1]:8080",
            "10.1.2.3",
            "walcast:8080",
            "Walcast.Internal",
        ] {
            assert!(is_own_host(host, &hosts), "{host}");
        }
        for host in [
            "",
            "example.com",
            "localhost.example.com",
            "127.0.0.1.example.com:8080",
            "walcast.example",
            "a b",
            "@",
        ] {
            assert!(!is_own_host(host, &hosts), "{host}");
        }
    }
}
