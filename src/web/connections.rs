//! Takes connections, so many and no more, and answers one request on each.
//!
//! Who opens connections and says nothing must not keep out who asks something. So a connection that has not been given an
//! answer yet makes room for a newer one, the oldest first; one that has asked nothing for ten seconds is closed. A request
//! that is refused, for its token or its name, counts as none. HTTP/1.1 alone is spoken.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use crate::telemetry::log_throttle::LogThrottle;

/// How many there are at most: small beside what a process may open, and the stream needs some of that.
const CONNECTIONS_MAX: usize = 128;
/// How long a request's head may take.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// The largest head, in bytes.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// How long nobody is taken after the system has given no connection.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Those who have asked nothing yet that was answered, by when they came. Dropping one's sender ends its connection.
#[derive(Default)]
struct Unanswered {
    waiting: Mutex<BTreeMap<u64, oneshot::Sender<()>>>,
}

impl Unanswered {
    fn came(&self, number: u64) -> oneshot::Receiver<()> {
        let (leave, left) = oneshot::channel();
        self.lock().insert(number, leave);
        left
    }

    /// Keeps it, or forgets it when it has gone.
    fn forget(&self, number: u64) {
        if let Some(leave) = self.lock().remove(&number) {
            // not by dropping it, which would end an answer that has begun
            let _ = leave.send(());
        }
    }

    /// Ends the oldest. Whether there was one.
    fn end_oldest(&self) -> bool {
        self.lock().pop_first().is_some()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, oneshot::Sender<()>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers by `router` until `shutdown`, then completes the answers that have begun.
pub async fn serve(listener: TcpListener, router: Router, shutdown: impl Future<Output = ()>) {
    let mut shutdown = std::pin::pin!(shutdown);
    let (room, unanswered) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), Arc::new(Unanswered::default()));
    let (mut connections, mut throttle) = (JoinSet::new(), LogThrottle::default());
    for number in 0.. {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tell(&mut throttle, &error);
                tokio::time::sleep(AFTER_FAILURE).await;
                continue;
            }
        };
        if room.available_permits() == 0 && !unanswered.end_oldest() {
            // all of them are being answered
            continue;
        }
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { break };
        let (left, unanswered, router) = (unanswered.came(number), Arc::clone(&unanswered), router.clone());
        connections.spawn(async move {
            answer(stream, router, left, &unanswered, number).await;
            unanswered.forget(number);
            drop(place);
        });
    }
    drop(listener);
    while unanswered.end_oldest() {}
    while connections.join_next().await.is_some() {}
}

/// One request, unless this one has to make room.
async fn answer(
    stream: TcpStream,
    router: Router,
    left: oneshot::Receiver<()>,
    unanswered: &Arc<Unanswered>,
    number: u64,
) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(|request: Request<Incoming>| {
        let answering = router.call(request.map(Body::new));
        async move {
            let response = answering.await?;
            if !response.status().is_client_error() {
                unanswered.forget(number);
            }
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // whoever goes away in the middle is nobody's trouble
        _ = &mut connection => return,
        left = left => if left.is_err() { return },
    }
    let _ = connection.await;
}

fn tell(throttle: &mut LogThrottle, error: &io::Error) {
    if let Some(repeated) = throttle.say(&error.to_string()) {
        tracing::warn!(
            %error,
            repeated = (repeated > 0).then_some(repeated),
            "the web server gets no connection: raise the limit of open files (ulimit -n) if that is why"
        );
    }
}
