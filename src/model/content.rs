//! The `content` table.

use uuid::Uuid;

/// A row of `content`. Every `None` is an SQL NULL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// `content.id`.
    pub id: Uuid,
    /// `content.slug`.
    pub slug: String,
    /// `content.title`.
    pub title: String,
    /// `content.content_type`: podcast, newsletter, video, or what the database allows besides.
    pub content_type: Option<String>,
    /// `content.length_seconds`.
    pub length_seconds: Option<i32>,
    /// `content.publish_ts`, microseconds since 1970; `None` when it lies outside the years 1 to 9999.
    pub publish_ts: Option<i64>,
}
