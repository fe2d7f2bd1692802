//! A wire between sink and server that can be cut at any byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use walcast::sink::redis::RedisConfig;

/// Passes bytes on, until it is told to cut.
pub struct Proxy {
    /// How to reach the server through it.
    pub config: RedisConfig,
    faults: Arc<Faults>,
}

#[derive(Default)]
struct Faults {
    /// Bytes towards the server, or from it, after which connections break; negative for never.
    requests_left: AtomicI64,
    answers_left: AtomicI64,
    cuts: AtomicU64,
}

impl Proxy {
    /// A proxy before this server.
    pub async fn before(config: &RedisConfig) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let faults = Arc::new(Faults::default());
        let target = format!("{}:{}", config.host, config.port);
        tokio::spawn(accept(listener, target, Arc::clone(&faults)));
        let config = RedisConfig { host: "127.0.0.1".into(), port, ..config.clone() };
        let proxy = Proxy { config, faults };
        proxy.mend();
        proxy
    }

    /// Breaks the connection once so many more bytes of requests have passed.
    pub fn cut_requests_after(&self, bytes: i64) {
        self.faults.requests_left.store(bytes, Ordering::SeqCst);
    }

    /// Breaks the connection once so many more bytes of answers have passed: with 0 the next request is carried
    /// out and its answer lost.
    pub fn cut_answers_after(&self, bytes: i64) {
        self.faults.answers_left.store(bytes, Ordering::SeqCst);
    }

    /// Lets everything pass again.
    pub fn mend(&self) {
        self.cut_requests_after(-1);
        self.cut_answers_after(-1);
    }

    /// How often a connection was cut.
    pub fn cuts(&self) -> u64 {
        self.faults.cuts.load(Ordering::SeqCst)
    }
}

async fn accept(listener: TcpListener, target: String, faults: Arc<Faults>) {
    while let Ok((client, _)) = listener.accept().await {
        let Ok(server) = TcpStream::connect(&target).await else { continue };
        let faults = Arc::clone(&faults);
        tokio::spawn(async move {
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            tokio::select! {
                () = pass(&mut from_client, &mut to_server, &faults.requests_left, &faults.cuts) => {}
                () = pass(&mut from_server, &mut to_client, &faults.answers_left, &faults.cuts) => {}
            }
        });
    }
}

async fn pass(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    left: &AtomicI64,
    cuts: &AtomicU64,
) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(read) = from.read(&mut buffer).await {
        let allowed = match left.load(Ordering::SeqCst) {
            left if left < 0 => read,
            left => read.min(left as usize),
        };
        if read == 0 || to.write_all(&buffer[..allowed]).await.is_err() {
            return;
        }
        if allowed < read {
            cuts.fetch_add(1, Ordering::SeqCst);
            return;
        }
        let _ = left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| (left >= 0).then(|| left - read as i64));
    }
}
