//! Bodies and headers that the user has written: templates over the events' plain records.
//!
//! Where the body is JSON, `{{ event.title }}` writes the value as JSON, quotation marks and all. `raw_payload` and other
//! nested values are JSON already and stand as they are; `| from_json` opens them. Nothing in a template can tell the time or a
//! random number, so that a repeat of an event has the same bytes.

use std::collections::BTreeMap;

use hyper::header::{HeaderName, HeaderValue};
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde_json::value::RawValue;

use super::config::{HttpConfig, wrong};
use crate::error::Result;

const BODY: &str = "body";

/// The templates of one configuration.
pub struct Templates {
    environment: Environment<'static>,
    has_body: bool,
    headers: Vec<HeaderName>,
    /// Whether any has to be filled in at all.
    any: bool,
}

/// Headers, as they are sent.
pub type Headers = Vec<(HeaderName, HeaderValue)>;
/// What the templates give: the body where there is a template of it, and the headers.
type Filled = (Option<String>, Headers);

/// A template cannot be filled in with an event's values. Says which; never with what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfilled(pub String);

impl Templates {
    /// Reads them; an error of kind `Config` for one that is none.
    pub fn new(config: &HttpConfig) -> Result<Templates> {
        let mut environment = Environment::new();
        let json = config.content_type().contains("json");
        environment.set_auto_escape_callback(move |name| match name == BODY && json {
            true => AutoEscape::Json,
            false => AutoEscape::None,
        });
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.add_filter("from_json", |text: String| {
            serde_json::from_str::<&RawValue>(&text).map(opened).unwrap_or_default()
        });
        let has_body = !config.body_template.is_empty();
        if has_body {
            let added = environment.add_template_owned(BODY.to_owned(), config.body_template.clone());
            added.map_err(|error| refused("body_template", "is no template", &error))?;
        }
        let mut headers = Vec::new();
        for (name, value) in &config.headers {
            let header = HeaderName::try_from(name).map_err(|_| {
                wrong("headers", &format!("has {name:?}, which is no header's name"), "correct it")
            })?;
            let added = environment.add_template_owned(header.to_string(), value.expose().to_owned());
            let what = format!("has {name:?}, whose value is no template");
            added.map_err(|error| refused("headers", &what, &error))?;
            headers.push(header);
        }
        let any = has_body || !headers.is_empty();
        Ok(Templates { environment, has_body, headers, any })
    }

    /// Fills in the body and the headers for these records; without a template the body is `None`.
    pub fn fill(&self, id: &str, records: &[&[u8]]) -> Result<Filled, Unfilled> {
        if !self.any {
            return Ok((None, Vec::new()));
        }
        let events: Vec<Value> = records.iter().map(|record| event(record)).collect();
        let first = events.first().cloned().unwrap_or_default();
        let context: BTreeMap<&str, Value> =
            [("id", Value::from(id)), ("event", first), ("events", Value::from(events))].into();
        let context = Value::from(context);
        let fill = |name: &str, what: &str| {
            let filled =
                self.environment.get_template(name).and_then(|template| template.render(context.clone()));
            filled.map_err(|error| Unfilled(format!("{what} cannot be filled in: {}", error.kind())))
        };
        let body = self.has_body.then(|| fill(BODY, "http.body_template")).transpose()?;
        let mut headers = Vec::new();
        for name in &self.headers {
            let what = format!("http.headers, {name},");
            let value = HeaderValue::from_str(&fill(name.as_str(), &what)?);
            let unfit = |_| Unfilled(format!("{what} gives what no header can have"));
            headers.push((name.clone(), value.map_err(unfit)?));
        }
        Ok((body, headers))
    }
}

fn refused(setting: &str, what: &str, error: &minijinja::Error) -> crate::error::Error {
    let place = error.line().map(|line| format!(", line {line}")).unwrap_or_default();
    wrong(setting, &format!("{what}: {}{place}", error.kind()), "see docs/sinks/http.md")
}

/// The record's fields, each as the template has it.
fn event(record: &[u8]) -> Value {
    let fields: BTreeMap<&str, &RawValue> = serde_json::from_slice(record).unwrap_or_default();
    Value::from(fields.into_iter().map(|(name, value)| (name, field(value))).collect::<BTreeMap<_, _>>())
}

/// Texts and numbers as such; what is nested as the JSON that it is.
fn field(json: &RawValue) -> Value {
    match json.get().as_bytes().first() {
        Some(b'{' | b'[') => Value::from_safe_string(json.get().to_owned()),
        _ => opened(json),
    }
}

fn opened(json: &RawValue) -> Value {
    let text = json.get();
    let raw = || Value::from_safe_string(text.to_owned());
    match text.as_bytes().first() {
        Some(b'n') => Value::from(()),
        Some(b't') => Value::from(true),
        Some(b'f') => Value::from(false),
        Some(b'"') => serde_json::from_str::<String>(text).map_or_else(|_| raw(), Value::from),
        Some(b'[') => match serde_json::from_str::<Vec<&RawValue>>(text) {
            Ok(items) => Value::from(items.into_iter().map(opened).collect::<Vec<_>>()),
            Err(_) => raw(),
        },
        Some(b'{') => match serde_json::from_str::<BTreeMap<String, &RawValue>>(text) {
            Ok(fields) => Value::from(
                fields.into_iter().map(|(name, value)| (name, opened(value))).collect::<BTreeMap<_, _>>(),
            ),
            Err(_) => raw(),
        },
        _ => match text.parse::<i64>() {
            Ok(number) => Value::from(number),
            // a number that no f64 holds exactly stays as it is written
            Err(_) => {
                let exact = |number: &f64| {
                    [format!("{number}"), format!("{number:?}")].iter().any(|shown| shown == text)
                };
                text.parse::<f64>().ok().filter(exact).map_or_else(raw, Value::from)
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &[u8] = br#"{"event_id":7,"title":"a \"b\"","device":null,"engagement_pct":12.5,"raw_payload":{"a":1e400,"b":["x"]}}"#;

    fn fill(body: &str, header: &str) -> Result<Filled, Unfilled> {
        let config = HttpConfig {
            body_template: body.into(),
            headers: [("X-One".to_owned(), header.to_owned().into())].into(),
            ..Default::default()
        };
        Templates::new(&config).unwrap().fill("h:1", &[RECORD, RECORD])
    }

    #[test]
    fn values_are_written_as_json_and_nested_ones_stand_as_they_are() {
        let body = r#"{"n": {{ event.event_id }}, "t": {{ event.title }}, "d": {{ event.device }}, "p": {{ event.raw_payload }},
            "c": {{ (event.raw_payload | from_json).b[0] }}, "pct": {{ event.engagement_pct }}, "all": {{ events | length }}, "id": {{ id }}}"#;
        let (body, headers) = fill(body, "{{ event.title }}").unwrap();
        let expected = r#"{"n": 7, "t": "a \"b\"", "d": null, "p": {"a":1e400,"b":["x"]},
            "c": "x", "pct": 12.5, "all": 2, "id": "h:1"}"#;
        assert_eq!(body.as_deref(), Some(expected));
        assert_eq!(headers[0].1, r#"a "b""#);
    }

    #[test]
    fn what_cannot_be_filled_in_is_told_without_values() {
        let told = fill("{{ event.titel.x }}", "").unwrap_err().0;
        assert!(told.starts_with("http.body_template cannot be filled in") && !told.contains('"'), "{told}");
        let told = fill("", "{{ event.raw_payload }}\n\n{{ event.title }}").unwrap_err().0;
        assert!(told.contains("x-one") && !told.contains("1e400"), "{told}");
    }
}
