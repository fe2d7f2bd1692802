//! Events dated further ahead than `redis.future_hours_max`. They count for all time; no day, minute or window ever has
//! them, or a few wrong clocks would fill Redis with keys that live until the year 9999.
//!
//! What is too far ahead is decided once, by Redis's clock, when the event is written: the outcome is in Redis together
//! with the checkpoint, so no replay decides it anew. But nobody who looks later knows when that was (a row of the table has no
//! such time), and one day the clock has come so near that the event would count. So the outcome is kept as well: a bit for
//! each key that lacks events, at the place that its hash tells. `walcast verify` asks of such a key only that it holds no more
//! than its events amount to. The bits take 512 kB (of memory up to twice that), however many keys they stand for; a key may share its
//! bit with another, which is then judged as mildly. `walcast rebuild redis` writes them anew, with the keys.

use uuid::Uuid;

/// Bits that there are.
const BITS: u64 = 1 << 22;

/// The bits as Redis has them: the first is the highest of the first byte. What is not there is 0.
#[derive(Debug, Default)]
pub struct Marks(Vec<u8>);

impl Marks {
    /// What Redis has.
    pub fn new(bytes: Vec<u8>) -> Self {
        Marks(bytes)
    }

    /// Whether the content's keys of a day may lack events; its sums in buckets of that day too.
    pub fn has_day(&self, id: &Uuid, day: i32) -> bool {
        self.has(day_bit(id, day))
    }

    /// Whether the minute's key may lack events.
    pub fn has_minute(&self, minute: i64) -> bool {
        self.has(minute_bit(minute))
    }

    fn has(&self, bit: u32) -> bool {
        self.0.get(bit as usize / 8).is_some_and(|byte| byte & (0x80 >> (bit % 8)) != 0)
    }
}

/// The bit of a content's keys of a day.
pub fn day_bit(id: &Uuid, day: i32) -> u32 {
    let (high, low) = id.as_u64_pair();
    bit(mix(mix(high) ^ low) ^ u64::from(day.cast_unsigned()))
}

/// The bit of a minute's key.
pub fn minute_bit(minute: i64) -> u32 {
    bit(!mix(minute.cast_unsigned()))
}

fn bit(value: u64) -> u32 {
    (mix(value) % BITS) as u32
}

/// The last steps of SplitMix64. They stay as they are: bits that are in Redis were found by them.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_bit_never_changes() {
        let id = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        assert_eq!((day_bit(&id, 20_000), minute_bit(29_455_384)), (1_990_258, 1_082_369));
    }

    #[test]
    fn few_keys_share_a_bit() {
        let mut bytes = vec![0; BITS as usize / 8];
        let mut shared = 0;
        for n in 0..100_000 {
            let bit = match n % 2 {
                0 => day_bit(&Uuid::from_u128(n / 20), 20_000 + (n % 20) as i32),
                _ => minute_bit(29_455_384 + n as i64),
            };
            let byte: &mut u8 = &mut bytes[bit as usize / 8];
            shared += u32::from(*byte & (0x80 >> (bit % 8)) != 0);
            *byte |= 0x80 >> (bit % 8);
        }
        assert!(shared < 2_000, "{shared}");
        let marks = Marks::new(bytes);
        assert!(marks.has_day(&Uuid::from_u128(2), 20_000) && marks.has_minute(29_455_385));
        assert!(!Marks::default().has_minute(29_455_385));
    }
}
