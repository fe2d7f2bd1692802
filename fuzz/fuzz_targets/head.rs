//! Bytes that a stranger sends to the page's port. Whatever they are, the next one who asks is answered.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use walcast::telemetry::metrics;
use walcast::telemetry::registry::StatusRegistry;
use walcast::web::{Web, WebConfig};

static SITE: LazyLock<(Runtime, std::net::SocketAddr)> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let address = runtime.block_on(async {
        let config = WebConfig { listen: "127.0.0.1:0".into(), ..WebConfig::default() };
        let web = Web::bind(&config).await.expect("a port");
        let address = web.address().expect("an address");
        let recorder = metrics::install().expect("the first");
        tokio::spawn(web.serve(StatusRegistry::new(), recorder, std::future::pending()));
        address
    });
    (runtime, address)
});

fuzz_target!(|bytes: &[u8]| {
    let (runtime, address) = &*SITE;
    runtime.block_on(async {
        let mut stranger = TcpStream::connect(address).await.expect("it listens");
        let _ = stranger.write_all(bytes).await;
        let _ = stranger.shutdown().await;
        // some answers are streams that have no end
        let _ = stranger.read(&mut [0; 4096]).await;
        let mut next = TcpStream::connect(address).await.expect("it listens");
        next.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await
            .expect("it reads");
        let mut answer = String::new();
        next.read_to_string(&mut answer).await.expect("it answers");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    });
});
