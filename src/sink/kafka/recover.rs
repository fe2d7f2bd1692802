//! Where a slot stands in Kafka: the newest committed checkpoint in the progress topic, and whether all that it speaks of
//! is still there.
//!
//! The topic's end cannot be told by asking for it. Its last offsets are transaction markers, which no
//! reader is given; the end that a broker names may lie behind another producer's open transaction; "end of
//! partition" and silence only mean "for now". So the producer, once it has shut all older ones out,
//! commits a fence record, and the reader reads until it sees that very record: every checkpoint that was ever
//! committed lies before it, and no other can come.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::types::RDKafkaErrorCode as Code;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::NAME;
use super::config::KafkaConfig;
use super::ends::{self, Ends, Shortfall};
use super::error::{Reports, bad_settings, classify};
use super::hung_transactions::{OpenTransaction, bounds, reader};
use super::thread::spawn;
use crate::error::{self, Error, Kind, Result};
use crate::lsn::{Session, StoredCheckpoint};
use crate::resume::{Refusal, read_stored};

/// How many offsets before the end to read first; the checkpoint is there unless other slots share the topic.
const FIRST_WINDOW: i64 = 500;
const WINDOW_GROWTH: i64 = 20;
const POLL: Duration = Duration::from_millis(100);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A record that only one start of one instance can have written.
#[derive(Clone)]
pub(super) struct Fence {
    /// The slot that it belongs to.
    pub(super) slot: String,
    fencing_token: i64,
    nonce: Uuid,
}

impl Fence {
    pub(super) fn new(session: &Session) -> Self {
        Fence {
            slot: session.history_id.slot.clone(),
            fencing_token: session.fencing_token,
            nonce: Uuid::new_v4(),
        }
    }

    /// The record's key, one a slot: compaction leaves only the newest.
    pub(super) fn key(&self) -> String {
        format!("{}/fence", self.slot)
    }

    pub(super) fn value(&self) -> String {
        format!(r#"{{"fencing_token":{},"nonce":"{}"}}"#, self.fencing_token, self.nonce)
    }
}

/// What Kafka has.
pub(super) struct Holds {
    pub(super) stored: Option<StoredCheckpoint>,
    /// Where the partitions end.
    pub(super) ends: Ends,
    /// What is missing of that which the checkpoint speaks of.
    pub(super) shortfalls: Vec<Shortfall>,
}

impl Holds {
    /// With the newest checkpoint, as the topic has it. Blocks.
    fn with(config: &KafkaConfig, newest: Option<Vec<u8>>) -> Result<Holds> {
        let topic = config.topics().progress;
        let stored = newest.map(|json| read_stored(NAME, &topic, &json)).transpose()?;
        let before = stored.as_ref().map(|stored| Ends::stored(&stored.target.ends)).unwrap_or_default();
        let (ends, shortfalls) = ends::against(config, &before)?;
        Ok(Holds { stored, ends, shortfalls })
    }

    /// The checkpoint; refused when what it speaks of is gone. Dead letters are no reason: PostgreSQL has them too.
    pub(super) fn whole(self, config: &KafkaConfig, session: &Session) -> Result<Option<StoredCheckpoint>> {
        let ours =
            self.stored.as_ref().is_some_and(|stored| stored.history_id.uuid == session.history_id.uuid);
        for shortfall in self.shortfalls.iter().filter(|_| ours) {
            let told = shortfall.told(config);
            if !shortfall.is_of_letters() {
                return Err(Refusal::LostWhatItHeld { told }.into_error(NAME, session));
            }
            tracing::warn!("kafka {told}; walcast.dead_letter has what was refused before the sinks");
        }
        Ok(self.stored)
    }
}

/// The newest checkpoint of the fence's slot and what there is beside it, read on a thread of its own. The fence must be
/// committed.
pub(super) async fn read(config: &KafkaConfig, fence: &Fence) -> Result<Holds> {
    let (done, outcome) = oneshot::channel();
    let (config, fence) = (config.clone(), fence.clone());
    spawn("kafka-progress", move || {
        let newest = Reader::new(&config).and_then(|reader| reader.newest(&fence, &|| done.is_closed()));
        drop(done.send(newest.and_then(|newest| Holds::with(&config, newest))));
    })?;
    let ended = |_| Error::new(error::Code::Unavailable, "Kafka: the reader of the progress topic has ended");
    outcome.await.map_err(ended)?
}

/// The same as a reader sees it now. Without a fence another checkpoint may come at any moment.
pub(super) async fn peek(config: &KafkaConfig, slot: &str) -> Result<Holds> {
    let (done, outcome) = oneshot::channel();
    let (config, slot) = (config.clone(), slot.to_owned());
    spawn("kafka-progress", move || {
        let newest = Reader::to_the_end(&config).and_then(|reader| reader.newest_seen(&slot));
        drop(done.send(newest.and_then(|newest| Holds::with(&config, newest))));
    })?;
    let ended = |_| Error::new(error::Code::Unavailable, "Kafka: the reader of the progress topic has ended");
    outcome.await.map_err(ended)?
}

/// Where the partitions end now.
pub(super) async fn ends(config: &KafkaConfig) -> Result<Ends> {
    let (done, outcome) = oneshot::channel();
    let config = config.clone();
    spawn("kafka-ends", move || {
        let ends = ends::against(&config, &Ends::default());
        drop(done.send(ends.map(|(ends, _)| ends)));
    })?;
    let ended = |_| Error::new(error::Code::Unavailable, "Kafka: the reader of the topics' ends has ended");
    outcome.await.map_err(ended)?
}

struct Reader<'a> {
    config: &'a KafkaConfig,
    topic: String,
    consumer: BaseConsumer<Reports>,
}

impl<'a> Reader<'a> {
    fn new(config: &'a KafkaConfig) -> Result<Self> {
        Ok(Reader { config, topic: config.topics().progress, consumer: reader(config, "read_committed")? })
    }

    /// A reader that is told when it has come to the end.
    fn to_the_end(config: &'a KafkaConfig) -> Result<Self> {
        let mut settings = config.reader("read_committed");
        settings.set("enable.partition.eof", "true");
        let consumer = settings.create_with_context(Reports::default()).map_err(bad_settings)?;
        Ok(Reader { config, topic: config.topics().progress, consumer })
    }

    fn newest_seen(&self, slot: &str) -> Result<Option<Vec<u8>>> {
        let (first, end) = bounds(&self.consumer, self.config, &self.topic, 0)?;
        let mut window = FIRST_WINDOW;
        loop {
            let start = end.saturating_sub(window).max(first);
            let newest = self.read_up_to(start, end, slot)?;
            if newest.is_some() || start == first {
                return Ok(newest);
            }
            window = window.saturating_mul(WINDOW_GROWTH);
        }
    }

    /// Up to what was the end when it was asked for: one who writes all the time leaves a reader no other.
    fn read_up_to(&self, start: i64, end: i64, slot: &str) -> Result<Option<Vec<u8>>> {
        self.assign(start)?;
        let (mut newest, mut heard) = (None, Instant::now());
        loop {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    heard = Instant::now();
                    if is(&message, slot) {
                        newest = message.payload().map(<[u8]>::to_vec);
                    }
                    if message.offset() + 1 >= end {
                        return Ok(newest);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(newest),
                Some(Err(error)) => self.require_mendable(error)?,
                None if heard.elapsed() > self.config.timeout() => return Err(self.unavailable()),
                None => {}
            }
        }
    }

    /// Reads ever longer ends of the topic until one has a checkpoint, or all of it was read.
    fn newest(&self, fence: &Fence, given_up: &dyn Fn() -> bool) -> Result<Option<Vec<u8>>> {
        let (first, end) = bounds(&self.consumer, self.config, &self.topic, 0)?;
        let mut window = FIRST_WINDOW;
        loop {
            let start = end.saturating_sub(window).max(first);
            let newest = self.read_to_fence(start, fence, given_up)?;
            if newest.is_some() || start == first {
                return Ok(newest);
            }
            window = window.saturating_mul(WINDOW_GROWTH);
        }
    }

    fn read_to_fence(
        &self,
        start: i64,
        fence: &Fence,
        given_up: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<u8>>> {
        self.assign(start)?;
        let (fence_key, fence_value) = (fence.key(), fence.value());
        let mut newest = None;
        let mut patience = Patience::new();
        loop {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    patience.moved();
                    if is(&message, &fence_key) && message.payload() == Some(fence_value.as_bytes()) {
                        return Ok(newest);
                    }
                    if is(&message, &fence.slot) {
                        newest = message.payload().map(<[u8]>::to_vec);
                    }
                }
                Some(Err(error)) => self.require_mendable(error)?,
                None if given_up() => return Err(self.unavailable()),
                None => self.look(&mut patience)?,
            }
        }
    }

    /// Why is there nothing to read? An error when waiting longer is of no use.
    fn look(&self, patience: &mut Patience) -> Result<()> {
        if patience.looked.elapsed() < LOOK_EVERY {
            return Ok(());
        }
        patience.looked = Instant::now();
        let (_, stable) = bounds(&self.consumer, self.config, &self.topic, 0)?;
        if stable > patience.stable {
            patience.stable = stable;
            patience.moved();
        }
        let waited = patience.since.elapsed();
        if waited < self.config.timeout() {
            return Ok(());
        }
        let all: BaseConsumer<Reports> = reader(self.config, "read_uncommitted")?;
        let (_, end) = bounds(&all, self.config, &self.topic, 0)?;
        if stable >= end {
            return Err(self.unavailable());
        }
        // another producer's, alive or not: whoever asked waits for it as for brokers that are silent, and says so
        let open = OpenTransaction { topic: self.topic.clone(), partition: 0, offset: stable };
        Err(open.hung(self.config, waited))
    }

    fn assign(&self, start: i64) -> Result<()> {
        let mut assignment = TopicPartitionList::new();
        let added = assignment.add_partition_offset(&self.topic, 0, Offset::Offset(start));
        added.and_then(|()| self.consumer.assign(&assignment)).map_err(|error| self.failed(error))
    }

    fn require_mendable(&self, error: KafkaError) -> Result<()> {
        // no group is joined: that this user may not use one does not matter
        if error.rdkafka_error_code() == Some(Code::GroupAuthorizationFailed) {
            return Ok(());
        }
        let error = self.failed(error);
        if error.kind() == Kind::Unavailable { Ok(()) } else { Err(error) }
    }

    fn failed(&self, error: KafkaError) -> Error {
        classify("read the progress topic", error, self.consumer.client().context())
    }

    fn unavailable(&self) -> Error {
        self.failed(KafkaError::Global(Code::OperationTimedOut))
    }
}

fn is(message: &BorrowedMessage<'_>, key: &str) -> bool {
    message.key() == Some(key.as_bytes())
}

/// How long nothing has moved.
struct Patience {
    stable: i64,
    since: Instant,
    looked: Instant,
}

impl Patience {
    fn new() -> Self {
        Patience { stable: 0, since: Instant::now(), looked: Instant::now() }
    }

    fn moved(&mut self) {
        self.since = Instant::now();
    }
}
