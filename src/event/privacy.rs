//! Personal data: which of the fields that tell of people go out as they are, which as a pseudonym, and which not at all.
//! The rules are applied where a row becomes an event or a content of ours, so that no sink, no dead letter and no state of
//! walcast ever has more.

use hmac::{Hmac, KeyInit, Mac};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use uuid::Uuid;

use crate::error::{Code, Error, Result};
use crate::secret::Secret;

/// Bytes of a key at least: as many as the hash has.
const KEY_BYTES_MIN: usize = 32;

/// `[privacy]`: what of people leaves PostgreSQL.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PrivacyConfig {
    /// `engagement_events.user_id`. A pseudonym is a UUID too.
    pub user_id: Rule,
    /// `engagement_events.device`.
    pub device: Rule,
    /// `engagement_events.raw_payload`. A pseudonym is a JSON string.
    pub raw_payload: Rule,
    /// `content.slug`.
    pub slug: Rule,
    /// `content.title`.
    pub title: Rule,
    /// The key of the pseudonyms, at least 32 characters that nobody can guess. Whoever has it can tell whose a pseudonym is;
    /// with another key everybody gets another one.
    pub key: Secret,
}

/// What becomes of a field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// It goes out as it is.
    #[default]
    Keep,
    /// It is null everywhere, and is not read.
    Drop,
    /// A pseudonym goes out: its HMAC-SHA-256, the same in every sink.
    Hash,
}

/// The rules, and what they need.
#[derive(Debug, Clone, Default)]
pub struct Privacy {
    config: PrivacyConfig,
    hmac: Option<Hmac<Sha256>>,
}

impl PrivacyConfig {
    /// The rules, if there is a key where one is needed.
    pub fn rules(&self) -> Result<Privacy> {
        let mut rules = Privacy { config: self.clone(), hmac: None };
        if rules.named().iter().any(|(_, rule)| *rule == Rule::Hash) {
            let key = self.key.expose().trim().as_bytes();
            if key.len() < KEY_BYTES_MIN {
                let message = format!(
                    "privacy.key has {} characters, and whoever guesses it knows whose each pseudonym is: at least \
                     {KEY_BYTES_MIN} are wanted",
                    key.len()
                );
                return Err(Error::new(Code::Configuration, message)
                    .hint("openssl rand -hex 32 > privacy.key; export PRIVACY_KEY_FILE=privacy.key"));
            }
            rules.hmac = Hmac::new_from_slice(key).ok();
        }
        Ok(rules)
    }
}

impl Privacy {
    /// Each column that there is a rule for, whatever it is, with its rule.
    fn named(&self) -> [(&'static str, Rule); 5] {
        let PrivacyConfig { user_id, device, raw_payload, slug, title, key: _ } = &self.config;
        [
            ("user_id", *user_id),
            ("device", *device),
            ("raw_payload", *raw_payload),
            ("slug", *slug),
            ("title", *title),
        ]
    }

    /// The rule of a column, by our name for it.
    pub fn rule(&self, column: &str) -> Rule {
        self.named().into_iter().find(|(name, _)| *name == column).map_or(Rule::Keep, |(_, rule)| rule)
    }

    /// The same for what has pseudonyms already.
    pub fn of_pseudonyms(&self) -> Privacy {
        let mut config = self.config.clone();
        let PrivacyConfig { user_id, device, raw_payload, slug, title, key: _ } = &mut config;
        for rule in [user_id, device, raw_payload, slug, title] {
            if *rule == Rule::Hash {
                *rule = Rule::Keep;
            }
        }
        Privacy { config, hmac: None }
    }

    /// `user_id` as it goes out.
    #[inline(always)]
    pub fn user_id(&self, id: Uuid) -> Option<Uuid> {
        match self.config.user_id {
            Rule::Keep => Some(id),
            Rule::Drop => None,
            Rule::Hash => Some(self.uuid(id)),
        }
    }

    /// `device` as it goes out, taken by `take`.
    #[inline(always)]
    pub fn device<T>(&self, text: &str, take: impl FnOnce(&str) -> T) -> Option<T> {
        self.text(self.config.device, text, take)
    }

    /// `raw_payload` as it goes out, taken by `take`.
    #[inline(always)]
    pub fn raw_payload<T>(&self, json: &str, take: impl FnOnce(&str) -> T) -> Option<T> {
        match self.config.raw_payload {
            Rule::Keep => Some(take(json)),
            Rule::Drop => None,
            Rule::Hash => Some(take(self.digits(json).quoted())),
        }
    }

    /// A content's `slug` as it goes out.
    pub fn slug(&self, text: &str) -> Option<String> {
        self.text(self.config.slug, text, str::to_owned)
    }

    /// A content's `title` as it goes out.
    pub fn title(&self, text: &str) -> Option<String> {
        self.text(self.config.title, text, str::to_owned)
    }

    #[inline(always)]
    fn text<T>(&self, rule: Rule, text: &str, take: impl FnOnce(&str) -> T) -> Option<T> {
        match rule {
            Rule::Keep => Some(take(text)),
            Rule::Drop => None,
            Rule::Hash => Some(take(self.digits(text).bare())),
        }
    }

    /// The pseudonym of a UUID: the first half of the HMAC of its text, marked as a UUID of a kind of its own (version 8).
    #[cold]
    pub fn uuid(&self, id: Uuid) -> Uuid {
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        let [first, _] = self.hmac(id.hyphenated().encode_lower(&mut text));
        uuid::Builder::from_custom_bytes(first).into_uuid()
    }

    /// The pseudonym of a text: its HMAC in hexadecimal digits.
    pub fn pseudonym(&self, text: &str) -> String {
        self.digits(text).bare().to_owned()
    }

    /// The pseudonym of JSON is a JSON string.
    pub fn json(&self, json: &str) -> String {
        self.digits(json).quoted().to_owned()
    }

    #[cold]
    fn digits(&self, text: &str) -> Digits {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let hmac = self.hmac(text);
        let halves = hmac.as_flattened().iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let mut digits = Digits([b'"'; 66]);
        for (place, half) in digits.0.iter_mut().skip(1).zip(halves) {
            *place = DIGITS.get(usize::from(half)).copied().unwrap_or(b'0');
        }
        digits
    }

    /// In two halves.
    fn hmac(&self, text: &str) -> [[u8; 16]; 2] {
        // there is one wherever a rule asks for it
        let Some(mut hmac) = self.hmac.clone() else { return Default::default() };
        hmac.update(text.as_bytes());
        let mut halves = [[0; 16]; 2];
        halves.as_flattened_mut().copy_from_slice(&hmac.finalize().into_bytes());
        halves
    }
}

/// An HMAC in hexadecimal digits, between quotes.
struct Digits([u8; 66]);

impl Digits {
    fn quoted(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    fn bare(&self) -> &str {
        self.quoted().trim_matches('"')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What PostgreSQL gives: `encode(hmac(value, key, 'sha256'), 'hex')` of pgcrypto.
    #[test]
    fn a_pseudonym_is_the_hmac_that_anybody_with_the_key_can_make() {
        let key = Secret::from("0123456789abcdef0123456789abcdef".to_owned());
        let config =
            PrivacyConfig { user_id: Rule::Hash, device: Rule::Hash, key, ..PrivacyConfig::default() };
        let rules = config.rules().unwrap();
        assert_eq!(
            rules.pseudonym("ios"),
            "c7a0bbd32388626449a2817da946b9b5e348007d6c9d0d7d1e9bd8ecb7774197"
        );
        let id = Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
        assert_eq!(
            rules.pseudonym(&id.to_string()),
            "b2818b74b5e73dca13356044908cce067bb30d5fcdc8f2a67374765b5f38b04f"
        );
        assert_eq!(rules.uuid(id).to_string(), "b2818b74-b5e7-8dca-9335-6044908cce06");
        assert_eq!(rules.user_id(id), Some(rules.uuid(id)));
        assert_eq!(rules.device("ios", str::to_owned), Some(rules.pseudonym("ios")));
        assert_eq!(rules.title("t").as_deref(), Some("t"));
        assert_eq!(rules.of_pseudonyms().user_id(id), Some(id));
    }

    #[test]
    fn a_rule_that_hashes_wants_a_key_that_nobody_guesses() {
        let with = |key: &str, title| PrivacyConfig {
            title,
            key: key.to_owned().into(),
            ..PrivacyConfig::default()
        };
        for (config, fits) in [
            (with("", Rule::Drop), true),
            (with("", Rule::Hash), false),
            (with(&"k".repeat(31), Rule::Hash), false),
            (with(&"k".repeat(32), Rule::Hash), true),
            (with(&" ".repeat(32), Rule::Hash), false),
        ] {
            let rules = config.rules();
            assert_eq!(rules.is_ok(), fits, "{config:?}");
            assert!(rules.err().is_none_or(|error| error.code() == Code::Configuration));
        }
    }
}
