//! The Storage Write service's six calls.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::append_rows_request::Rows;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::append_rows_response::{
    AppendResult, Response as Appended,
};
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::{
    AppendRowsRequest, AppendRowsResponse, BatchCommitWriteStreamsRequest, CreateWriteStreamRequest,
    FinalizeWriteStreamRequest, FinalizeWriteStreamResponse, FlushRowsRequest, FlushRowsResponse,
    GetWriteStreamRequest, WriteStream, write_stream,
};
use gcp_bigquery_client::google::rpc;
use prost::Message;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::{Grpc, StreamingService, UnaryService};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::BigQueryServer;
use super::fault::Call;
use super::row::Layout;
use super::store::{IntoRpc, NotAppended};

/// What all calls' paths begin with.
pub const PREFIX: &str = "/google.cloud.bigquery.storage.v1.BigQueryWrite/";
const APPEND_BYTES_MAX: usize = 10_000_000;
/// Beyond the service's own limit, so that its own words are heard.
const MESSAGE_BYTES_MAX: usize = 32 << 20;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Responses = Pin<Box<dyn Stream<Item = Result<AppendRowsResponse, Status>> + Send>>;

pub async fn answer(
    server: BigQueryServer,
    method: &str,
    request: http::Request<Body>,
) -> http::Response<Body> {
    match method {
        "CreateWriteStream" => unary(request, move |asked| create(server.clone(), asked)).await,
        "GetWriteStream" => unary(request, move |asked| get(server.clone(), asked)).await,
        "FinalizeWriteStream" => unary(request, move |asked| finalize(server.clone(), asked)).await,
        "BatchCommitWriteStreams" => unary(request, move |asked| commit(server.clone(), asked)).await,
        "FlushRows" => unary(request, move |asked| flush(server.clone(), asked)).await,
        "AppendRows" => grpc().streaming(Append(server), request).await,
        _ => Status::unimplemented(method.to_owned()).into_http(),
    }
}

async fn create(server: BigQueryServer, asked: CreateWriteStreamRequest) -> Result<WriteStream, Status> {
    let kind = asked.write_stream.map_or(write_stream::Type::Unspecified, |stream| stream.r#type());
    server.serve(Call::CreateWriteStream, None, move |store| store.create(&asked.parent, kind)).await
}

async fn get(server: BigQueryServer, asked: GetWriteStreamRequest) -> Result<WriteStream, Status> {
    let GetWriteStreamRequest { name, .. } = asked;
    server.serve(Call::GetWriteStream, Some(&name.clone()), move |store| store.describe(&name)).await
}

async fn finalize(
    server: BigQueryServer,
    asked: FinalizeWriteStreamRequest,
) -> Result<FinalizeWriteStreamResponse, Status> {
    let FinalizeWriteStreamRequest { name } = asked;
    let stream = name.clone();
    let row_count =
        server.serve(Call::FinalizeWriteStream, Some(&stream), move |store| store.finalize(&name)).await?;
    Ok(FinalizeWriteStreamResponse { row_count })
}

async fn commit(
    server: BigQueryServer,
    asked: BatchCommitWriteStreamsRequest,
) -> Result<gcp_bigquery_client::google::cloud::bigquery::storage::v1::BatchCommitWriteStreamsResponse, Status>
{
    let stream = asked.write_streams.first().cloned();
    let act = move |store: &mut super::Store| store.commit(&asked.parent, &asked.write_streams);
    server.serve(Call::BatchCommitWriteStreams, stream.as_deref(), act).await
}

async fn flush(server: BigQueryServer, asked: FlushRowsRequest) -> Result<FlushRowsResponse, Status> {
    let FlushRowsRequest { write_stream: name, offset } = asked;
    let offset = offset.ok_or_else(|| Status::invalid_argument("a flush needs an offset"))?;
    let stream = name.clone();
    let offset =
        server.serve(Call::FlushRows, Some(&stream), move |store| store.flush(&name, offset)).await?;
    Ok(FlushRowsResponse { offset })
}

/// One AppendRows call.
struct Connection {
    server: BigQueryServer,
    requests: Streaming<AppendRowsRequest>,
    /// Read, and not answered yet.
    first: Option<AppendRowsRequest>,
    stream: String,
    layout: Option<Arc<Layout>>,
    ended: bool,
}

impl Connection {
    /// The answer to the next request; `None` when there are no more.
    async fn next(&mut self) -> Result<Option<AppendRowsResponse>, Status> {
        let request = match self.first.take() {
            Some(first) => Some(first),
            None => self.requests.message().await?,
        };
        match request {
            Some(request) => self.append(request).await.map(Some),
            None => Ok(None),
        }
    }

    async fn append(&mut self, request: AppendRowsRequest) -> Result<AppendRowsResponse, Status> {
        if request.encoded_len() > APPEND_BYTES_MAX {
            return Err(Status::invalid_argument("AppendRows request too large"));
        }
        // as an emulator does; the service asks for it in the first request alone
        if request.write_stream.is_empty() {
            return Err(Status::not_found("a request that names no stream"));
        }
        self.stream = request.write_stream;
        let Some(Rows::ProtoRows(data)) = request.rows else {
            return Err(Status::invalid_argument("a request without rows"));
        };
        if let Some(descriptor) = data.writer_schema.and_then(|schema| schema.proto_descriptor) {
            self.layout = Some(Arc::new(Layout::new(&descriptor)));
        }
        let layout = self.layout.clone().ok_or_else(|| Status::invalid_argument("no writer_schema"))?;
        let messages = data.rows.unwrap_or_default().serialized_rows;
        let (stream, offset) = (self.stream.clone(), request.offset);
        let act = move |store: &mut super::Store| Ok(store.append(&stream, offset, &layout, &messages));
        let appended = self.server.serve(Call::AppendRows, Some(&self.stream), act).await;
        let mut response = AppendRowsResponse { write_stream: self.stream.clone(), ..Default::default() };
        match appended {
            Ok(Ok(offset)) => {
                response.response =
                    Some(Appended::AppendResult(AppendResult { offset: Some(offset as i64) }));
            }
            Ok(Err(NotAppended::Rows(errors))) => {
                let message =
                    "Errors found while processing rows. Please refer to the row_errors field for details.";
                response.response = Some(Appended::Error(refused(Code::InvalidArgument, message)));
                response.row_errors = errors;
            }
            Ok(Err(NotAppended::Refused(status)))
                if status.code == Code::NotFound as i32 || self.server.store().ends_call =>
            {
                return Err(status.into_rpc());
            }
            Ok(Err(NotAppended::Refused(status))) => response.response = Some(Appended::Error(status)),
            // a quota is spoken of within the call, which goes on
            Err(status) if status.code() == Code::ResourceExhausted => {
                response.response = Some(Appended::Error(refused(status.code(), status.message())));
            }
            Err(status) => return Err(status),
        }
        Ok(response)
    }
}

fn refused(code: Code, message: &str) -> rpc::Status {
    rpc::Status { code: code as i32, message: message.to_owned(), details: Vec::new() }
}

struct Append(BigQueryServer);

impl StreamingService<AppendRowsRequest> for Append {
    type Response = AppendRowsResponse;
    type ResponseStream = Responses;
    type Future = BoxFuture<Result<Response<Responses>, Status>>;

    fn call(&mut self, request: Request<Streaming<AppendRowsRequest>>) -> Self::Future {
        let server = self.0.clone();
        Box::pin(async move {
            let mut requests = request.into_inner();
            // as the service: not a word before the first request
            let first = requests.message().await?;
            let ended = first.is_none();
            let connection =
                Connection { server, requests, first, stream: String::new(), layout: None, ended };
            let responses = futures_util::stream::unfold(connection, |mut connection| async move {
                if connection.ended {
                    return None;
                }
                let next = connection.next().await.transpose()?;
                connection.ended = next.is_err();
                Some((next, connection))
            });
            Ok(Response::new(Box::pin(responses) as Responses))
        })
    }
}

struct Unary<F>(F);

impl<Q, A, F, R> UnaryService<Q> for Unary<F>
where
    F: FnMut(Q) -> R,
    R: Future<Output = Result<A, Status>> + Send + 'static,
{
    type Response = A;
    type Future = BoxFuture<Result<Response<A>, Status>>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let answer = (self.0)(request.into_inner());
        Box::pin(async move { answer.await.map(Response::new) })
    }
}

async fn unary<Q, A, F, R>(request: http::Request<Body>, answer: F) -> http::Response<Body>
where
    Q: Message + Default + Send + 'static,
    A: Message + Send + 'static,
    F: FnMut(Q) -> R,
    R: Future<Output = Result<A, Status>> + Send + 'static,
{
    grpc::<A, Q>().unary(Unary(answer), request).await
}

fn grpc<A, Q>() -> Grpc<ProstCodec<A, Q>>
where
    A: Message + Send + 'static,
    Q: Message + Default + Send + 'static,
{
    Grpc::new(ProstCodec::default()).max_decoding_message_size(MESSAGE_BYTES_MAX)
}
