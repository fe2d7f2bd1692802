//! Dead letters for whoever looks at the page: few, without the rows' values but for the holder of the token.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::error::Result;
use crate::source::PostgresConfig;
use crate::state::dead_letters::{self, Filter, LetterId, LetterState, Stored};
use crate::state::{State, history};

/// The page shows the oldest; the command shows all.
const SHOWN_MAX: u32 = 50;
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The store, on a session of its own that is opened when somebody asks.
pub struct Letters {
    postgres: PostgresConfig,
    state: Mutex<State>,
}

impl Letters {
    /// The letters of this slot.
    pub fn new(postgres: &PostgresConfig) -> Letters {
        Letters { postgres: postgres.clone(), state: Mutex::new(State::new(postgres.clone())) }
    }

    /// The oldest that wait for somebody; `None` when PostgreSQL does not tell.
    pub async fn open(&self) -> Option<Value> {
        let filter = Filter { state: Some(LetterState::Open), max: Some(SHOWN_MAX), ..Filter::default() };
        let found = self.find(&filter).await?;
        Some(
            json!({ "max": SHOWN_MAX, "letters": found.iter().map(|letter| letter.json(false)).collect::<Vec<_>>() }),
        )
    }

    /// One letter; `Some(None)` when there is none of this name.
    pub async fn one(&self, id: LetterId, values: bool) -> Option<Option<Value>> {
        let filter = Filter { ids: vec![id], ..Filter::default() };
        let found = self.find(&filter).await?;
        Some(found.first().map(|letter| letter.json(values)))
    }

    async fn find(&self, filter: &Filter) -> Option<Vec<Stored>> {
        let asked = async {
            let mut state = self.state.lock().await;
            let client = state.client().await?;
            let (history_id, _) = history::find(&self.postgres, client).await?;
            dead_letters::list(client, history_id.uuid, filter).await
        };
        let asked: Result<Result<Vec<Stored>>, _> = tokio::time::timeout(ANSWER_WITHIN, asked).await;
        asked.ok()?.ok()
    }
}
