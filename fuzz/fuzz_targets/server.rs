//! A server that says these bytes, whatever it is asked: from the greeting to the stream. The first byte is whether the connection
//! could be bound to a certificate.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tokio::io::AsyncWriteExt;
use walcast::lsn::Lsn;
use walcast::source::PostgresConfig;
use walcast::source::auth::Security;
use walcast::source::connection::Connection;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, said)) = bytes.split_first() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let (ours, mut server) = tokio::io::duplex(said.len().max(1) + (1 << 16));
        server.write_all(said).await.expect("there is room");
        server.shutdown().await.expect("it is open");
        let security = match kind % 2 {
            0 => Security::Plain,
            _ => Security::Tls { end_point: Some(vec![7; 32]) },
        };
        let config = PostgresConfig {
            user: "walcast".to_owned(),
            password: "secret".to_owned().into(),
            allow_md5: kind & 2 != 0,
            ..PostgresConfig::default()
        };
        let Ok(mut connection) = Connection::over(ours, &config, &security).await else { return };
        if kind & 4 != 0 {
            let _ = connection.identify_system().await;
            let _ = connection.timeline_history(2).await;
            let _ = connection.create_temporary_slot("walcast").await;
        }
        let Ok(mut stream) = connection.start_replication("walcast", "walcast", Lsn(1)).await else { return };
        loop {
            match stream.next_frame() {
                Ok(Some(_)) => {}
                Ok(None) if stream.fill().await.is_ok() => {}
                _ => return,
            }
        }
    });
});
