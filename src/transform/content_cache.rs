//! The content rows as of the current place in the stream.

use std::sync::Arc;

use hashbrown::HashMap;
use uuid::Uuid;

use crate::model::content::Content;

/// Every content row by id. An event takes a shared reference: a later update makes a new row and
/// leaves the events that were joined before it as they are.
#[derive(Debug, Default)]
pub struct ContentCache {
    rows: HashMap<Uuid, Arc<Content>>,
}

impl ContentCache {
    /// The row, if it exists at this place in the stream.
    pub fn get(&self, id: &Uuid) -> Option<&Arc<Content>> {
        self.rows.get(id)
    }

    /// The row is now this; gives the shared form.
    pub fn put(&mut self, content: Content) -> Arc<Content> {
        let content = Arc::new(content);
        self.rows.insert(content.id, Arc::clone(&content));
        content
    }

    /// The row is gone. Whether it was there.
    pub fn remove(&mut self, id: &Uuid) -> bool {
        self.rows.remove(id).is_some()
    }

    /// All rows are gone; gives their ids.
    pub fn clear(&mut self) -> Vec<Uuid> {
        self.rows.drain().map(|(id, _)| id).collect()
    }

    /// All rows, in no order.
    pub fn rows(&self) -> impl Iterator<Item = &Arc<Content>> {
        self.rows.values()
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl FromIterator<Content> for ContentCache {
    fn from_iter<I: IntoIterator<Item = Content>>(rows: I) -> Self {
        ContentCache { rows: rows.into_iter().map(|content| (content.id, Arc::new(content))).collect() }
    }
}
