//! The service's rules: what streams and tables there are, and what may be done with them. Each method is one
//! act: it happens wholly or not at all.

use std::collections::{BTreeSet, HashMap};
use std::time::SystemTime;

use gcp_bigquery_client::google::cloud::bigquery::storage::v1::row_error::RowErrorCode;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::storage_error::StorageErrorCode as Reason;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::write_stream::Type;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::{
    BatchCommitWriteStreamsResponse, RowError, StorageError, TableFieldSchema, TableSchema, WriteStream,
};
use gcp_bigquery_client::google::rpc;
use prost::Message;
use prost_types::Timestamp;
use serde_json::Value;
use tonic::{Code, Status};
use uuid::Uuid;

use super::row::{Layout, Row};

const DEFAULT: &str = "/streams/_default";

/// All that the service has.
#[derive(Default)]
pub struct Store {
    pub datasets: HashMap<String, Value>,
    /// By `projects/{}/datasets/{}/tables/{}`.
    pub tables: HashMap<String, Table>,
    streams: HashMap<String, Stream>,
    /// Events whose rows it refuses.
    pub refuses: BTreeSet<i64>,
    /// Rows that it refuses are not named: the request is refused with this code, in words that quote one.
    pub names_no_row: Option<Code>,
    /// So is the call.
    pub ends_call: bool,
    /// No row is taken.
    pub refuses_all: bool,
    /// Rows are read and checked, but only counted.
    pub forgets_rows: bool,
    /// So many streams are still made that do not know the columns that were added.
    pub streams_behind: usize,
}

/// A table.
pub struct Table {
    /// As the REST service shows it.
    pub definition: Value,
    /// What a reader sees, in the order in which it became visible.
    pub rows: Vec<Row>,
    /// How many became visible at once, each time.
    pub commits: Vec<usize>,
    columns: BTreeSet<String>,
    /// Columns that were added, and that streams do not know yet.
    coming: Vec<String>,
    required: Vec<String>,
}

struct Stream {
    table: String,
    kind: Type,
    rows: Vec<Row>,
    /// How many rows it was given: the next offset.
    length: usize,
    /// How many of them are visible.
    shown: usize,
    finalized: bool,
    committed: Option<Timestamp>,
}

/// Why nothing of an append was stored.
pub enum NotAppended {
    /// The request is refused.
    Refused(rpc::Status),
    /// Some of its rows are wrong.
    Rows(Vec<RowError>),
}

impl Table {
    /// A table without rows; `definition` as the REST service takes it.
    pub fn new(definition: Value) -> Self {
        let fields = definition["schema"]["fields"].as_array().cloned().unwrap_or_default();
        let name = |field: &Value| field["name"].as_str().unwrap_or_default().to_lowercase();
        let required = fields.iter().filter(|field| field["mode"] == "REQUIRED").map(name).collect();
        let columns = fields.iter().map(name).collect();
        Table { definition, rows: Vec::new(), commits: Vec::new(), columns, coming: Vec::new(), required }
    }
}

impl Store {
    pub fn create(&mut self, table: &str, kind: Type) -> Result<WriteStream, Status> {
        if !self.tables.contains_key(table) {
            return Err(status(Code::NotFound, Reason::TableNotFound, table, "Table is not found").into_rpc());
        }
        if kind == Type::Unspecified {
            return Err(Status::invalid_argument("a stream of no type"));
        }
        let name = format!("{table}/streams/{}", Uuid::new_v4());
        let committed = (kind == Type::Committed).then(now);
        let (table, rows) = (table.to_owned(), Vec::new());
        let stream = Stream { table, kind, rows, length: 0, shown: 0, finalized: false, committed };
        let shown = WriteStream { table_schema: self.schema(&stream.table), ..stream.describe(&name) };
        self.streams.insert(name, stream);
        Ok(shown)
    }

    /// The columns that a stream made now knows of a table.
    fn schema(&mut self, table: &str) -> Option<TableSchema> {
        let table = self.tables.get_mut(table)?;
        match self.streams_behind.checked_sub(1).filter(|_| !table.coming.is_empty()) {
            Some(behind) => self.streams_behind = behind,
            None => table.columns.extend(table.coming.drain(..)),
        }
        let field = |name: &String| TableFieldSchema { name: name.clone(), ..Default::default() };
        Some(TableSchema { fields: table.columns.iter().map(field).collect() })
    }

    /// Adds a column to a table unless it is there.
    pub fn add_column(&mut self, table: &str, column: &str, column_type: &str) {
        let Some(table) = self.tables.get_mut(table) else { return };
        let Some(fields) = table.definition["schema"]["fields"].as_array_mut() else { return };
        if fields.iter().all(|field| field["name"] != column) {
            fields.push(serde_json::json!({ "name": column, "type": column_type, "mode": "NULLABLE" }));
            table.coming.push(column.to_lowercase());
        }
    }

    /// Stores all rows of a request, or none.
    pub fn append(
        &mut self,
        name: &str,
        offset: Option<i64>,
        layout: &Layout,
        messages: &[Vec<u8>],
    ) -> Result<usize, NotAppended> {
        let refused = |code, reason, text: String| NotAppended::Refused(status(code, reason, name, &text));
        let stream = self.stream(name).map_err(NotAppended::Refused)?;
        if stream.finalized {
            return Err(refused(
                Code::InvalidArgument,
                Reason::StreamFinalized,
                "Stream is finalized".into(),
            ));
        }
        let length = stream.length as i64;
        match offset {
            Some(_) if name.ends_with(DEFAULT) => {
                let text = "The default stream takes no offset".into();
                return Err(refused(Code::InvalidArgument, Reason::Unspecified, text));
            }
            Some(offset) if offset < length => {
                let text =
                    format!("The offset is within stream, expected offset {length}, received {offset}");
                return Err(refused(Code::AlreadyExists, Reason::OffsetAlreadyExists, text));
            }
            Some(offset) if offset > length => {
                let text =
                    format!("The offset is beyond stream, expected offset {length}, received {offset}");
                return Err(refused(Code::OutOfRange, Reason::OffsetOutOfRange, text));
            }
            _ => {}
        }
        let table = self.tables.get(&table_of(name)).ok_or_else(|| NotAppended::Refused(no_stream(name)))?;
        if let Some(extra) = layout.columns().find(|column| !table.columns.contains(*column)) {
            let text = format!("The source object has fields unknown to BigQuery: root.{extra}.");
            return Err(refused(Code::InvalidArgument, Reason::SchemaMismatchExtraFields, text));
        }
        let rows = self.read(layout, messages, &table.required)?;
        let stream = self.streams.get_mut(name).ok_or_else(|| NotAppended::Refused(no_stream(name)))?;
        stream.length += rows.len();
        stream.rows.extend(rows.into_iter().filter(|_| !self.forgets_rows));
        if stream.kind == Type::Committed {
            let end = stream.length;
            self.show(&[name.to_owned()], end);
        }
        Ok(length as usize)
    }

    fn read(
        &self,
        layout: &Layout,
        messages: &[Vec<u8>],
        required: &[String],
    ) -> Result<Vec<Row>, NotAppended> {
        let (mut rows, mut errors) = (Vec::with_capacity(messages.len()), Vec::new());
        for (index, message) in (0..).zip(messages) {
            let row = layout.read(message, required).and_then(|row| {
                match self.refuses.contains(&row.event_id) || self.refuses_all {
                    true => Err("the service does not like this row".to_owned()),
                    false => Ok(row),
                }
            });
            match row {
                Ok(row) => rows.push(row),
                Err(message) => {
                    errors.push(RowError { index, code: RowErrorCode::FieldsError as i32, message })
                }
            }
        }
        match self.names_no_row {
            _ if errors.is_empty() => Ok(rows),
            Some(code) => Err(NotAppended::Refused(rpc::Status {
                code: code as i32,
                message: "Rows are invalid: \"canary\"\0".into(),
                details: Vec::new(),
            })),
            None => Err(NotAppended::Rows(errors)),
        }
    }

    pub fn describe(&mut self, name: &str) -> Result<WriteStream, Status> {
        Ok(self.stream(name).map_err(IntoRpc::into_rpc)?.describe(name))
    }

    /// Takes no more rows; how many there are. A stream that has ended already is none the worse.
    pub fn finalize(&mut self, name: &str) -> Result<i64, Status> {
        if name.ends_with(DEFAULT) {
            return Err(Status::invalid_argument("the default stream has no end"));
        }
        let stream = self.stream(name).map_err(IntoRpc::into_rpc)?;
        stream.finalized = true;
        Ok(stream.length as i64)
    }

    /// Makes all rows of all these streams visible at once, or tells what each of them lacks for it.
    pub fn commit(
        &mut self,
        table: &str,
        names: &[String],
    ) -> Result<BatchCommitWriteStreamsResponse, Status> {
        let names: BTreeSet<&String> = names.iter().collect();
        if names.is_empty() || names.iter().any(|name| table_of(name) != table) {
            return Err(Status::invalid_argument("the streams must be of the parent table, one at least"));
        }
        let errors: Vec<StorageError> = names.iter().filter_map(|name| self.not_committed(name)).collect();
        if !errors.is_empty() {
            return Ok(BatchCommitWriteStreamsResponse { commit_time: None, stream_errors: errors });
        }
        let commit_time = Some(now());
        let names: Vec<String> = names.into_iter().cloned().collect();
        self.show(&names, usize::MAX);
        for name in &names {
            if let Some(stream) = self.streams.get_mut(name) {
                stream.committed = commit_time;
            }
        }
        Ok(BatchCommitWriteStreamsResponse { commit_time, stream_errors: Vec::new() })
    }

    fn not_committed(&self, name: &str) -> Option<StorageError> {
        let (reason, text) = match self.streams.get(name) {
            None => (Reason::StreamNotFound, "Stream is not found"),
            Some(stream) if stream.kind != Type::Pending => {
                (Reason::InvalidStreamType, "Stream is not pending")
            }
            Some(stream) if stream.committed.is_some() => {
                (Reason::StreamAlreadyCommitted, "Stream is already committed")
            }
            Some(stream) if !stream.finalized => (Reason::InvalidStreamState, "Stream is not finalized"),
            Some(_) => return None,
        };
        Some(StorageError { code: reason as i32, entity: name.to_owned(), error_message: text.to_owned() })
    }

    /// Makes a buffered stream's rows visible up to `offset`, this one included.
    pub fn flush(&mut self, name: &str, offset: i64) -> Result<i64, Status> {
        let stream = self.stream(name).map_err(IntoRpc::into_rpc)?;
        if stream.kind != Type::Buffered {
            let text = "Stream is not buffered";
            return Err(status(Code::InvalidArgument, Reason::InvalidStreamType, name, text).into_rpc());
        }
        let (end, length) = (offset.saturating_add(1).max(0) as usize, stream.length);
        if end > length {
            let text = format!("the stream has {length} rows");
            return Err(status(Code::OutOfRange, Reason::OffsetOutOfRange, name, &text).into_rpc());
        }
        self.show(&[name.to_owned()], end);
        Ok(offset)
    }

    /// A stream's time is over: nobody knows it any more. What it has made visible stays.
    pub fn expire(&mut self, name: &str) {
        self.streams.remove(name);
    }

    /// Every open stream's time is over.
    pub fn expire_all(&mut self) {
        self.streams.clear();
    }

    /// Somebody takes a column out of a table.
    pub fn drop_column(&mut self, table: &str, column: &str) {
        let Some(table) = self.tables.get_mut(table) else { return };
        let mut definition = table.definition.clone();
        if let Some(fields) = definition["schema"]["fields"].as_array_mut() {
            fields.retain(|field| field["name"] != column);
        }
        *table = Table { rows: std::mem::take(&mut table.rows), ..Table::new(definition) };
    }

    fn show(&mut self, names: &[String], end: usize) {
        let mut shown = 0;
        let mut table = String::new();
        for name in names {
            let Some(stream) = self.streams.get_mut(name) else { continue };
            let to = end.min(stream.length);
            let new = to.saturating_sub(stream.shown);
            let rows = stream.rows.drain(..new.min(stream.rows.len()));
            if let Some(table) = self.tables.get_mut(&stream.table) {
                table.rows.extend(rows);
            }
            stream.shown += new;
            shown += new;
            table.clone_from(&stream.table);
        }
        if let Some(table) = self.tables.get_mut(&table) {
            table.commits.push(shown);
        }
    }

    fn stream(&mut self, name: &str) -> Result<&mut Stream, rpc::Status> {
        if let Some(table) = name.strip_suffix(DEFAULT)
            && self.tables.contains_key(table)
        {
            let (table, rows) = (table.to_owned(), Vec::new());
            let (kind, committed) = (Type::Committed, Some(now()));
            let stream = Stream { table, kind, rows, length: 0, shown: 0, finalized: false, committed };
            return Ok(self.streams.entry(name.to_owned()).or_insert(stream));
        }
        self.streams.get_mut(name).ok_or_else(|| no_stream(name))
    }
}

impl Stream {
    fn describe(&self, name: &str) -> WriteStream {
        WriteStream {
            name: name.to_owned(),
            r#type: self.kind as i32,
            commit_time: self.committed,
            ..Default::default()
        }
    }
}

/// A refusal in the service's own words.
pub fn status(code: Code, reason: Reason, entity: &str, message: &str) -> rpc::Status {
    let (entity, message) = (entity.to_owned(), format!("{message}. Entity: {entity}"));
    let error = StorageError { code: reason as i32, entity, error_message: message.clone() };
    let detail = prost_types::Any {
        type_url: "type.googleapis.com/google.cloud.bigquery.storage.v1.StorageError".into(),
        value: error.encode_to_vec(),
    };
    rpc::Status { code: code as i32, message, details: vec![detail] }
}

/// A refusal as the end of a call.
pub trait IntoRpc {
    fn into_rpc(self) -> Status;
}

impl IntoRpc for rpc::Status {
    fn into_rpc(self) -> Status {
        let details = self.encode_to_vec().into();
        Status::with_details(Code::from(self.code), self.message, details)
    }
}

/// What the service says for a while after a column was added.
pub fn old_schema(stream: &str) -> rpc::Status {
    status(
        Code::InvalidArgument,
        Reason::SchemaMismatchExtraFields,
        stream,
        "Input schema has more fields than BigQuery schema",
    )
}

fn no_stream(name: &str) -> rpc::Status {
    status(Code::NotFound, Reason::StreamNotFound, name, "Requested entity was not found")
}

fn table_of(stream: &str) -> String {
    stream.split("/streams/").next().unwrap_or_default().to_owned()
}

fn now() -> Timestamp {
    SystemTime::now().into()
}
