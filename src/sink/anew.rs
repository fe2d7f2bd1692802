//! How a sink is told to begin anew: to stop, and then from where on it is fed. What it had until then is emptied, or stays.
//!
//! Whoever asks has one end ([`Asker`]), the sink's driver another ([`Anew`]), whoever keeps its lane the third ([`Parting`]): the
//! lane that a sink has when it begins anew was opened after it had stopped, so that it keeps all from there on.

use std::sync::Arc;

use tokio::sync::watch;

use crate::batch::{Batch, BatchBuilder, ContentChange, Row};
use crate::error::Result;
use crate::event::Content;
use crate::lsn::{Checkpoint, Lsn, Position, Session};
use crate::sink::Sink;

/// Rows of contents that are written at once.
const ROWS_MAX: usize = 1_000;

/// What a sink is asked.
#[derive(Clone, Default)]
pub enum Asked {
    /// To go on.
    #[default]
    Nothing,
    /// To give back what it was fed, and to wait.
    Stop,
    /// To begin anew, and to go on from there.
    Begin(Arc<Beginning>),
}

/// What a sink has done of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// Nothing.
    Nothing,
    /// It takes nothing, and waits.
    Stopped,
    /// Its target holds the beginning.
    Begun,
}

/// What a sink begins with.
pub struct Beginning {
    /// What it holds then.
    pub from: Checkpoint,
    /// The contents as they were there.
    contents: Vec<Arc<Content>>,
    /// When that was, microseconds since 1970.
    at: i64,
    /// Whether it keeps the rows that it has.
    keeps_rows: bool,
}

impl Beginning {
    /// At a checkpoint, with the contents as they were there.
    pub fn new(from: Checkpoint, contents: Vec<Arc<Content>>, at: i64) -> Beginning {
        // below whatever comes next
        let before = Position { commit_lsn: Lsn(from.durable_lsn.0.saturating_sub(1)), ordinal: 0 };
        let position = from.position.unwrap_or(before);
        let from = Checkpoint { position: Some(position), ..from };
        Beginning { from, contents, at, keeps_rows: false }
    }

    /// With the rows that the target has.
    pub fn keeping_rows(self, keeps_rows: bool) -> Beginning {
        Beginning { keeps_rows, ..self }
    }

    /// Empties a target, or leaves its rows there, and adds the contents and the checkpoint.
    pub async fn make(&self, sink: &mut dyn Sink, session: &Session) -> Result<()> {
        sink.begin(session, self.keeps_rows).await?;
        sink.write(&[Arc::new(Batch::empty(self.from, false))]).await?;
        for rows in self.contents.chunks(ROWS_MAX) {
            let mut batch = BatchBuilder::new(self.from);
            rows.iter().for_each(|content| batch.push(Row::Content(self.row(content))));
            sink.write(&[Arc::new(batch.finish(false))]).await?;
        }
        sink.flush().await.map(drop)
    }

    fn row(&self, content: &Arc<Content>) -> ContentChange {
        let position = self.from.position.unwrap_or(Position { commit_lsn: Lsn::ZERO, ordinal: 0 });
        ContentChange { position, commit_ts: self.at, id: content.id, after: Some(Arc::clone(content)) }
    }
}

/// The end of whoever asks.
pub struct Asker {
    /// The sink.
    pub name: &'static str,
    /// Its place among the checkpoints.
    pub index: usize,
    asked: watch::Sender<Asked>,
    done: Arc<watch::Sender<Done>>,
    parted: Arc<watch::Sender<bool>>,
}

/// The driver's end.
pub struct Anew {
    asked: watch::Receiver<Asked>,
    done: Arc<watch::Sender<Done>>,
}

/// The end of whoever keeps the lane.
pub struct Parting {
    asked: watch::Receiver<Asked>,
    parted: Arc<watch::Sender<bool>>,
}

/// The three ends for a sink. `stopped`: it begins as one that was asked to stop; `parted`: and that has such a lane already.
pub fn anew(name: &'static str, index: usize, stopped: bool, parted: bool) -> (Asker, Anew, Parting) {
    let (ask, asked) = watch::channel(if stopped { Asked::Stop } else { Asked::Nothing });
    let (done, parted) = (Arc::new(watch::Sender::new(Done::Nothing)), Arc::new(watch::Sender::new(parted)));
    let asker = Asker { name, index, asked: ask, done: Arc::clone(&done), parted: Arc::clone(&parted) };
    (asker, Anew { asked: asked.clone(), done }, Parting { asked, parted })
}

impl Asker {
    /// Stops the sink; returns when it has stopped, and a lane that was opened since keeps what follows.
    pub async fn stop(&mut self) {
        if matches!(*self.asked.borrow(), Asked::Nothing) {
            self.done.send_replace(Done::Nothing);
            self.parted.send_replace(false);
            self.asked.send_replace(Asked::Stop);
        }
        self.wait_for(Done::Stopped).await;
        let _ = self.parted.subscribe().wait_for(|parted| *parted).await;
    }

    async fn wait_for(&self, wanted: Done) {
        // the sender is ours too
        let _ = self.done.subscribe().wait_for(|done| *done == wanted).await;
    }

    /// Has a stopped sink begin anew; returns when its target holds that. It is fed only once it is [`Asker::let_go`].
    pub async fn begin(&mut self, beginning: Arc<Beginning>) {
        self.asked.send_replace(Asked::Begin(beginning));
        self.wait_for(Done::Begun).await;
    }

    /// It goes on as all others do.
    pub fn let_go(&mut self) {
        self.asked.send_if_modified(|asked| {
            let changes = !matches!(asked, Asked::Nothing);
            *asked = Asked::Nothing;
            changes
        });
    }
}

impl Anew {
    /// Whether it is to stop, or to wait on.
    pub fn stops(&self) -> bool {
        match &*self.asked.borrow() {
            Asked::Nothing => false,
            Asked::Stop => true,
            Asked::Begin(_) => *self.done.borrow() == Done::Begun,
        }
    }

    /// What it is to begin with.
    pub fn beginning(&self) -> Option<Arc<Beginning>> {
        match &*self.asked.borrow() {
            Asked::Begin(beginning) if *self.done.borrow() != Done::Begun => Some(Arc::clone(beginning)),
            _ => None,
        }
    }

    /// It has stopped, or waits on.
    pub fn stopped(&self) {
        self.done.send_if_modified(|done| {
            let stops = *done == Done::Nothing;
            if stops {
                *done = Done::Stopped;
            }
            stops
        });
    }

    /// Its target holds the beginning.
    pub fn begun(&self) {
        self.done.send_replace(Done::Begun);
    }

    /// Waits until something else is asked.
    pub async fn changed(&mut self) {
        if self.asked.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl Parting {
    /// Whether the sink is to have a lane that is opened from now on.
    pub fn is_wanted(&mut self) -> bool {
        matches!(*self.asked.borrow_and_update(), Asked::Stop) && !*self.parted.borrow()
    }

    /// It has one.
    pub fn has_parted(&self) {
        self.parted.send_replace(true);
    }

    /// Waits until such a lane is wanted.
    pub async fn wanted(&mut self) {
        while !self.is_wanted() {
            if self.asked.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }
}
