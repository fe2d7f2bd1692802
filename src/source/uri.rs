//! A connection URI, as libpq reads it, taken apart into settings.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use serde_json::Value;

use crate::error::{Code, Error, Result};

const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];
/// What has the same name, and the same meaning, in both.
const SAME: [&str; 9] = [
    "user",
    "password",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslpassword",
    "sslnegotiation",
    "channel_binding",
];
/// What walcast sets itself, whatever is said.
const OURS: [&str; 2] = ["application_name", "connect_timeout"];

/// The settings that a URI says, by their names in `[postgres]`. It is not told in errors: it may have a password.
pub fn settings(uri: &str) -> Result<Vec<(&'static str, Value)>> {
    let rest = SCHEMES.iter().find_map(|scheme| uri.strip_prefix(scheme));
    let rest = rest.ok_or_else(|| refused("begins neither with postgres:// nor with postgresql://"))?;
    let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let (who, place) = rest.rsplit_once('@').map_or(("", rest), |(who, place)| (who, place));
    let (hosts, db) = place.split_once('/').unwrap_or((place, ""));
    let (user, password) = who.split_once(':').unwrap_or((who, ""));
    let mut settings = Vec::new();
    for (name, text) in [("host", hosts), ("db", db), ("user", user), ("password", password)] {
        if !text.is_empty() {
            settings.push((name, decoded(text)?.into()));
        }
    }
    for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter
            .split_once('=')
            .ok_or_else(|| refused("has a parameter without a value: name=value is wanted of each"))?;
        settings.extend(setting(name, &decoded(value)?)?);
    }
    Ok(settings)
}

fn setting(name: &str, value: &str) -> Result<Option<(&'static str, Value)>> {
    if let Some(same) = SAME.iter().find(|same| **same == name) {
        return Ok(Some((same, value.into())));
    }
    match name {
        "host" => Ok(Some(("host", value.into()))),
        "dbname" => Ok(Some(("db", value.into()))),
        "port" => match value.parse::<u16>() {
            Ok(port) => Ok(Some(("port", port.into()))),
            Err(_) => Err(refused("has a port that is no number of a port; hosts with ports of their own are a:5432,b:5433")),
        },
        "require_auth" => Ok(Some(("require_auth", value.split(',').map(str::trim).collect()))),
        // that is what walcast looks for
        "target_session_attrs" if ["read-write", "primary"].contains(&value) => Ok(None),
        _ if OURS.contains(&name) => Ok(None),
        _ => Err(refused(&format!("has the parameter {name}, or a value of it, that walcast does not know")).hint(format!(
            "leave it out; walcast knows host, port, dbname, require_auth, target_session_attrs=read-write, {}",
            SAME.join(", ")
        ))),
    }
}

fn decoded(text: &str) -> Result<Cow<'_, str>> {
    percent_decode_str(text).decode_utf8().map_err(|_| refused("has percent signs that encode no UTF-8"))
}

fn refused(why: &str) -> Error {
    Error::new(Code::Configuration, format!("postgres.uri {why}"))
        .hint("postgres://user:password@host:5432/db?sslmode=verify-full is one; what is not a letter or digit is written as %40 and the like")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(uri: &str) -> Option<String> {
        let settings = settings(uri).ok()?;
        Some(settings.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn a_uri_says_what_it_says_to_libpq() {
        for (uri, said) in [
            (
                "postgres://walcast:p%40ss@db.internal:5433/shop?sslmode=verify-full&channel_binding=require",
                r#"host="db.internal:5433" db="shop" user="walcast" password="p@ss" sslmode="verify-full" channel_binding="require""#,
            ),
            ("postgresql://a,b:5433/db?target_session_attrs=read-write", r#"host="a,b:5433" db="db""#),
            ("postgresql://%2Frun%2Fpostgresql/db", r#"host="/run/postgresql" db="db""#),
            (
                "postgresql:///db?host=x&port=7&user=u&require_auth=none,md5",
                r#"db="db" host="x" port=7 user="u" require_auth=["none","md5"]"#,
            ),
            ("postgres://u@[::1]:5433", r#"host="[::1]:5433" user="u""#),
            ("postgres://", ""),
        ] {
            assert_eq!(told(uri).as_deref(), Some(said), "{uri}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_without_being_quoted() {
        for uri in [
            "mysql://u:canary@h/db",
            "postgres://u:canary%ff@h/db",
            "postgres://u:canary@h/db?sslcompression=1",
            "postgres://u:canary@h/db?port=canary",
            "postgres://u:canary@h/db?sslmode",
            "postgres://u:canary@h/db?target_session_attrs=standby",
        ] {
            let error = settings(uri).unwrap_err();
            assert_eq!(error.code(), Code::Configuration);
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
    }
}
