//! A packed bucket: records of a content id (16 bytes) and its milliseconds (LEB128), one after the other.
//! Packing a bucket again appends; an id that is there twice counts with the sum of both.

use uuid::Uuid;

/// Appends one record.
pub fn write(id: &Uuid, ms: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(id.as_bytes());
    let mut rest = ms;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// All records; `None` when it is something else.
pub fn read(mut bytes: &[u8]) -> Option<Vec<(Uuid, u64)>> {
    let mut records = Vec::with_capacity(bytes.len() / 19);
    while !bytes.is_empty() {
        let (id, rest) = bytes.split_first_chunk::<16>()?;
        let (ms, rest) = read_number(rest)?;
        records.push((Uuid::from_bytes(*id), ms));
        bytes = rest;
    }
    Some(records)
}

fn read_number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let length = bytes.iter().position(|byte| byte & 0x80 == 0)? + 1;
    let (digits, rest) = bytes.split_at_checked(length)?;
    let mut number: u64 = 0;
    for digit in digits.iter().rev() {
        number = number.checked_mul(0x80)?.checked_add(u64::from(digit & 0x7F))?;
    }
    Some((number, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_read_back(records: Vec<(u128, u64)>) {
            let records: Vec<_> = records.into_iter().map(|(id, ms)| (Uuid::from_u128(id), ms)).collect();
            let mut bytes = Vec::new();
            records.iter().for_each(|(id, ms)| write(id, *ms, &mut bytes));
            prop_assert_eq!(read(&bytes), Some(records));
        }

        #[test]
        fn anything_else_is_refused_or_read_without_a_panic(bytes: Vec<u8>) {
            let _ = read(&bytes);
        }
    }

    #[test]
    fn a_cut_record_is_refused() {
        let mut bytes = Vec::new();
        write(&Uuid::nil(), 1 << 40, &mut bytes);
        for cut in 1..bytes.len() {
            assert_eq!(read(&bytes[..cut]), None, "cut after {cut} bytes");
        }
        assert_eq!(read(&[&[0; 16][..], &[0xFF; 10], &[1]].concat()), None, "more than 64 bits");
    }
}
