//! The REST calls: datasets, tables, and the very queries that walcast asks.

use axum::body::to_bytes;
use serde_json::{Value, json};
use tonic::body::Body;
use tonic::codegen::http;
use tonic::{Code, Status};

use super::fault::Call;
use super::store::Table;
use super::{BigQueryServer, Row, Store};

const BODY_BYTES_MAX: usize = 1 << 20;

type Answer = Result<Value, Status>;

pub async fn answer(server: BigQueryServer, request: http::Request<Body>) -> http::Response<Body> {
    let (head, body) = request.into_parts();
    let body = to_bytes(axum::body::Body::new(body), BODY_BYTES_MAX).await.unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let path: Vec<String> = head.uri.path().split('/').skip(3).map(str::to_owned).collect();
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let (call, act) = match act(&head.method, &path, body) {
        Some(known) => known,
        None => return response(Err(Status::unimplemented(format!("{} {}", head.method, head.uri.path())))),
    };
    response(server.serve(call, None, act).await)
}

type Act = Box<dyn FnOnce(&mut Store) -> Answer + Send>;

fn act(method: &http::Method, path: &[&str], body: Value) -> Option<(Call, Act)> {
    let get = *method == http::Method::GET;
    let post = *method == http::Method::POST;
    let known: (Call, Act) = match *path {
        ["projects", _, "datasets", dataset] if get => {
            let dataset = dataset.to_owned();
            (
                Call::GetDataset,
                Box::new(move |store| store.datasets.get(&dataset).cloned().ok_or_else(not_found)),
            )
        }
        ["projects", _, "datasets", dataset] if *method == http::Method::DELETE => {
            let dataset = dataset.to_owned();
            (Call::DeleteDataset, Box::new(move |store| delete_dataset(store, &dataset)))
        }
        ["projects", _, "datasets"] if post => {
            (Call::CreateDataset, Box::new(move |store| create_dataset(store, body)))
        }
        ["projects", project, "datasets", dataset, "tables"] if post => {
            let (project, dataset) = (project.to_owned(), dataset.to_owned());
            (Call::CreateTable, Box::new(move |store| create_table(store, &project, &dataset, body)))
        }
        ["projects", _, "datasets", _, "tables", _] if get => {
            let name = path.join("/");
            let show = move |store: &mut Store| {
                store.tables.get(&name).map(|table| table.definition.clone()).ok_or_else(not_found)
            };
            (Call::GetTable, Box::new(show))
        }
        ["projects", _, "datasets", _, "routines", _] if get => {
            (Call::GetRoutine, Box::new(|_| Err(not_found())))
        }
        ["projects", _, "queries"] if post => {
            let sql = body["query"].as_str().unwrap_or_default().to_owned();
            (Call::Query, Box::new(move |store| query(store, &sql)))
        }
        _ => return None,
    };
    Some(known)
}

fn create_dataset(store: &mut Store, wanted: Value) -> Answer {
    let name = wanted["datasetReference"]["datasetId"].as_str().unwrap_or_default().to_owned();
    if store.datasets.contains_key(&name) {
        return Err(Status::already_exists("Already Exists"));
    }
    store.datasets.insert(name, wanted.clone());
    Ok(wanted)
}

fn delete_dataset(store: &mut Store, name: &str) -> Answer {
    store.datasets.remove(name).ok_or_else(not_found)?;
    let within = format!("/datasets/{name}/");
    store.tables.retain(|table, _| !table.contains(&within));
    Ok(Value::Null)
}

fn create_table(store: &mut Store, project: &str, dataset: &str, wanted: Value) -> Answer {
    if !store.datasets.contains_key(dataset) {
        return Err(not_found());
    }
    let table = wanted["tableReference"]["tableId"].as_str().unwrap_or_default();
    let name = format!("projects/{project}/datasets/{dataset}/tables/{table}");
    if store.tables.contains_key(&name) {
        return Err(Status::already_exists("Already Exists"));
    }
    store.tables.insert(name, Table::new(wanted.clone()));
    Ok(wanted)
}

fn query(store: &mut Store, sql: &str) -> Answer {
    if sql == "SELECT 1" {
        return Ok(rows(&[vec![1]]));
    }
    if sql.trim_start().starts_with("CREATE") && sql.contains("FUNCTION") {
        return Ok(rows(&[]));
    }
    if let Some(done) = truncate(store, sql).or_else(|| add_columns(store, sql)) {
        return done;
    }
    last_position(store, sql)
        .unwrap_or_else(|| Err(Status::invalid_argument("a query that is not known here")))
}

/// All rows of a table go.
fn truncate(store: &mut Store, sql: &str) -> Option<Answer> {
    let name = sql.strip_prefix("TRUNCATE TABLE `")?.strip_suffix('`')?;
    let [project, dataset, table] = name.split('.').collect::<Vec<_>>()[..] else { return None };
    let table = store.tables.get_mut(&format!("projects/{project}/datasets/{dataset}/tables/{table}"));
    Some(table.map_or_else(
        || Err(not_found()),
        |table| {
            table.rows.clear();
            Ok(rows(&[]))
        },
    ))
}

/// Columns of a table that it has not yet.
fn add_columns(store: &mut Store, sql: &str) -> Option<Answer> {
    let (name, clauses) = sql.strip_prefix("ALTER TABLE `")?.split_once("` ")?;
    let [project, dataset, table] = name.split('.').collect::<Vec<_>>()[..] else { return None };
    let table = format!("projects/{project}/datasets/{dataset}/tables/{table}");
    for clause in clauses.split(", ") {
        let (column, column_type) = clause.strip_prefix("ADD COLUMN IF NOT EXISTS `")?.split_once("` ")?;
        store.add_column(&table, column, column_type);
    }
    Some(Ok(rows(&[])))
}

/// The one question of substance: the last position of a history id within a footprint.
fn last_position(store: &Store, sql: &str) -> Option<Answer> {
    let sql = sql.strip_prefix("SELECT commit_lsn, ordinal FROM `")?;
    let sql = sql.strip_suffix(" ORDER BY commit_lsn DESC, ordinal DESC LIMIT 1")?;
    let (name, sql) = sql.split_once("` WHERE epoch = '")?;
    let (epoch, sql) = sql.split_once("' AND bucket_30m IN (")?;
    let (buckets, sql) = sql.split_once(") AND event_ts BETWEEN TIMESTAMP_MICROS(")?;
    let (from, sql) = sql.split_once(") AND TIMESTAMP_MICROS(")?;
    let (to, lowest) = sql.split_once(") AND commit_lsn >= ")?;
    let buckets: Vec<i64> = buckets.split(", ").map(str::parse).collect::<Result<_, _>>().ok()?;
    let (from, to, lowest): (i64, i64, i64) = (from.parse().ok()?, to.parse().ok()?, lowest.parse().ok()?);
    let [project, dataset, table] = name.split('.').collect::<Vec<_>>()[..] else { return None };
    let Some(table) = store.tables.get(&format!("projects/{project}/datasets/{dataset}/tables/{table}"))
    else {
        return Some(Err(not_found()));
    };
    let within = |row: &&Row| {
        row.epoch == epoch
            && buckets.contains(&row.bucket_30m)
            && (from..=to).contains(&row.event_ts)
            && row.commit_lsn >= lowest
    };
    let last = table.rows.iter().filter(within).map(|row| (row.commit_lsn, row.ordinal)).max();
    Some(Ok(rows(&last.map(|(lsn, ordinal)| vec![lsn, ordinal]).into_iter().collect::<Vec<_>>())))
}

/// A query's answer; numbers travel as text.
fn rows(rows: &[Vec<i64>]) -> Value {
    let cell = |number: &i64| json!({ "v": number.to_string() });
    let row = |row: &Vec<i64>| json!({ "f": row.iter().map(cell).collect::<Vec<_>>() });
    json!({ "jobComplete": true, "totalRows": rows.len().to_string(), "rows": rows.iter().map(row).collect::<Vec<_>>() })
}

fn not_found() -> Status {
    Status::not_found("Not found")
}

fn response(answer: Answer) -> http::Response<Body> {
    let (code, body) = match answer {
        Ok(body) => (200, body),
        Err(status) => {
            let code = http_code(status.code());
            (code, json!({ "error": { "code": code, "errors": [], "message": status.message() } }))
        }
    };
    let body = Body::new(axum::body::Body::from(body.to_string()));
    let mut response = http::Response::new(body);
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or_default();
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    response
}

fn http_code(code: Code) -> u16 {
    match code {
        Code::NotFound => 404,
        Code::AlreadyExists => 409,
        Code::PermissionDenied => 403,
        Code::ResourceExhausted => 429,
        Code::Unavailable => 503,
        Code::Internal => 500,
        _ => 400,
    }
}
