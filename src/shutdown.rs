//! SIGTERM and Ctrl-C: the first asks for an orderly end, the second for a quick one.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::error::{Code, Error, Result};

/// How often a signal has come. Clones see the same.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<u32>);

/// The other end of a [`Shutdown`], for tests and embedders.
#[derive(Debug)]
pub struct Trigger(watch::Sender<u32>);

impl Shutdown {
    /// A shutdown that a [`Trigger`] asks for.
    pub fn manual() -> (Trigger, Shutdown) {
        let (sender, receiver) = watch::channel(0);
        (Trigger(sender), Shutdown(receiver))
    }

    /// A shutdown that SIGTERM or SIGINT asks for.
    pub fn on_signals() -> Result<Shutdown> {
        let (trigger, shutdown) = Shutdown::manual();
        let refused = |error| Error::new(Code::Prerequisite, "signals cannot be received").because(error);
        let mut terminate = signal(SignalKind::terminate()).map_err(refused)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(refused)?;
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                trigger.signal();
            }
        });
        Ok(shutdown)
    }

    /// Waits for the first signal; returns at once when it has come. Cancel safe.
    pub async fn wait(&mut self) {
        self.reached(1).await;
    }

    /// Waits for the second signal. Cancel safe.
    pub async fn again(&mut self) {
        self.reached(2).await;
    }

    async fn reached(&mut self, count: u32) {
        if self.0.wait_for(|seen| *seen >= count).await.is_err() {
            std::future::pending().await
        }
    }
}

impl Trigger {
    /// Does what a signal does.
    pub fn signal(&self) {
        self.0.send_modify(|seen| *seen += 1);
    }
}
