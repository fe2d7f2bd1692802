//! A Redis that answers with these bytes, a piece for each time that it is asked; pieces end with the byte 255.
#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use walcast::sink::redis::{RedisConfig, RedisSink};
use walcast::sink::{Leaderboards, SinkAdmin};

const PATIENCE: Duration = Duration::from_millis(2);

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"));

fuzz_target!(|bytes: &[u8]| {
    let bytes = bytes.to_vec();
    RUNTIME.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let config = RedisConfig { port, ..RedisConfig::default() };
        let answering = async {
            while let Ok((mut client, _)) = listener.accept().await {
                for piece in bytes.split(|byte| *byte == u8::MAX) {
                    // who waits for the rest of an answer is told that there is none
                    let mut asked = [0; 65_536];
                    let read = tokio::time::timeout(PATIENCE, client.read(&mut asked)).await;
                    if !matches!(read, Ok(Ok(1..))) || client.write_all(piece).await.is_err() {
                        break;
                    }
                }
            }
        };
        let asking = async {
            let _ = RedisSink::new(config.clone()).check().await;
            let _ = Leaderboards::new(config).top("all").await;
        };
        tokio::select! {
            () = answering => {}
            () = asking => {}
        }
    });
});
