//! A value in its binary form, written as JSON. No allocation but for texts that have to be escaped.

use std::fmt::{self, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;
use uuid::Uuid;

use crate::event::encoding::json::is_plain;
use crate::event::time::{date_text, time_text};
use crate::pgoutput::{Numeric, Timestamp, oid};

const DAY_2000: i64 = 10_957;
const DIMENSIONS_MAX: usize = 6;

/// Appends a value; what was appended means nothing where it cannot be read.
pub fn put(type_oid: u32, bytes: &[u8], out: &mut String) -> Option<()> {
    match type_oid {
        oid::BOOL => out.push_str(if *bytes.first()? == 0 { "false" } else { "true" }),
        oid::INT2 => put_shown(i16::from_be_bytes(bytes.try_into().ok()?), out),
        oid::INT4 => put_shown(i32::from_be_bytes(bytes.try_into().ok()?), out),
        oid::INT8 => put_shown(i64::from_be_bytes(bytes.try_into().ok()?), out),
        oid::FLOAT4 => {
            let float = f32::from_be_bytes(bytes.try_into().ok()?);
            put_float(float.into(), &float, out)?;
        }
        oid::FLOAT8 => {
            let float = f64::from_be_bytes(bytes.try_into().ok()?);
            put_float(float, &float, out)?;
        }
        oid::NUMERIC => put_quoted(Numeric::parse(bytes).ok()?, out),
        oid::UUID => put_quoted(Uuid::from_slice(bytes).ok()?.hyphenated(), out),
        oid::BPCHAR => put_text(std::str::from_utf8(bytes).ok()?.trim_end_matches(' '), out),
        oid::TEXT | oid::VARCHAR | oid::NAME => put_text(std::str::from_utf8(bytes).ok()?, out),
        oid::BYTEA => {
            out.push('"');
            BASE64.encode_string(bytes, out);
            out.push('"');
        }
        oid::DATE => put_date(i32::from_be_bytes(bytes.try_into().ok()?), out)?,
        oid::TIME => put_time_of_day(i64::from_be_bytes(bytes.try_into().ok()?), out)?,
        oid::TIMESTAMP => put_time(bytes, 26, out)?,
        oid::TIMESTAMPTZ => put_time(bytes, 27, out)?,
        oid::INTERVAL => put_quoted(Interval::parse(bytes)?, out),
        oid::INET | oid::CIDR => put_network(bytes, out)?,
        oid::JSON => out.push_str(std::str::from_utf8(bytes).ok()?),
        oid::JSONB => out.push_str(std::str::from_utf8(bytes.strip_prefix(&[1])?).ok()?),
        oid::FIRST_USER.. if !bytes.contains(&0) => put_text(std::str::from_utf8(bytes).ok()?, out),
        // of a type that its users have made, or of one that is built in
        _ => put_array(bytes, out)?,
    }
    Some(())
}

// writing into a string cannot fail

fn put_shown(value: impl fmt::Display, out: &mut String) {
    let _ = write!(out, "{value}");
}

/// What has nothing in it to be escaped.
fn put_quoted(text: impl fmt::Display, out: &mut String) {
    let _ = write!(out, "\"{text}\"");
}

fn put_text(text: &str, out: &mut String) {
    match is_plain(text.as_bytes()) {
        true => put_quoted(text, out),
        false => put_shown(serde_json::Value::from(text), out),
    }
}

/// The shortest text that reads back as the same number.
fn put_float(float: f64, shown: &impl Serialize, out: &mut String) -> Option<()> {
    match (float.is_nan(), float.is_infinite(), float > 0.0) {
        (true, ..) => put_quoted("NaN", out),
        (_, true, true) => put_quoted("Infinity", out),
        (_, true, false) => put_quoted("-Infinity", out),
        _ => {
            let mut room = [0; 32];
            let mut left = room.as_mut_slice();
            serde_json::to_writer(&mut left, shown).ok()?;
            let unused = left.len();
            let text = room.get(..room.len() - unused)?;
            out.push_str(std::str::from_utf8(text).ok()?);
        }
    }
    Some(())
}

fn put_ascii(text: &[u8], out: &mut String) -> Option<()> {
    put_quoted(std::str::from_utf8(text).ok()?, out);
    Some(())
}

fn put_date(days: i32, out: &mut String) -> Option<()> {
    let is_finite = days != i32::MAX && days != i32::MIN;
    put_ascii(&date_text(i64::from(days) + DAY_2000).filter(|_| is_finite)?, out)
}

/// 24:00:00 is one.
fn put_time_of_day(micros: i64, out: &mut String) -> Option<()> {
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let shown = format_args!("{hour:02}:{minute:02}:{second:02}.{fraction:06}");
    (micros >= 0).then(|| put_quoted(shown, out))
}

/// The first so many characters of a time: those of a local one say no zone.
fn put_time(bytes: &[u8], characters: usize, out: &mut String) -> Option<()> {
    let Timestamp::At(micros) = Timestamp::of_wire(i64::from_be_bytes(bytes.try_into().ok()?)) else {
        return None;
    };
    put_ascii(time_text(micros)?.get(..characters)?, out)
}

/// Shows itself as ISO 8601 has it, and PostgreSQL with `intervalstyle = iso_8601`.
struct Interval {
    micros: i64,
    days: i32,
    months: i32,
}

impl Interval {
    fn parse(bytes: &[u8]) -> Option<Interval> {
        let (micros, rest) = bytes.split_first_chunk::<8>()?;
        let (days, months) = rest.split_first_chunk::<4>()?;
        let (micros, days) = (i64::from_be_bytes(*micros), i32::from_be_bytes(*days));
        let months = i32::from_be_bytes(months.try_into().ok()?);
        let is_infinite =
            matches!((micros, days, months), (i64::MAX, i32::MAX, i32::MAX) | (i64::MIN, i32::MIN, i32::MIN));
        (!is_infinite).then_some(Interval { micros, days, months })
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Interval { micros, days, months } = *self;
        if (micros, days, months) == (0, 0, 0) {
            return f.write_str("PT0S");
        }
        let part = |f: &mut fmt::Formatter<'_>, number: i64, unit: char| match number {
            0 => Ok(()),
            _ => write!(f, "{number}{unit}"),
        };
        f.write_str("P")?;
        part(f, i64::from(months / 12), 'Y')?;
        part(f, i64::from(months % 12), 'M')?;
        part(f, i64::from(days), 'D')?;
        if micros == 0 {
            return Ok(());
        }
        f.write_str("T")?;
        part(f, micros / 3_600_000_000, 'H')?;
        part(f, micros / 60_000_000 % 60, 'M')?;
        let rest = micros % 60_000_000;
        let (sign, seconds) = (if rest < 0 { "-" } else { "" }, rest.unsigned_abs() / 1_000_000);
        match rest.unsigned_abs() % 1_000_000 {
            _ if rest == 0 => Ok(()),
            0 => write!(f, "{sign}{seconds}S"),
            mut fraction => {
                let mut width = 6;
                while fraction % 10 == 0 {
                    (fraction, width) = (fraction / 10, width - 1);
                }
                write!(f, "{sign}{seconds}.{fraction:0width$}S")
            }
        }
    }
}

/// An address, with the length of its network where that is not all of it.
fn put_network(bytes: &[u8], out: &mut String) -> Option<()> {
    let [_, bits, is_cidr, length, address @ ..] = bytes else { return None };
    out.push('"');
    let all = match (address.len(), length) {
        (4, 4) => {
            put_shown(Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?), out);
            32
        }
        (16, 16) => {
            put_shown(Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?), out);
            128
        }
        _ => return None,
    };
    if *bits != all || *is_cidr != 0 {
        put_shown(format_args!("/{bits}"), out);
    }
    out.push('"');
    Some(())
}

/// Dimensions, whether there are nulls, the elements' type; each dimension's length and lower bound; each element's length
/// and bytes.
fn put_array(bytes: &[u8], out: &mut String) -> Option<()> {
    let mut rest = bytes;
    let (dimensions, nulls, element) = (int(&mut rest)?, int(&mut rest)?, int(&mut rest)?.cast_unsigned());
    if !matches!(nulls, 0 | 1) || element == 0 || oid::is_array(element) {
        return None;
    }
    let mut lengths = [0; DIMENSIONS_MAX];
    let lengths = lengths.get_mut(..usize::try_from(dimensions).ok()?)?;
    for length in lengths.iter_mut() {
        let (of_this, _lower_bound) = (int(&mut rest)?, int(&mut rest)?);
        // an array without elements has no dimensions: so each round below takes bytes, and there are no more of them
        *length = usize::try_from(of_this).ok().filter(|length| *length > 0)?;
    }
    match lengths.is_empty() {
        true => out.push_str("[]"),
        false => put_dimension(lengths, element, &mut rest, out)?,
    }
    rest.is_empty().then_some(())
}

fn put_dimension(lengths: &[usize], element: u32, rest: &mut &[u8], out: &mut String) -> Option<()> {
    let (length, inner) = lengths.split_first()?;
    out.push('[');
    for at in 0..*length {
        if at > 0 {
            out.push(',');
        }
        match inner.is_empty() {
            true => put_element(element, rest, out)?,
            false => put_dimension(inner, element, rest, out)?,
        }
    }
    out.push(']');
    Some(())
}

fn put_element(element: u32, rest: &mut &[u8], out: &mut String) -> Option<()> {
    let before = out.len();
    // a length below 0 is a null
    let written = match usize::try_from(int(rest)?) {
        Ok(length) => {
            let (value, behind) = rest.split_at_checked(length)?;
            *rest = behind;
            put(element, value, out)
        }
        Err(_) => None,
    };
    if written.is_none() {
        out.truncate(before);
        out.push_str("null");
    }
    Some(())
}

fn int(rest: &mut &[u8]) -> Option<i32> {
    let (int, behind) = rest.split_first_chunk::<4>()?;
    *rest = behind;
    Some(i32::from_be_bytes(*int))
}
