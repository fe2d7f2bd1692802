//! Says once, in the log, that the slot's state has changed.

use crate::error::Code;
use crate::size::size;
use crate::telemetry::status::SlotStatus;

/// Of `max_slot_wal_keep_size`: below the first share a warning, above the second the danger is over.
const TIGHT_PERCENT: u64 = 20;
const ROOMY_PERCENT: u64 = 40;

/// Remembers what was said of a slot.
#[derive(Debug, Default)]
pub struct Herald {
    wal_status: String,
    tight: bool,
}

/// What there is to say, by who must act.
#[derive(Debug, PartialEq, Eq)]
enum News {
    Good(String),
    Bad(String),
    Worst(Code, String),
}

impl Herald {
    /// Logs what this sample has that the last had not.
    pub fn see(&mut self, slot: &SlotStatus) {
        for news in self.status(slot).into_iter().chain(self.room(slot)) {
            match news {
                News::Good(said) => tracing::info!("{said}"),
                News::Bad(said) => tracing::warn!("{said}"),
                News::Worst(code, said) => tracing::error!(%code, "{said}"),
            }
        }
    }

    fn status(&mut self, slot: &SlotStatus) -> Option<News> {
        let before = std::mem::replace(&mut self.wal_status, slot.wal_status.clone());
        let SlotStatus { name, wal_status, .. } = slot;
        if before == slot.wal_status {
            return None;
        }
        let why = slot.invalidation_reason.as_deref().map(|why| format!(" ({why})")).unwrap_or_default();
        match wal_status.as_str() {
            "lost" | "missing" => {
                let code = if wal_status == "lost" { Code::SlotInvalidated } else { Code::SlotGone };
                let said = format!(
                    "the replication slot {name} is {wal_status}{why}: what it had not delivered is gone from the stream; \
                     `walcast check` says how to go on"
                );
                Some(News::Worst(code, said))
            }
            "unreserved" => Some(News::Bad(format!(
                "the replication slot {name} is unreserved: PostgreSQL removes WAL that it needs at the next checkpoint; \
                 raise max_slot_wal_keep_size at once: `walcast check` has the statement"
            ))),
            _ if before.is_empty() => None,
            _ => Some(News::Good(format!(
                "the replication slot {name} is {wal_status}, after it was {before}"
            ))),
        }
    }

    fn room(&mut self, slot: &SlotStatus) -> Option<News> {
        let (Some(safe), Some(keep)) = (slot.safe_wal_bytes, slot.keep_bytes_max.filter(|keep| *keep > 0))
        else {
            return None;
        };
        if slot.wal_status == "lost" {
            return None;
        }
        let percent = safe.saturating_mul(100) / keep;
        if !self.tight && percent < TIGHT_PERCENT {
            self.tight = true;
            return Some(News::Bad(format!(
                "PostgreSQL removes WAL that the slot {} still needs after {} more, {percent} % of max_slot_wal_keep_size; \
                 see which sink is behind (`walcast status`), or give it more: `walcast check` has the statement",
                slot.name,
                size(safe)
            )));
        }
        if self.tight && percent >= ROOMY_PERCENT {
            self.tight = false;
            return Some(News::Good(format!("the slot {} has room again: {} of WAL", slot.name, size(safe))));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(wal_status: &str, safe_mb: u64) -> SlotStatus {
        SlotStatus {
            name: "walcast".into(),
            wal_status: wal_status.into(),
            safe_wal_bytes: Some(safe_mb << 20),
            keep_bytes_max: Some(1_000 << 20),
            ..SlotStatus::default()
        }
    }

    fn told(herald: &mut Herald, slot: &SlotStatus) -> Vec<News> {
        herald.status(slot).into_iter().chain(herald.room(slot)).collect()
    }

    #[test]
    fn a_change_is_told_once() {
        let mut herald = Herald::default();
        assert_eq!(told(&mut herald, &slot("reserved", 900)), []);
        assert_eq!(told(&mut herald, &slot("reserved", 800)), []);
        let unreserved = told(&mut herald, &slot("unreserved", 700));
        assert!(
            matches!(&unreserved[..], [News::Bad(said)] if said.contains("walcast check")),
            "{unreserved:?}"
        );
        assert_eq!(told(&mut herald, &slot("unreserved", 700)), []);
        let again = "the replication slot walcast is reserved, after it was unreserved".to_owned();
        assert_eq!(told(&mut herald, &slot("reserved", 700)), [News::Good(again)]);
    }

    #[test]
    fn why_a_slot_is_lost_is_told_also_when_it_was_so_from_the_start() {
        let gone = SlotStatus { invalidation_reason: Some("idle_timeout".into()), ..slot("lost", 0) };
        let told = told(&mut Herald::default(), &gone);
        assert!(
            matches!(&told[..], [News::Worst(Code::SlotInvalidated, said)] if said.contains("lost (idle_timeout)")),
            "{told:?}"
        );
    }

    #[test]
    fn little_room_is_told_once_until_there_is_much_again() {
        let mut herald = Herald::default();
        let mut said = |safe_mb| told(&mut herald, &slot("reserved", safe_mb));
        assert_eq!(said(300), []);
        assert!(matches!(&said(199)[..], [News::Bad(said)] if said.contains("199.0 MiB more, 19 %")));
        assert_eq!(said(100), []);
        assert_eq!(said(300), [], "going up and down around the bound is no news");
        assert_eq!(said(150), []);
        assert!(matches!(&said(400)[..], [News::Good(_)]));
        assert!(matches!(&said(10)[..], [News::Bad(_)]));
    }

    #[test]
    fn without_a_bound_there_is_nothing_to_run_out_of() {
        let unbound = SlotStatus { safe_wal_bytes: None, keep_bytes_max: None, ..slot("reserved", 0) };
        assert_eq!(told(&mut Herald::default(), &unbound), []);
    }
}
