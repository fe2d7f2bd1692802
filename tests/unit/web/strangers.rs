//! Who may only open connections, or brings a wrong token, keeps nobody else waiting.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Site;

/// A connection on which this was said.
async fn saying(site: &Site, said: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(&site.address).await.unwrap();
    // whoever is refused may be gone already
    let _ = stream.write_all(said).await;
    stream
}

/// All that it is answered until the connection is closed.
async fn answered(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn whoever_asks_is_answered_however_many_say_nothing() {
    let site = Site::start(&[]).await;
    let mut silent = Vec::new();
    for number in 0..300 {
        let said: &[u8] = if number % 2 == 0 { b"GET /livez HTTP/1.1\r\nHost: local" } else { b"" };
        silent.push(saying(&site, said).await);
    }
    let asked = Instant::now();
    assert_eq!(site.get("/livez").await.0, 200);
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    // the first of them had to make room, the last are still there
    let first = tokio::time::timeout(Duration::from_secs(1), answered(silent.swap_remove(0))).await;
    assert_eq!(first.as_deref(), Ok(""));
    let last = silent.pop().unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(100), answered(last)).await.is_err());
}

#[tokio::test]
async fn a_head_that_does_not_end_is_answered_for() {
    let site = Site::start(&[]).await;
    let long = format!("GET /livez HTTP/1.1\r\nHost: localhost\r\nX: {}", "x".repeat(40 << 10));
    let answer = answered(saying(&site, long.as_bytes()).await).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let began = Instant::now();
    let half = answered(saying(&site, b"GET /livez HTTP/1.1\r\n").await).await;
    assert!(half.is_empty() || half.starts_with("HTTP/1.1 408 "), "{half}");
    assert!((9..13).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test]
async fn only_one_host_and_only_http_1_is_understood() {
    let site = Site::start(&[]).await;
    let two = b"GET /api/status HTTP/1.1\r\nHost: localhost\r\nHost: example.com\r\n\r\n";
    let answer = answered(saying(&site, two).await).await;
    assert!(answer.starts_with("HTTP/1.1 421 "), "{answer}");
    let of_http_2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let answer = answered(saying(&site, of_http_2).await).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
}

#[tokio::test]
async fn a_wrong_token_waits_for_its_answer() {
    let site = Site::with_token("127.0.0.1:0", "0123456789abcdef").await;
    let ask = async |token: &str| {
        let began = Instant::now();
        let request = reqwest::Client::new().get(format!("http://{}/api/status", site.address));
        let code = request.bearer_auth(token).send().await.unwrap().status().as_u16();
        (code, began.elapsed())
    };
    let (code, after) = ask("0123456789abcdeX").await;
    assert_eq!(code, 401);
    assert!(after >= Duration::from_millis(500), "{after:?}");
    let (code, after) = ask("0123456789abcdef").await;
    assert_eq!(code, 200);
    assert!(after < Duration::from_millis(400), "{after:?}");
}
