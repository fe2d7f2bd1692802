//! An HTTP target in this process that can fail in every way a real one can, and that notes what it is sent.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::Value;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use walcast::lsn::{Lsn, Position};

/// What is done with a request in place of taking it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It is answered with this status and header, and not taken.
    Answer(u16, &'static str),
    /// It is taken, and the connection ends without an answer.
    LoseAnswer,
    /// The connection ends before it is read.
    Cut,
    /// The connection is reset before it is read.
    Reset,
    /// It is taken, and the answer's body never ends.
    SlowBody,
    /// It is taken, and answered only after [`HttpServer::calm`].
    Hold,
    /// It is not taken, and answered only after [`HttpServer::calm`], with 503.
    HoldUntaken,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Posted {
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
    pub at: Instant,
    /// Whether it was taken.
    pub taken: bool,
}

impl Posted {
    pub fn id(&self) -> &str {
        self.headers.get("webhook-id").map_or("", String::as_str)
    }

    /// The body before it was compressed.
    fn payload(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        match self.headers.get("content-encoding").map(String::as_str) {
            Some("gzip") if self.body.starts_with(&[0x1f, 0x8b]) => {
                flate2::read::GzDecoder::new(&self.body[..]).read_to_end(&mut payload).unwrap();
            }
            _ => payload.clone_from(&self.body),
        }
        payload
    }

    /// The plain records in it: one, an array, or lines.
    pub fn records(&self) -> Vec<Value> {
        let body = self.payload();
        match serde_json::from_slice(&body) {
            Ok(Value::Array(records)) => records,
            Ok(record) => vec![record],
            Err(_) => {
                let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
                lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
            }
        }
    }
}

/// Which requests are refused: with this status, each that has an event of which this is true.
type Refuses = Box<dyn Fn(&Value) -> Option<u16> + Send>;

#[derive(Default)]
struct State {
    posted: Vec<Posted>,
    /// By id, the first body.
    bodies: HashMap<String, Vec<u8>>,
    /// What was taken, a repeat left out.
    events: Vec<(Position, Value)>,
    positions: HashSet<Position>,
    faults: VecDeque<Fault>,
    always: Option<Fault>,
    refuses: Option<Refuses>,
    wrong: Vec<String>,
}

/// The target; it ends when dropped.
pub struct HttpServer {
    address: String,
    state: Arc<Mutex<State>>,
    calmed: Arc<Notify>,
    came: Arc<Notify>,
    accepting: JoinHandle<()>,
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl HttpServer {
    pub async fn start() -> HttpServer {
        HttpServer::with_tls(None).await
    }

    pub async fn with_tls(tls: Option<TlsAcceptor>) -> HttpServer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https://localhost" } else { "http://127.0.0.1" };
        let address = format!("{scheme}:{}", listener.local_addr().unwrap().port());
        let (state, calmed, came) =
            (Arc::<Mutex<State>>::default(), Arc::<Notify>::default(), Arc::<Notify>::default());
        let served = (Arc::clone(&state), Arc::clone(&calmed), Arc::clone(&came));
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (state, calmed, came) = served.clone();
                let tls = tls.clone();
                connections.spawn(async move {
                    let raw = Reset(SockRef::from(&stream).try_clone().unwrap());
                    match tls {
                        None => serve(stream, raw, &state, &calmed, &came).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve(stream, raw, &state, &calmed, &came).await,
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        HttpServer { address, state, calmed, came, accepting }
    }

    pub fn url(&self) -> String {
        format!("{}/hook?token=canary", self.address)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The next request meets this; those given before it come first.
    pub fn next(&self, fault: Fault) {
        self.state().faults.push_back(fault);
    }

    /// Every request meets this.
    pub fn always(&self, fault: Fault) {
        self.state().always = Some(fault);
    }

    /// Requests with such events are refused.
    pub fn refuses(&self, refuses: impl Fn(&Value) -> Option<u16> + Send + 'static) {
        self.state().refuses = Some(Box::new(refuses));
    }

    /// Nothing goes wrong any more, but for what is refused.
    pub fn calm(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.always = None;
        drop(state);
        self.calmed.notify_waiters();
    }

    /// All requests so far.
    pub fn posted(&self) -> Vec<Posted> {
        self.state().posted.clone()
    }

    /// The same, each body as it was before it was compressed.
    pub fn posted_plainly(&self) -> Vec<Posted> {
        let plain = |posted: Posted| Posted { body: posted.payload(), ..posted };
        self.posted().into_iter().map(plain).collect()
    }

    /// Returns when a request comes.
    pub async fn reached(&self) {
        self.came.notified().await;
    }

    /// The events that were taken, a repeat left out, in the order in which they came.
    pub fn events(&self) -> Vec<(Position, Value)> {
        self.state().events.clone()
    }

    /// Their ids.
    pub fn event_ids(&self) -> BTreeSet<i64> {
        self.state().events.iter().map(|(_, record)| record["event_id"].as_i64().unwrap()).collect()
    }

    /// What no target may ever see did not come: an id with other bytes, a content's events in another order.
    pub fn check(&self) {
        assert!(self.state().wrong.is_empty(), "{:?}", self.state().wrong);
        let mut last: BTreeMap<String, Position> = BTreeMap::new();
        for (position, record) in self.events() {
            let Some(content) = record["content_id"].as_str() else { continue };
            if let Some(before) = last.insert(content.to_owned(), position) {
                assert!(before < position, "{content}: {position} came after {before}");
            }
        }
    }
}

/// A connection's socket, to end it roughly.
struct Reset(socket2::Socket);

impl Reset {
    fn reset(&self) {
        let _ = self.0.set_linger(Some(Duration::ZERO));
    }
}

/// One connection: a request after the other. `None` when it ends.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    raw: Reset,
    state: &Mutex<State>,
    calmed: &Notify,
    came: &Notify,
) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut posted = read(&mut stream).await?;
        let calm = calmed.notified();
        let fault = judge(&mut state.lock().unwrap(), &mut posted);
        came.notify_waiters();
        let answer = match fault {
            None => "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
            Some(Fault::Answer(status, header)) => {
                format!("HTTP/1.1 {status} X\r\ncontent-length: 9\r\n{header}\r\ncanary!!!")
            }
            Some(Fault::LoseAnswer | Fault::Cut) => return None,
            Some(Fault::Reset) => {
                raw.reset();
                return None;
            }
            Some(Fault::SlowBody) => "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf".to_owned(),
            Some(Fault::Hold) => {
                calm.await;
                "HTTP/1.1 204 No Content\r\n\r\n".to_owned()
            }
            Some(Fault::HoldUntaken) => {
                calm.await;
                "HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n".to_owned()
            }
        };
        stream.write_all(answer.as_bytes()).await.ok()?;
        stream.flush().await.ok()?;
    }
}

/// Notes the request, and decides what becomes of it.
fn judge(state: &mut State, posted: &mut Posted) -> Option<Fault> {
    if !posted.id().is_empty() {
        let before = state.bodies.entry(posted.id().to_owned()).or_insert_with(|| posted.body.clone());
        if *before != posted.body {
            state.wrong.push(format!("{} came with other bytes", posted.id()));
        }
    }
    let fault = state.faults.pop_front().or(state.always.clone());
    let refused = || {
        let refuses = state.refuses.as_ref()?;
        let status = posted.records().iter().find_map(refuses)?;
        Some(Fault::Answer(status, ""))
    };
    let fault = fault.or_else(refused);
    posted.taken = matches!(fault, None | Some(Fault::LoseAnswer | Fault::SlowBody | Fault::Hold));
    if posted.taken {
        for record in posted.records() {
            let lsn: Lsn = record["commit_lsn"].as_str().unwrap().parse().unwrap();
            let position = Position { commit_lsn: lsn, ordinal: record["ordinal"].as_u64().unwrap() };
            if state.positions.insert(position) {
                state.events.push((position, record));
            }
        }
    }
    state.posted.push(posted.clone());
    fault
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Option<Posted> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Posted { path, headers, body, at: Instant::now(), taken: false })
}
