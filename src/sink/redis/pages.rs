//! Reading a large key in pages, since Redis does nothing else while it answers. Of a key that nobody writes to meanwhile,
//! such as one that only the owner of the fence writes to, the pages are one state.

use redis::{FromRedisValue, Pipeline, Value};

use super::connection::Connection;
use crate::error::Result;

/// Fields in a page of a hash, about.
pub const FIELDS: usize = 1_000;

/// Bytes in a page of a string.
pub const BYTES: usize = 1 << 20;

/// Asks for the first page of a hash.
pub fn ask_hash(key: &str, pipeline: &mut Pipeline) {
    pipeline.cmd("HSCAN").arg(key).arg(0).arg("COUNT").arg(FIELDS);
}

/// The whole hash of counts, of which this is the first page. A field may come twice.
pub async fn hash(
    connection: &mut Connection,
    key: &str,
    first: Option<Value>,
) -> Result<Vec<(Vec<u8>, u64)>> {
    type Page = (u64, Vec<(Vec<u8>, u64)>);
    let (mut cursor, mut fields): Page = parse(connection, key, first)?;
    while cursor != 0 {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("HSCAN").arg(key).arg(cursor).arg("COUNT").arg(FIELDS);
        let page = connection.read(&mut pipeline).await?.into_iter().next();
        let (next, mut more): Page = parse(connection, key, page)?;
        fields.append(&mut more);
        cursor = next;
    }
    Ok(fields)
}

/// Asks for the first page of a string.
pub fn ask_string(key: &str, pipeline: &mut Pipeline) {
    pipeline.cmd("GETRANGE").arg(key).arg(0).arg(BYTES - 1);
}

/// The whole string, of which this is the first page; `None` when there is none, or an empty one.
pub async fn string(connection: &mut Connection, key: &str, first: Option<Value>) -> Result<Option<Vec<u8>>> {
    let first = parse(connection, key, first)?;
    let bytes = rest(connection, key, first).await?;
    Ok((!bytes.is_empty()).then_some(bytes))
}

/// The same, of which this is the first page as it came.
pub async fn rest(connection: &mut Connection, key: &str, first: Vec<u8>) -> Result<Vec<u8>> {
    let mut bytes = first;
    let mut page = bytes.len();
    while page == BYTES {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("GETRANGE").arg(key).arg(bytes.len()).arg(bytes.len() + BYTES - 1);
        let answer = connection.read(&mut pipeline).await?.into_iter().next();
        let mut more: Vec<u8> = parse(connection, key, answer)?;
        page = more.len();
        bytes.append(&mut more);
    }
    Ok(bytes)
}

/// What an answer says; an error that names the key when it is something else.
pub fn parse<T: FromRedisValue>(connection: &Connection, key: &str, answer: Option<Value>) -> Result<T> {
    // the client's own error quotes what is there
    redis::from_redis_value(answer.unwrap_or(Value::Nil))
        .map_err(|_| connection.unreadable(key, "something else than walcast keeps there"))
}
