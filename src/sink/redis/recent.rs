//! A bounded memory of what was in use lately.

use std::hash::Hash;

use hashbrown::HashMap;

/// A map that forgets: it keeps at least the `keep` entries used last, and at most twice as many.
///
/// Time goes in rounds: a round ends when `keep` entries were used in it, and with it go the entries that
/// were last used in the round before.
pub struct Recent<K, V> {
    entries: HashMap<K, Entry<V>>,
    keep: usize,
    round: u32,
    used_in_round: usize,
}

struct Entry<V> {
    value: V,
    used_in: u32,
}

impl<K: Hash + Eq, V> Recent<K, V> {
    /// An empty memory of `keep` to `2 * keep` entries.
    pub fn new(keep: usize) -> Self {
        Recent { entries: HashMap::new(), keep, round: 0, used_in_round: 0 }
    }

    /// The entry, which is now in use.
    pub fn get(&mut self, key: &K) -> Option<&mut V> {
        if self.entries.get(key)?.used_in != self.round {
            self.make_room();
            self.entries.get_mut(key)?.used_in = self.round;
            self.used_in_round += 1;
        }
        self.entries.get_mut(key).map(|entry| &mut entry.value)
    }

    /// The entry, which is not in use for that.
    pub fn peek(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|entry| &entry.value)
    }

    /// Puts an entry in.
    pub fn insert(&mut self, key: K, value: V) {
        if self.entries.get(&key).is_none_or(|entry| entry.used_in != self.round) {
            self.make_room();
            self.used_in_round += 1;
        }
        self.entries.insert(key, Entry { value, used_in: self.round });
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: &K) {
        self.entries.remove(key);
    }

    fn make_room(&mut self) {
        if self.used_in_round >= self.keep {
            let round = self.round;
            self.entries.retain(|_, entry| entry.used_in == round);
            self.round = round.wrapping_add(1);
            self.used_in_round = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_entries_used_last_are_there(uses in prop::collection::vec(0u8..40, 1..400), keep in 1usize..20) {
            let mut recent = Recent::new(keep);
            let mut order: Vec<u8> = Vec::new();
            for key in uses {
                match recent.get(&key) {
                    Some(value) => prop_assert_eq!(*value, key),
                    None => recent.insert(key, key),
                }
                order.retain(|other| *other != key);
                order.push(key);
                prop_assert!(recent.entries.len() <= 2 * keep);
            }
            for key in order.iter().rev().take(keep) {
                prop_assert!(recent.entries.contains_key(key), "{} is one of the last {}", key, keep);
            }
        }
    }

    #[test]
    fn an_entry_put_in_again_is_the_new_one() {
        let mut recent = Recent::new(1);
        recent.insert(1, "former");
        recent.insert(2, "other");
        recent.insert(1, "latter");
        assert_eq!(recent.get(&1), Some(&mut "latter"));
        recent.remove(&1);
        assert_eq!(recent.get(&1), None);
    }
}
