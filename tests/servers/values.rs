//! No value that PostgreSQL takes stops the stream, and all readers of it see the same.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use walcast::source::sql;

use crate::support::running::Running;
use crate::support::world::World;
use crate::support::{run, wait_until};

/// Calendars end where some libraries' instants do not reach.
#[tokio::test]
async fn times_work_to_the_last_microsecond_of_the_year_9999() {
    let world = World::initialised().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let insert = "
        INSERT INTO content (id, slug, title, content_type, length_seconds, publish_ts) VALUES
          ('00000000-0000-0000-0000-000000000001', 'first', 'first', 'podcast', 100, '0001-01-01 00:00:00+00'),
          ('00000000-0000-0000-0000-000000000002', 'last', 'last', 'podcast', 100, '9999-12-31 23:59:59.999999+00')
        ON CONFLICT DO NOTHING;
        INSERT INTO engagement_events (content_id, event_type, event_ts, duration_ms)
        SELECT content.id, 'play', at, 1000 FROM content,
          unnest('{0001-01-01 00:00:00+00, 9999-12-30 22:00:00+00, 9999-12-31 00:00:00+00, 9999-12-31 23:59:59.999999+00}'::timestamptz[]) AS at";
    let running = world.start().await;
    run(&client, insert).await;
    world.verify().await;
    running.stop().await;
    let running = world.start().await;
    run(&client, insert).await;
    world.verify().await;
    running.stop().await;
    world.walcast(["rebuild", "redis"]).await.expect(0, &["redis holds 16 events"]);
    let running = world.start().await;
    run(&client, insert).await;
    world.verify().await;
    running.stop().await;
}

/// Scores are floating-point numbers: beyond 2^53 a sum of milliseconds is beside the one that Redis has, in one way of
/// calculating it or the other.
#[tokio::test]
async fn sums_longer_than_a_score_is_exact_are_what_verify_expects() {
    let world = World::initialised().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let wide = "ALTER TABLE engagement_events ALTER duration_ms TYPE bigint, DROP CONSTRAINT engagement_events_content_id_fkey";
    run(&client, wide).await;
    let running = world.start().await;
    let insert = "INSERT INTO engagement_events (content_id, event_type, event_ts, duration_ms)
        SELECT gen_random_uuid(), 'play', now(), 9007199254740993 + n * 18446744073709559 FROM generate_series(0, 399) AS n";
    run(&client, insert).await;
    world.verify().await;
    running.stop().await;
}

/// What JSON allows and jsonb does not: half of a surrogate pair. A service that refuses it refuses that row alone.
#[tokio::test]
async fn half_a_surrogate_pair_is_at_most_one_sinks_dead_letter() {
    let world = World::initialised().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, "ALTER TABLE engagement_events ALTER raw_payload TYPE json USING raw_payload::json").await;
    let running = world.start().await;
    world.insert_events(3).await;
    run(
        &client,
        r#"INSERT INTO engagement_events (event_type, event_ts, duration_ms, device, raw_payload)
           VALUES ('play', now(), 1000, 'tv', '{"canary-payload":"canary\ud800"}')"#,
    )
    .await;
    world.insert_events(3).await;
    wait_until("BigQuery has the others", async || world.bigquery_count().await >= 6).await;
    world.verify().await;
    let log = running.log.lock().await.clone();
    assert!(!log.contains("canary"), "{log}");
    running.stop().await;
}

/// In every text of every row that is made here.
const CANARY: &str = "canary";

/// Texts of every kind, as SQL expressions.
const TEXTS: [&str; 9] = [
    "NULL",
    "''",
    "'canary'",
    "'canary' || repeat('x', 100000)",
    "'canary' || repeat('\"', 100000)",
    "(SELECT 'canary' || string_agg(chr(i), '') FROM generate_series(1, 300) AS i)",
    "'canary' || chr(55295) || chr(57344) || chr(65535) || chr(1114111) || chr(8232) || chr(65279)",
    "'canary' || repeat(chr(128169), 20000)",
    "'canary' || E'\\\\u0000 \\\\x00 %s ${x} \\r\\n\\t\\\\ \\' \"'",
];

const TIMES: [&str; 14] = [
    "now()",
    "'-infinity'",
    "'infinity'",
    "'4714-11-24 00:00:00+00 BC'",
    "'0001-12-31 23:59:59.999999+00 BC'",
    "'0001-01-01 00:00:00+00'",
    "'1969-12-31 23:59:59.999999+00'",
    "'1970-01-01 00:00:00+00'",
    "'2000-01-01 00:00:00+00'",
    "'2038-01-19 03:14:08+00'",
    "'9999-12-31 23:59:59.999999+00'",
    "'10000-01-01 00:00:00+00'",
    "'294276-12-31 23:59:59.999999+00'",
    "now() + interval '10 years'",
];

const INTEGERS: [&str; 7] = ["NULL", "0", "1", "-1", "1000", "2147483647", "-2147483648"];

/// Numbers of the type numeric.
const NUMERICS: [&str; 18] = [
    "1500.000",
    "-0.0",
    "0.5",
    "1500.5",
    "-1500.5",
    "0.00000000000000000001",
    "2147483648",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "-9223372036854775809",
    "1e30",
    "'NaN'",
    "'Infinity'",
    "'-Infinity'",
    "repeat('9', 131072)::numeric",
    "('0.' || repeat('3', 16383))::numeric",
    "('1000.' || repeat('0', 16383))::numeric",
];

/// Local times: clocks in Warsaw do not show the first of these, and show the second twice.
const LOCAL_TIMES: [&str; 6] = [
    "'2026-03-29 02:30:00'",
    "'2026-10-25 02:30:00'",
    "'0001-01-01 01:23:59.999999'",
    "'0001-01-01 01:24:00'",
    "'10000-01-01 00:59:59.999999'",
    "'10000-01-01 01:00:00'",
];

const IDS: [&str; 4] = [
    "NULL",
    "'00000000-0000-0000-0000-000000000000'",
    "'ffffffff-ffff-ffff-ffff-ffffffffffff'",
    "'ca4a41ca-0000-4000-8000-000000000001'",
];

/// JSON that jsonb takes too.
const DOCUMENTS: [&str; 24] = [
    "NULL",
    "'null'",
    "'{}'",
    "'[]'",
    "'\"\"'",
    "'\"canary\"'",
    "'true'",
    "'-0'",
    "'1.0'",
    "'1.10'",
    "'1e400'",
    "'-1e-400'",
    "'1e131071'",
    "'9007199254740993'",
    "'-9223372036854775809'",
    "'18446744073709551616'",
    "'0.1000000000000000055511151231257827021181583404541015625'",
    "repeat('9', 131072)::text",
    "'0.' || repeat('3', 16383)",
    "'{\"canary\": 1, \"canary\": 2, \"\": {\"\": [{}]}}'",
    "'\"canary \\u2028 \\ud83d\\ude00 \\u001f \\\\ \\/ \\\" é\"'",
    "repeat('[', 600) || '\"canary\"' || repeat(']', 600)",
    "repeat('[', 10000) || repeat(']', 10000)",
    "repeat('{\"canary\":', 5000) || '1' || repeat('}', 5000)",
];

/// JSON that only json takes.
const ONLY_JSON: [&str; 8] = [
    "'\"canary\\ud800\"'",
    "'{\"canary\\udfff\": \"\\ud800x\"}'",
    "'\"canary\\u0000\"'",
    "'1e999999999'",
    "repeat('1', 200000)",
    "E' {\\n\\t\"canary\" : [ 1 , 2 ] }\\r\\n '",
    "'1E+2'",
    "'{\"a\":\"canary\",\"a\":\"canary\"}'",
];

/// A column and the values it is tried with; the first is plain.
type Column<'a> = (&'a str, Vec<&'a str>);

fn content_columns<'a>() -> Vec<Column<'a>> {
    let fresh = || TEXTS.iter().skip(1).copied();
    vec![
        ("id", [&["gen_random_uuid()"], &IDS[1..]].concat()),
        ("slug", ["'canary' || gen_random_uuid()"].into_iter().chain(fresh()).collect()),
        ("title", ["'canary'"].into_iter().chain(fresh()).collect()),
        ("content_type", ["'video'"].into_iter().chain(TEXTS).collect()),
        ("length_seconds", ["100"].into_iter().chain(INTEGERS).collect()),
        ("publish_ts", TIMES.to_vec()),
    ]
}

fn event_columns<'a>(documents: &[&'a str]) -> Vec<Column<'a>> {
    let ends = ["9223372036854775807", "-9223372036854775808", "0", "-1", "4294967296"];
    vec![
        ("id", ["nextval('engagement_events_id_seq')"].into_iter().chain(ends).collect()),
        ("content_id", ["(SELECT id FROM content ORDER BY id LIMIT 1)"].into_iter().chain(IDS).collect()),
        ("user_id", ["gen_random_uuid()"].into_iter().chain(IDS).collect()),
        ("event_type", ["'play'"].into_iter().chain(TEXTS).collect()),
        ("event_ts", TIMES.to_vec()),
        ("duration_ms", ["1000"].into_iter().chain(INTEGERS).collect()),
        ("device", ["'canary'"].into_iter().chain(TEXTS).collect()),
        ("raw_payload", documents.to_vec()),
    ]
}

fn insert(
    table: &str,
    columns: &[Column<'_>],
    value: impl Fn(usize, &[&str]) -> String,
    json: &str,
) -> String {
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    let values: Vec<String> = columns
        .iter()
        .enumerate()
        .map(|(at, (name, values))| match *name {
            "raw_payload" => format!("({})::text::{json}", value(at, values)),
            "content_id" | "user_id" | "id"
                if value(at, values).len() == "'00000000-0000-0000-0000-000000000000'".len() =>
            {
                format!("({})::uuid", value(at, values))
            }
            _ => value(at, values),
        })
        .collect();
    format!(
        "INSERT INTO {table} ({}) VALUES ({}) ON CONFLICT DO NOTHING",
        names.join(", "),
        values.join(", ")
    )
}

/// Each value of each column beside plain ones, then so many rows of whatever values.
fn inserts(table: &str, columns: &[Column<'_>], json: &str, random: usize, rng: &mut StdRng) -> Vec<String> {
    let mut all = Vec::new();
    for (tried, (_, values)) in columns.iter().enumerate() {
        for value in values {
            let pick = |at: usize, plain: &[&str]| if at == tried { *value } else { plain[0] }.to_owned();
            all.push(insert(table, columns, pick, json));
        }
    }
    for _ in 0..random {
        let pick = |(name, values): &Column<'_>| match *name {
            "id" => values[0].to_owned(),
            _ => values.choose(rng).copied().unwrap_or_default().to_owned(),
        };
        let picked: Vec<String> = columns.iter().map(pick).collect();
        all.push(insert(table, columns, |at, _| picked[at].clone(), json));
    }
    all
}

/// `verify` finds all sinks whole, and quotes no row.
async fn verify_quotes_none(world: &World, running: &Running) {
    let verified = world.walcast(["verify", "--wait-seconds", "150"]).await;
    assert!(!verified.output.contains(CANARY), "{}", verified.output);
    assert_eq!(verified.code, Some(0), "{}\n{}", running.log.lock().await, verified.output);
}

async fn quotes_none(running: &Running) {
    let log = running.log.lock().await;
    let at = log.find(CANARY);
    assert!(at.is_none(), "{}", &log[at.unwrap_or_default().saturating_sub(500)..]);
}

/// The types of a table, and values for its columns beside those that all tables have.
struct Types<'a> {
    json: &'a str,
    documents: Vec<&'a str>,
    /// Numbers are numerics.
    numeric: bool,
    /// Times are local ones of Warsaw.
    local: bool,
}

impl<'a> Types<'a> {
    fn with_more(&self, of_events: bool, columns: Vec<Column<'a>>) -> Vec<Column<'a>> {
        let more = |name: &str| match name {
            // not in an index
            "id" if of_events && self.numeric => &NUMERICS[..15],
            "duration_ms" | "length_seconds" if self.numeric => &NUMERICS[..],
            "event_ts" | "publish_ts" if self.local => &LOCAL_TIMES,
            _ => &[],
        };
        columns.into_iter().map(|(name, values)| (name, [&values[..], more(name)].concat())).collect()
    }

    fn alter(&self) -> String {
        let json = self.json;
        let mut alter =
            format!("ALTER TABLE engagement_events ALTER raw_payload TYPE {json} USING raw_payload::{json};");
        if self.numeric {
            alter += "ALTER TABLE engagement_events ALTER id TYPE numeric, ALTER duration_ms TYPE numeric;
                ALTER TABLE content ALTER length_seconds TYPE numeric;";
        }
        if self.local {
            alter += "ALTER TABLE engagement_events ALTER event_ts TYPE timestamp;
                CREATE DOMAIN shown AS timestamp; ALTER TABLE content ALTER publish_ts TYPE shown;";
        }
        alter
    }
}

async fn every_value_ends_somewhere(types: Types<'_>) {
    let json = types.json;
    let seed =
        std::env::var("WALCAST_SEED").ok().map_or_else(rand::random::<u64>, |text| text.parse().unwrap());
    println!("WALCAST_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let world = World::initialised().await.with("BIGQUERY_COMMIT_SECONDS", "1");
    let world = world.with("POSTGRES_TIMESTAMP_ZONE", if types.local { "Europe/Warsaw" } else { "" });
    let client = sql::connect(&world.postgres).await.unwrap();
    let unbound = "ALTER TABLE content DROP CONSTRAINT content_content_type_check;
        ALTER TABLE engagement_events DROP CONSTRAINT engagement_events_event_type_check;";
    run(&client, &(unbound.to_owned() + &types.alter())).await;
    let running = world.start().await;
    let mut taken = 0;
    let contents = types.with_more(false, content_columns());
    let contents = inserts("content", &contents, json, 40, &mut rng);
    let events = types.with_more(true, event_columns(&types.documents));
    let events = inserts("engagement_events", &events, json, 150, &mut rng);
    for statement in contents.iter().chain(&events) {
        // what PostgreSQL itself refuses is no row
        match client.execute(statement.as_str(), &[]).await {
            Ok(rows) => taken += rows,
            Err(error) => {
                println!("{:?}: {}", error.code(), statement.chars().take(300).collect::<String>());
            }
        }
    }
    println!("{taken} rows of {}", contents.len() + events.len());
    assert!(taken > 200, "{taken}");
    verify_quotes_none(&world, &running).await;
    quotes_none(&running).await;
    running.stop().await;
    let rebuilt = world.walcast(["rebuild", "redis"]).await;
    assert!(!rebuilt.output.contains(CANARY), "{}", rebuilt.output);
    rebuilt.expect(0, &[]);
    let running = world.start().await;
    world.insert_events(3).await;
    verify_quotes_none(&world, &running).await;
    quotes_none(&running).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_that_postgresql_takes_ends_in_each_sink_or_as_its_dead_letter() {
    let documents = DOCUMENTS.to_vec();
    every_value_ends_somewhere(Types { json: "jsonb", documents, numeric: false, local: false }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_that_json_takes_ends_in_each_sink_or_as_its_dead_letter() {
    let documents = [&DOCUMENTS[..], &ONLY_JSON].concat();
    every_value_ends_somewhere(Types { json: "json", documents, numeric: false, local: false }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_numeric_and_local_time_ends_in_each_sink_or_as_its_dead_letter() {
    let documents = DOCUMENTS[..6].to_vec();
    every_value_ends_somewhere(Types { json: "jsonb", documents, numeric: true, local: true }).await;
}
