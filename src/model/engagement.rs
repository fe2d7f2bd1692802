//! The `engagement_events` table.
