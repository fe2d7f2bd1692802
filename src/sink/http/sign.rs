//! The signature of a request, as Standard Webhooks defines it: HMAC-SHA256 over `id.timestamp.body`, base64. Each secret gives
//! one, so that a receiver can change from one secret to the next while events go on. The body is signed as it is before it is
//! compressed: what stands between may decompress it, and the standard's libraries take it as a text.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::config::wrong;
use crate::error::Result;
use crate::secret::Secret;

/// Signs, or does not where there is no secret.
pub struct Signer(Vec<Hmac<Sha256>>);

impl Signer {
    /// From the setting; an error of kind `Config` for what is no secret.
    pub fn new(secrets: &Secret) -> Result<Signer> {
        let separates = |c: char| c == ',' || c.is_whitespace();
        let given = secrets.expose().split(separates).filter(|secret| !secret.is_empty());
        let key = |secret: &str| {
            let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap_or(secret)).ok();
            let mac = key.filter(|key| key.len() >= KEY_BYTES_MIN);
            mac.and_then(|key| Hmac::new_from_slice(&key).ok())
        };
        let fix = "give whsec_ and at least 16 bytes in base64: echo whsec_$(openssl rand -base64 32)";
        let refused = || wrong("signing_secrets", "has something that is no secret", fix);
        given.map(|secret| key(secret).ok_or_else(refused)).collect::<Result<_>>().map(Signer)
    }

    /// The header `webhook-signature`: one signature a secret. `None` without secrets.
    pub fn sign(&self, id: &str, timestamp: &str, body: &[u8]) -> Option<String> {
        let signature = |mac: &Hmac<Sha256>| {
            let mut mac = mac.clone();
            for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
                mac.update(part);
            }
            format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
        };
        let all: Vec<String> = self.0.iter().map(signature).collect();
        (!all.is_empty()).then(|| all.join(" "))
    }
}

const KEY_BYTES_MIN: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_standard_is_signed_as_it_says() {
        let signer = Signer::new(&"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned().into()).unwrap();
        let signature = signer.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", br#"{"test": 2432232314}"#);
        assert_eq!(signature.as_deref(), Some("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="));
    }

    #[test]
    fn each_secret_signs() {
        let secrets = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
        let signature = Signer::new(&secrets.to_owned().into()).unwrap().sign("a", "1", b"x").unwrap();
        let each: Vec<&str> = signature.split(' ').collect();
        assert_eq!(each.len(), 2);
        assert_ne!(each[0], each[1]);
        assert!(Signer::new(&String::new().into()).unwrap().sign("a", "1", b"x").is_none());
    }
}
