//! What `walcast check` finds, for whoever looks at the page, without ever asking twice at a time.

use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::finding::Finding;

/// Findings serve everybody who asks within this time.
const KEPT: Duration = Duration::from_secs(20);
/// Looking takes no longer.
const DEADLINE: Duration = Duration::from_secs(60);

type Look = Box<dyn Fn() -> BoxFuture<'static, Vec<Finding>> + Send + Sync>;

/// The checks: one look at a time, and not more than three a minute, however many ask.
pub struct Checks {
    look: Look,
    kept: Mutex<Option<(Instant, Looked)>>,
}

/// What was found, and when.
#[derive(Debug, Clone, Serialize)]
pub struct Looked {
    /// When the look ended.
    pub at: Timestamp,
    /// After how many seconds another look is taken for whoever asks.
    pub again_after_seconds: u64,
    /// What was found.
    pub findings: Vec<Finding>,
}

impl Default for Checks {
    /// Nothing is looked at.
    fn default() -> Self {
        Checks::new(|| Box::pin(async { Vec::new() }))
    }
}

impl Checks {
    /// `look` looks at everything and changes nothing.
    pub fn new(look: impl Fn() -> BoxFuture<'static, Vec<Finding>> + Send + Sync + 'static) -> Self {
        Checks { look: Box::new(look), kept: Mutex::default() }
    }

    /// What is found now, or was a moment ago.
    pub async fn now(&self) -> Looked {
        let mut kept = self.kept.lock().await;
        if let Some((at, looked)) = kept.as_ref()
            && at.elapsed() < KEPT
        {
            return Looked { again_after_seconds: (KEPT - at.elapsed()).as_secs() + 1, ..looked.clone() };
        }
        let found = tokio::time::timeout(DEADLINE, (self.look)()).await;
        let findings = found.unwrap_or_else(|_| vec![late()]);
        let looked = Looked { at: Timestamp::now(), again_after_seconds: KEPT.as_secs(), findings };
        *kept = Some((Instant::now(), looked.clone()));
        looked
    }
}

fn late() -> Finding {
    let message = format!("the checks were not through after {} s", DEADLINE.as_secs());
    Finding::warn("web.checks", "checks", message, "run `walcast check` to see which one waits")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn many_who_ask_cause_one_look() {
        let looks = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&looks);
        let checks = Checks::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            Box::pin(async {
                tokio::time::sleep(Duration::from_secs(5)).await;
                vec![Finding::ok("redis.server", "redis", "answers")]
            })
        });
        for asked in futures_util::future::join_all((0..50).map(|_| checks.now())).await {
            assert_eq!(asked.findings.len(), 1);
        }
        assert_eq!(looks.load(Ordering::Relaxed), 1);
        tokio::time::advance(KEPT - Duration::from_secs(1)).await;
        assert_eq!(checks.now().await.again_after_seconds, 2);
        assert_eq!(looks.load(Ordering::Relaxed), 1);
        tokio::time::advance(Duration::from_secs(1)).await;
        checks.now().await;
        assert_eq!(looks.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_hangs_is_told() {
        let checks = Checks::new(|| Box::pin(std::future::pending()));
        assert!(checks.now().await.findings.first().is_some_and(|found| found.message.contains("60 s")));
    }
}
