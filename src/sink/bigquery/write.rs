//! A small client of the Storage Write API: pending streams with offsets.

use std::time::Duration;

use futures_util::stream;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1 as api;
use gcp_bigquery_client::google::rpc;
use prost::Message;
use tokio::sync::mpsc;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use super::BigQueryConfig;
use super::rest::Credentials;
use super::table::descriptor;
use crate::error::{Error, Kind, Result};
use api::append_rows_request::{ProtoData, Rows};
use api::append_rows_response::Response;
use api::big_query_write_client::BigQueryWriteClient;
use api::storage_error::StorageErrorCode;

const GOOGLE: &str = "https://bigquerystorage.googleapis.com";
const DEADLINE: Duration = Duration::from_secs(30);
const COMMIT_DEADLINE: Duration = Duration::from_secs(120);
const RESPONSE_BYTES_MAX: usize = 16 << 20;

/// The six calls that we use, each with a deadline.
pub struct WriteClient {
    client: BigQueryWriteClient<Channel>,
    credentials: Credentials,
    /// `projects/…/datasets/…/tables/…`
    table: String,
}

/// What became of appended rows.
pub enum Appended {
    /// The stream has them.
    Stored,
    /// The stream has none of them, since these rows (index, why) cannot go into the table.
    Refused(Vec<(usize, String)>),
}

/// How a commit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// The rows are in the table, now or since an earlier call.
    Yes,
    /// The stream is gone: whether it was committed must be asked of the table.
    StreamGone,
}

impl WriteClient {
    /// A client that connects at its first call.
    pub fn new(config: &BigQueryConfig, credentials: Credentials) -> Result<Self> {
        let url = config.grpc_url.as_deref().unwrap_or(GOOGLE).to_owned();
        let wrong = |error| Error::new(Kind::Config, "bigquery.grpc_url is not a URL").because(error);
        let tls = url.starts_with("https://");
        let mut endpoint =
            Endpoint::from_shared(url).map_err(wrong)?.connect_timeout(Duration::from_secs(10));
        endpoint = endpoint
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10));
        if tls {
            endpoint = endpoint.tls_config(ClientTlsConfig::new().with_native_roots()).map_err(wrong)?;
        }
        let client =
            BigQueryWriteClient::new(endpoint.connect_lazy()).max_decoding_message_size(RESPONSE_BYTES_MAX);
        let (project, dataset, table) = (&config.project_id, &config.dataset, &config.table);
        let table = format!("projects/{project}/datasets/{dataset}/tables/{table}");
        Ok(WriteClient { client, credentials, table })
    }

    /// Makes a pending stream: nobody sees its rows before the commit.
    pub async fn create_stream(&mut self) -> Result<String> {
        let write_stream =
            Some(api::WriteStream { r#type: api::write_stream::Type::Pending as i32, ..Default::default() });
        let message = api::CreateWriteStreamRequest { parent: self.table.clone(), write_stream };
        let request = self.request(message, "parent", &self.table, DEADLINE).await?;
        let created = self.client.create_write_stream(request).await.map_err(error)?;
        Ok(created.into_inner().name)
    }

    /// Opens the connection that rows are appended over.
    pub async fn open(&mut self, stream: &str) -> Result<Appender> {
        let (requests, receiver) = mpsc::channel::<api::AppendRowsRequest>(1);
        let requests_in_turn = stream::unfold(receiver, async |mut receiver: mpsc::Receiver<_>| {
            receiver.recv().await.map(|request| (request, receiver))
        });
        let request =
            self.request(Box::pin(requests_in_turn), "write_stream", stream, Duration::ZERO).await?;
        let mut client = self.client.clone();
        let stream = stream.to_owned();
        Ok(Appender {
            requests,
            responses: Responses::Opening(tokio::spawn(async move {
                client.append_rows(request).await.map(tonic::Response::into_inner)
            })),
            stream,
            first: true,
        })
    }

    /// Ends a stream; how many rows it has.
    pub async fn finalize(&mut self, stream: &str) -> Result<i64> {
        let message = api::FinalizeWriteStreamRequest { name: stream.to_owned() };
        let request = self.request(message, "name", stream, DEADLINE).await?;
        let finalized = self.client.finalize_write_stream(request).await.map_err(error)?;
        Ok(finalized.into_inner().row_count)
    }

    /// Puts a finalized stream's rows into the table, all at once. Said again of a committed stream it is
    /// `Yes` again.
    pub async fn commit(&mut self, stream: &str) -> Result<Committed> {
        let message = api::BatchCommitWriteStreamsRequest {
            parent: self.table.clone(),
            write_streams: vec![stream.to_owned()],
        };
        let request = self.request(message, "parent", &self.table, COMMIT_DEADLINE).await?;
        let answer = match self.client.batch_commit_write_streams(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) if status.code() == Code::NotFound => return Ok(Committed::StreamGone),
            Err(status) => return Err(error(status)),
        };
        if answer.commit_time.is_some() {
            return Ok(Committed::Yes);
        }
        let refused = answer.stream_errors.first().map(|error| (error.code(), error.error_message.clone()));
        match refused {
            Some((StorageErrorCode::StreamAlreadyCommitted, _)) => Ok(Committed::Yes),
            Some((StorageErrorCode::StreamNotFound, _)) => Ok(Committed::StreamGone),
            Some((StorageErrorCode::InvalidStreamState, _)) if self.is_committed(stream).await? => {
                Ok(Committed::Yes)
            }
            Some((code, message)) => Err(Error::new(
                Kind::Lost,
                format!("BigQuery does not commit a stream: {}: {message}", code.as_str_name()),
            )),
            None => Err(Error::new(Kind::Unavailable, "BigQuery neither commits nor refuses a stream")),
        }
    }

    async fn is_committed(&mut self, stream: &str) -> Result<bool> {
        let message = api::GetWriteStreamRequest { name: stream.to_owned(), ..Default::default() };
        let request = self.request(message, "name", stream, DEADLINE).await?;
        let found = self.client.get_write_stream(request).await.map_err(error)?;
        Ok(found.into_inner().commit_time.is_some())
    }

    /// A request with what Google routes and lets in by. No deadline when it is zero.
    async fn request<T>(
        &self,
        message: T,
        name: &str,
        value: &str,
        deadline: Duration,
    ) -> Result<Request<T>> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        let unusable = |error| {
            Error::new(Kind::Config, "bigquery: a name has characters that no header takes").because(error)
        };
        let routing = format!("{name}={}", value.replace('/', "%2F"));
        metadata.insert("x-goog-request-params", routing.parse().map_err(unusable)?);
        let token = self.credentials.token().await;
        let token =
            token.map_err(|error| Error::new(Kind::Unavailable, "BigQuery: no token now").because(error))?;
        if let Some(token) = token {
            metadata.insert("authorization", format!("Bearer {token}").parse().map_err(unusable)?);
        }
        if !deadline.is_zero() {
            request.set_timeout(deadline);
        }
        Ok(request)
    }
}

/// A stream being filled: one request on its way at a time.
pub struct Appender {
    requests: mpsc::Sender<api::AppendRowsRequest>,
    responses: Responses,
    stream: String,
    first: bool,
}

enum Responses {
    /// The server answers the call itself only when it has seen a first request.
    Opening(tokio::task::JoinHandle<Result<Streaming<api::AppendRowsResponse>, Status>>),
    Open(Box<Streaming<api::AppendRowsResponse>>),
    Closed,
}

impl Appender {
    /// Appends rows at `offset`, the number of rows that the stream has.
    pub async fn append(&mut self, rows: Vec<Vec<u8>>, offset: i64) -> Result<Appended> {
        let writer_schema = self.first.then(|| api::ProtoSchema { proto_descriptor: Some(descriptor()) });
        let request = api::AppendRowsRequest {
            write_stream: if self.first { self.stream.clone() } else { String::new() },
            offset: Some(offset),
            rows: Some(Rows::ProtoRows(ProtoData {
                writer_schema,
                rows: Some(api::ProtoRows { serialized_rows: rows }),
            })),
            ..Default::default()
        };
        self.first = false;
        let answer = async {
            let sent = self.requests.send(request).await;
            sent.map_err(|_| Error::new(Kind::Unavailable, "BigQuery closed the append connection"))?;
            self.next().await
        };
        let answer = tokio::time::timeout(DEADLINE, answer).await;
        let answer =
            answer.map_err(|_| Error::new(Kind::Unavailable, "BigQuery does not answer an append"))??;
        judge(answer)
    }

    async fn next(&mut self) -> Result<api::AppendRowsResponse> {
        if let Responses::Opening(opening) = &mut self.responses {
            let opened = opening.await.map_err(|error| {
                Error::new(Kind::Unavailable, "BigQuery: the append call ended").because(error)
            })?;
            self.responses = Responses::Open(Box::new(opened.map_err(error)?));
        }
        match &mut self.responses {
            Responses::Open(responses) => responses
                .message()
                .await
                .map_err(error)?
                .ok_or_else(|| Error::new(Kind::Unavailable, "BigQuery ended the append connection")),
            _ => Err(Error::new(Kind::Unavailable, "BigQuery: no append connection")),
        }
    }
}

impl Drop for Appender {
    fn drop(&mut self) {
        if let Responses::Opening(opening) = std::mem::replace(&mut self.responses, Responses::Closed) {
            opening.abort();
        }
    }
}

fn judge(answer: api::AppendRowsResponse) -> Result<Appended> {
    if !answer.row_errors.is_empty() {
        let refused = answer
            .row_errors
            .into_iter()
            .map(|error| (usize::try_from(error.index).unwrap_or(0), error.message));
        return Ok(Appended::Refused(refused.collect()));
    }
    match answer.response {
        Some(Response::AppendResult(_)) => Ok(Appended::Stored),
        Some(Response::Error(status)) => match Code::from(status.code) {
            // The answer to an earlier try was lost: the rows are there.
            Code::AlreadyExists => Ok(Appended::Stored),
            _ => Err(stream_error(&status)),
        },
        None => Err(Error::new(Kind::Protocol, "BigQuery answers an append with nothing")),
    }
}

/// An error about one stream. What says that the stream is not as we left it means that it is lost.
fn stream_error(status: &rpc::Status) -> Error {
    let code = Code::from(status.code);
    let storage = status.details.iter().find_map(|detail| {
        let is_ours = detail.type_url.ends_with("google.cloud.bigquery.storage.v1.StorageError");
        is_ours.then(|| api::StorageError::decode(detail.value.as_slice()).ok()).flatten()
    });
    let kind = match code {
        Code::Unavailable
        | Code::Internal
        | Code::Aborted
        | Code::ResourceExhausted
        | Code::DeadlineExceeded
        | Code::Cancelled => Kind::Unavailable,
        Code::OutOfRange | Code::NotFound | Code::FailedPrecondition => Kind::Lost,
        _ if storage.as_ref().is_some_and(|storage| storage.code() == StorageErrorCode::StreamFinalized) => {
            Kind::Lost
        }
        Code::PermissionDenied | Code::Unauthenticated => Kind::Setup,
        _ => Kind::Protocol,
    };
    Error::new(kind, format!("BigQuery refuses an append ({code:?})")).because(status.message.clone())
}

fn error(status: Status) -> Error {
    let (kind, message) = match status.code() {
        Code::PermissionDenied | Code::Unauthenticated => (Kind::Setup, "BigQuery does not let us write"),
        Code::NotFound => (Kind::Lost, "BigQuery no longer knows the stream or the table"),
        Code::InvalidArgument | Code::Unimplemented => {
            (Kind::Protocol, "BigQuery does not understand a call")
        }
        _ => (Kind::Unavailable, "BigQuery cannot take a call now"),
    };
    Error::new(kind, message).because(status)
}
