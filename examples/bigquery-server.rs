//! BigQuery's stand-in as a process of its own.
#![allow(missing_docs)]

#[path = "../tests/support/bigquery_server/mod.rs"]
mod bigquery_server;

use std::time::Duration;

use bigquery_server::BigQueryServer;
use bigquery_server::fault::{Call, Fault};
use clap::Parser;
use tonic::Code;

/// BigQuery's Storage Write service and the REST calls that walcast makes, in memory, on one port.
///
/// Prints its URL, for BIGQUERY_REST_URL and BIGQUERY_GRPC_URL alike, and serves until it is killed.
#[derive(Parser)]
struct Arguments {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: String,
    /// Check rows and count them, but keep none: for measuring speed.
    #[arg(long)]
    forget_rows: bool,
    /// The rate (0 to 1) at which calls fail: refused, done with the answer lost, or cut off.
    #[arg(long, default_value_t = 0.0)]
    faults: f64,
    /// The seed that decides which do.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How much later each commit is answered, in milliseconds.
    #[arg(long, default_value_t = 0)]
    commit_delay_ms: u64,
}

const FAULTS: [Fault; 5] = [
    Fault::Refuse(Code::Unavailable),
    Fault::Refuse(Code::ResourceExhausted),
    Fault::LoseAnswer,
    Fault::CutBefore,
    Fault::CutAfter,
];

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let arguments = Arguments::parse();
    let server = BigQueryServer::start_on(&arguments.listen).await?;
    server.store().forgets_rows = arguments.forget_rows;
    if arguments.faults > 0.0 {
        server.plan().draw(arguments.seed, arguments.faults, &FAULTS);
    }
    if arguments.commit_delay_ms > 0 {
        server.plan().delay(Call::BatchCommitWriteStreams, Duration::from_millis(arguments.commit_delay_ms));
    }
    println!("{}", server.url());
    std::future::pending().await
}
