//! Putting rows into a pending stream, each at its own offset, over one long-lived call.
//!
//! A request is sent before the ones ahead of it are answered ([`WINDOW`]). When the connection breaks, what
//! was not answered is sent again at the same offsets: "exists already" then means that it had arrived. When
//! the service refuses a row it stores nothing of that request, and nothing behind it; the row is taken out and
//! the rest moves up. Where it does not say which row it was, ever smaller requests find it. Rows are encoded when
//! they are sent, again if they must be: nothing is kept twice.
//!
//! A refused row is a dead letter only when the table takes others: otherwise the fault is the table's.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use gcp_bigquery_client::google::cloud::bigquery::storage::v1::append_rows_request::{ProtoData, Rows};
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::append_rows_response;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::{
    AppendRowsRequest, AppendRowsResponse, ProtoRows, RowError,
};
use serde::de::IgnoredAny;
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, timeout};
use tonic::{Code, Response, Status, Streaming};
use uuid::Uuid;

use super::column::Record;
use super::config::APPEND_BYTES_LIMIT;
use super::encode::{Encoder, schema};
use super::extra::ExtraTable;
use super::refusal::Refusal;
use super::write::{RETRY_FOR, WriteClient};
use crate::batch::{Batch, BatchBuilder, Event, Origin, Row};
use crate::error::{self, Error, Result};
use crate::event::Content;
use crate::event::encoding::Encoding;
use crate::event::encoding::json::Json;
use crate::event::schema::EventRecord;
use crate::lsn::{Checkpoint, Lsn, Position};
use crate::sink::retry::Backoff;

/// How many requests may be unanswered.
const WINDOW: usize = 4;
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// How long a service may fail at the same rows before one of them is looked for.
const SUSPECT_AFTER: Duration = Duration::from_secs(10);
/// How much of the service's words is kept with a dead letter.
const MESSAGE_CHARS_MAX: usize = 1_000;
/// How deep a dead letter's JSON may be nested.
const LETTER_DEPTH_MAX: usize = 500;
/// The reason of a dead letter.
const REFUSED: &str = "refused_by_bigquery";

/// A row that BigQuery does not take.
#[derive(Debug)]
pub struct RefusedRow {
    /// The event's name.
    pub position: Position,
    /// `engagement_events.id`.
    pub event_id: i64,
    /// When its transaction committed, microseconds since 1970.
    pub commit_ts: i64,
    /// Where it was at first, when it came again.
    pub origin: Option<Origin>,
    /// A short code.
    pub reason: &'static str,
    /// The service's words; they may hold the row's values.
    pub message: String,
    /// The event as JSON.
    pub record: String,
}

/// A pending stream that takes rows.
pub struct Appender {
    client: WriteClient,
    stream: String,
    request_bytes_max: usize,
    /// Rows that the stream has: the next row's offset.
    rows: u64,
    bytes: u64,
    encoder: Encoder,
    call: Option<Call>,
}

/// Rows that have been sent and not been answered.
struct Sent {
    rows: Range<usize>,
    bytes: usize,
    /// It has been sent before, at this very offset.
    again: bool,
}

/// Rows on their way into the stream. A row's offset is the stream's length before, plus its index here.
struct Transfer<'a> {
    records: Vec<Record<'a>>,
    stored: usize,
    sent: VecDeque<Sent>,
    refused: Vec<RefusedRow>,
    /// How many rows a request may have: less than all of them while one is looked for that the service does not name.
    request_rows_max: usize,
    /// Each request waits for the answer to the one before.
    alone: bool,
    /// Rows have been cut into other requests after a call that broke.
    recut: bool,
    /// It is a row at which the service fails again and again.
    suspects: bool,
}

/// What came of waiting for the oldest unanswered request.
enum Answer {
    Stored,
    RowsRefused(Vec<RowError>),
    Refused(Refusal),
    /// The call has ended; what was not answered may have arrived or not.
    Broken(Refusal),
}

impl Appender {
    /// Makes a stream.
    pub async fn open(
        client: &WriteClient,
        request_bytes_max: usize,
        extra: &Arc<ExtraTable>,
    ) -> Result<Self> {
        Ok(Appender {
            client: client.clone(),
            stream: client.create_stream().await?.name,
            request_bytes_max,
            rows: 0,
            bytes: 0,
            encoder: Encoder::new(Arc::clone(extra)),
            call: None,
        })
    }

    /// Takes no more rows; gives the stream's name.
    pub fn close(self) -> String {
        self.stream
    }

    /// Rows that the stream has.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Their bytes, about.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends rows; returns when the stream has them all, but for those that are returned as refused.
    /// After an error it is unknown how many it has.
    pub async fn append(&mut self, records: Vec<Record<'_>>) -> Result<Vec<RefusedRow>> {
        let mut transfer = Transfer::new(records);
        let (mut backoff, mut progress) = (Backoff::default(), Instant::now());
        loop {
            let answer = match self.fill_window(&mut transfer).await {
                Ok(()) if transfer.sent.is_empty() => break,
                Ok(()) => self.answer().await,
                Err(broken) => Answer::Broken(broken),
            };
            match answer {
                Answer::Stored => self.stored(&mut transfer),
                Answer::RowsRefused(errors) => self.rows_refused(&mut transfer, errors).await?,
                Answer::Refused(refusal) => self.refused(&mut transfer, refusal).await?,
                Answer::Broken(refusal) if refusal.may_blame_rows() => {
                    self.call_refused(&mut transfer, refusal.message).await?;
                }
                Answer::Broken(refusal) if self.suspects(&mut transfer, &refusal, progress).await? => {
                    self.call_refused(&mut transfer, refusal.message).await?;
                }
                // a request may be on its way that was made of other rows than the one at its offset now
                Answer::Broken(_) if transfer.recut => return Err(self.out_of_step("broke off in a search")),
                Answer::Broken(refusal) if refusal.is_transient() && progress.elapsed() < RETRY_FOR => {
                    self.call = None;
                    transfer.sent.iter_mut().for_each(|sent| sent.again = true);
                    tokio::time::sleep(backoff.next_wait()).await;
                    self.send_again(&mut transfer).await;
                    continue;
                }
                Answer::Broken(refusal) => return Err(self.failed(refusal)),
            }
            backoff.reset();
            progress = Instant::now();
        }
        if transfer.refused.iter().any(|row| row.reason == REFUSED) {
            self.require_rows_taken().await?;
        }
        self.rows += transfer.records.len() as u64;
        Ok(transfer.refused)
    }

    /// An error when the table does not even take a row that no table refuses. It goes into a stream that is never
    /// committed: nobody sees it, and it expires.
    async fn require_rows_taken(&mut self) -> Result<()> {
        let stream = self.client.create_stream().await?.name;
        let mut probe = Call::open(self.client.clone(), stream.clone());
        let request = AppendRowsRequest {
            write_stream: stream,
            offset: Some(0),
            trace_id: "walcast".to_owned(),
            rows: Some(rows_of(Some(self.encoder.extra()), vec![plain_row()])),
            ..Default::default()
        };
        // a failure shows when the answer is awaited
        drop(probe.requests.send(request).await);
        match timeout(ANSWER_WITHIN, probe.next()).await.map(|answer| answer.map(judge)) {
            Ok(Ok(Answer::Stored)) => Ok(()),
            Ok(Ok(Answer::RowsRefused(_))) => Err(self.table_refuses()),
            Ok(Ok(Answer::Refused(refusal)) | Err(refusal)) if refusal.may_blame_rows() => {
                Err(self.table_refuses())
            }
            Ok(Ok(Answer::Refused(refusal) | Answer::Broken(refusal)) | Err(refusal)) => {
                Err(self.failed(refusal))
            }
            Err(_) => Err(self.failed(Status::deadline_exceeded("no answer in time").into())),
        }
    }

    fn table_refuses(&self) -> Error {
        let message = format!("{} refuses every row alike", self.client.address());
        Error::new(error::Code::BigQueryTableUnfit, message)
            .hint("`walcast check` compares the table with what walcast writes; no row is lost: all wait in the slot")
    }

    /// Whether the service fails again and again at what is in the call: it takes other rows meanwhile.
    async fn suspects(
        &mut self,
        transfer: &mut Transfer<'_>,
        refusal: &Refusal,
        progress: Instant,
    ) -> Result<bool> {
        if !refusal.may_hide_a_refusal() || transfer.sent.is_empty() {
            return Ok(false);
        }
        if !transfer.suspects && progress.elapsed() > SUSPECT_AFTER {
            self.require_rows_taken().await?;
            transfer.suspects = true;
        }
        Ok(transfer.suspects)
    }

    /// The service has ended the call because of a request in it. Alone in a call it is known, and was not stored.
    async fn call_refused(&mut self, transfer: &mut Transfer<'_>, message: String) -> Result<()> {
        self.call = None;
        if transfer.sent.len() > 1 || !transfer.alone {
            transfer.alone = true;
            transfer.sent.truncate(1);
            transfer.sent.iter_mut().for_each(|sent| sent.again = true);
            self.send_again(transfer).await;
            return Ok(());
        }
        let rows = transfer.sent.pop_front().map_or(0..0, |sent| sent.rows);
        transfer.recut = true;
        match rows.len() {
            0 => return Err(self.out_of_step("ended a call without a request")),
            1 => transfer.refuse(rows.start, REFUSED, message),
            many => transfer.request_rows_max = many / 2,
        }
        Ok(())
    }

    /// Sends until the window is full or all rows are on their way.
    async fn fill_window(&mut self, transfer: &mut Transfer<'_>) -> Result<(), Refusal> {
        let window = if transfer.alone || transfer.searches() { 1 } else { WINDOW };
        while transfer.sent.len() < window {
            let start = transfer.sent.back().map_or(transfer.stored, |last| last.rows.end);
            let (end, bytes, rows) = self.next_request(transfer, start);
            if rows.is_empty() {
                break;
            }
            transfer.sent.push_back(Sent { rows: start..end, bytes, again: false });
            self.send(start, rows).await?;
        }
        Ok(())
    }

    /// Encodes rows from `start` on until a request is full. A row that no request can take is refused here.
    fn next_request(&mut self, transfer: &mut Transfer<'_>, start: usize) -> (usize, usize, Vec<Vec<u8>>) {
        let (mut end, mut bytes, mut rows) = (start, 0, Vec::new());
        while let Some(record) = transfer.records.get(end) {
            let row = match self.encoder.encode(record) {
                Ok(row) => row,
                Err(unfit) => {
                    transfer.refuse(end, "unfit_extra_column", unfit);
                    continue;
                }
            };
            if row.len() > APPEND_BYTES_LIMIT {
                let message = format!("the row has {} bytes, BigQuery takes {APPEND_BYTES_LIMIT}", row.len());
                transfer.refuse(end, "too_large", message);
                continue;
            }
            let is_full =
                bytes + row.len() > self.request_bytes_max || rows.len() >= transfer.request_rows_max;
            if !rows.is_empty() && is_full {
                break;
            }
            bytes += row.len();
            rows.push(row);
            end += 1;
        }
        (end, bytes, rows)
    }

    /// After a new connection: the same requests, row for row, at the same offsets.
    async fn send_again(&mut self, transfer: &mut Transfer<'_>) {
        for index in 0..transfer.sent.len() {
            let Some(rows) = transfer.sent.get(index).map(|sent| sent.rows.clone()) else { break };
            let records = transfer.records.get(rows.clone()).unwrap_or_default();
            // what could not be encoded has been taken out
            let encoded = records.iter().filter_map(|record| self.encoder.encode(record).ok()).collect();
            // a failure shows again when the answer is awaited
            if self.send(rows.start, encoded).await.is_err() {
                break;
            }
        }
    }

    async fn send(&mut self, start: usize, rows: Vec<Vec<u8>>) -> Result<(), Refusal> {
        let first = self.call.is_none();
        let call = self.call.get_or_insert_with(|| Call::open(self.client.clone(), self.stream.clone()));
        let request = AppendRowsRequest {
            // the service needs it in the first request alone; emulators in each (bqemulator 1.4.0)
            write_stream: self.stream.clone(),
            offset: Some((self.rows + start as u64) as i64),
            trace_id: if first { "walcast".to_owned() } else { String::new() },
            rows: Some(rows_of(first.then(|| self.encoder.extra()), rows)),
            ..Default::default()
        };
        call.requests.send(request).await.map_err(|_| Status::unavailable("the append call has ended").into())
    }

    async fn answer(&mut self) -> Answer {
        let Some(call) = &mut self.call else {
            return Answer::Broken(Status::unavailable("no append call").into());
        };
        match timeout(ANSWER_WITHIN, call.next()).await {
            Ok(Ok(response)) => judge(response),
            Ok(Err(refusal)) => Answer::Broken(refusal),
            Err(_) => Answer::Broken(Status::deadline_exceeded("no answer in time").into()),
        }
    }

    fn stored(&mut self, transfer: &mut Transfer<'_>) {
        if let Some(sent) = transfer.sent.pop_front() {
            transfer.stored = sent.rows.end;
            transfer.request_rows_max = transfer.request_rows_max.saturating_mul(2);
            self.bytes += sent.bytes as u64;
        }
    }

    /// Takes the rows out. The service stored nothing of this request, so it refuses those behind it for their
    /// offsets; their answers come first, then all the rest is sent anew.
    ///
    /// Requests are cut anew then: one whose answer nobody has heard might still arrive, and fit with other rows
    /// than those that are sent at its offset now. After a broken call the stream is given up therefore.
    async fn rows_refused(&mut self, transfer: &mut Transfer<'_>, errors: Vec<RowError>) -> Result<()> {
        let refused = self.take_back(transfer).await?;
        let mut errors: Vec<(usize, RowError)> = errors
            .into_iter()
            .filter_map(|error| Some((refused.start + usize::try_from(error.index).ok()?, error)))
            .filter(|(index, _)| refused.contains(index))
            .collect();
        if errors.is_empty() {
            return Err(self.out_of_step("refused rows that it was not sent"));
        }
        // from the back, so that the indexes before stay true
        errors.sort_by_key(|(index, _)| std::cmp::Reverse(*index));
        errors.dedup_by_key(|(index, _)| *index);
        for (index, error) in errors {
            transfer.refuse(index, REFUSED, error.message);
        }
        Ok(())
    }

    async fn refused(&mut self, transfer: &mut Transfer<'_>, refusal: Refusal) -> Result<()> {
        let again = transfer.sent.front().is_some_and(|sent| sent.again);
        match refusal.code {
            Code::AlreadyExists if again => self.stored(transfer),
            _ if refusal.may_blame_rows() => {
                let rows = self.take_back(transfer).await?;
                match rows.len() {
                    1 => transfer.refuse(rows.start, REFUSED, refusal.message),
                    many => transfer.request_rows_max = many / 2,
                }
            }
            _ => return Err(self.failed(refusal)),
        }
        Ok(())
    }

    /// Waits for the answers to all that was sent behind a refused request, of which nothing was stored; gives that
    /// request's rows.
    async fn take_back(&mut self, transfer: &mut Transfer<'_>) -> Result<Range<usize>> {
        if transfer.sent.iter().any(|sent| sent.again) {
            return Err(self.out_of_step("refused rows of a call that broke"));
        }
        for _ in 1..transfer.sent.len() {
            match self.answer().await {
                Answer::Stored => return Err(self.out_of_step("stored rows behind refused ones")),
                Answer::Broken(_) => return Err(self.out_of_step("broke off behind refused rows")),
                Answer::RowsRefused(_) | Answer::Refused(_) => {}
            }
        }
        let rows = transfer.sent.front().map_or(0..0, |sent| sent.rows.clone());
        transfer.sent.clear();
        Ok(rows)
    }

    fn failed(&self, refusal: Refusal) -> Error {
        refusal.into_error(format!("{} takes no more rows into an open stream", self.client.address()))
    }

    fn out_of_step(&self, how: &str) -> Error {
        Error::new(error::Code::Lost, format!("{} {how}", self.client.address()))
    }
}

impl<'a> Transfer<'a> {
    fn new(records: Vec<Record<'a>>) -> Self {
        Transfer {
            records,
            stored: 0,
            sent: VecDeque::new(),
            refused: Vec::new(),
            request_rows_max: usize::MAX,
            alone: false,
            recut: false,
            suspects: false,
        }
    }

    /// Whether a row is looked for that the service refuses without naming it.
    fn searches(&self) -> bool {
        self.request_rows_max < self.records.len()
    }

    fn refuse(&mut self, index: usize, reason: &'static str, message: String) {
        let Record { event, batch, .. } = self.records.remove(index);
        self.refused.push(RefusedRow {
            position: event.position,
            event_id: event.id,
            commit_ts: event.commit_ts,
            origin: batch.origin(event.position),
            reason,
            message: storable(&message),
            record: json_of(batch, event),
        });
    }
}

/// The service's words as PostgreSQL can keep them.
fn storable(message: &str) -> String {
    message.chars().filter(|char| *char != '\0').take(MESSAGE_CHARS_MAX).collect()
}

/// `first`: of a call, whose rows have these extra columns.
fn rows_of(first: Option<&ExtraTable>, rows: Vec<Vec<u8>>) -> Rows {
    Rows::ProtoRows(ProtoData {
        writer_schema: first.map(schema),
        rows: Some(ProtoRows { serialized_rows: rows }),
    })
}

/// A row with a value in every column, and none that anybody could find fault with.
fn plain_row() -> Vec<u8> {
    let mut batch = BatchBuilder::new(Checkpoint::default());
    let content = Content {
        id: Uuid::nil(),
        slug: Some("walcast".to_owned()),
        title: Some("walcast".to_owned()),
        content_type: Some("video".to_owned()),
        length_seconds: Some(1),
        publish_ts: Some(0),
    };
    let event = Event {
        content_id: Some(content.id),
        user_id: Some(Uuid::nil()),
        event_type: Some(batch.intern("play")),
        duration_ms: Some(0),
        device: Some(batch.intern("walcast")),
        raw_payload: Some(batch.intern("{}")),
        raw_payload_bytes: Some(2),
        content: Some(Arc::new(content)),
        ..Event::new(Position { commit_lsn: Lsn::ZERO, ordinal: 0 }, 0, -1, 0)
    };
    batch.push(Row::Event(event));
    let batch = batch.finish(false);
    let mut rows =
        batch.events().map(|event| Record { event, batch: &batch, epoch: "probe", ingested_at: 0 });
    rows.next().and_then(|record| Encoder::default().encode(&record).ok()).unwrap_or_default()
}

/// The event as JSON; as JSON text of its own when it is not JSON itself, which may be why it was refused, or is nested
/// so deep that PostgreSQL, which took its payload, might not take it with one more level around.
fn json_of(batch: &Batch, event: &Event) -> String {
    let mut record = Vec::new();
    Json.event(&EventRecord { event, texts: batch.texts() }, &mut record);
    match serde_json::from_slice::<IgnoredAny>(&record) {
        Ok(_) if depth(&record) < LETTER_DEPTH_MAX => String::from_utf8_lossy(&record).into_owned(),
        _ => serde_json::Value::from(String::from_utf8_lossy(&record)).to_string(),
    }
}

/// How deep JSON is nested.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut quoted, mut escaped) = (0usize, 0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            b'{' | b'[' if !quoted => depth += 1,
            b'}' | b']' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

fn judge(response: AppendRowsResponse) -> Answer {
    match response.response {
        _ if !response.row_errors.is_empty() => Answer::RowsRefused(response.row_errors),
        Some(append_rows_response::Response::Error(status)) if status.code != 0 => {
            let refusal = Refusal::from(status);
            // the call goes on, but the request behind a passing failure has nothing to stand on
            if refusal.is_transient() { Answer::Broken(refusal) } else { Answer::Refused(refusal) }
        }
        _ => Answer::Stored,
    }
}

type Answers = Streaming<AppendRowsResponse>;
type Opening = Pin<Box<dyn Future<Output = Result<Response<Answers>, Refusal>> + Send>>;

/// An AppendRows call. The service may answer nothing at all, not even that the call was taken, before it has
/// seen a request: so requests go ahead.
struct Call {
    requests: mpsc::Sender<AppendRowsRequest>,
    state: CallState,
}

enum CallState {
    Opening(Opening),
    Open(Box<Answers>),
}

impl Call {
    fn open(client: WriteClient, stream: String) -> Self {
        let (requests, queue) = mpsc::channel(WINDOW);
        let opening = async move {
            let requests = futures_util::stream::unfold(queue, |mut queue| async move {
                queue.recv().await.map(|request| (request, queue))
            });
            client.append_rows(&stream, requests).await
        };
        Call { requests, state: CallState::Opening(Box::pin(opening)) }
    }

    /// The next answer. After an error the call is of no more use.
    async fn next(&mut self) -> Result<AppendRowsResponse, Refusal> {
        if let CallState::Opening(opening) = &mut self.state {
            self.state = CallState::Open(Box::new(opening.await?.into_inner()));
        }
        let CallState::Open(answers) = &mut self.state else {
            return Err(Status::internal("the call is not open").into());
        };
        match answers.message().await? {
            Some(response) => Ok(response),
            None => Err(Status::unavailable("the append call was ended").into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_in_texts_are_no_depth() {
        for (json, wanted) in [("1", 0), ("{}", 1), (r#"{"a":[[]],"b":[]}"#, 3), (r#"{"[\"[[":"{{\\"}"#, 1)] {
            assert_eq!(depth(json.as_bytes()), wanted, "{json}");
        }
    }

    #[test]
    fn a_services_words_are_kept_as_far_as_postgresql_takes_them() {
        assert_eq!(storable("a\0b"), "ab");
        assert_eq!(storable(&"é".repeat(2_000)).chars().count(), MESSAGE_CHARS_MAX);
    }
}
