//! Reads a board with its titles, for people to look at, beside the sink and without ever being in its way.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::{Pipeline, Value};
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::config::RedisConfig;
use super::connection::Connection;
use super::keys;
use super::window::WINDOWS;
use crate::error::{Code, Error, Result};

/// Places of a board that are read.
const PLACES: usize = 20;
/// An answer serves everybody who asks within this time.
const KEPT: Duration = Duration::from_secs(1);
/// One reading takes no longer, connecting included.
const DEADLINE: Duration = Duration::from_secs(2);
/// The board of all time, beside the windows.
const ALL: &str = "all";

/// One place on a board.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Place {
    /// Content id.
    pub id: String,
    /// Seconds of engagement in the window.
    pub seconds: f64,
    /// From the content row; `None` when it is unknown or deleted.
    pub title: Option<String>,
    /// From the content row.
    pub content_type: Option<String>,
}

/// A board as it was at most a second ago.
pub type Top = Arc<Vec<Place>>;

/// Reads boards: one reading at a time, on a connection of its own, at most one a second and board.
pub struct Reader {
    config: RedisConfig,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<Connection>,
    kept: HashMap<&'static str, (Instant, Result<Top, String>)>,
}

impl Reader {
    /// A reader of this database; connects when it is first asked.
    pub fn new(config: RedisConfig) -> Self {
        Reader { config, state: Mutex::default() }
    }

    /// The names of the boards: each window's, and that of all time.
    pub fn names() -> impl Iterator<Item = &'static str> {
        WINDOWS.iter().map(|window| window.name).chain([ALL])
    }

    /// The first places of a board; `None` when there is no such board. The text of an error says what to do.
    pub async fn top(&self, name: &str) -> Option<Result<Top, String>> {
        let name = Reader::names().find(|known| *known == name)?;
        let mut state = self.state.lock().await;
        if let Some((read_at, answer)) = state.kept.get(name)
            && read_at.elapsed() < KEPT
        {
            return Some(answer.clone());
        }
        let answer = self.read(&mut state.connection, name).await.map_err(|error| error.told());
        state.kept.insert(name, (Instant::now(), answer.clone()));
        Some(answer)
    }

    /// Whatever goes wrong, the connection is not used again: its next answer might be to this question.
    async fn read(&self, kept: &mut Option<Connection>, name: &'static str) -> Result<Top> {
        let reading = async {
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => Connection::open(&self.config).await?,
            };
            let places = places(&mut connection, &board(name)).await?;
            Ok((connection, places))
        };
        let late =
            |_| Error::new(Code::RedisUnreachable, format!("{} is slow to answer", self.config.address()));
        let (connection, places) = tokio::time::timeout(DEADLINE, reading).await.map_err(late)??;
        *kept = Some(connection);
        Ok(Arc::new(places))
    }
}

fn board(name: &'static str) -> String {
    let window = WINDOWS.iter().find(|window| window.name == name);
    window.map_or_else(|| keys::BOARD_ALL.to_owned(), keys::board)
}

/// Two round trips: who is on the board, then what is known of them.
async fn places(connection: &mut Connection, board: &str) -> Result<Vec<Place>> {
    let mut range = redis::cmd("ZREVRANGE");
    range.arg(board).arg(0).arg(PLACES - 1).arg("WITHSCORES");
    let scores: Vec<(String, f64)> = connection.ask(&range).await?;
    if scores.is_empty() {
        return Ok(Vec::new());
    }
    let mut rows = Pipeline::new();
    for (id, _) in &scores {
        rows.cmd("HMGET").arg(keys::content_named(id)).arg("title").arg("content_type");
    }
    let rows = connection.read(&mut rows).await?;
    Ok(scores.into_iter().zip(rows).map(|((id, seconds), row)| place(id, seconds, row)).collect())
}

fn place(id: String, seconds: f64, row: Value) -> Place {
    let row: Vec<Option<String>> = redis::from_redis_value(row).unwrap_or_default();
    let mut row = row.into_iter();
    let (title, content_type) = (row.next().flatten(), row.next().flatten());
    Place { id, seconds, title, content_type }
}
