//! What a row change means: the only place that knows the tables' column names.

pub mod content;
pub mod engagement;
