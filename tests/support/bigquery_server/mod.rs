//! BigQuery as far as walcast knows it, in memory, with its rules and its moods: the Storage Write service
//! (gRPC) and the REST calls for datasets, tables and the queries that walcast asks, on one port.
//!
//! Tests run it inside themselves and ask it what a reader would see; benches run it as a process of its own
//! (`cargo run --example bigquery-server -- --help`). What goes wrong is a [`fault::Plan`].

#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod fault;
mod grpc;
mod rest;
pub mod row;
pub mod store;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use fault::{Call, Fault, Plan};
pub use row::Row;
use store::{IntoRpc, Store};
use tokio::io::DuplexStream;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tonic::body::Body;
use tonic::codegen::{Service, StdError, http};
use tonic::transport::Server;
use tonic::{Code, Status};

/// The service. Clones are one and the same.
#[derive(Clone)]
pub struct BigQueryServer {
    store: Arc<Mutex<Store>>,
    plan: Arc<Mutex<Plan>>,
    /// Calls that were made, in order.
    seen: Arc<watch::Sender<Vec<(Call, Fault)>>>,
    /// How many calls are held now.
    held: Arc<watch::Sender<usize>>,
    released: Arc<watch::Sender<u64>>,
    cut: Arc<watch::Sender<u64>>,
    address: SocketAddr,
}

impl BigQueryServer {
    /// Starts it on a free port.
    pub async fn start() -> BigQueryServer {
        BigQueryServer::start_on("127.0.0.1:0").await.expect("a free port")
    }

    /// Starts it.
    pub async fn start_on(address: &str) -> std::io::Result<BigQueryServer> {
        let listener = TcpListener::bind(address).await?;
        let server = BigQueryServer {
            store: Arc::default(),
            plan: Arc::default(),
            seen: Arc::default(),
            held: Arc::default(),
            released: Arc::default(),
            cut: Arc::default(),
            address: listener.local_addr()?,
        };
        let (connections, incoming) = mpsc::channel(16);
        tokio::spawn(accept(listener, server.cut.subscribe(), connections));
        let incoming = futures_util::stream::unfold(incoming, |mut incoming| async move {
            incoming.recv().await.map(|connection| (Ok::<_, std::io::Error>(connection), incoming))
        });
        let service = server.clone();
        tokio::spawn(async move {
            Server::builder().accept_http1(true).serve_with_incoming(service, Box::pin(incoming)).await
        });
        Ok(server)
    }

    /// Where both services listen.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it has.
    pub fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap()
    }

    /// What is to go wrong.
    pub fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap()
    }

    /// The next call of this kind that has no fault yet gets this one.
    pub fn next(&self, call: Call, fault: Fault) {
        self.plan().next(call, fault);
    }

    /// From here on nothing goes wrong, and held calls go on.
    pub fn calm(&self) {
        *self.plan() = Plan::default();
        self.release();
    }

    /// Lets held calls go on.
    pub fn release(&self) {
        self.held.send_replace(0);
        self.released.send_modify(|generation| *generation += 1);
    }

    /// Breaks all connections.
    pub fn cut(&self) {
        self.cut.send_modify(|generation| *generation += 1);
    }

    /// The rows that a reader sees, in the order in which they became visible.
    pub fn rows(&self, table: &str) -> Vec<Row> {
        self.store().tables.get(table).map(|table| table.rows.clone()).unwrap_or_default()
    }

    /// The calls of a kind so far, and what befell each.
    pub fn seen(&self, call: Call) -> Vec<Fault> {
        self.seen.borrow().iter().filter(|(seen, _)| *seen == call).map(|(_, fault)| *fault).collect()
    }

    /// How many calls were made so far.
    pub fn calls(&self) -> usize {
        self.seen.borrow().len()
    }

    /// Returns when so many calls were made.
    pub async fn has_seen(&self, calls: usize) {
        let seen = self.seen.subscribe().wait_for(|seen| seen.len() >= calls).await.map(drop);
        seen.expect("the server lives");
    }

    /// Lets held calls go on when so many calls of a kind were made.
    pub async fn release_at(&self, call: Call, calls: usize) {
        let count = |seen: &Vec<(Call, Fault)>| seen.iter().filter(|(seen, _)| *seen == call).count();
        let seen = self.seen.subscribe().wait_for(|seen| count(seen) >= calls).await.map(drop);
        seen.expect("the server lives");
        self.release();
    }

    /// How many calls are held now.
    pub fn held(&self) -> usize {
        *self.held.borrow()
    }

    /// Returns when so many calls are held.
    pub async fn holds(&self, calls: usize) {
        let held = self.held.subscribe().wait_for(|held| *held >= calls).await.map(drop);
        held.expect("the server lives");
    }

    /// Does what a call asks for, and what the plan has for it. Goes on when its client has gone.
    async fn serve<T: Send + 'static>(
        &self,
        call: Call,
        stream: Option<&str>,
        act: impl FnOnce(&mut Store) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let fault = self.plan().fault(call);
        self.seen.send_modify(|seen| seen.push((call, fault)));
        let (server, stream) = (self.clone(), stream.unwrap_or_default().to_owned());
        let served = tokio::spawn(async move { server.serve_with(fault, &stream, act).await }).await;
        if matches!(fault, Fault::CutBefore | Fault::CutAfter) {
            self.cut();
            // ended with its connection
            return std::future::pending().await;
        }
        served.unwrap_or_else(|error| Err(Status::internal(error.to_string())))
    }

    async fn serve_with<T>(
        &self,
        fault: Fault,
        stream: &str,
        act: impl FnOnce(&mut Store) -> Result<T, Status>,
    ) -> Result<T, Status> {
        match fault {
            Fault::Refuse(code) => return Err(Status::new(code, "the plan has it so")),
            Fault::OldSchema => return Err(store::old_schema(stream).into_rpc()),
            Fault::CutBefore => return Err(Status::cancelled("cut")),
            Fault::Gone => self.store().expire(stream),
            Fault::HoldBefore => self.hold().await,
            _ => {}
        }
        let answer = act(&mut self.store());
        match fault {
            Fault::LoseAnswer => return Err(Status::new(Code::Unavailable, "the answer is lost")),
            Fault::HoldAfter => self.hold().await,
            Fault::Late(by) => tokio::time::sleep(by).await,
            _ => {}
        }
        answer
    }

    async fn hold(&self) {
        let mut released = self.released.subscribe();
        self.held.send_modify(|held| *held += 1);
        let _ = released.changed().await;
    }
}

/// Every connection goes through a pipe of its own, which can be broken.
async fn accept(listener: TcpListener, cut: watch::Receiver<u64>, connections: mpsc::Sender<DuplexStream>) {
    while let Ok((connection, _)) = listener.accept().await {
        let (near, far) = tokio::io::duplex(1 << 20);
        tokio::spawn(carry(connection, far, cut.clone()));
        if connections.send(near).await.is_err() {
            return;
        }
    }
}

async fn carry(mut connection: TcpStream, mut pipe: DuplexStream, mut cut: watch::Receiver<u64>) {
    cut.mark_unchanged();
    tokio::select! {
        biased;
        _ = cut.changed() => {}
        _ = tokio::io::copy_bidirectional(&mut connection, &mut pipe) => {}
    }
}

impl Service<http::Request<Body>> for BigQueryServer {
    type Response = http::Response<Body>;
    type Error = StdError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let server = self.clone();
        Box::pin(async move {
            match request.uri().path().strip_prefix(grpc::PREFIX).map(str::to_owned) {
                Some(method) => Ok(grpc::answer(server, &method, request).await),
                None => Ok(rest::answer(server, request).await),
            }
        })
    }
}
