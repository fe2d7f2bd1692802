//! stub

use crate::error::Error;
use crate::lsn::{Lsn, Mark};
use std::sync::Arc;
#[derive(Clone)]
pub struct Board;
pub struct SinkStatus;
impl Board {
    pub fn new() -> Self {
        Board
    }
    pub fn streaming(&self, _: bool) {}
    pub fn failed(&self, _: &Error) {}
    pub fn tick(&self) {}
    pub fn sink(&self, _: &'static str, _: Mark) -> SinkStatus {
        SinkStatus
    }
    pub fn source(&self, _r: Lsn, _c: Lsn, _q: impl Iterator<Item = (&'static str, usize)>) {}
}
impl SinkStatus {
    pub fn wrote(&self, _rows: usize) {}
    pub fn held(&self, _: Mark) {}
    pub fn failed(&self, _: &Error) {}
}
