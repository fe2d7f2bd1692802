//! The Kafka sink on a real broker. What is true of the broker itself is tested too: an exactly-once claim on a broker
//! that shows aborted records would be worth nothing.

mod fixture;

mod brokers;
mod records;
mod security;
mod transactions;
