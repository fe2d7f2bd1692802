//! A connection to a server: whether it leaves this machine, and whether others can listen to it.

use std::net::IpAddr;

use hyper::Uri;

use crate::finding::Finding;

/// Whether a host, by name or address, is this machine.
pub fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// The host of `host:port`.
pub fn host_of(address: &str) -> &str {
    match address.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => address,
    }
}

/// Whether what is sent to this address can be read on its way.
pub fn is_exposed(url: &Uri) -> bool {
    url.scheme_str() == Some("http") && !url.host().is_some_and(is_loopback)
}

/// What `walcast check` says of a connection without TLS that leaves this machine.
pub fn in_clear(id: &'static str, subject: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding::warn(id, subject, "without TLS: rows, and passwords if there are any, travel in clear", fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_many_names() {
        for here in ["localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]", "::ffff:127.0.0.1"] {
            assert!(is_loopback(here), "{here}");
        }
        for elsewhere in ["db.internal", "10.0.0.7", "0.0.0.0", "[::]", "localhost.example.com", ""] {
            assert!(!is_loopback(elsewhere), "{elsewhere}");
        }
    }

    #[test]
    fn the_port_is_no_part_of_the_host() {
        for (address, host) in [("a:9092", "a"), ("[::1]:9092", "[::1]"), ("a", "a"), ("[::1]", "[::1]")] {
            assert_eq!(host_of(address), host);
        }
    }
}
