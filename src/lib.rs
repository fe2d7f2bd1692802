//! walcast: engagement events from PostgreSQL's WAL to Kafka, Redis and BigQuery, exactly once, and over HTTP.
//!
//! # The way of an event
//!
//! ```text
//! PostgreSQL walsender
//!   └ source::connection, stream   TCP or TLS, SCRAM, START_REPLICATION   → CopyData
//!     └ source::frame              XLogData | Keepalive                   → payload, a slice of the read buffer
//!       └ pgoutput                 Message → Relation, Tuple              → a change at a Position
//!         └ model                  → Content | Engagement                 as `event::schema` lists the columns
//!           └ transform            join with the content cache            → Event
//!             └ batch              rows and their texts, bounded by rows, bytes and age → Arc<Batch>
//!   ══ sink::queue, bounded by bytes ══▶ sink::driver → content, and the sinks listed in `sinks`
//!   ◀═ watch of each sink's durable checkpoint ══ watermark: the lowest durable LSN → confirmed → status update
//! ```
//!
//! Open [`pipeline`] first: it tells how a stream begins; [`streaming`] is the loop that carries it. From socket
//! buffer to batch it is plain synchronous code in one task ([`transform::Transform`]); each sink has a task of its
//! own ([`sink::driver`]). There are two crossings between them and no others: the queues out, the watch of checkpoints
//! back.
//!
//! # The promise, and what carries it
//!
//! Every committed event reaches every sink; none twice; per content in commit order; kill -9 at any instant
//! changes none of this.
//!
//! - **An event's name is its [`lsn::Position`]**: commit LSN and ordinal within the transaction. It is the
//!   same at every replay. The LSN of its own WAL record is neither unique nor monotonic and is used for
//!   nothing.
//! - **Data and [`lsn::Checkpoint`] in one atomic act**: each sink stores how far it reaches together with the rows
//!   themselves. At start, and after every doubtful outcome, it asks its target instead of remembering.
//!   An HTTP target cannot keep one: there the checkpoint follows the answers, and every repeat has the id of the first
//!   ([`sink::http`]).
//! - **The confirmed LSN is the lowest durable LSN of all sinks**, computed in [`watermark`] alone. There is no
//!   second way to it: heartbeats and the idle server's WAL end travel as batches without rows.
//! - **A sink that falls behind leaves the others** ([`streaming`]'s seats, [`lanes`]): a copy of the slot keeps what it lacks from before
//!   it stops counting for the confirmed LSN until it holds all that this was confirmed up to. What feeds a sink is a row of queues,
//!   each of which says what it follows on, so that no change of streams leaves a gap; rows that come twice are passed over.
//! - **Rows of before come through the WAL too** ([`backfill`]): copied into requests, whose messages in the stream give them their
//!   place, so that each sink takes them once by its ordinary checkpoint, as it does rows that are sent again.
//! - **A sink that has lost its data begins anew beside the others** ([`sink::anew`]): from a checkpoint of the content versions, after
//!   which the ids that come are marked; all other rows are brought as rows of before are. What keeps sums is counted anew, as of one
//!   place in the WAL ([`backfill::recount`]).
//! - **A target that fails is left alone** ([`sink::breaker`]): its errors are that sink's trouble; what concerns the source or
//!   another walcast ends the life of all.
//! - **The content rows are a sink too** ([`sink::content`]): a replayed event is joined with the content row
//!   as of its own place in the stream, so every sink gets the same record. The rows that no sink can take are kept
//!   there as well, before the slot is confirmed beyond them.
//! - **A history id names the history** that LSNs belong to ([`lsn::HistoryId`]); checkpoints of different history ids are never
//!   compared. On a new timeline, the server's history says how far a checkpoint of the former one counts.
//!   **A token** taken from PostgreSQL at start shuts older instances out of every target.
//! - **Two tables, whatever they are called** ([`event::place`]): where they are, what their columns are called, and what of them
//!   is published, for the stream and for SQL alike. What the source does to rows that went out is kept by id
//!   ([`state::marks`]), so that whoever compares can tell it from a fault.
//! - **Columns that walcast does not know pass through** ([`event::extra`]): read once, from their binary form, and written as
//!   JSON into the batch's arena; [`batch::ExtraSince`] tells which events have which, so that BigQuery's table can follow.
//! - **What tells of people goes by rules** ([`event::privacy`]): kept, left out or a pseudonym, decided where a row becomes an
//!   event or a content of ours, so that no sink, no dead letter and no state of walcast ever has more.
//! - **What cannot be made whole is refused** with both positions: a sink is left alone, and with no other left it is exit
//!   code 4. [`resume`] alone judges where a sink goes on: not below the slot, not without the checkpoint that it had, not
//!   beyond the server's WAL, not from another history. What is read again must be the stream that the sinks were fed from
//!   ([`continuity`]).
//! - **A failure has a code** ([`error::Code`]) that keeps its meaning in every version; one table explains each.
//! - **What an event consists of stands once** ([`event::schema`]); encodings write and read it ([`event::encoding`]).
//! - **It is watched from outside**: [`telemetry::lag`] asks PostgreSQL once a second who holds its WAL; heartbeats are
//!   timed through it until each sink holds their place. `monitoring/` has the alerts on both, `docs/runbook.md` what to do.
//! - **It can be looked at**: [`telemetry::registry`] is where all parts say how they are, [`telemetry::live`] makes
//!   figures and the last hour of it once a second, [`web`] shows them. Nothing of it is in the way of an event.
//! - **It can be looked at beforehand**: [`ops::check`] asks every server, changes nothing and shuts nobody out.
//! - **It can be proved**: [`ops::verify`] compares PostgreSQL, as of a temporary slot's snapshot, with every
//!   sink.
//!
//! # Deliberately absent
//!
//! - No state on the local disk, no log of our own: slots are the queues, the targets are the state.
//! - No partial restart: a lost connection to the source begins [`pipeline`] anew. A sink that lost accepted rows reads its own slot.
//! - No silent making of a slot, topic or table in place of one that was there before.
//! - `pgoutput` and `model` know no IO, no clock and no tokio; sinks know no other sink.
//!
//! # Imports
//!
//! Modules use only what stands above them in this file; `tests/unit/architecture.rs` keeps it so.
#![forbid(unsafe_code)]

pub mod error;
mod failpoint;
pub mod lsn;
pub mod resume;
pub mod finding;
mod hop;
pub mod secret;
pub mod shutdown;
pub mod quote;
pub mod size;
pub mod clock;
pub mod pgoutput;
pub mod event;
pub mod model;
pub mod source;
pub mod state;
pub mod telemetry;
pub mod batch;
pub mod transform;
pub mod watermark;
pub mod continuity;
pub mod sink;
pub mod streaming;
pub mod generate;
pub mod web;
pub mod config;
pub mod sinks;
pub mod lanes;
pub mod backfill;
pub mod pipeline;
pub mod ops;
