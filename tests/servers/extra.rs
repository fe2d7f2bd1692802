//! Extra columns: those that walcast does not know and passes on, typed, to Kafka and BigQuery.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use walcast::source::sql;

use crate::support::world::World;
use crate::support::{fresh_database, postgres, run};

/// A world that passes these columns on, with what is done before `init`.
async fn world_with(extra: &str, before: &str) -> World {
    let world = World::new(fresh_database(postgres()).await).await.with("POSTGRES_EXTRA_COLUMNS", extra);
    world.walcast(["init"]).await.expect(0, &[]);
    run(&sql::connect(&world.postgres).await.unwrap(), before).await;
    world
}

/// Each type with values at its ends: its name in SQL, the values, and as they stand in JSON.
fn types() -> Vec<(&'static str, Vec<(&'static str, Value)>)> {
    vec![
        ("boolean", vec![("true", json!(true)), ("false", json!(false))]),
        ("smallint", vec![("-32768", json!(-32768))]),
        ("integer", vec![("2147483647", json!(2147483647))]),
        (
            "bigint",
            vec![("-9223372036854775808", json!(i64::MIN)), ("9007199254740993", json!(9007199254740993i64))],
        ),
        ("real", vec![("1.1", json!(1.1)), ("'NaN'", json!("NaN")), ("3.4028235e38", json!(3.4028235e38))]),
        (
            "double precision",
            vec![("0.1", json!(0.1)), ("'-Infinity'", json!("-Infinity")), ("5e-324", json!(5e-324))],
        ),
        (
            "numeric(12,2)",
            vec![
                ("12.50", json!("12.50")),
                ("-9999999999.99", json!("-9999999999.99")),
                ("0", json!("0.00")),
            ],
        ),
        ("numeric(38,18)", vec![("-0.000000000000000001", json!("-0.000000000000000001"))]),
        (
            "numeric",
            vec![
                ("'NaN'", json!("NaN")),
                ("10000", json!("10000")),
                ("1e40", json!(format!("1{}", "0".repeat(40)))),
                ("-1.23e-9", json!("-0.00000000123")),
                ("100020003.00005", json!("100020003.00005")),
            ],
        ),
        ("text", vec![(r#"E'a"b\\c\n'"#, json!("a\"b\\c\n")), ("''", json!("")), ("'42'", json!("42"))]),
        ("varchar(9)", vec![("'Zażółć'", json!("Zażółć"))]),
        ("char(5)", vec![("'ab'", json!("ab"))]),
        (
            "uuid",
            vec![("'AAAAAAAA-0000-0000-0000-000000000001'", json!("aaaaaaaa-0000-0000-0000-000000000001"))],
        ),
        ("bytea", vec![(r"'\x00ff10'", json!("AP8Q")), ("''", json!(""))]),
        (
            "date",
            vec![
                ("'0001-01-01'", json!("0001-01-01")),
                ("'9999-12-31'", json!("9999-12-31")),
                ("'infinity'", Value::Null),
                ("'4714-11-24 BC'", Value::Null),
            ],
        ),
        (
            "time",
            vec![("'23:59:59.999999'", json!("23:59:59.999999")), ("'00:00'", json!("00:00:00.000000"))],
        ),
        (
            "timestamp",
            vec![
                ("'2026-01-02 03:04:05.6'", json!("2026-01-02T03:04:05.600000")),
                ("'infinity'", Value::Null),
            ],
        ),
        (
            "timestamptz",
            vec![
                ("'2026-01-02 03:04:05.678901+05'", json!("2026-01-01T22:04:05.678901Z")),
                ("'294276-12-31'", Value::Null),
            ],
        ),
        (
            "interval",
            vec![("'1 year -2 mons 3 days 04:05:06.7'", json!("P10M3DT4H5M6.7S")), ("'0'", json!("PT0S"))],
        ),
        (
            "inet",
            vec![("'192.168.0.1'", json!("192.168.0.1")), ("'2001:db8::1/64'", json!("2001:db8::1/64"))],
        ),
        (
            "json",
            vec![
                (r#"'{"a": [1, null]}'"#, json!({"a": [1, null]})),
                ("'null'", Value::Null),
                ("'\"x\"'", json!("x")),
            ],
        ),
        ("jsonb", vec![(r#"'{"b": {"c": 1.50}}'"#, json!({"b": {"c": 1.50}}))]),
        ("text[]", vec![(r#"ARRAY['a', 'b"c', NULL]"#, json!(["a", "b\"c", null])), ("'{}'", json!([]))]),
        ("integer[]", vec![("ARRAY[[1, 2], [3, 4]]", json!([[1, 2], [3, 4]]))]),
        ("numeric[]", vec![("ARRAY[1.5, 'NaN']", json!(["1.5", "NaN"]))]),
        ("mood", vec![("'sad'", json!("sad"))]),
        ("mood[]", vec![("ARRAY['sad', 'happy']::mood[]", json!(["sad", "happy"]))]),
        ("percent", vec![("7", json!(7))]),
    ]
}

const TYPES: &str =
    "CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE DOMAIN percent AS integer CHECK (VALUE <= 100);";

/// All values of all types: what is inserted, and what is to be seen of each column, row by row.
fn grid() -> (String, String, Vec<Vec<Value>>) {
    let types = types();
    let columns: Vec<String> =
        types.iter().enumerate().map(|(at, (name, _))| format!("ADD COLUMN x{at} {name}")).collect();
    let rows = types.iter().map(|(_, values)| values.len()).max().unwrap() + 1;
    let mut wanted = Vec::new();
    let mut tuples = Vec::new();
    for row in 0..rows {
        let cells = types.iter().map(|(_, values)| values.get(row).cloned().unwrap_or(("NULL", Value::Null)));
        let (texts, values): (Vec<_>, Vec<_>) = cells.unzip();
        tuples.push(format!("('play', now(), {})", texts.join(", ")));
        wanted.push(values);
    }
    let names: Vec<String> = (0..types.len()).map(|at| format!("x{at}")).collect();
    let insert = format!(
        "INSERT INTO engagement_events (event_type, event_ts, {}) VALUES {}",
        names.join(", "),
        tuples.join(", ")
    );
    (format!("{TYPES} ALTER TABLE engagement_events {};", columns.join(", ")), insert, wanted)
}

#[tokio::test]
async fn every_type_goes_out_as_what_it_is() {
    let (columns, insert, wanted) = grid();
    let world = world_with("*", &columns).await;
    world.walcast(["check"]).await.expect(0, &["go out as they are", " 0 to mend"]);
    let running = world.start().await;
    run(&sql::connect(&world.postgres).await.unwrap(), &insert).await;
    world.verify().await;
    let mut events = world.kafka_events().await;
    events.sort_by_key(|event| event["event_id"].as_i64());
    assert_eq!(events.len(), wanted.len());
    for (event, wanted) in events.iter().zip(&wanted) {
        for ((at, wanted), (name, _)) in wanted.iter().enumerate().zip(types()) {
            let found = &event[format!("x{at}")];
            assert_eq!(found, wanted, "{name}");
        }
    }
    running.stop().await;
}

/// Somebody who inserts about a hundred events a second, whatever becomes of the table. With more, the slower a machine, the
/// longer all that is compared and the more of it: a test that keeps every other waiting.
struct Writer {
    ends: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Writer {
    async fn start(world: &World) -> Writer {
        let ends = Arc::new(AtomicBool::new(false));
        let (client, told) = (sql::connect(&world.postgres).await.unwrap(), Arc::clone(&ends));
        let task = tokio::spawn(async move {
            let mut every = tokio::time::interval(Duration::from_millis(50));
            while !told.load(Ordering::Relaxed) {
                every.tick().await;
                let insert = "INSERT INTO engagement_events (event_type, event_ts)
                              SELECT 'play', now() FROM generate_series(1, 5)";
                client.batch_execute(insert).await.unwrap();
            }
        });
        Writer { ends, task }
    }

    async fn stop(self) {
        self.ends.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

/// Changes the table, and inserts one event with this value in a column; its id.
async fn change(client: &Client, statement: &str, column: &str, value: &str) -> i64 {
    run(client, statement).await;
    let insert = format!(
        "INSERT INTO engagement_events (event_type, event_ts, {column}) VALUES ('click', now(), {value}) RETURNING id"
    );
    client.query_one(&insert, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn columns_come_and_go_while_events_flow() {
    let world = world_with("*", "").await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let running = world.start().await;
    let writer = Writer::start(&world).await;
    let alter = |what: &str| format!("ALTER TABLE engagement_events {what}");
    let mut wanted = Vec::new();
    for (statement, column, value, seen) in [
        ("ADD COLUMN country text DEFAULT 'xx'", "country", "'PL'", json!("PL")),
        ("RENAME country TO land", "land", "'DE'", json!("DE")),
        ("RENAME land TO country", "country", "'FR'", json!("FR")),
        ("ADD COLUMN score integer", "score", "5", json!(5)),
        ("ALTER score TYPE bigint", "score", "5000000000", json!(5_000_000_000i64)),
        ("ALTER score TYPE numeric(12,2)", "score", "8", json!("8.00")),
        ("DROP COLUMN country", "score", "9", json!("9.00")),
        ("ADD COLUMN country text", "country", "'IT'", json!("IT")),
    ] {
        let id = change(&client, &alter(statement), column, value).await;
        wanted.push((id, column, seen));
        world.verify().await;
    }
    // what BigQuery's column does not take is a dead letter of BigQuery alone
    let high = change(&client, &alter("ALTER score TYPE text USING 'low'"), "score", "'high'").await;
    writer.stop().await;
    world.verify().await;
    let letters = "SELECT event_id, sink, reason, message FROM walcast.dead_letter";
    let letters = client.query(letters, &[]).await.unwrap();
    let [letter] = letters.as_slice() else { panic!("{} dead letters", letters.len()) };
    let letter: (i64, String, String, String) = (letter.get(0), letter.get(1), letter.get(2), letter.get(3));
    let told = "column score: a text that INT64 does not take as it is";
    assert_eq!(letter, (high, "bigquery".into(), "unfit_extra_column".into(), told.into()));

    let events = world.kafka_events().await;
    for (id, column, seen) in &wanted {
        let event = events.iter().find(|event| event["event_id"] == *id).unwrap();
        assert_eq!(event[*column], *seen, "event {id}");
        let query = format!(
            "SELECT CAST({column} AS STRING) FROM {}.engagement_events WHERE event_id = {id}",
            world.dataset
        );
        let text = seen.as_str().map_or_else(|| seen.to_string(), str::to_owned);
        assert_eq!(world.bigquery(&query).await, [[json!(text.trim_end_matches(".00"))]], "event {id}");
    }
    assert!(
        events.iter().any(|event| event["event_type"] == "play" && event["country"] == "xx"),
        "a default is a value"
    );
    running.stop().await;
}

#[tokio::test]
async fn verify_finds_an_extra_value_that_is_another_one() {
    let world = world_with(
        "country,tags",
        "ALTER TABLE engagement_events ADD COLUMN country text, ADD COLUMN tags text[]",
    )
    .await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let running = world.start().await;
    let insert = "INSERT INTO engagement_events (event_type, event_ts, country, tags)
                  SELECT 'play', now(), 'PL', '{a,b}' FROM generate_series(1, 3)";
    run(&client, insert).await;
    world.verify().await;
    let dataset = &world.dataset;
    world
        .bigquery(&format!("UPDATE {dataset}.engagement_events SET country = 'DE' WHERE event_id = 2"))
        .await;
    world.walcast(["verify"]).await.expect(2, &["bigquery: different: event 2", "in country"]);
    world
        .bigquery(&format!("UPDATE {dataset}.engagement_events SET country = 'PL' WHERE event_id = 2"))
        .await;
    world.verify().await;
    // what the source has done to its rows since is none of the sinks' faults
    run(&client, "ALTER TABLE engagement_events DROP COLUMN country, ADD COLUMN country text DEFAULT 'new'")
        .await;
    world.verify().await;
    running.stop().await;
}

#[tokio::test]
async fn a_restart_and_a_kill_lose_no_extra_column() {
    let world = world_with("*", "").await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let mut id = 0;
    for (column, failpoint) in [
        ("a", "bigquery_before_append"),
        ("b", "bigquery_after_append"),
        ("c", "bigquery_before_intent"),
        ("d", "content_before_commit"),
    ] {
        let mut killed = world.with("FAILPOINTS", &format!("{failpoint}=return")).spawn();
        id = change(
            &client,
            &format!("ALTER TABLE engagement_events ADD COLUMN {column} integer"),
            column,
            "7",
        )
        .await;
        killed.ended().await;
        let running = world.start().await;
        world.verify().await;
        running.stop().await;
    }
    let events = world.kafka_events().await;
    let last = events.iter().find(|event| event["event_id"] == id).unwrap();
    assert_eq!((&last["a"], &last["d"]), (&Value::Null, &json!(7)));
}

#[tokio::test]
async fn check_tells_which_columns_do_not_go_out_and_why() {
    let world = world_with(
        "*",
        "CREATE TYPE pair AS (a integer, b integer);
         ALTER TABLE engagement_events ADD COLUMN country text, ADD COLUMN \"Country\" text, ADD COLUMN title text,
           ADD COLUMN \"user-agent\" text, ADD COLUMN _file_name text, ADD COLUMN place point, ADD COLUMN duo pair,
           ADD COLUMN half integer GENERATED ALWAYS AS (duration_ms / 2) STORED",
    )
    .await;
    world.walcast(["check"]).await.expect(
        0,
        &[
            "columns country of engagement_events",
            "column Country of engagement_events",
            "BigQuery takes country for the same name",
            "a field of walcast's own has this name",
            "its name has other characters than letters, digits and _",
            "BigQuery keeps names that begin so for itself",
            "its type has no form that walcast writes",
            "it is generated, and so not in the stream",
            "export POSTGRES_EXTRA_COLUMNS=country",
        ],
    );
    let running = world.start().await;
    let insert =
        "INSERT INTO engagement_events (event_type, event_ts, country, \"Country\", title, place, duo)
                  VALUES ('play', now(), 'PL', 'x', 't', '(1,2)', '(1,2)')";
    run(&sql::connect(&world.postgres).await.unwrap(), insert).await;
    world.verify().await;
    let events = world.kafka_events().await;
    assert_eq!(
        (&events[0]["country"], &events[0]["title"], &events[0]["duo"]),
        (&json!("PL"), &Value::Null, &Value::Null)
    );
    assert!(events[0].get("place").is_none() && events[0].get("Country").is_none(), "{}", events[0]);
    running.stop().await;
    let named = world.with("POSTGRES_EXTRA_COLUMNS", "country,planned");
    named.walcast(["check"]).await.expect(0, &["column planned of engagement_events", "is not there yet"]);
    for (columns, why) in [
        ("title", "a field of walcast's own has this name"),
        ("device", "walcast passes it on already"),
        ("user-agent", "its name has other characters"),
    ] {
        world.with("POSTGRES_EXTRA_COLUMNS", columns).walcast(["check"]).await.expect(78, &["WC-100", why]);
    }
}
