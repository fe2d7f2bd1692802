//! The bounded queue before each sink: bounded by bytes, since batches differ a thousandfold in size.

use std::sync::Arc;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::batch::Batch;

/// A batch in the queue or in a sink's hands; its bytes count until it is dropped.
pub struct Queued {
    /// The batch.
    pub batch: Arc<Batch>,
    /// When it was put in.
    pub since: Instant,
    _room: OwnedSemaphorePermit,
}

/// The pipeline's end.
pub struct QueueSender {
    items: Option<UnboundedSender<Queued>>,
    room: Arc<Semaphore>,
    bytes_max: usize,
}

/// The driver's end.
pub type QueueReceiver = UnboundedReceiver<Queued>;

/// The driver has ended: the queue takes nothing any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed;

/// A queue that holds batches of `bytes_max` bytes together ([`Batch::bytes`]); a single batch larger
/// than that goes through alone.
pub fn queue(bytes_max: usize) -> (QueueSender, QueueReceiver) {
    let bytes_max = bytes_max.clamp(1, u32::MAX as usize);
    let (items, receiver) = unbounded_channel();
    (QueueSender { items: Some(items), room: Arc::new(Semaphore::new(bytes_max)), bytes_max }, receiver)
}

impl QueueSender {
    /// Waits for room and puts the batch in. Cancel safe: when it is dropped nothing was put in.
    pub async fn send(&self, batch: Arc<Batch>) -> Result<(), Closed> {
        let Some(items) = &self.items else { return Err(Closed) };
        let bytes = batch.bytes().min(self.bytes_max) as u32;
        let room = tokio::select! {
            biased;
            () = items.closed() => return Err(Closed),
            room = Arc::clone(&self.room).acquire_many_owned(bytes) => room.map_err(|_| Closed)?,
        };
        items.send(Queued { batch, since: Instant::now(), _room: room }).map_err(|_| Closed)
    }

    /// Whether [`send`](Self::send) would not have to wait.
    pub fn has_room_for(&self, batch: &Batch) -> bool {
        self.room.available_permits() >= batch.bytes().min(self.bytes_max)
    }

    /// Nothing more will come: the driver ends once it has written what is in.
    pub fn close(&mut self) {
        self.items = None;
    }

    /// Bytes now waiting or being written.
    pub fn bytes(&self) -> usize {
        self.bytes_max - self.room.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::{Checkpoint, Lsn};
    use futures_util::FutureExt;

    fn batch() -> Arc<Batch> {
        Arc::new(Batch::empty(Checkpoint::at(Lsn(1)), false))
    }

    #[tokio::test]
    async fn a_full_queue_waits_until_a_batch_is_dropped() {
        let (sender, mut receiver) = queue(batch().bytes() * 2);
        for _ in 0..2 {
            assert_eq!(sender.send(batch()).now_or_never(), Some(Ok(())));
        }
        assert_eq!(sender.send(batch()).now_or_never(), None);
        assert!(!sender.has_room_for(&batch()));
        let first = receiver.recv().await;
        assert_eq!(sender.send(batch()).now_or_never(), None, "taken out is not yet released");
        drop(first);
        assert!(sender.has_room_for(&batch()));
        assert_eq!(sender.send(batch()).now_or_never(), Some(Ok(())));
    }

    #[tokio::test]
    async fn a_batch_larger_than_the_queue_goes_through_alone() {
        let (sender, _receiver) = queue(1);
        assert_eq!(sender.send(batch()).now_or_never(), Some(Ok(())));
        assert_eq!(sender.bytes(), 1);
        assert_eq!(sender.send(batch()).now_or_never(), None);
    }

    #[tokio::test]
    async fn an_ended_driver_is_told_apart_from_a_full_queue() {
        let (sender, receiver) = queue(1);
        drop(receiver);
        assert_eq!(sender.send(batch()).await, Err(Closed));
    }
}
