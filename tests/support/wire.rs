//! A wire before a server that a test can cut, reset, silence or slow down, at any byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::wait_until;

/// What befalls the connections that are open when it is set, and those that are opened while it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// Bytes pass.
    Fair,
    /// Connections end in good order, in the middle of whatever passes; new ones at once.
    Cut,
    /// The same by RST.
    Reset,
    /// New connections end at once, those that are open go on.
    Shut,
    /// Nothing passes any more, not even an end, and nobody is told; these connections stay so when the weather is
    /// fair again.
    Silent,
    /// The same, but only where the client has said its word.
    SilentWhereSaid,
    /// So many bytes a second pass, each way.
    Slow(u32),
}

/// What a wire listens for.
#[derive(Clone, Copy)]
pub struct Words {
    /// Tells connections apart: see [`Weather::SilentWhereSaid`].
    pub client: &'static str,
    /// See [`Wire::server_said`].
    pub server: &'static str,
}

/// The wire. Dropping it leaves its connections to their ends.
pub struct Wire {
    /// Where it listens, on the loopback address.
    pub port: u16,
    line: Arc<Line>,
}

/// What all connections of a wire share.
struct Line {
    weather: watch::Sender<Weather>,
    words: Option<Words>,
    server_said: AtomicBool,
    /// Bytes towards the server, or from it, after which connections break; negative for never.
    requests_left: AtomicI64,
    answers_left: AtomicI64,
    cuts: AtomicU64,
    accepted: AtomicU64,
}

impl Wire {
    /// A wire to this port of the loopback address, which need not be open yet.
    pub async fn to(port: u16) -> Wire {
        Wire::laid(port, None).await
    }

    /// The same, which listens.
    pub async fn listening(port: u16, words: Words) -> Wire {
        Wire::laid(port, Some(words)).await
    }

    async fn laid(port: u16, words: Option<Words>) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let line = Arc::new(Line {
            weather: watch::Sender::new(Weather::Fair),
            words,
            server_said: AtomicBool::new(false),
            requests_left: AtomicI64::new(-1),
            answers_left: AtomicI64::new(-1),
            cuts: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
        });
        let wire = Wire { port: listener.local_addr().unwrap().port(), line: Arc::clone(&line) };
        tokio::spawn(accept(listener, port, line));
        wire
    }

    /// From now on.
    pub fn set(&self, weather: Weather) {
        self.line.weather.send_replace(weather);
    }

    /// Breaks the connection once so many more bytes of requests have passed.
    pub fn cut_requests_after(&self, bytes: i64) {
        self.line.requests_left.store(bytes, Ordering::SeqCst);
    }

    /// Breaks the connection once so many more bytes of answers have passed: with 0 the next request is carried
    /// out and its answer lost.
    pub fn cut_answers_after(&self, bytes: i64) {
        self.line.answers_left.store(bytes, Ordering::SeqCst);
    }

    /// Breaks nothing any more.
    pub fn mend(&self) {
        self.cut_requests_after(-1);
        self.cut_answers_after(-1);
    }

    /// How often a connection was cut at a byte.
    pub fn cuts(&self) -> u64 {
        self.line.cuts.load(Ordering::SeqCst)
    }

    /// How many connections were opened to it.
    pub fn accepted(&self) -> u64 {
        self.line.accepted.load(Ordering::SeqCst)
    }

    /// Returns when the server's word has passed, and with it all that came before on its connection.
    pub async fn server_said(&self) {
        wait_until("the server's word has passed", async || self.line.server_said.load(Ordering::SeqCst))
            .await;
    }
}

async fn accept(listener: TcpListener, port: u16, line: Arc<Line>) {
    while let Ok((client, _)) = listener.accept().await {
        line.accepted.fetch_add(1, Ordering::SeqCst);
        if *line.weather.borrow() == Weather::Shut {
            continue;
        }
        let line = Arc::clone(&line);
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
            let client_said = AtomicBool::new(false);
            let words = line.words.map_or((None, None), |words| (Some(words.client), Some(words.server)));
            let requests = Way {
                line: &line,
                left: &line.requests_left,
                client_said: &client_said,
                ear: words.0.map(|word| Ear::new(word, &client_said)),
            };
            let answers = Way {
                line: &line,
                left: &line.answers_left,
                client_said: &client_said,
                ear: words.1.map(|word| Ear::new(word, &line.server_said)),
            };
            let end = tokio::select! {
                end = requests.carry(&client, &server) => end,
                end = answers.carry(&server, &client) => end,
            };
            if end == Weather::Reset {
                for socket in [&client, &server] {
                    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
                }
            }
        });
    }
}

/// One way through a connection.
struct Way<'a> {
    line: &'a Line,
    left: &'a AtomicI64,
    client_said: &'a AtomicBool,
    ear: Option<Ear<'a>>,
}

impl Way<'_> {
    /// Carries bytes until the connection ends; gives the weather that ended it.
    async fn carry(mut self, from: &TcpStream, to: &TcpStream) -> Weather {
        let mut weather = self.line.weather.subscribe();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let now = *weather.borrow_and_update();
            match now {
                Weather::Cut | Weather::Reset => return now,
                Weather::Silent => std::future::pending::<()>().await,
                Weather::SilentWhereSaid if self.client_said.load(Ordering::SeqCst) => {
                    std::future::pending::<()>().await;
                }
                Weather::Fair | Weather::Shut | Weather::SilentWhereSaid | Weather::Slow(_) => {}
            }
            let readable = tokio::select! {
                readable = from.readable() => readable,
                changed = weather.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return Weather::Cut,
                },
            };
            let most = if let Weather::Slow(bytes) = now {
                (bytes as usize / 20).clamp(1, buffer.len())
            } else {
                buffer.len()
            };
            let read = match readable.and_then(|()| from.try_read(&mut buffer[..most])) {
                Ok(0) => return Weather::Cut,
                Ok(read) => &buffer[..read],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(_) => return Weather::Cut,
            };
            if !self.pass(read, to).await {
                return Weather::Cut;
            }
            if matches!(now, Weather::Slow(_)) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// Whether all of it has passed.
    async fn pass(&mut self, bytes: &[u8], to: &TcpStream) -> bool {
        let allowed = match self.left.load(Ordering::SeqCst) {
            left if left < 0 => bytes.len(),
            left => bytes.len().min(left as usize),
        };
        if write_all(to, &bytes[..allowed]).await.is_err() {
            return false;
        }
        if allowed < bytes.len() {
            self.line.cuts.fetch_add(1, Ordering::SeqCst);
            return false;
        }
        let less = |left: i64| (left >= 0).then(|| left - allowed as i64);
        let _ = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
        if let Some(ear) = &mut self.ear {
            ear.listen(bytes);
        }
        true
    }
}

/// Hears one word, also when it comes in pieces.
struct Ear<'a> {
    word: &'static str,
    heard: &'a AtomicBool,
    before: Vec<u8>,
}

impl<'a> Ear<'a> {
    fn new(word: &'static str, heard: &'a AtomicBool) -> Self {
        Ear { word, heard, before: Vec::new() }
    }

    fn listen(&mut self, bytes: &[u8]) {
        self.before.extend_from_slice(bytes);
        if self.before.windows(self.word.len()).any(|window| window == self.word.as_bytes()) {
            self.heard.store(true, Ordering::SeqCst);
        }
        let old = self.before.len().saturating_sub(self.word.len() - 1);
        self.before.drain(..old);
    }
}

async fn write_all(to: &TcpStream, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
