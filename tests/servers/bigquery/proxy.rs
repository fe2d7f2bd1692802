//! A proxy before a gRPC service: it passes calls on, and holds, refuses or loses those that a test names.

#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use gcp_bigquery_client::google::cloud::bigquery::storage::v1::StorageError;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::storage_error::StorageErrorCode;
use gcp_bigquery_client::google::rpc;
use prost::Message;
use tokio::sync::{Notify, watch};
use tonic::body::Body;
use tonic::codegen::{Service, StdError, http};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Status};

use crate::support::wait_until;

/// What befalls a call.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// It waits before the service sees it, until released.
    HoldBefore,
    /// The service has done it; the answer waits until released.
    HoldAfter,
    /// The service does not see it; this is the answer.
    Refuse(Code),
    /// The service does not see it; this is the answer, in the service's own words.
    RefuseFor(StorageErrorCode),
    /// The service has done it; the connection breaks instead of an answer.
    LoseAnswer,
}

/// The proxy. Clones are one and the same.
#[derive(Clone)]
pub struct Proxy {
    upstream: Channel,
    faults: Arc<Mutex<HashMap<&'static str, VecDeque<Fault>>>>,
    seen: Arc<watch::Sender<HashMap<String, usize>>>,
    release: Arc<Notify>,
    routes: Arc<Mutex<HashMap<String, String>>>,
    url: String,
}

impl Proxy {
    /// Starts it before the service at `upstream`, an `http://` URL.
    pub async fn start(upstream: &str) -> Proxy {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let proxy = Proxy {
            upstream: Endpoint::from_shared(upstream.to_owned()).unwrap().connect_lazy(),
            faults: Arc::default(),
            seen: Arc::new(watch::Sender::default()),
            release: Arc::default(),
            routes: Arc::default(),
            url: format!("http://{}", incoming.local_addr().unwrap()),
        };
        tokio::spawn(Server::builder().serve_with_incoming(proxy.clone(), incoming));
        proxy
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The next call of this method that has no fault yet gets this one.
    pub fn next(&self, method: &'static str, fault: Fault) {
        self.faults.lock().unwrap().entry(method).or_default().push_back(fault);
    }

    /// How many calls of a method were stopped at their fault.
    pub fn stopped(&self, method: &str) -> usize {
        self.seen.borrow().get(method).copied().unwrap_or_default()
    }

    /// Returns when a call of this method has met its fault.
    pub async fn reached(&self, method: &str) {
        wait_until(&format!("{method} meets its fault"), async || self.stopped(method) > 0).await;
    }

    /// By what the last call of a method asked to be routed.
    pub fn route(&self, method: &str) -> String {
        self.routes.lock().unwrap().get(method).cloned().unwrap_or_default()
    }

    /// Forgets all faults; held calls stay held until their client is gone.
    pub fn forget(&self) {
        self.faults.lock().unwrap().clear();
        self.seen.send_modify(HashMap::clear);
    }

    /// Lets held calls go, and forgets all faults.
    pub fn release(&self) {
        self.forget();
        self.release.notify_waiters();
    }

    fn fault(&self, method: &str) -> Option<Fault> {
        self.faults.lock().unwrap().get_mut(method)?.pop_front()
    }

    fn stop(&self, method: &str) {
        self.seen.send_modify(|seen| *seen.entry(method.to_owned()).or_default() += 1);
    }

    async fn hold(&self, method: &str) {
        let released = self.release.notified();
        self.stop(method);
        released.await;
    }

    async fn pass(mut self, request: http::Request<Body>) -> Result<http::Response<Body>, StdError> {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let route = request.headers().get("x-goog-request-params").and_then(|route| route.to_str().ok());
        self.routes.lock().unwrap().insert(method.clone(), route.unwrap_or_default().to_owned());
        let fault = self.fault(&method);
        match fault {
            Some(Fault::HoldBefore) => self.hold(&method).await,
            Some(Fault::Refuse(code)) => {
                self.stop(&method);
                return Ok(Status::new(code, "the proxy refuses").into_http());
            }
            Some(Fault::RefuseFor(reason)) => {
                self.stop(&method);
                return Ok(with_reason(reason).into_http());
            }
            _ => {}
        }
        poll_fn(|cx| self.upstream.poll_ready(cx)).await?;
        let response = self.upstream.call(request).await?;
        match fault {
            Some(Fault::HoldAfter) => self.hold(&method).await,
            Some(Fault::LoseAnswer) => {
                self.stop(&method);
                return Ok(Status::unavailable("the proxy loses the answer").into_http());
            }
            _ => {}
        }
        Ok(response)
    }
}

fn with_reason(reason: StorageErrorCode) -> Status {
    let error = StorageError { code: reason as i32, ..Default::default() };
    let detail = prost_types::Any {
        type_url: "type.googleapis.com/google.cloud.bigquery.storage.v1.StorageError".into(),
        value: error.encode_to_vec(),
    };
    let status =
        rpc::Status { code: Code::FailedPrecondition as i32, details: vec![detail], ..Default::default() };
    Status::with_details(Code::FailedPrecondition, "the proxy refuses", status.encode_to_vec().into())
}

impl Service<http::Request<Body>> for Proxy {
    type Response = http::Response<Body>;
    type Error = StdError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.clone().pass(request))
    }
}
