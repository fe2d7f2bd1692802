//! One sink's place at the stream: whether the stream fills its queue, and when it stops to, so that no other sink waits.
//!
//! A seat that is left keeps counting for the confirmed LSN until a lane has a slot of its own: what the sink has not made
//! durable is kept by one slot or the other at any instant.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::batch::Batch;
use crate::lsn::Checkpoint;
use crate::sink::queue::{Closed, Queue, QueueSender, queue};

/// A row that is older than this comes late to all sinks anyway.
const LIVE: Duration = Duration::from_secs(5);
/// How long a full queue may stand still while the stream is live.
const STANDSTILL_LIVE: Duration = Duration::from_millis(250);
/// The same while what is read is old.
const STANDSTILL_BEHIND: Duration = Duration::from_secs(2);
/// A sink that the stream waits for most of such a time, without coming nearer to the present, is slower than the stream.
const WINDOW: Duration = Duration::from_secs(4);

/// What the stream tells whoever keeps a sink's lane.
pub enum Told {
    /// Its queue is not filled any more.
    Left,
    /// From `at` on the stream fills this queue: who has brought the sink there hands it over.
    Offer {
        /// What the queue follows on.
        at: Checkpoint,
        /// The queue.
        queue: Queue,
    },
    /// That offer is void: the queue has run over.
    Withdrawn,
    /// The sink holds all that the stream's slot was confirmed up to: the lane's slot is not needed any more.
    LetGo,
}

/// What whoever keeps a sink's lane says to the stream.
pub enum Says {
    /// A slot of its own keeps what the sink lacks: it need not count any more.
    Parted,
    /// The lane has come close to this stream.
    Near,
    /// The sink takes from the queue that was offered.
    Joined,
}

/// Where a sink is fed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// From this stream.
    Fed,
    /// From a lane, or not at all.
    Left,
    /// From a lane, which has been offered a queue of this stream.
    Offered,
    /// From this stream, and its lane's slot is still there.
    Joining,
}

pub(super) struct Seat {
    pub(super) name: &'static str,
    pub(super) queue: Option<QueueSender>,
    pub(super) place: Place,
    /// Whether the confirmed LSN waits for it.
    pub(super) counts: bool,
    /// Who keeps its lane; `None` where it can have none.
    keeper: Option<mpsc::UnboundedSender<Told>>,
    window: Window,
}

/// How much of the last time the stream has waited for one sink.
struct Window {
    began: Instant,
    waited: Duration,
    age: Duration,
    /// Since when it waits for room now.
    since: Option<Instant>,
}

impl Seat {
    pub(super) fn new(
        name: &'static str,
        queue: Option<QueueSender>,
        keeper: Option<mpsc::UnboundedSender<Told>>,
    ) -> Seat {
        let place = if queue.is_some() { Place::Fed } else { Place::Left };
        Seat { name, place, counts: queue.is_some(), queue, keeper, window: Window::new(Duration::ZERO) }
    }

    /// Puts a batch into its queue, or leaves the seat when that takes too long for the others. Cancel safe.
    pub(super) async fn send(&mut self, batch: &Arc<Batch>) {
        let batch = &batch.for_sink(self.name);
        loop {
            let Some(queue) = &self.queue else { return };
            if !queue.has_room_for(batch) {
                self.window.since.get_or_insert_with(Instant::now);
            }
            let patience = self.keeper.is_some().then(|| queue.moved_at() + standstill(batch));
            tokio::select! {
                biased;
                sent = queue.send(Arc::clone(batch)) => return match sent {
                    Ok(()) => self.sent(batch),
                    // a driver that has ended is noticed by its own branch of the loop, with its error
                    Err(Closed) if self.keeper.is_none() => std::future::pending().await,
                    Err(Closed) => self.leave(),
                },
                () = sleep_until(patience), if patience.is_some() => {
                    if queue.moved_at() + standstill(batch) <= Instant::now() {
                        return self.leave();
                    }
                }
            }
        }
    }

    fn sent(&mut self, batch: &Batch) {
        if self.window.is_wasted(age(batch)) && self.keeper.is_some() {
            self.leave();
        }
    }

    /// Whether its sink may have been fed by a lane, which may be ahead of this stream.
    pub(super) fn may_leave(&self) -> bool {
        self.keeper.is_some()
    }

    /// Stops filling its queue.
    pub(super) fn leave(&mut self) {
        self.queue = None;
        self.window = Window::new(Duration::ZERO);
        let told = match self.place {
            Place::Offered => Told::Withdrawn,
            Place::Fed | Place::Joining | Place::Left => Told::Left,
        };
        self.place = Place::Left;
        self.tell(told);
    }

    /// Leaves when the sink has given its queue back.
    pub(super) fn leave_if_closed(&mut self) {
        if self.keeper.is_some() && self.queue.as_ref().is_some_and(QueueSender::is_closed) {
            self.leave();
        }
    }

    /// Fills a queue again, from `at` on; the lane is to bring the sink there.
    pub(super) fn offer(&mut self, at: Checkpoint, bytes_max: usize) {
        if self.place != Place::Left {
            return;
        }
        let (sender, queue) = queue(bytes_max, at);
        self.queue = Some(sender);
        self.place = Place::Offered;
        self.tell(Told::Offer { at, queue });
    }

    /// The sink takes from the queue that was offered. Whether the seat is taken: an offer may be void by now.
    pub(super) fn joined(&mut self) -> bool {
        let taken = self.place == Place::Offered;
        if taken {
            self.place = Place::Joining;
            self.counts = true;
        }
        taken
    }

    /// The lane's slot is not needed any more.
    pub(super) fn let_go(&mut self) {
        self.place = Place::Fed;
        self.tell(Told::LetGo);
    }

    /// Nothing more will come, from here or from a lane.
    pub(super) fn close(&mut self) {
        self.queue = None;
        self.keeper = None;
    }

    fn tell(&self, told: Told) {
        if let Some(keeper) = &self.keeper {
            // one that has ended is noticed by whoever runs it
            let _ = keeper.send(told);
        }
    }
}

impl Window {
    fn new(age: Duration) -> Window {
        Window { began: Instant::now(), waited: Duration::ZERO, age, since: None }
    }

    /// A batch of this age was sent. Whether a window ends that was mostly spent waiting, and has brought the stream no
    /// nearer to the present.
    fn is_wasted(&mut self, age: Duration) -> bool {
        let now = Instant::now();
        if let Some(since) = self.since.take() {
            self.waited += now - since;
        }
        let length = now - self.began;
        if length < WINDOW {
            return false;
        }
        let wasted = self.waited * 2 > length && age + length / 2 > self.age;
        *self = Window::new(age);
        wasted
    }
}

/// How old the first row of a batch is.
fn age(batch: &Batch) -> Duration {
    batch.under_way().next().map_or(Duration::ZERO, |(_, committed_at)| committed_at.elapsed())
}

fn standstill(batch: &Batch) -> Duration {
    if age(batch) < LIVE { STANDSTILL_LIVE } else { STANDSTILL_BEHIND }
}

async fn sleep_until(until: Option<Instant>) {
    if let Some(until) = until {
        tokio::time::sleep_until(until).await;
    }
}
