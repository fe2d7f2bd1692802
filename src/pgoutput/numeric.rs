//! `numeric`: digits of base 10,000, each of a power that falls by one from the first one's on.

use std::fmt::{self, Write as _};

use super::Found;

const POSITIVE: u16 = 0;
const NEGATIVE: u16 = 0x4000;
const INFINITY: u16 = 0xD000;
const NEGATIVE_INFINITY: u16 = 0xF000;
const NAN: u16 = 0xC000;

/// A value of any size, as it stands in a message. Shows itself as PostgreSQL writes it.
#[derive(Clone, Copy)]
pub struct Numeric<'a> {
    digits: &'a [[u8; 2]],
    /// The power of the first digit.
    weight: i16,
    sign: u16,
    /// How many decimal digits behind the point are shown.
    scale: u16,
}

impl<'a> Numeric<'a> {
    /// Reads the binary form.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Found> {
        let malformed = Found::Binary(bytes.len());
        let (shorts, rest) = bytes.as_chunks::<2>();
        let ([count, weight, sign, scale], digits) = shorts.split_first_chunk::<4>().ok_or(malformed)?;
        let number = Numeric {
            digits,
            weight: i16::from_be_bytes(*weight),
            sign: u16::from_be_bytes(*sign),
            scale: u16::from_be_bytes(*scale),
        };
        let sound = rest.is_empty()
            && digits.len() == usize::from(u16::from_be_bytes(*count))
            && number.digits().all(|digit| digit < 10_000)
            && match number.sign {
                POSITIVE | NEGATIVE => true,
                INFINITY | NEGATIVE_INFINITY | NAN => digits.is_empty(),
                _ => false,
            };
        if sound { Ok(number) } else { Err(malformed) }
    }

    fn digits(&self) -> impl Iterator<Item = u16> + use<'a> {
        self.digits.iter().map(|digit| u16::from_be_bytes(*digit))
    }

    /// The digit of a power.
    fn digit(&self, power: i32) -> u16 {
        let at = usize::try_from(i32::from(self.weight) - power).ok();
        at.and_then(|at| self.digits.get(at)).map_or(0, |digit| u16::from_be_bytes(*digit))
    }

    /// The integer that it is exactly.
    pub(super) fn whole(&self) -> Result<i64, Found> {
        if !matches!(self.sign, POSITIVE | NEGATIVE) {
            return Err(Found::NotFinite);
        }
        let mut value = 0_i64;
        for (digit, power) in self.digits().zip((i32::MIN..=self.weight.into()).rev()) {
            if digit == 0 {
                continue;
            }
            let power = u32::try_from(power).map_err(|_| Found::NotWhole)?;
            let digit = if self.sign == NEGATIVE { -i64::from(digit) } else { digit.into() };
            let scaled = 10_000_i64.checked_pow(power).and_then(|scale| digit.checked_mul(scale));
            value = scaled.and_then(|scaled| value.checked_add(scaled)).ok_or(Found::OutOfRange)?;
        }
        Ok(value)
    }
}

impl fmt::Display for Numeric<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sign {
            NAN => return f.write_str("NaN"),
            INFINITY => return f.write_str("Infinity"),
            NEGATIVE_INFINITY => return f.write_str("-Infinity"),
            NEGATIVE => f.write_str("-")?,
            _ => {}
        }
        let first = i32::from(self.weight).max(0);
        write!(f, "{}", self.digit(first))?;
        (0..first).rev().try_for_each(|power| write!(f, "{:04}", self.digit(power)))?;
        if self.scale > 0 {
            f.write_char('.')?;
        }
        for place in 0..i32::from(self.scale) {
            let power_of_ten = [1000, 100, 10, 1].into_iter().nth((place % 4).unsigned_abs() as usize);
            let digit = u32::from(self.digit(-1 - place / 4)) / power_of_ten.unwrap_or(1) % 10;
            f.write_char(char::from_digit(digit, 10).unwrap_or('0'))?;
        }
        Ok(())
    }
}
