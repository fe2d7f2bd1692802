//! The hash by which Java's clients choose a partition; all other clients can be told to.

const SEED: u32 = 0x9747_b28c;
const M: u32 = 0x5bd1_e995;

/// The partition of a key, as `org.apache.kafka.clients.producer` computes it.
pub(super) fn partition_of(key: &[u8], partitions: u16) -> i32 {
    let positive = murmur2(key) & 0x7fff_ffff;
    (positive % u32::from(partitions.max(1))) as i32
}

/// Murmur2, 32 bits, as `org.apache.kafka.common.utils.Utils.murmur2` has it.
fn murmur2(data: &[u8]) -> u32 {
    let mut hash = SEED ^ data.len() as u32;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let k = u32::from_le_bytes(*word).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ (k ^ (k >> 24)).wrapping_mul(M);
    }
    if !rest.is_empty() {
        let tail = rest.iter().rev().fold(0, |tail, byte| tail << 8 | u32::from(*byte));
        hash = (hash ^ tail).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One line a key: the key in hexadecimal, and what Java's `Utils.murmur2` made of it.
    const JAVA: &str = include_str!("../../../tests/data/murmur2.txt");

    fn from_hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    #[test]
    fn every_hash_is_the_one_of_java() {
        let mut keys = 0;
        for line in JAVA.lines().filter(|line| !line.starts_with('#')) {
            let (key, hash) = line.split_once(' ').unwrap();
            let key = from_hex(key);
            let hash: i32 = hash.parse().unwrap();
            assert_eq!(murmur2(&key) as i32, hash, "{line}");
            assert_eq!(partition_of(&key, 16), (hash & 0x7fff_ffff) % 16, "{line}");
            keys += 1;
        }
        assert!(keys > 200, "{keys} keys");
    }
}
