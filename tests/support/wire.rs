//! A wire before a server that a test can cut, reset, silence or slow down.

use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What befalls the connections that are open when it is set, and those that are opened while it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// Bytes pass.
    Fair,
    /// Connections end in good order, in the middle of whatever passes; new ones at once.
    Cut,
    /// The same by RST.
    Reset,
    /// Nothing passes any more and nobody is told; these connections stay so when the weather is fair again.
    Silent,
    /// So many bytes a second pass, each way.
    Slow(u32),
}

/// The wire. Dropping it leaves its connections to their ends.
pub struct Wire {
    /// Where it listens, on the loopback address.
    pub port: u16,
    weather: Arc<watch::Sender<Weather>>,
}

impl Wire {
    /// A wire to this port of the loopback address, which need not be open yet.
    pub async fn to(port: u16) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = Wire {
            port: listener.local_addr().unwrap().port(),
            weather: Arc::new(watch::Sender::new(Weather::Fair)),
        };
        tokio::spawn(accept(listener, port, Arc::clone(&wire.weather)));
        wire
    }

    /// From now on.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

async fn accept(listener: TcpListener, port: u16, weather: Arc<watch::Sender<Weather>>) {
    while let Ok((client, _)) = listener.accept().await {
        let weather = weather.subscribe();
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
            let end = tokio::select! {
                end = carry(&client, &server, weather.clone()) => end,
                end = carry(&server, &client, weather) => end,
            };
            if end == Weather::Reset {
                for socket in [&client, &server] {
                    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
                }
            }
        });
    }
}

/// Carries bytes one way until the connection ends; gives the weather that ended it.
async fn carry(from: &TcpStream, to: &TcpStream, mut weather: watch::Receiver<Weather>) -> Weather {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let now = *weather.borrow_and_update();
        match now {
            Weather::Cut | Weather::Reset => return now,
            Weather::Silent => std::future::pending::<()>().await,
            Weather::Fair | Weather::Slow(_) => {}
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
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => return Weather::Cut,
        };
        if write_all(to, &buffer[..read]).await.is_err() {
            return Weather::Cut;
        }
        if matches!(now, Weather::Slow(_)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
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
