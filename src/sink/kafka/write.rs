//! The transactional producer, on a thread of its own: librdkafka's calls block, and a broker that hangs
//! must hold up neither the runtime nor its shutdown.
//!
//! One producer, one life: it ends with the first error, whatever that was. What became of a transaction
//! in doubt is decided by the next one: its `init_transactions` ends what is open, one way or the other,
//! and then the checkpoint says which.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::config::KafkaConfig;
use super::encode::{Encoder, Message};
use super::ends::Ends;
use super::error::{Reports, bad_settings, classify};
use super::recover::Fence;
use super::thread::spawn;
use super::{NAME, lock};
use crate::batch::Batch;
use crate::error::{self, Error, Result};
use crate::failpoint::failpoint;
use crate::lsn::{Session, StoredCheckpoint, TargetState};
use crate::source::sql;
use crate::state::State;
use crate::state::dead_letters::{self, Letter};

/// How often an idle producer looks at what librdkafka has to say.
const IDLE_POLL: Duration = Duration::from_secs(1);
/// How long after its own start a broker may not know its topics.
const TOPICS_KNOWN_WITHIN: Duration = Duration::from_secs(5);
/// How often to see, while records are under way, whether the topics are still there.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const LOOK_WITHIN: Duration = Duration::from_secs(1);
/// How often to look whether records have been acknowledged. Slept through: rdkafka's `poll` spins during
/// the last millisecond of its time.
const DELIVERY_POLL: Duration = Duration::from_micros(500);

/// A producer at work. Dropping it ends the thread after its current call.
pub(super) struct Writer {
    jobs: Sender<Job>,
}

struct Job {
    batches: Vec<Arc<Batch>>,
    checkpoint: StoredCheckpoint,
    done: oneshot::Sender<Result<()>>,
}

impl Writer {
    /// Makes a producer, which shuts out all older ones of its name and ends what they left open, and
    /// commits `fence`.
    /// `ends` is where the topics end by what is committed; each write adds to it.
    pub(super) async fn start(
        config: &KafkaConfig,
        row_bytes_max: usize,
        fence: &Fence,
        ends: &Arc<Mutex<Ends>>,
        letters: LetterBox,
    ) -> Result<Self> {
        let (jobs, inbox) = channel();
        let (ready, started) = oneshot::channel();
        let (config, fence, ends) = (config.clone(), fence.clone(), Arc::clone(ends));
        spawn("kafka-producer", move || {
            match Transactions::begin(&config, row_bytes_max, &fence, ends, letters) {
                Ok(transactions) => {
                    if ready.send(Ok(())).is_ok() {
                        serve(transactions, &fence.slot, &inbox);
                    }
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        started.await.map_err(|_| ended())??;
        Ok(Writer { jobs })
    }

    /// Writes the rows, and the slot's checkpoint, in one transaction.
    pub(super) async fn write(&self, batches: &[Arc<Batch>], checkpoint: StoredCheckpoint) -> Result<()> {
        let (done, outcome) = oneshot::channel();
        self.jobs.send(Job { batches: batches.to_vec(), checkpoint, done }).map_err(|_| ended())?;
        outcome.await.map_err(|_| ended())?
    }
}

fn ended() -> Error {
    Error::new(error::Code::KafkaUnreachable, "Kafka: the producer has ended")
}

fn serve(mut transactions: Transactions, slot: &str, inbox: &Receiver<Job>) {
    loop {
        match inbox.recv_timeout(IDLE_POLL) {
            Ok(job) => {
                let outcome = transactions.write_rows(&job.batches, slot, job.checkpoint);
                let failed = outcome.is_err();
                drop(job.done.send(outcome));
                if failed {
                    return;
                }
            }
            Err(RecvTimeoutError::Timeout) => transactions.producer.poll(Duration::ZERO),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Where the producer's thread leaves the rows that are too large, before their transaction is committed.
pub(super) struct LetterBox {
    runtime: Handle,
    state: State,
    session: Session,
}

impl LetterBox {
    /// Of this session; inside a runtime.
    pub(super) fn new(state: State, session: &Session) -> Self {
        LetterBox { runtime: Handle::current(), state, session: session.clone() }
    }

    fn keep(&mut self, letters: &[Letter]) -> Result<()> {
        if letters.is_empty() {
            return Ok(());
        }
        let LetterBox { runtime, state, session } = self;
        runtime.block_on(async {
            let transaction = state.guarded(session).await?;
            dead_letters::insert(&transaction, &session.history_id.uuid, NAME.as_str(), letters).await?;
            transaction.commit().await.map_err(sql::error)
        })
    }
}

struct Transactions {
    producer: BaseProducer<Reports>,
    encoder: Encoder,
    progress_topic: String,
    ends: Arc<Mutex<Ends>>,
    letters: LetterBox,
    topics: [(String, u16); 4],
    timeout: Duration,
}

impl Transactions {
    fn begin(
        config: &KafkaConfig,
        row_bytes_max: usize,
        fence: &Fence,
        ends: Arc<Mutex<Ends>>,
        letters: LetterBox,
    ) -> Result<Self> {
        let settings = config.producer(&config.transactional_id_for(&fence.slot), row_bytes_max);
        let mut this = Transactions {
            producer: settings.create_with_context(Reports::default()).map_err(bad_settings)?,
            encoder: Encoder::new(config, row_bytes_max),
            progress_topic: config.topics().progress,
            ends,
            letters,
            topics: config.partitioning(),
            timeout: config.timeout(),
        };
        this.require_partitions()?;
        let init = this.producer.init_transactions(this.timeout);
        init.map_err(|error| this.failed("begin as a transactional producer", error))?;
        failpoint!("kafka_recover_after_init", blocking);
        this.write(&[], &fence.key(), |_| fence.value())?;
        Ok(this)
    }

    /// A topic that is gone, or was made again with other partitions, is never written to.
    fn require_partitions(&self) -> Result<()> {
        let deadline = Instant::now() + self.timeout.min(TOPICS_KNOWN_WITHIN);
        for (topic, partitions) in &self.topics {
            let mut found = self.partitions(topic, self.timeout)?;
            // a broker that has just started may not know its topics yet
            while found == 0 && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(100));
                found = self.partitions(topic, self.timeout)?;
            }
            if found == 0 {
                self.topic_gone(topic)?;
            }
            if found != usize::from(*partitions) {
                let message = format!("Kafka: topic {topic} has {found} partitions instead of {partitions}");
                return Err(Error::new(error::Code::KafkaTopicUnfit, message));
            }
        }
        Ok(())
    }

    /// librdkafka goes on trying until the time-out when a topic was deleted.
    fn require_topics(&self) -> Result<()> {
        let deadline = Instant::now() + TOPICS_KNOWN_WITHIN;
        for (topic, _) in &self.topics {
            while matches!(self.partitions(topic, LOOK_WITHIN), Ok(0)) {
                if Instant::now() > deadline {
                    self.topic_gone(topic)?;
                    break;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        Ok(())
    }

    /// `prepare` has made the topic, or found it, at the start: was something in it?
    fn topic_gone(&self, topic: &str) -> Result<()> {
        let what = match topic == self.progress_topic {
            true => "a checkpoint",
            false if lock(&self.ends).needs(topic) => "records",
            false => return Ok(()),
        };
        let message = format!("kafka held {what} once and holds none now: topic {topic} was deleted");
        Err(Error::new(error::Code::SinkLostItsData, message).hint(NAME.fresh_start()))
    }

    /// 0 when there is no such topic.
    fn partitions(&self, topic: &str, within: Duration) -> Result<usize> {
        let metadata = self.producer.client().fetch_metadata(Some(topic), within);
        let metadata = metadata.map_err(|error| self.failed("read the topics", error))?;
        Ok(metadata.topics().first().map_or(0, |topic| topic.partitions().len()))
    }

    /// Writes rows and the checkpoint, which says how far the topics reach with them.
    fn write_rows(&mut self, batches: &[Arc<Batch>], slot: &str, checkpoint: StoredCheckpoint) -> Result<()> {
        let ends = self.write(batches, slot, |ends| {
            checkpoint.at(TargetState { ends: ends.to_store(), ..TargetState::default() }).to_json()
        })?;
        *lock(&self.ends) = ends;
        Ok(())
    }

    /// One transaction: the rows, and under `key` a checkpoint, made when all rows are known. Gives where the topics
    /// end now.
    fn write(
        &mut self,
        batches: &[Arc<Batch>],
        key: &str,
        checkpoint: impl FnOnce(&Ends) -> String,
    ) -> Result<Ends> {
        self.producer.begin_transaction().map_err(|error| self.failed("begin a transaction", error))?;
        let mut ends = lock(&self.ends).clone();
        for batch in batches {
            for row in batch.rows() {
                let Some(message) = self.encoder.row(batch, row) else { continue };
                ends.add(message.topic, message.partition, 1);
                send(&self.producer, message)?;
                failpoint!("kafka_after_row", blocking);
            }
        }
        failpoint!("kafka_before_progress", blocking);
        send(&self.producer, self.encoder.progress(key, &checkpoint(&ends)))?;
        self.drain()?;
        self.letters.keep(&self.encoder.refused())?;
        failpoint!("kafka_before_commit", blocking);
        let committed = self.producer.commit_transaction(self.timeout);
        failpoint!("kafka_after_commit", blocking);
        committed.map_err(|error| self.failed("commit a transaction", error))?;
        Ok(ends)
    }

    /// Waits until no record is under way. The flush inside rdkafka's commit would do so in steps of
    /// 100 ms; after this it has nothing left to wait for.
    fn drain(&self) -> Result<()> {
        // a record fails when it is older than the time-out; this only bounds what should not happen
        let deadline = Instant::now() + 2 * self.timeout;
        let mut look_at = Instant::now() + LOOK_EVERY;
        while self.producer.in_flight_count() > 0 {
            if Instant::now() > deadline {
                return Err(self.failed("deliver records", KafkaError::Flush(Code::OperationTimedOut)));
            }
            if Instant::now() > look_at {
                self.require_topics()?;
                look_at = Instant::now() + LOOK_EVERY;
            }
            std::thread::sleep(DELIVERY_POLL);
            delivered(&self.producer)?;
        }
        delivered(&self.producer)
    }

    fn failed(&self, doing: &str, error: KafkaError) -> Error {
        classify(doing, error, self.producer.client().context())
    }
}

fn send(producer: &BaseProducer<Reports>, message: Message<'_>) -> Result<()> {
    let mut record = BaseRecord {
        topic: message.topic,
        partition: Some(message.partition),
        payload: message.payload,
        key: message.key,
        timestamp: None,
        headers: message.headers,
        delivery_opaque: (),
    };
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            // room comes when records are acknowledged, or fail because they are too old
            Err((KafkaError::MessageProduction(Code::QueueFull), back)) => record = back,
            Err((error, _)) => return Err(classify("send a record", error, producer.client().context())),
        }
        std::thread::sleep(DELIVERY_POLL);
        delivered(producer)?;
    }
}

/// An error when a record could not be delivered.
fn delivered(producer: &BaseProducer<Reports>) -> Result<()> {
    producer.poll(Duration::ZERO);
    let reports = producer.client().context();
    match reports.delivery() {
        // what refused the first record is reported behind the records that were dropped because of it
        Some(Code::PurgeQueue | Code::PurgeInflight | Code::InvalidDifferentRecord)
            if producer.in_flight_count() > 0 =>
        {
            Ok(())
        }
        Some(code) => Err(classify("deliver a record", KafkaError::MessageProduction(code), reports)),
        None => Ok(()),
    }
}
