//! Who may see more than whether walcast is up: whoever brings the token.

use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::error::{Code, Error, Result};
use crate::finding::Finding;
use crate::hop;
use crate::secret::Secret;
use crate::web::WebConfig;

/// What a browser is told, so that it asks for user name (any) and password (the token): neither is ever in a URL.
pub const CHALLENGE: HeaderValue = HeaderValue::from_static(r#"Basic realm="walcast", charset="UTF-8""#);

/// A shorter one can be guessed.
const TOKEN_CHARACTERS_MIN: usize = 16;
const FRESH_TOKEN: &str = "export WEB_TOKEN=$(openssl rand -hex 16)";

/// Who is let in. Without a token everybody who can reach the address.
#[derive(Clone)]
pub struct Access {
    /// The token's hash: comparing hashes takes the same time whatever was brought.
    wanted: Option<[u8; 32]>,
}

impl Access {
    /// Kind `Config` for a token that no header can carry.
    pub fn new(token: &Secret) -> Result<Access> {
        let token = token.expose();
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            let message = "web.token has blanks, or characters that are not ASCII";
            return Err(Error::new(Code::Configuration, message)
                .hint("set web.token (WEB_TOKEN) to what `openssl rand -hex 16` prints"));
        }
        Ok(Access { wanted: (!token.is_empty()).then(|| hash(token.as_bytes())) })
    }

    /// Whether everybody is let in.
    pub fn is_open(&self) -> bool {
        self.wanted.is_none()
    }

    /// Whether a request with these headers is let in.
    pub fn permits(&self, headers: &HeaderMap) -> bool {
        let Some(wanted) = self.wanted else { return true };
        brought(headers).is_some_and(|token| same(&hash(&token), &wanted))
    }
}

/// Who can reach what walcast tells, and what is asked of them.
pub fn check(config: &WebConfig) -> Finding {
    let (id, subject, listen) = ("web.access", format!("web {}", config.listen), is_loopback(&config.listen));
    match (listen, config.token.expose().len()) {
        (true, 0) => Finding::ok(id, subject, "answers whoever is on this machine"),
        (false, 0) => Finding::fail(
            Code::TokenMissing,
            id,
            subject,
            "can be reached by others, and asks for no token",
            FRESH_TOKEN,
        ),
        (false, ..TOKEN_CHARACTERS_MIN) => {
            let message = "can be reached by others, and its token is short enough to be guessed";
            Finding::warn(id, subject, message, FRESH_TOKEN)
        }
        _ => Finding::ok(id, subject, "asks for a token"),
    }
}

fn is_loopback(listen: &str) -> bool {
    listen.parse::<Authority>().is_ok_and(|authority| hop::is_loopback(authority.host()))
}

/// The token of `Authorization: Bearer TOKEN`, or the password of `Authorization: Basic …`.
fn brought(headers: &HeaderMap) -> Option<Vec<u8>> {
    let (scheme, rest) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.as_bytes().to_vec());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let login = STANDARD.decode(rest).ok()?;
    let colon = login.iter().position(|byte| *byte == b':')?;
    login.get(colon + 1..).map(<[u8]>::to_vec)
}

fn hash(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}

/// Looks at every byte, wherever the first difference is.
fn same(one: &[u8; 32], other: &[u8; 32]) -> bool {
    let difference = one.iter().zip(other).fold(0, |difference, (one, other)| difference | (one ^ other));
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Verdict;

    fn permits(token: &str, header: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        if let Some(value) = header.and_then(|text| HeaderValue::from_str(text).ok()) {
            headers.insert(header::AUTHORIZATION, value);
        }
        Access::new(&token.to_owned().into()).is_ok_and(|access| access.permits(&headers))
    }

    #[test]
    fn the_token_is_a_bearer_token_or_a_password() {
        let basic = |login: &str| format!("Basic {}", STANDARD.encode(login));
        for good in [
            "Bearer s3cret:x".to_owned(),
            "bearer s3cret:x".to_owned(),
            basic(":s3cret:x"),
            basic("anybody:s3cret:x"),
        ] {
            assert!(permits("s3cret:x", Some(&good)), "{good}");
        }
        for bad in [
            "Bearer s3cret:".to_owned(),
            "Bearer s3cret:xx".to_owned(),
            "Bearer".to_owned(),
            "Bearer ".to_owned(),
            "s3cret:x".to_owned(),
            "Digest s3cret:x".to_owned(),
            "Basic s3cret:x".to_owned(),
            basic("s3cret:x"),
            basic("s3cret:x:"),
            basic("anybody:"),
        ] {
            assert!(!permits("s3cret:x", Some(&bad)), "{bad}");
        }
        assert!(!permits("s3cret:x", None));
        assert!(permits("", None));
    }

    #[test]
    fn who_listens_to_others_is_told_to_ask_for_a_token() {
        let verdict = |listen: &str, token: &str| {
            let token = token.to_owned().into();
            check(&WebConfig { listen: listen.into(), token, ..WebConfig::default() }).verdict
        };
        for loopback in ["127.0.0.1:8080", "localhost:1", "[::1]:8080"] {
            assert_eq!(verdict(loopback, ""), Verdict::Ok, "{loopback}");
        }
        for open in ["0.0.0.0:8080", "[::]:8080", "10.0.0.7:80", "walcast.internal:8080"] {
            assert_eq!(verdict(open, ""), Verdict::Fail, "{open}");
            assert_eq!(verdict(open, "walcast"), Verdict::Warn, "{open}");
            assert_eq!(verdict(open, "0123456789abcdef"), Verdict::Ok, "{open}");
        }
    }

    #[test]
    fn a_token_that_no_header_can_carry_is_refused_and_not_shown() {
        for token in ["two words", "tökén", "line\n"] {
            let refused = Access::new(&token.to_owned().into()).err();
            assert!(refused.as_ref().is_some_and(|error| error.code() == Code::Configuration), "{token:?}");
            assert!(!format!("{refused:?}").contains(token));
        }
    }
}
