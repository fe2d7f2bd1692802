//! What strangers do who can reach the page and no more.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use walcast::source::sql;

use crate::support::world::{World, http};
use crate::support::{run, wait_until};

/// Half requests more than files may be opened, while the stream needs new connections of its own.
#[tokio::test]
async fn half_requests_keep_neither_a_probe_nor_the_stream_waiting() {
    let world = World::initialised().await;
    let binary = env!("CARGO_BIN_EXE_walcast");
    let few_files = world.file(&format!("#!/bin/sh\nulimit -n 256\nexec '{binary}' \"$@\"\n"));
    std::fs::set_permissions(&few_files, std::fs::Permissions::from_mode(0o700)).unwrap();
    let running = world.with_binary(&few_files).start().await;
    world.insert_events(10).await;
    world.wait_until_all_hold(10).await;
    let (port, before) = (running.port(), running.peak_rss_mb());
    let mut strangers = Vec::new();
    for _ in 0..500 {
        let mut stranger = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        // one that had to make room already hears nobody
        let _ = stranger.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: ").await;
        let _ = stranger.write_all(&[b'x'; 30_000]).await;
        strangers.push(stranger);
    }
    let client = sql::connect(&world.postgres).await.unwrap();
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()";
    let began = Instant::now();
    run(&client, cut).await;
    let asked = Instant::now();
    assert_eq!(http().get(format!("http://127.0.0.1:{port}/livez")).send().await.unwrap().status(), 200);
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    world.insert_events(10).await;
    wait_until("Redis counts all", async || world.redis_plays().await >= 20).await;
    // 2 s where nothing else runs
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert!(running.peak_rss_mb() < before + 20, "{} MB, then {}", before, running.peak_rss_mb());
    drop(strangers);
    world.wait_until_all_hold(20).await;
    world.verify().await;
    running.stop().await;
}

/// A crash leaves no dump, and nobody of the same user reads the passwords: the kernel gives the files of such a process to
/// root.
#[tokio::test]
async fn the_memory_of_a_process_that_knows_passwords_is_its_own() {
    let world = World::initialised().await;
    let binary = env!("CARGO_BIN_EXE_walcast");
    // who runs the tests may be root, whose files are root's anyhow
    let as_nobody = format!(
        "#!/bin/sh\n[ \"$(id -u)\" != 0 ] || exec setpriv --reuid 65534 --regid 65534 --clear-groups '{binary}' \"$@\"\n\
         exec '{binary}' \"$@\"\n"
    );
    let as_nobody = world.file(&as_nobody);
    std::fs::set_permissions(&as_nobody, std::fs::Permissions::from_mode(0o755)).unwrap();
    let running = world.with_binary(&as_nobody).start().await;
    let owner = std::fs::metadata(format!("/proc/{}/environ", running.pid())).unwrap().uid();
    assert_eq!(owner, 0);
    running.stop().await;
}
