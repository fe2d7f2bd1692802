//! A walsender: it sends the WAL as one does, answers as one does or does not, and holds every status against what
//! is really at the targets.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;
use walcast::lsn::{Lsn, Position};

use super::target::Target;
use super::wal::{Seen, Wal};
use crate::stages::encode::Sent;

/// The loop tells the server where it stands each second, however idle it is.
const STATUS_EVERY_MAX: Duration = Duration::from_millis(1_010);
/// How long after the last sink made it durable a step is confirmed at the latest.
const CONFIRM_WITHIN: Duration = Duration::from_millis(10);

/// How the server behaves in one life.
#[derive(Clone, Copy, Default)]
pub struct Habits {
    /// After so many transactions nothing comes from it any more; it goes on reading.
    pub stops_after: Option<usize>,
    /// It says so, as at its shutdown.
    pub ends: bool,
    /// When all is sent it asks for an answer over and over, as at its shutdown.
    pub waits: bool,
    /// It is never quiet for long.
    pub brisk: bool,
    /// How often it warns before a message.
    pub warns: f64,
}

/// What the server knows of its client.
pub struct Witness {
    targets: Vec<Arc<Mutex<Target>>>,
    rows: Arc<Vec<Seen>>,
    /// What the furthest sink durable at first.
    furthest: Lsn,
    /// No sink fails: what is durable is known to be.
    pub calm: bool,
    heard: Mutex<Heard>,
    /// Where the server has warned, and it is not known yet why.
    doubtful: Mutex<VecDeque<Position>>,
}

#[derive(Debug, Clone, Copy)]
pub struct Heard {
    pub confirmed: Lsn,
    pub status_at: Instant,
    /// When the client last asked for a sign of life.
    pub asked_at: Option<Instant>,
    /// When the server last said something.
    pub said_at: Instant,
    /// Payloads sent beyond what any sink durable at first.
    pub new_bytes: usize,
    /// When it had sent all there is.
    pub all_sent_at: Option<Instant>,
    /// The client has said goodbye.
    pub left: bool,
    /// Warnings, and how many of them are known to be harmless.
    pub doubts_raised: usize,
    pub doubts_settled: usize,
    /// Tells one run from another.
    pub trace: u64,
}

impl Witness {
    pub fn new(targets: &[Arc<Mutex<Target>>], rows: Arc<Vec<Seen>>, confirmed: Lsn, calm: bool) -> Self {
        let now = Instant::now();
        let heard = Heard {
            confirmed,
            status_at: now,
            asked_at: None,
            said_at: now,
            new_bytes: 0,
            all_sent_at: None,
            left: false,
            doubts_raised: 0,
            doubts_settled: 0,
            trace: 0,
        };
        let durable =
            |target: &Arc<Mutex<Target>>| target.lock().unwrap().checkpoint.unwrap_or_default().durable_lsn;
        let furthest = targets.iter().map(durable).max().unwrap_or_default();
        targets.iter().for_each(|target| target.lock().unwrap().doubtful_from = None);
        let (targets, heard) = (targets.to_vec(), Mutex::new(heard));
        Witness { targets, rows, furthest, calm, heard, doubtful: Mutex::default() }
    }

    pub fn heard(&self) -> Heard {
        *self.heard.lock().unwrap()
    }

    /// The server warns before this place: until it is known why, nothing from there on may reach a target.
    fn doubted(&self, from: Position) {
        self.heard.lock().unwrap().doubts_raised += 1;
        self.doubtful().push_back(from);
        self.hold_back();
    }

    /// The first of the warnings is harmless.
    pub fn settled(&self) {
        self.heard.lock().unwrap().doubts_settled += 1;
        self.doubtful().pop_front();
        self.hold_back();
    }

    fn hold_back(&self) {
        let from = self.doubtful().front().copied();
        self.targets.iter().for_each(|target| target.lock().unwrap().doubtful_from = from);
    }

    fn doubtful(&self) -> MutexGuard<'_, VecDeque<Position>> {
        self.doubtful.lock().unwrap()
    }

    /// The client would be late by now with a status.
    pub fn is_overdue(&self) -> bool {
        self.heard().status_at.elapsed() > STATUS_EVERY_MAX
    }

    fn status(&self, written: Lsn, flushed: Lsn, asks: bool) {
        assert!(!self.is_overdue(), "no status for {:?}", self.heard().status_at.elapsed());
        let mut heard = self.heard.lock().unwrap();
        assert!(heard.confirmed <= flushed && flushed <= written, "confirmed {flushed} of {written}");
        let below = self.rows.partition_point(|row| row.position.commit_lsn < flushed);
        for target in &self.targets {
            let target = target.lock().unwrap();
            assert!(target.rows.len() >= below, "confirmed {flushed} is ahead of {}", target.name);
            let late = target.held_since(flushed).map_or(Duration::ZERO, |since| since.elapsed());
            heard.trace = heard.trace.wrapping_mul(31).wrapping_add(late.as_millis() as u64 + flushed.0);
        }
        let held_since = |target: &Arc<Mutex<Target>>| target.lock().unwrap().held_since(flushed);
        if self.calm
            && flushed > heard.confirmed
            && let Some(since) = self.targets.iter().filter_map(held_since).max()
        {
            assert!(since.elapsed() <= CONFIRM_WITHIN, "{flushed} is confirmed after {:?}", since.elapsed());
        }
        heard.confirmed = flushed;
        heard.status_at = Instant::now();
        if asks {
            heard.asked_at = Some(heard.status_at);
        }
    }
}

/// What the client wants of the server.
enum Wish {
    SignOfLife,
    Leave,
}

/// Serves the stream from `from` on, for ever.
pub async fn serve(
    io: DuplexStream,
    wal: &Wal,
    from: Lsn,
    habits: Habits,
    rng: StdRng,
    witness: &Witness,
) -> std::convert::Infallible {
    let (read, write) = tokio::io::split(io);
    let (wish, wishes) = unbounded_channel();
    let mut walsender = Walsender { io: write, wishes, witness, rng, habits, wal_end: from };
    let _ = tokio::join!(hear(read, wish, witness), walsender.send(wal, from));
    std::future::pending().await
}

async fn hear(mut io: ReadHalf<DuplexStream>, wish: UnboundedSender<Wish>, witness: &Witness) {
    while let Ok(tag) = io.read_u8().await {
        let mut body = vec![0; io.read_u32().await.unwrap() as usize - 4];
        io.read_exact(&mut body).await.unwrap();
        let lsn = |at: usize| Lsn(u64::from_be_bytes(body[at..at + 8].try_into().unwrap()));
        match tag {
            b'd' => {
                let asks = body[33] != 0;
                witness.status(lsn(1), lsn(9), asks);
                if asks {
                    let _ = wish.send(Wish::SignOfLife);
                }
            }
            b'c' => {
                witness.heard.lock().unwrap().left = true;
                let _ = wish.send(Wish::Leave);
            }
            b'X' => return,
            _ => panic!("the client says {tag}"),
        }
    }
}

struct Walsender<'a> {
    io: WriteHalf<DuplexStream>,
    wishes: UnboundedReceiver<Wish>,
    witness: &'a Witness,
    rng: StdRng,
    habits: Habits,
    /// Up to here all transactions have been sent.
    wal_end: Lsn,
}

/// The client has gone, or is to hear nothing more.
struct Ended;

impl Walsender<'_> {
    async fn send(&mut self, wal: &Wal, from: Lsn) -> Result<(), Ended> {
        let first = wal.below(from);
        for (index, commit) in wal.commits.iter().enumerate().skip(first) {
            if self.habits.stops_after.is_some_and(|stops_after| index - first >= stops_after) {
                break;
            }
            let mut next = Position { commit_lsn: commit.lsn, ordinal: 0 };
            for message in commit.messages(index == first) {
                if self.rng.random_bool(self.habits.warns) {
                    self.witness.doubted(next);
                    let fields = b"SWARNING\0VWARNING\0C55000\0Msomething is strange\0\0";
                    self.say(&packet(b'N', fields)).await?;
                }
                let ends = matches!(message, Sent::Commit { .. });
                next.ordinal += u64::from(matches!(message, Sent::Insert { .. }));
                self.data(if ends { commit.end } else { commit.lsn }, &message.encode()).await?;
                if !ends && self.rng.random_bool(0.02) {
                    // inside a transaction this says nothing of it
                    self.keepalive(Lsn(commit.lsn.0 + 1), false).await?;
                    self.pause(5).await?;
                }
            }
            self.wal_end = commit.end;
            let next = wal.commits.get(index + 1).map_or(wal.end, |next| next.lsn);
            self.linger(next).await?;
        }
        if self.habits.ends {
            return self.say(&packet(b'c', &[])).await;
        }
        if self.habits.stops_after.is_some() {
            return Ok(());
        }
        self.wal_end = self.wal_end.max(wal.end);
        self.keepalive(self.wal_end, false).await?;
        self.witness.heard.lock().unwrap().all_sent_at = Some(Instant::now());
        loop {
            self.pause(if self.habits.waits { 300 } else { 10_000 }).await?;
            self.keepalive(self.wal_end, self.habits.waits).await?;
        }
    }

    /// Between two transactions.
    async fn linger(&mut self, next: Lsn) -> Result<(), Ended> {
        if self.rng.random_bool(0.2) {
            self.wal_end = Lsn(self.rng.random_range(self.wal_end.0..=next.0));
            let asks = self.rng.random_bool(0.1);
            self.keepalive(self.wal_end, asks).await?;
        }
        if self.rng.random_bool(0.3) {
            let millis = self.rng.random_range(0..20);
            self.pause(millis).await?;
        }
        if !self.habits.brisk && self.rng.random_bool(0.02) {
            let millis = self.rng.random_range(1_000..100_000);
            self.pause(millis).await?;
        }
        Ok(())
    }

    /// Says nothing for so long, unless it is asked to.
    async fn pause(&mut self, millis: u64) -> Result<(), Ended> {
        let until = Instant::now() + Duration::from_millis(millis);
        loop {
            let wish = tokio::select! {
                biased;
                wish = self.wishes.recv() => wish,
                () = tokio::time::sleep_until(until) => return Ok(()),
            };
            match wish {
                Some(Wish::SignOfLife) => self.keepalive(self.wal_end, false).await?,
                Some(Wish::Leave) => {
                    let goodbye = [packet(b'c', &[]), packet(b'C', b"COPY 0\0"), packet(b'Z', b"I")];
                    self.say(&goodbye.concat()).await?;
                    return Err(Ended);
                }
                None => return Err(Ended),
            }
        }
    }

    async fn data(&mut self, lsn: Lsn, payload: &[u8]) -> Result<(), Ended> {
        let head = [b"w", &lsn.0.to_be_bytes()[..], &lsn.0.to_be_bytes(), &[0; 8]].concat();
        self.say(&packet(b'd', &[&head, payload].concat())).await?;
        if lsn > self.witness.furthest {
            self.witness.heard.lock().unwrap().new_bytes += payload.len();
        }
        if self.wishes.is_empty() { Ok(()) } else { self.pause(1).await }
    }

    async fn keepalive(&mut self, wal_end: Lsn, asks: bool) -> Result<(), Ended> {
        let body = [b"k", &wal_end.0.to_be_bytes()[..], &[0; 8], &[u8::from(asks)]].concat();
        self.say(&packet(b'd', &body)).await
    }

    async fn say(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        self.io.write_all(bytes).await.map_err(|_| Ended)?;
        self.witness.heard.lock().unwrap().said_at = Instant::now();
        Ok(())
    }
}

fn packet(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag], &(4 + body.len() as u32).to_be_bytes()[..], body].concat()
}
