//! A bounded memory of what was in use lately.

use std::collections::HashMap;
use std::hash::Hash;

/// A map that forgets: it keeps at least the `keep` entries used last, and at most twice as many.
///
/// Two generations: an entry that is used moves to the young one; when that is full, it becomes the old one
/// and what was old is dropped.
pub struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    keep: usize,
}

impl<K: Hash + Eq, V> Recent<K, V> {
    /// An empty memory of `keep` to `2 * keep` entries.
    pub fn new(keep: usize) -> Self {
        Recent { young: HashMap::new(), old: HashMap::new(), keep }
    }

    /// The entry, which this use makes young.
    pub fn get(&mut self, key: &K) -> Option<&mut V> {
        if let Some((key, value)) = self.old.remove_entry(key) {
            self.insert(key, value);
        }
        self.young.get_mut(key)
    }

    /// Puts an entry in.
    pub fn insert(&mut self, key: K, value: V) {
        if self.young.len() >= self.keep && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.remove(&key);
        self.young.insert(key, value);
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_entries_used_last_are_there(uses in prop::collection::vec(0u8..40, 1..200), keep in 1usize..20) {
            let mut recent = Recent::new(keep);
            let mut order: Vec<u8> = Vec::new();
            for key in uses {
                match recent.get(&key) {
                    Some(value) => prop_assert_eq!(*value, key),
                    None => recent.insert(key, key),
                }
                order.retain(|other| *other != key);
                order.push(key);
                prop_assert!(recent.young.len() + recent.old.len() <= 2 * keep);
            }
            for key in order.iter().rev().take(keep) {
                let known = recent.young.contains_key(key) || recent.old.contains_key(key);
                prop_assert!(known, "{} is one of the last {}", key, keep);
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
