//! Who may see more than whether walcast is up: whoever brings the token.

use axum::http::{HeaderMap, HeaderValue, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::error::{Error, Kind, Result};
use crate::secret::Secret;

/// What a browser is told, so that it asks for user name (any) and password (the token): neither is ever in a URL.
pub const CHALLENGE: HeaderValue = HeaderValue::from_static(r#"Basic realm="walcast", charset="UTF-8""#);

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
            return Err(Error::new(Kind::Config, message)
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
    fn a_token_that_no_header_can_carry_is_refused_and_not_shown() {
        for token in ["two words", "tökén", "line\n"] {
            let refused = Access::new(&token.to_owned().into()).err();
            assert!(refused.as_ref().is_some_and(|error| error.kind() == Kind::Config), "{token:?}");
            assert!(!format!("{refused:?}").contains(token));
        }
    }
}
