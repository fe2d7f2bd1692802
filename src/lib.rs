//! walcast: engagement events from PostgreSQL's WAL to Kafka, Redis and BigQuery, exactly once.

pub mod lsn;
pub mod error;
pub mod secret;
pub mod pgoutput;
pub mod model;
pub mod source;
pub mod state;
pub mod transform;
pub mod batch;
pub mod sink;
pub mod ops;
