//! How much waits in a queue, at any time: whoever asks reads it from the queue's own room.

use std::fmt;
use std::sync::Arc;

use tokio::sync::Semaphore;

/// A queue's bytes, as they are now.
#[derive(Clone)]
pub struct QueueGauge {
    room: Arc<Semaphore>,
    bytes_max: usize,
}

impl QueueGauge {
    /// Of a queue that may hold `bytes_max`, of which `room` has what is free.
    pub fn new(room: &Arc<Semaphore>, bytes_max: usize) -> QueueGauge {
        QueueGauge { room: Arc::clone(room), bytes_max }
    }

    /// Of a queue that holds these and no more.
    pub fn full(bytes: usize) -> QueueGauge {
        QueueGauge { room: Arc::new(Semaphore::new(0)), bytes_max: bytes }
    }

    /// Bytes now waiting or being written.
    pub fn bytes(&self) -> usize {
        self.bytes_max - self.room.available_permits()
    }
}

impl fmt::Debug for QueueGauge {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{} of {} bytes", self.bytes(), self.bytes_max)
    }
}
