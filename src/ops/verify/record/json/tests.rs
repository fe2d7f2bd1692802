use std::hash::{Hash, Hasher};

use proptest::prelude::*;
use serde_json::{Map, Value};

use super::hash;

/// The rule in its plainest form, of a value that has been read.
fn of_value(value: &Value) -> u64 {
    let mut hasher = super::super::hasher();
    match value {
        Value::Null => 0u8.hash(&mut hasher),
        Value::Bool(truth) => (6u8, truth).hash(&mut hasher),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => (1u8, whole).hash(&mut hasher),
            (None, Some(float)) if float.fract() == 0.0 && float.abs() < 9e15 => {
                (1u8, float as i64).hash(&mut hasher);
            }
            (None, float) => (2u8, float.map(f64::to_bits)).hash(&mut hasher),
        },
        Value::String(text) => (3u8, text).hash(&mut hasher),
        Value::Array(items) => {
            4u8.hash(&mut hasher);
            items.iter().for_each(|item| of_value(item).hash(&mut hasher));
        }
        Value::Object(fields) => {
            let sum = fields.iter().fold(0u64, |sum, (name, value)| {
                let mut hasher = super::super::hasher();
                (name, of_value(value)).hash(&mut hasher);
                sum.wrapping_add(hasher.finish())
            });
            (5u8, fields.len(), sum).hash(&mut hasher);
        }
    }
    hasher.finish()
}

/// Few scalars, so that two values are often the same.
fn values() -> impl Strategy<Value = Value> {
    let number = prop_oneof![
        prop::sample::select(vec![0i64, 1, -1, 100, i64::MAX, i64::MIN, 9_007_199_254_740_993])
            .prop_map(Value::from),
        prop::sample::select(vec![u64::MAX, 1 << 63]).prop_map(Value::from),
        prop::sample::select(vec![0.0, -0.0, 1.0, 0.5, 1e16, 9e15, -1e300, 5e-324, f64::MAX])
            .prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::num::f64::NORMAL.prop_map(Value::from),
    ];
    let text = prop_oneof![prop::sample::select(vec!["", "a", "b", "é\"", "😀\u{0}\u{1f}/\\"]), Just("true")];
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        number,
        text.clone().prop_map(Value::from)
    ];
    scalar.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((text.clone(), inner), 0..4).prop_map(|members| {
                Value::Object(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
            }),
        ]
    })
}

/// The same value in another text; `draw` gives the choices.
fn write(value: &Value, draw: &mut impl FnMut() -> u8, out: &mut String) {
    out.push_str(["", " ", "\n\t", "\r "][usize::from(draw() % 4)]);
    match value {
        Value::String(text) => write_text(text, draw, out),
        Value::Number(number) => match number.as_i64() {
            Some(whole) if draw().is_multiple_of(2) && whole.unsigned_abs() < 1 << 52 => {
                out.push_str(&[format!("{whole}.000"), format!("{whole}0e-1")][usize::from(draw() % 2)]);
            }
            Some(whole) => out.push_str(&whole.to_string()),
            None if number.is_u64() || draw().is_multiple_of(2) => out.push_str(&number.to_string()),
            None => out.push_str(
                &format!("{:e}", number.as_f64().unwrap()).replace('e', ["e", "E"][usize::from(draw() % 2)]),
            ),
        },
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                write(item, draw, out);
            }
            out.push_str(" ]");
        }
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            if draw().is_multiple_of(2) {
                fields.reverse();
            }
            out.push('{');
            for (at, (name, value)) in fields.into_iter().enumerate() {
                out.push_str(if at > 0 { " ," } else { "" });
                if draw().is_multiple_of(4) {
                    write_text(name, draw, out);
                    out.push_str(":[\"of no account\"],");
                }
                write_text(name, draw, out);
                out.push_str(" :");
                write(value, draw, out);
            }
            out.push('}');
        }
        plain => out.push_str(&plain.to_string()),
    }
    out.push_str(["", " "][usize::from(draw() % 2)]);
}

fn write_text(text: &str, draw: &mut impl FnMut() -> u8, out: &mut String) {
    if draw().is_multiple_of(2) {
        return out.push_str(&Value::from(text).to_string());
    }
    let units: String = text.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect();
    out.push_str(&format!("\"{units}\""));
}

proptest! {
    #[test]
    fn texts_are_the_same_that_say_the_same(one in values(), other in values(), draws in prop::collection::vec(any::<u8>(), 1..64)) {
        let mut draws = draws.into_iter().cycle();
        let mut text = |value: &Value| {
            let mut text = String::new();
            write(value, &mut || draws.next().unwrap(), &mut text);
            text
        };
        let (first, again, second) = (text(&one), text(&one), text(&other));
        prop_assert!(hash(&first).is_some(), "{first}");
        prop_assert_eq!(hash(&first), hash(&again), "{} {}", first, again);
        prop_assert_eq!(hash(&first) == hash(&second), of_value(&one) == of_value(&other), "{} {}", first, second);
    }

    /// Where a text ends too early, or something is in its place.
    #[test]
    fn what_is_no_json_has_no_hash(value in values(), at in any::<prop::sample::Index>()) {
        let value = Value::Object(Map::from_iter([("a".to_owned(), value)]));
        let text = value.to_string();
        let at = at.index(text.len());
        if let Some(cut) = text.get(..at) {
            prop_assert_eq!(hash(cut), None);
        }
        prop_assert_eq!(hash(&format!("{text},")), None);
        prop_assert_eq!(hash(&format!("{text}{text}")), None);
    }
}

#[test]
fn halves_of_surrogate_pairs_are_texts_like_others() {
    let same = |one: &str, other: &str| hash(one).unwrap() == hash(other).unwrap();
    assert!(same(r#""\ud83d\ude00""#, "\"😀\""));
    assert!(same(r#""\uD83D""#, r#""\ud83d""#));
    assert!(!same(r#""\ud83d""#, r#""\ude00""#));
    assert!(!same(r#""\ude00\ud83d""#, "\"😀\""));
    assert!(!same(r#""\ud83d""#, "\"\u{FFFD}\""));
    assert!(same(r#""\ud83d\u0041""#, r#""\ud83dA""#));
    assert!(same(r#""\ud83d\ud83d\ude00""#, "\"\\ud83d😀\""));
}

#[test]
fn numbers_beyond_a_float_are_compared_digit_by_digit() {
    let same = |one: &str, other: &str| hash(one).unwrap() == hash(other).unwrap();
    let long = "7".repeat(131_072);
    assert!(same(&long, &format!("{}.{}00e65536", &long[..65_536], &long[65_536..])));
    assert!(!same(&long, &format!("{}8", &long[1..])));
    assert!(!same(&long, &format!("-{long}")));
    assert!(!same(&long, &format!("{long}0")));
    assert!(same("1e400", "10.0E+399"));
    assert!(!same("1e400", "1e401"));
    assert!(!same("1e99999999999999999999", "1e400"));
    assert!(same("1e-400", "0"), "what a float rounds, BigQuery may round");
    assert!(same("0.1234567890123456789012", "0.12345678901234568"));
    assert!(!same("9007199254740993", "9007199254740992"));
}

#[test]
fn ten_thousand_levels_are_compared_to_the_last() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[1,{\"a\":[", "]}]")] {
        let of = |innermost: &str| {
            hash(&format!("{}{innermost}{}", open.repeat(10_000), close.repeat(10_000))).unwrap()
        };
        assert_eq!(of("1"), of(" 1.0 "));
        assert_ne!(of("1"), of("2"));
        assert_eq!(hash(&open.repeat(10_000)), None);
    }
}
