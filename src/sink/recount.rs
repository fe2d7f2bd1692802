//! Filling a target anew that keeps sums of events: all events are added once more, from nothing.

use std::sync::Arc;

use async_trait::async_trait;

use crate::error::Result;
use crate::event::{Content, Engagement};
use crate::lsn::{Lsn, Session};

/// A target whose sums are made anew. Until that has ended everybody else is refused, also after a crash.
#[async_trait]
pub trait Recount: Send {
    /// Refuses a target that it would do harm to; changes nothing.
    async fn check(&mut self, slot: &str) -> Result<()>;

    /// Shuts everybody else out and empties the target. `session` must have the newest fencing token.
    async fn begin(&mut self, session: &Session) -> Result<()>;

    /// Adds an event with its content; its own place does not matter.
    async fn add(&mut self, row: &Engagement<'_>, content: Option<Arc<Content>>) -> Result<()>;

    /// All below `end` is in: readers see it, and the target goes on from there.
    async fn end(&mut self, end: Lsn) -> Result<()>;
}
