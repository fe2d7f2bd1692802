//! The hash of what a JSON text says, whatever its spaces, its escapes and the order of its names. In one pass, without
//! recursion and without building the value: any depth, and numbers of any length.
//!
//! Numbers are the same when they are the same to a reader of 64 bits, integer or float, as BigQuery may have written them
//! anew: `1`, `1.0` and `1e0`. Those beyond a float are compared digit by digit. A name that comes twice counts with its
//! last value. Half of a surrogate pair is a text like any other.

use std::hash::{DefaultHasher, Hash, Hasher};

/// The hash; `None` for what is not JSON.
pub fn hash(text: &str) -> Option<u64> {
    let mut reader = Reader { rest: text.as_bytes(), open: Vec::new(), members: Vec::new() };
    loop {
        if let Some(value) = reader.begin()?
            && let Some(whole) = reader.end(value)?
        {
            return Some(whole);
        }
    }
}

/// The hash of JSON's null.
pub fn null() -> u64 {
    hash_of(&Kind::Null)
}

/// What a value is, before its hash.
#[derive(Hash)]
enum Kind {
    Null,
    Bool,
    Whole,
    Float,
    Huge,
    String,
    Array,
    Object,
}

/// An array or object whose end has not come.
enum Open {
    /// The hash of the items so far.
    Array(u64),
    /// Where its members begin in [`Reader::members`], and the hash of the name whose value comes next.
    Object(usize, u64),
}

struct Reader<'a> {
    rest: &'a [u8],
    open: Vec<Open>,
    /// Of all open objects, the outermost first: hashes of name and value.
    members: Vec<(u64, u64)>,
}

impl Reader<'_> {
    /// Reads a scalar or what is empty, and gives its hash; or opens an array or object up to its first value.
    fn begin(&mut self) -> Option<Option<u64>> {
        let hash = match self.token()? {
            b'[' if self.skip(b']') => hash_of(&(Kind::Array, 0u64)),
            b'[' => {
                self.open.push(Open::Array(0));
                return Some(None);
            }
            b'{' if self.skip(b'}') => self.object(self.members.len()),
            b'{' => {
                let name = self.name()?;
                self.open.push(Open::Object(self.members.len(), name));
                return Some(None);
            }
            b'"' => self.string()?,
            b'n' => self.literal("ull", &Kind::Null)?,
            b't' => self.literal("rue", &(Kind::Bool, true))?,
            b'f' => self.literal("alse", &(Kind::Bool, false))?,
            first => self.number(first)?,
        };
        Some(Some(hash))
    }

    /// Ends a value, and all that it is the last of; the hash of the whole text when that is everything.
    fn end(&mut self, mut value: u64) -> Option<Option<u64>> {
        loop {
            value = match (self.open.pop(), self.token()) {
                (None, None) => return Some(Some(value)),
                (Some(Open::Array(items)), Some(next)) => {
                    let items = hash_of(&(items, value));
                    match next {
                        b']' => hash_of(&(Kind::Array, items)),
                        b',' => {
                            self.open.push(Open::Array(items));
                            return Some(None);
                        }
                        _ => return None,
                    }
                }
                (Some(Open::Object(first, name)), Some(next)) => {
                    self.members.push((name, value));
                    match next {
                        b'}' => self.object(first),
                        b',' => {
                            let name = self.name()?;
                            self.open.push(Open::Object(first, name));
                            return Some(None);
                        }
                        _ => return None,
                    }
                }
                _ => return None,
            }
        }
    }

    /// The hash of the object that ends here. A sum, so that no order counts.
    fn object(&mut self, first: usize) -> u64 {
        let members = self.members.get_mut(first..).unwrap_or_default();
        members.sort_by_key(|(name, _)| *name);
        let each = members.chunk_by(|(one, _), (next, _)| one == next).filter_map(<[_]>::last);
        let (count, sum) =
            each.fold((0u64, 0u64), |(count, sum), member| (count + 1, sum.wrapping_add(hash_of(member))));
        self.members.truncate(first);
        hash_of(&(Kind::Object, count, sum))
    }

    /// The next byte that is no space.
    fn token(&mut self) -> Option<u8> {
        self.rest = self.rest.trim_ascii_start();
        self.byte()
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    /// Whether this comes next; then it is read.
    fn skip(&mut self, wanted: u8) -> bool {
        self.rest = self.rest.trim_ascii_start();
        let rest = self.rest.strip_prefix(&[wanted]);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn literal(&mut self, end: &str, value: &impl Hash) -> Option<u64> {
        self.rest = self.rest.strip_prefix(end.as_bytes())?;
        Some(hash_of(value))
    }

    /// A name and the colon after it.
    fn name(&mut self) -> Option<u64> {
        let name = if self.skip(b'"') { self.string()? } else { return None };
        self.skip(b':').then_some(name)
    }

    /// A string whose opening quotation mark has been read.
    fn string(&mut self) -> Option<u64> {
        let mut hasher = super::hasher();
        Kind::String.hash(&mut hasher);
        loop {
            let plain = self.rest.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
            let (before, rest) = self.rest.split_at_checked(plain)?;
            hasher.write(before);
            self.rest = rest;
            match self.byte()? {
                b'"' => return Some(hasher.finish()),
                _ => self.escape(&mut hasher)?,
            }
        }
    }

    fn escape(&mut self, hasher: &mut DefaultHasher) -> Option<()> {
        let byte = match self.byte()? {
            b'u' => return self.code_point(hasher),
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            plain @ (b'"' | b'\\' | b'/') => plain,
            _ => return None,
        };
        hasher.write(&[byte]);
        Some(())
    }

    /// `\u` has been read. Written as UTF-8, half of a pair as UTF-8 would have it if it were allowed to.
    fn code_point(&mut self, hasher: &mut DefaultHasher) -> Option<()> {
        let unit = self.hex()?;
        let rest = self.rest;
        let second = match (unit, rest.strip_prefix(br"\u")) {
            (0xD800..0xDC00, Some(rest)) => {
                self.rest = rest;
                self.hex().filter(|second| (0xDC00..0xE000).contains(second))
            }
            _ => None,
        };
        let point = match second {
            Some(second) => 0x1_0000 + ((unit - 0xD800) << 10) + (second - 0xDC00),
            None => {
                self.rest = rest;
                unit
            }
        };
        match char::from_u32(point) {
            Some(char) => hasher.write(char.encode_utf8(&mut [0; 4]).as_bytes()),
            None => hasher.write(&[
                0xE0 | (point >> 12) as u8,
                0x80 | (point >> 6 & 0x3F) as u8,
                0x80 | (point & 0x3F) as u8,
            ]),
        }
        Some(())
    }

    fn hex(&mut self) -> Option<u32> {
        let (digits, rest) = self.rest.split_first_chunk::<4>()?;
        self.rest = rest;
        digits.iter().try_fold(0, |unit, digit| Some(unit << 4 | char::from(*digit).to_digit(16)?))
    }

    /// A number whose first byte has been read.
    fn number(&mut self, first: u8) -> Option<u64> {
        let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
        let length = self.rest.iter().position(|byte| !is_part(byte)).unwrap_or(self.rest.len());
        let (more, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        let text = [&[first], more].concat();
        number(std::str::from_utf8(&text).ok().filter(|_| matches!(first, b'-' | b'0'..=b'9'))?)
    }
}

fn number(text: &str) -> Option<u64> {
    if let Ok(whole) = text.parse::<i64>() {
        return Some(hash_of(&(Kind::Whole, whole)));
    }
    let float: f64 = text.parse().ok()?;
    Some(match float {
        _ if float.is_infinite() => huge(text),
        _ if float.fract() == 0.0 && float.abs() < 9e15 => hash_of(&(Kind::Whole, float as i64)),
        _ => hash_of(&(Kind::Float, float.to_bits())),
    })
}

/// Of a number beyond any float: its digits and their place. An exponent without end is the text that it is.
fn huge(text: &str) -> u64 {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let Ok(exponent) = exponent.parse::<i64>() else { return hash_of(&(Kind::Huge, text)) };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = [whole.trim_start_matches('-'), fraction].concat();
    let digits = all.trim_end_matches('0');
    let place =
        exponent.saturating_sub(fraction.len() as i64).saturating_add((all.len() - digits.len()) as i64);
    hash_of(&(Kind::Huge, text.starts_with('-'), digits.trim_start_matches('0'), place))
}

fn hash_of(value: &impl Hash) -> u64 {
    let mut hasher = super::hasher();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
