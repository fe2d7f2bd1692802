//! What a sink is fed from: queues, one after the other, each bounded by bytes, since batches differ a thousandfold in
//! size.
//!
//! A sink has one queue as long as all is well. When it falls behind, whoever filled that one leaves it, and another stream
//! fills the next; what a queue follows on is said by the queue itself ([`Queue::from`]), so that no change of streams can
//! leave a gap.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::batch::Batch;
use crate::lsn::Checkpoint;
use crate::telemetry::queue_gauge::QueueGauge;

/// A batch in the queue or in a sink's hands; its bytes count until it is dropped.
pub struct Queued {
    /// The batch.
    pub batch: Arc<Batch>,
    /// When it was put in.
    pub since: Instant,
    room: Option<OwnedSemaphorePermit>,
    moved: Arc<Mutex<Instant>>,
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.room = None;
        mark(&self.moved);
    }
}

/// The pipeline's end.
pub struct QueueSender {
    items: Option<UnboundedSender<Queued>>,
    room: Arc<Semaphore>,
    bytes_max: usize,
    /// When a batch was dropped last, or put into the empty queue.
    moved: Arc<Mutex<Instant>>,
}

fn mark(moved: &Mutex<Instant>) {
    *moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
}

/// The driver's end.
pub struct Queue {
    items: UnboundedReceiver<Queued>,
    /// What its first batch follows on: only who has this may take it.
    pub from: Checkpoint,
}

/// Where queues are put for a driver, in their order. The driver ends when this is gone and all queues are empty.
pub type Feeder = UnboundedSender<Queue>;

/// The queues of one driver, and how far they have brought it.
pub struct Feed {
    queue: Option<Queue>,
    next: UnboundedReceiver<Queue>,
    reach: Checkpoint,
}

/// What a feed has next.
pub enum Fed {
    /// A batch.
    Batch(Queued),
    /// There is no queue now: somebody has to put the next one, from [`Feed::reach`] or before.
    Hungry,
    /// Nothing more will come.
    Ended,
}

/// A feed of a sink that has everything up to `reach`, and where to put its queues.
pub fn feed(reach: Checkpoint) -> (Feeder, Feed) {
    let (feeder, next) = unbounded_channel();
    (feeder, Feed { queue: None, next, reach })
}

impl Feed {
    /// What comes next. Cancel safe. Asked again after [`Fed::Hungry`], it waits for the next queue.
    pub async fn recv(&mut self, hungry: bool) -> Fed {
        loop {
            if let Some(queue) = &mut self.queue {
                if let Some(queued) = queue.items.recv().await {
                    self.reach = self.reach.advanced(queued.batch.checkpoint());
                    return Fed::Batch(queued);
                }
                self.queue = None;
            }
            let next = match self.next.try_recv() {
                Ok(next) => Some(next),
                Err(_) if hungry => self.next.recv().await,
                Err(tokio::sync::mpsc::error::TryRecvError::Empty) => return Fed::Hungry,
                Err(tokio::sync::mpsc::error::TryRecvError::Disconnected) => None,
            };
            match next {
                None => return Fed::Ended,
                // one that follows on what was given back: whoever fills it sees that nobody takes it
                Some(queue) if !self.reach.covers(&queue.from) => {}
                Some(queue) => self.queue = Some(queue),
            }
        }
    }

    /// What whoever took all that came has.
    pub fn reach(&self) -> Checkpoint {
        self.reach
    }

    /// Gives back all that is not taken: it has only what `reach` covers, and wants what follows anew.
    pub fn refuse(&mut self, reach: Checkpoint) {
        self.queue = None;
        while self.next.try_recv().is_ok() {}
        self.reach = reach;
    }

    /// Waits, taking nothing, until nothing more will come.
    pub async fn ended(&mut self) {
        self.queue = None;
        while self.next.recv().await.is_some() {}
    }

    /// Waits, taking nothing; `false` as soon as nothing more will come.
    pub async fn idle_until(&mut self, until: Instant) -> bool {
        loop {
            tokio::select! {
                biased;
                next = self.next.recv(), if self.queue.is_none() => match next {
                    Some(_refused) => {}
                    None => return false,
                },
                () = tokio::time::sleep_until(until) => return true,
            }
        }
    }
}

/// The driver has ended: the queue takes nothing any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed;

/// A queue that holds batches of `bytes_max` bytes together ([`Batch::bytes`]); a single batch larger
/// than that goes through alone. Its first batch follows on `from`.
pub fn queue(bytes_max: usize, from: Checkpoint) -> (QueueSender, Queue) {
    let bytes_max = bytes_max.clamp(1, u32::MAX as usize);
    let (items, receiver) = unbounded_channel();
    let room = Arc::new(Semaphore::new(bytes_max));
    let moved = Arc::new(Mutex::new(Instant::now()));
    (QueueSender { items: Some(items), room, bytes_max, moved }, Queue { items: receiver, from })
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
        if self.bytes() == bytes as usize {
            mark(&self.moved);
        }
        let moved = Arc::clone(&self.moved);
        items.send(Queued { batch, since: Instant::now(), room: Some(room), moved }).map_err(|_| Closed)
    }

    /// When it was last seen that what is in it moves.
    pub fn moved_at(&self) -> Instant {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether [`send`](Self::send) would not have to wait.
    pub fn has_room_for(&self, batch: &Batch) -> bool {
        self.room.available_permits() >= batch.bytes().min(self.bytes_max)
    }

    /// Whether nobody takes from it any more.
    pub fn is_closed(&self) -> bool {
        self.items.as_ref().is_none_or(UnboundedSender::is_closed)
    }

    /// Waits until nobody takes from it any more.
    pub async fn closed(&self) {
        if let Some(items) = &self.items {
            items.closed().await;
        }
    }

    /// Nothing more will come in it.
    pub fn close(&mut self) {
        self.items = None;
    }

    /// How many bytes it holds at most.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Bytes now waiting or being written.
    pub fn bytes(&self) -> usize {
        self.gauge().bytes()
    }

    /// Where others can read how many bytes those are.
    pub fn gauge(&self) -> QueueGauge {
        QueueGauge::new(&self.room, self.bytes_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;
    use futures_util::FutureExt;

    const START: Checkpoint = Checkpoint { position: None, durable_lsn: Lsn(1) };

    fn batch() -> Arc<Batch> {
        Arc::new(Batch::empty(Checkpoint::at(Lsn(1)), false))
    }

    #[tokio::test]
    async fn a_full_queue_waits_until_a_batch_is_dropped() {
        let (sender, mut receiver) = queue(batch().bytes() * 2, START);
        for _ in 0..2 {
            assert_eq!(sender.send(batch()).now_or_never(), Some(Ok(())));
        }
        assert_eq!(sender.send(batch()).now_or_never(), None);
        assert!(!sender.has_room_for(&batch()));
        let first = receiver.items.recv().await;
        assert_eq!(sender.send(batch()).now_or_never(), None, "taken out is not yet released");
        drop(first);
        assert!(sender.has_room_for(&batch()));
        assert_eq!(sender.send(batch()).now_or_never(), Some(Ok(())));
    }

    #[tokio::test]
    async fn a_batch_larger_than_the_queue_goes_through_alone() {
        let (sender, _receiver) = queue(1, START);
        assert_eq!(sender.send(batch()).now_or_never(), Some(Ok(())));
        assert_eq!(sender.bytes(), 1);
        assert_eq!(sender.send(batch()).now_or_never(), None);
    }

    #[tokio::test]
    async fn an_ended_driver_is_told_apart_from_a_full_queue() {
        let (sender, receiver) = queue(1, START);
        drop(receiver);
        assert_eq!(sender.send(batch()).await, Err(Closed));
    }

    fn up_to(lsn: u64) -> Arc<Batch> {
        Arc::new(Batch::empty(Checkpoint::at(Lsn(lsn)), false))
    }

    async fn ends(feed: &mut Feed) -> Vec<u64> {
        let mut ends = Vec::new();
        while let Fed::Batch(queued) = feed.recv(false).await {
            ends.push(queued.batch.checkpoint().durable_lsn.0);
        }
        ends
    }

    #[tokio::test]
    async fn queues_follow_one_another_and_may_overlap() {
        let (feeder, mut feed) = feed(START);
        for (from, to) in [(1, 5), (3, 8), (8, 9)] {
            let (sender, queue) = queue(1 << 20, Checkpoint::at(Lsn(from)));
            feeder.send(queue).ok().unwrap();
            for lsn in from + 1..=to {
                assert_eq!(sender.send(up_to(lsn)).await, Ok(()));
            }
        }
        assert_eq!(ends(&mut feed).await, [2, 3, 4, 5, 4, 5, 6, 7, 8, 9]);
        assert!(matches!(feed.recv(false).await, Fed::Hungry));
        drop(feeder);
        assert!(matches!(feed.recv(true).await, Fed::Ended));
    }

    /// A queue that was to follow a lane comes after the sink lost what the lane brought.
    #[tokio::test]
    async fn a_queue_that_would_leave_a_gap_is_not_taken() {
        let (feeder, mut feed) = feed(START);
        let (lane, queue_of_lane) = queue(1 << 20, START);
        feeder.send(queue_of_lane).ok().unwrap();
        assert_eq!(lane.send(up_to(7)).await, Ok(()));
        assert_eq!(feed.recv(false).now_or_never().map(|fed| matches!(fed, Fed::Batch(_))), Some(true));
        drop(lane);
        feed.refuse(Checkpoint::at(Lsn(3)));
        let (main, queue_of_main) = queue(1 << 20, Checkpoint::at(Lsn(7)));
        feeder.send(queue_of_main).ok().unwrap();
        assert_eq!(main.send(up_to(8)).await, Ok(()));
        assert!(matches!(feed.recv(false).await, Fed::Hungry));
        assert!(main.is_closed(), "whoever fills it is told");
        let (_lane, queue_of_lane) = queue(1 << 20, Checkpoint::at(Lsn(3)));
        feeder.send(queue_of_lane).ok().unwrap();
        assert!(feed.recv(true).now_or_never().is_none(), "it is taken, and empty");
        assert_eq!(feed.reach(), Checkpoint::at(Lsn(3)));
    }
}
