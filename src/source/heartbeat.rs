//! The source's own watch: every 10 s a heartbeat through the WAL, every 5 s a look whether the publication is still
//! what the slot was made for, and at once when the walsender warns: PostgreSQL 18 skips rows of a missing publication,
//! and warns only once. It looks up control messages too, on the same ordinary session.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_postgres::Client;

use crate::clock::ServerClock;
use crate::error::{Code, Error, Result};
use crate::source::request::{self, Found, Request, Ticket};
use crate::source::server_error::ServerError;
use crate::source::slot::{Publication, PublicationIdentity};
use crate::source::{PostgresConfig, slot, sql, synchrony};

/// Prefix of our logical messages.
pub const PREFIX: &str = "walcast";

const HEARTBEAT_EVERY: Duration = Duration::from_secs(10);
/// What was done to the publication is to be told within ten seconds.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Where PostgreSQL's source has the output plugin: what that warns of, it has left out.
const PLUGIN: &str = "pgoutput.c";

/// The stream's end of its talk with the [`Watch`]: a question out, and its answer back.
#[derive(Debug)]
pub struct Doubts {
    raised: mpsc::Sender<Doubt>,
    settled: mpsc::Receiver<Answer>,
    pending: bool,
}

/// What the stream cannot tell by itself.
#[derive(Debug)]
pub enum Doubt {
    /// What a warning of the walsender means.
    Warning(ServerError),
    /// Whose a control message is.
    Ticket(Ticket),
}

/// What was found out.
#[derive(Debug)]
pub enum Answer {
    /// No rows are left out; this is what the warning was about.
    Harmless(String),
    /// The request of the control message; `None`: it is not ours.
    Request(Option<Arc<Request>>),
}

/// The other end of the talk: who finds out.
#[derive(Debug)]
pub struct Answers {
    raised: mpsc::Receiver<Doubt>,
    settled: mpsc::Sender<Answer>,
}

/// Both ends of a talk.
pub fn doubts() -> (Doubts, Answers) {
    // never more than one question waits for its answer
    let ((raise, raised), (settle, settled)) = (mpsc::channel(1), mpsc::channel(1));
    (Doubts { raised: raise, settled, pending: false }, Answers { raised, settled: settle })
}

/// What looks after the source on a session of its own.
#[derive(Debug)]
pub struct Watch {
    /// What the slot was made for.
    publication: PublicationIdentity,
    /// Set right with every heartbeat.
    clock: ServerClock,
    answers: Answers,
}

impl Doubts {
    /// Asks. A watch that has ended says why by itself.
    pub fn raise(&mut self, doubt: Doubt) {
        self.pending = true;
        let _ = self.raised.try_send(doubt);
    }

    /// Whether a question waits for its answer: what the stream brings after a warning may lack rows, and what comes after
    /// a control message comes after what that asks for.
    pub fn is_pending(&self) -> bool {
        self.pending
    }

    /// Waits for the answer. Cancel safe.
    pub async fn settled(&mut self) -> Answer {
        match self.settled.recv().await {
            Some(answer) => {
                self.pending = false;
                answer
            }
            None => std::future::pending().await,
        }
    }
}

impl Answers {
    /// The next question. Cancel safe.
    pub async fn raised(&mut self) -> Doubt {
        match self.raised.recv().await {
            Some(doubt) => doubt,
            // a stream that has ended asks nothing
            None => std::future::pending().await,
        }
    }

    /// Answers whose a control message is; gives it back when that cannot be told yet.
    pub async fn look_up(&self, client: &Client, ticket: Ticket) -> Result<Option<Ticket>> {
        match request::look(client, ticket).await? {
            Found::NotYet => return Ok(Some(ticket)),
            Found::Nothing => self.settle(Answer::Request(None)),
            Found::Request(request) => self.settle(Answer::Request(Some(Arc::new(request)))),
        }
        Ok(None)
    }

    /// Answers the last question.
    pub fn settle(&self, answer: Answer) {
        // a stream that has ended does not mind
        let _ = self.settled.try_send(answer);
    }
}

impl Watch {
    /// A watch over a stream of this publication, and the stream's end of their talk.
    pub fn new(publication: PublicationIdentity, clock: ServerClock) -> (Watch, Doubts) {
        let (doubts, answers) = doubts();
        (Watch { publication, clock, answers }, doubts)
    }

    /// Runs until the session is lost or something is wrong with the source; gives the reason. The end of this
    /// ordinary session is also how a shutdown of the server is noticed: the stream itself is held open by the
    /// server until we have confirmed all, which sinks with their checkpoints in that database no longer can.
    pub async fn run(self, config: &PostgresConfig) -> Error {
        match self.watching(config).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    /// Says what warnings mean and whose control messages are, and watches nothing else: of a stream beside one that is watched. Gives what is wrong.
    pub async fn answer(mut self, config: &PostgresConfig) -> Error {
        loop {
            let doubt = self.answers.raised().await;
            let judged = async {
                let client = sql::connect(config).await?;
                Ok(match doubt {
                    Doubt::Warning(warning) => Answer::Harmless(self.judge(&client, config, &warning).await?),
                    Doubt::Ticket(ticket) => Answer::Request(request::find(&client, ticket).await?),
                })
            };
            match judged.await {
                Ok(answer) => self.answers.settle(answer),
                Err(error) => return error,
            }
        }
    }

    async fn watching(mut self, config: &PostgresConfig) -> Result<Infallible> {
        let (client, mut session_ended) = sql::connect_watched(config).await?;
        // a heartbeat that waits for a standby would keep us from answering
        client.batch_execute("SET synchronous_commit = local").await.map_err(sql::error)?;
        let mut heartbeat_due = tokio::time::interval(HEARTBEAT_EVERY);
        let mut look_due = tokio::time::interval(LOOK_EVERY);
        heartbeat_due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look_due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut beating = true;
        let mut ticket = None;
        let mut ticket_due = tokio::time::interval(request::LOOK_EVERY);
        ticket_due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                ended = &mut session_ended => return Err(ended.unwrap_or_else(|_| Error::new(Code::PostgresUnreachable, "the SQL session ended"))),
                doubt = self.answers.raised() => match doubt {
                    Doubt::Warning(warning) => {
                        let meaning = self.judge(&client, config, &warning).await?;
                        self.answers.settle(Answer::Harmless(meaning));
                    }
                    Doubt::Ticket(asked) => ticket = self.answers.look_up(&client, asked).await?,
                },
                _ = ticket_due.tick(), if ticket.is_some() => {
                    if let Some(asked) = ticket.take() {
                        ticket = self.answers.look_up(&client, asked).await?;
                    }
                }
                _ = heartbeat_due.tick() => beating = self.tend(&client, beating).await?,
                _ = look_due.tick() => self.look(&client, config).await?,
            }
        }
    }

    /// Sends a heartbeat if our role may; says so once if it may not, and goes on without. A grant mends it at the next.
    async fn tend(&self, client: &Client, beating: bool) -> Result<bool> {
        // before it, so that its own age is told by what the clock shows then
        ask_clock(client, &self.clock).await?;
        let allowed = may_beat(client).await?;
        if allowed {
            beat(client).await?;
            return Ok(true);
        }
        // nothing else will tell from where on the WAL is dated by it
        self.clock.turn();
        if beating {
            tracing::warn!(
                "the role may not write heartbeats, so walcast goes on without them: it cannot tell how old what it \
                 has received is; `walcast check` has the statement that allows them"
            );
        }
        Ok(false)
    }

    async fn look(&self, client: &Client, config: &PostgresConfig) -> Result<()> {
        synchrony::check(client).await?;
        let published = published(client, config).await?;
        match published.identity == self.publication {
            true => Ok(()),
            false => Err(dropped(config)),
        }
    }

    /// What a warning of the walsender is about; kind `Resync` when it leaves out rows. The catalog decides, for the
    /// SQLSTATEs are the same. A publication that was renamed and has its name back looks like itself there: what the
    /// output plugin warns of is a loss whatever the catalog shows.
    async fn judge(&self, client: &Client, config: &PostgresConfig, warning: &ServerError) -> Result<String> {
        self.look(client, config).await?;
        if warning.file == PLUGIN {
            return Err(dropped(config));
        }
        Ok(match slot::missing_standbys(client).await?.as_slice() {
            [] => format!("PostgreSQL warns: {warning}"),
            names => format!(
                "PostgreSQL waits for the standby of slot {}, which synchronized_standby_slots names: until it has the \
                 WAL, nothing is sent; nothing is lost",
                names.join(", ")
            ),
        })
    }
}

/// The publication; kind `Resync` when it is not as it must be, since rows may have been left out by now.
async fn published(client: &Client, config: &PostgresConfig) -> Result<Publication> {
    match slot::publication(client, config).await {
        Ok(Some(Publication { fault: Some(fault), .. })) => {
            Err(Error::new(Code::PublicationChanged, format!("{fault}: rows may be missing from the sinks"))
                .hint(format!("{}; then bring the sinks level with PostgreSQL", fault.advice())))
        }
        Ok(Some(publication)) => Ok(publication),
        Ok(None) => Err(dropped(config)),
        Err(error) => Err(error),
    }
}

fn dropped(config: &PostgresConfig) -> Error {
    let message = format!(
        "publication {0}, or a table in it, was dropped (and perhaps put back) while streaming",
        config.publication
    );
    Error::new(Code::PublicationChanged, message).hint(
        "the next `walcast run` refuses to start, and says what mends it: the slot cannot read past that place",
    )
}

/// Asks the server what its clock shows.
pub async fn ask_clock(client: &Client, clock: &ServerClock) -> Result<()> {
    let query = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    let statement = client.prepare(query).await.map_err(sql::error)?;
    let asked = Instant::now();
    let row = client.query_one(&statement, &[]).await.map_err(sql::error)?;
    clock.showed(sql::get(&row, 0)?, asked, Instant::now());
    Ok(())
}

/// Whether our role may write a heartbeat. PostgreSQL 17 has given the function one more argument.
pub async fn may_beat(client: &Client) -> Result<bool> {
    let row = client.query_one(include_str!("../../sql/may_beat.sql"), &[]).await.map_err(sql::error)?;
    sql::get(&row, 0)
}

/// Sends one heartbeat through the WAL. On a standby nothing can be written; there the keepalives' WAL end moves
/// the checkpoints.
pub async fn beat(client: &Client) -> Result<()> {
    let sent = client
        .execute(
            "SELECT CASE WHEN NOT pg_is_in_recovery()
               THEN pg_logical_emit_message(true, $1, (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint::text) END",
            &[&PREFIX],
        )
        .await;
    sent.map(drop).map_err(sql::error)
}
