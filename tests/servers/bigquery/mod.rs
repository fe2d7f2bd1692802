//! The BigQuery sink against the emulator: what a reader sees, and that a crash anywhere changes nothing of it.
//!
//! A crash is played by dropping the sink while one of its calls is held by a proxy before the service, and
//! making a new one: `WALCAST_SEED=7 cargo test --test servers bigquery::` repeats the random ones.

mod proxy;
mod world;

mod crashes;
mod rows;
mod streams;
mod table;
