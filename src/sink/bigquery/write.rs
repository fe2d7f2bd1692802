//! The Storage Write service (gRPC), for streams whose rows stay invisible until they are committed.

use std::time::Duration;

use gcp_bigquery_client::google::cloud::bigquery::storage::v1::big_query_write_client::BigQueryWriteClient;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::storage_error::StorageErrorCode;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::{
    AppendRowsRequest, AppendRowsResponse, BatchCommitWriteStreamsRequest, BatchCommitWriteStreamsResponse,
    CreateWriteStreamRequest, FinalizeWriteStreamRequest, GetWriteStreamRequest, WriteStream, write_stream,
};
use tokio::time::{Instant, timeout};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Response, Status, Streaming};

use super::auth::Credentials;
use super::config::BigQueryConfig;
use super::extra::ExtraTable;
use super::refusal::Refusal;
use crate::error::{Code, Error, Kind, Result};
use crate::sink::retry::Backoff;

const GOOGLE: &str = "https://bigquerystorage.googleapis.com";
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
const COMMIT_WITHIN: Duration = Duration::from_secs(120);
/// How long a call that fails for a passing reason is tried again before it counts as failed.
pub const RETRY_FOR: Duration = Duration::from_secs(30);

/// What became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// The stream's rows are in the table, since now or since an earlier call.
    Done,
    /// There is no such stream any more: nobody can commit it now. Whether somebody did, the table knows.
    Gone,
}

/// The service for one table. Cheap to clone.
#[derive(Clone)]
pub struct WriteClient {
    stub: BigQueryWriteClient<Channel>,
    credentials: Credentials,
    table: String,
    address: String,
}

impl WriteClient {
    /// A client; it connects at its first call.
    pub fn new(config: &BigQueryConfig, credentials: Credentials) -> Result<Self> {
        let wrong = |error: tonic::transport::Error| {
            Error::new(Code::Configuration, format!("bigquery.grpc_url {:?} cannot be used", config.grpc_url))
                .because(error)
        };
        let url = if config.grpc_url.is_empty() { GOOGLE } else { &config.grpc_url };
        let mut endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(wrong)?
            .connect_timeout(CONNECT_WITHIN)
            .http2_keep_alive_interval(Duration::from_secs(60))
            .keep_alive_timeout(Duration::from_secs(20));
        if url.starts_with("https://") {
            endpoint = endpoint.tls_config(ClientTlsConfig::new().with_native_roots()).map_err(wrong)?;
        }
        Ok(WriteClient {
            stub: BigQueryWriteClient::new(endpoint.connect_lazy()),
            credentials,
            table: config.table_path(),
            address: config.address(),
        })
    }

    /// How messages name the table.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Makes a pending stream.
    pub async fn create_stream(&self) -> Result<WriteStream> {
        let request = CreateWriteStreamRequest {
            parent: self.table.clone(),
            write_stream: Some(WriteStream {
                r#type: write_stream::Type::Pending as i32,
                ..Default::default()
            }),
        };
        let made = self
            .call(("parent", &self.table), ANSWER_WITHIN, request, |mut stub, request| async move {
                stub.create_write_stream(request).await
            })
            .await;
        let what = format!("{} gives no write stream", self.address);
        match made {
            Ok(stream) => Ok(stream),
            // a table just made is not known everywhere at once
            Err(refusal) if refusal.is_not_found() => Err(Error::new(Code::BigQueryUnreachable, what)
                .because(refusal.message)
                .hint("a table just made may take a minute; else `walcast check` tells whether it is there")),
            Err(refusal) => Err(refusal.into_error(what)),
        }
    }

    /// Returns when the service takes rows with these columns: one just added is not known everywhere at once.
    pub async fn await_columns(&self, extra: &ExtraTable) -> Result<()> {
        let (asked, mut backoff) = (Instant::now(), Backoff::default());
        loop {
            // a service that does not say is taken at its word when rows come
            let Some(schema) = self.create_stream().await?.table_schema else { return Ok(()) };
            let known = |name: &str| schema.fields.iter().any(|field| field.name.eq_ignore_ascii_case(name));
            let Some(unknown) = extra.columns().iter().find(|column| !known(&column.name)) else {
                return Ok(());
            };
            if asked.elapsed() > RETRY_FOR {
                let message = format!("{} does not take column {} yet", self.address, unknown.name);
                return Err(Error::new(Code::BigQueryUnreachable, message).hint(
                    "a column just added takes some minutes to be known everywhere; it is tried again",
                ));
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    /// Opens an AppendRows call: requests go through `requests`, an answer each, in order.
    pub async fn append_rows(
        &self,
        stream: &str,
        requests: impl futures_util::Stream<Item = AppendRowsRequest> + Send + 'static,
    ) -> Result<Response<Streaming<AppendRowsResponse>>, Refusal> {
        let mut request = Request::new(requests);
        self.sign(&mut request, ("write_stream", stream)).await?;
        Ok(self.stub.clone().append_rows(request).await?)
    }

    /// Ends a stream and checks that it has as many rows as it should.
    pub async fn finalize(&self, stream: &str, rows: u64) -> Result<()> {
        let request = FinalizeWriteStreamRequest { name: stream.to_owned() };
        let ended = self
            .call(("name", stream), ANSWER_WITHIN, request, |mut stub, request| async move {
                stub.finalize_write_stream(request).await
            })
            .await
            .map_err(|refusal| refusal.into_error(format!("{} cannot end a write stream", self.address)))?;
        if ended.row_count != rows as i64 {
            return Err(Error::new(
                Code::Lost,
                format!("{} has {} rows in a stream that was given {rows}", self.address, ended.row_count),
            ));
        }
        Ok(())
    }

    /// Makes a finalized stream's rows visible, all at once. May be called again for the same stream.
    pub async fn commit(&self, stream: &str) -> Result<Commit> {
        let request = BatchCommitWriteStreamsRequest {
            parent: self.table.clone(),
            write_streams: vec![stream.to_owned()],
        };
        let answer = self
            .call(("parent", &self.table), COMMIT_WITHIN, request, |mut stub, request| async move {
                stub.batch_commit_write_streams(request).await
            })
            .await
            .and_then(committed);
        let Err(refusal) = answer else { return Ok(Commit::Done) };
        match refusal.reason {
            StorageErrorCode::StreamAlreadyCommitted => Ok(Commit::Done),
            StorageErrorCode::InvalidStreamState => self.was_committed(stream).await,
            _ if refusal.is_not_found() => self.was_committed(stream).await,
            _ => Err(refusal.into_error(format!("{} cannot commit a write stream", self.address))),
        }
    }

    /// Whether the service answers us at all.
    pub async fn probe(&self) -> Result<(), Refusal> {
        self.stream(&format!("{}/streams/_default", self.table)).await.map(drop)
    }

    /// A stream that cannot be committed either was so before, or is gone; the service must say so twice.
    async fn was_committed(&self, stream: &str) -> Result<Commit> {
        match self.stream(stream).await {
            Ok(WriteStream { commit_time: Some(_), .. }) => Ok(Commit::Done),
            Ok(_) => Err(Error::new(
                Code::BigQueryUnreachable,
                format!("{} has a write stream that is neither committed nor can be", self.address),
            )
            .hint("it is tried again; a stream that nobody commits expires by itself")),
            Err(refusal) if refusal.is_not_found() => Ok(Commit::Gone),
            Err(refusal) => Err(refusal.into_error(format!("{} cannot show a write stream", self.address))),
        }
    }

    async fn stream(&self, name: &str) -> Result<WriteStream, Refusal> {
        let request = GetWriteStreamRequest { name: name.to_owned(), ..Default::default() };
        self.call(("name", name), ANSWER_WITHIN, request, |mut stub, request| async move {
            stub.get_write_stream(request).await
        })
        .await
    }

    /// Calls again, for a while, what failed for a passing reason. Only for calls that may happen twice.
    async fn call<Q: Clone, A, F>(
        &self,
        route: (&str, &str),
        within: Duration,
        message: Q,
        rpc: impl Fn(BigQueryWriteClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, Refusal>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let (mut backoff, began) = (Backoff::default(), Instant::now());
        loop {
            let mut request = Request::new(message.clone());
            self.sign(&mut request, route).await?;
            request.set_timeout(within);
            let answer = timeout(within, rpc(self.stub.clone(), request)).await;
            let refusal: Refusal = match answer {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => status.into(),
                Err(_) => Status::deadline_exceeded("no answer in time").into(),
            };
            if !refusal.is_transient() || began.elapsed() > RETRY_FOR {
                return Err(refusal);
            }
            let wait = backoff.next_wait();
            tracing::debug!(code = ?refusal.code, "{}: trying again in {wait:.1?}", self.address);
            tokio::time::sleep(wait).await;
        }
    }

    /// Adds the access token, and the header by which the service finds the region.
    async fn sign<Q>(&self, request: &mut Request<Q>, (key, name): (&str, &str)) -> Result<(), Refusal> {
        let header = |text: String| {
            MetadataValue::try_from(text).map_err(|_| Status::invalid_argument("not a header's value"))
        };
        let route = header(format!("{key}={}", percent_encoded(name)))?;
        request.metadata_mut().insert("x-goog-request-params", route);
        let token = self.credentials.token().await.map_err(|error| match error.kind() {
            Kind::Unavailable => Status::unavailable(error.chain()),
            _ => Status::unauthenticated(error.chain()),
        })?;
        if let Some(token) = token {
            let mut bearer = header(format!("Bearer {token}"))?;
            bearer.set_sensitive(true);
            request.metadata_mut().insert("authorization", bearer);
        }
        Ok(())
    }
}

/// The service says "done" by a time, and anything else by an error for each stream.
fn committed(answer: BatchCommitWriteStreamsResponse) -> Result<(), Refusal> {
    match (answer.commit_time, answer.stream_errors.into_iter().next()) {
        (_, Some(error)) => Err(error.into()),
        (Some(_), None) => Ok(()),
        (None, None) => Err(Status::internal("a commit without a time and without an error").into()),
    }
}

fn percent_encoded(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(byte.into());
            }
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn googles_own_service_is_reached_by_tls() {
        let config = BigQueryConfig { project_id: "acme".into(), ..Default::default() };
        let client = WriteClient::new(&config, Credentials::None).unwrap();
        assert_eq!(client.table, "projects/acme/datasets/analytics/tables/engagement_events");
        let config = BigQueryConfig { grpc_url: "https://not a host".into(), ..config };
        let error = WriteClient::new(&config, Credentials::None).err().unwrap();
        assert_eq!(error.kind(), Kind::Config);
    }

    #[test]
    fn names_are_percent_encoded_but_for_their_slashes() {
        assert_eq!(percent_encoded("projects/acme.org:p/x_1"), "projects/acme.org%3Ap/x_1");
    }
}
