//! The confirmed LSN: the lowest durable LSN of all sinks. Computed here alone; nothing above it is ever
//! sent to the server, which forgets what is below it.

use crate::lsn::Lsn;

/// What each sink holds, and what may be confirmed therefore.
///
/// Both only grow: a sink that reports less than before (it was asked twice) changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Watermark {
    durable: Vec<(&'static str, Lsn)>,
    confirmed: Lsn,
}

impl Watermark {
    /// The state after recovery: `confirmed` is what the slot itself says.
    pub fn new(confirmed: Lsn, sinks: impl IntoIterator<Item = (&'static str, Lsn)>) -> Self {
        let mut watermark = Watermark { durable: sinks.into_iter().collect(), confirmed };
        watermark.settle();
        watermark
    }

    /// A sink holds everything up to `durable`. Whether that moved the confirmed LSN.
    pub fn advance(&mut self, sink: &str, durable: Lsn) -> bool {
        if let Some((_, known)) = self.durable.iter_mut().find(|(name, _)| *name == sink) {
            *known = durable.max(*known);
        }
        self.settle()
    }

    /// A sink counts that did not. What was confirmed without it stays, and nothing more is until it holds that too.
    pub fn add(&mut self, sink: &'static str, durable: Lsn) {
        self.remove(sink);
        self.durable.push((sink, durable));
    }

    /// A sink does not count any more: another slot keeps what it lacks.
    pub fn remove(&mut self, sink: &str) {
        self.durable.retain(|(name, _)| *name != sink);
    }

    /// What the server may be told.
    pub fn confirmed(&self) -> Lsn {
        self.confirmed
    }

    /// What this sink holds.
    pub fn durable(&self, sink: &str) -> Option<Lsn> {
        self.durable.iter().find(|(name, _)| *name == sink).map(|(_, durable)| *durable)
    }

    /// The sink that holds the WAL back, and what it holds.
    pub fn slowest(&self) -> Option<(&'static str, Lsn)> {
        self.durable.iter().copied().min_by_key(|(_, durable)| *durable)
    }

    fn settle(&mut self) -> bool {
        let Some((_, lowest)) = self.slowest() else { return false };
        let moved = lowest > self.confirmed;
        self.confirmed = self.confirmed.max(lowest);
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_sink_decides() {
        let mut watermark = Watermark::new(Lsn(10), [("kafka", Lsn(10)), ("redis", Lsn(10))]);
        assert!(!watermark.advance("kafka", Lsn(50)));
        assert_eq!(watermark.confirmed(), Lsn(10));
        assert!(watermark.advance("redis", Lsn(40)));
        assert_eq!(watermark.confirmed(), Lsn(40));
        assert_eq!(watermark.slowest(), Some(("redis", Lsn(40))));
    }

    #[test]
    fn nothing_goes_back() {
        let mut watermark = Watermark::new(Lsn(10), [("kafka", Lsn(30))]);
        assert_eq!(watermark.confirmed(), Lsn(30));
        assert!(!watermark.advance("kafka", Lsn(20)));
        assert_eq!(watermark.confirmed(), Lsn(30));
    }

    #[test]
    fn without_sinks_nothing_is_confirmed() {
        assert_eq!(Watermark::new(Lsn(10), []).confirmed(), Lsn(10));
    }
}
