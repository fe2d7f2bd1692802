//! From decoded rows to enriched events.

pub mod enrich;
