//! `walcast generate` against a real server.

use crate::support::{self, DEADLINE, drop_database, fresh_database, run};
use tokio::sync::oneshot;
use tokio_postgres::Client;
use walcast::error::{Code, Error};
use walcast::generate::{self, GenerateConfig, Summary};
use walcast::source::{PostgresConfig, sql};

/// A database of its own for `test`, with the source tables.
async fn with_database<T>(test: impl AsyncFnOnce(PostgresConfig, Client) -> T) -> T {
    let postgres = fresh_database(support::postgres()).await;
    let client = sql::connect(&postgres).await.unwrap();
    run(&client, include_str!("../../migrations/0001_source.sql")).await;
    let outcome = test(postgres.clone(), client).await;
    drop_database(&postgres).await;
    outcome
}

fn burst(count: u64) -> GenerateConfig {
    GenerateConfig {
        burst_mode: true,
        burst_count: count,
        contents: 500,
        seed: Some(1),
        ..Default::default()
    }
}

async fn generate(postgres: &PostgresConfig, config: &GenerateConfig) -> Result<Summary, Error> {
    tokio::time::timeout(DEADLINE, generate::run(postgres, config, std::future::pending())).await.unwrap()
}

async fn count(client: &Client, condition: &str) -> i64 {
    let query = format!(
        "SELECT count(*) FROM engagement_events e LEFT JOIN content c ON c.id = e.content_id WHERE {condition}"
    );
    client.query_one(&query, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_writes_exactly_its_count_with_every_kind_of_row() {
    with_database(async |postgres, client| {
        let summary = generate(&postgres, &burst(5_000)).await.unwrap();
        assert_eq!(summary.events, 5_000);
        assert_eq!(count(&client, "true").await, 5_000);
        for kind in [
            "event_type = 'play'",
            "event_type = 'pause'",
            "event_type = 'finish'",
            "event_type = 'click'",
            "e.content_id IS NULL",
            "user_id IS NULL",
            "device IS NULL",
            "duration_ms IS NULL",
            "raw_payload IS NULL",
            "c.length_seconds IS NULL AND c.id IS NOT NULL",
            "c.content_type IS NULL AND c.id IS NOT NULL",
            "event_ts < now() - interval '10 minutes'",
            "event_ts > now()",
            "octet_length(device) > char_length(device)",
            "octet_length(c.title) > char_length(c.title)",
            "raw_payload ? 'referrer'",
            "raw_payload ->> 'note' LIKE '%\"%'",
            "raw_payload ->> 'note' LIKE E'%\\n%'",
            "octet_length(raw_payload::text) > 1000",
            "duration_ms > c.length_seconds * 1000",
            "c.title LIKE '%(updated)'",
        ] {
            assert!(count(&client, kind).await > 0, "no row where {kind}");
        }
        assert_eq!(count(&client, "duration_ms < 0").await, 0);
        let published_since: i64 = client
            .query_one("SELECT count(*) FROM content WHERE publish_ts > now() - interval '1 minute'", &[])
            .await
            .unwrap()
            .get(0);
        assert_eq!(published_since, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_writes_the_same_rows() {
    // Times are relative to the run, so they are left out.
    const ROWS: &str = "SELECT md5(string_agg(row, '|' ORDER BY row)) FROM (
        SELECT concat_ws(',', content_id, user_id, event_type, duration_ms, device, raw_payload) AS row
        FROM engagement_events) AS rows";
    let digest = async || {
        with_database(async |postgres, client| {
            generate(&postgres, &burst(2_000)).await.unwrap();
            client.query_one(ROWS, &[]).await.unwrap().get::<_, String>(0)
        })
        .await
    };
    assert_eq!(digest().await, digest().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rate_is_held() {
    with_database(async |postgres, client| {
        let config = GenerateConfig {
            rate_per_minute: 60_000,
            contents: 500,
            seconds_max: Some(5),
            ..Default::default()
        };
        let summary = generate(&postgres, &config).await.unwrap();
        assert_eq!(count(&client, "true").await as u64, summary.events);
        let per_second = summary.events as f64 / summary.elapsed.as_secs_f64();
        assert!((900.0..1_100.0).contains(&per_second), "{summary}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_it_at_once_with_whole_transactions() {
    with_database(async |postgres, client| {
        let (signal, signalled) = oneshot::channel::<()>();
        let config = burst(u64::MAX);
        let run = generate::run(&postgres, &config, async {
            let _ = signalled.await;
        });
        let watch = async {
            while count(&client, "true").await < 1_000 {}
            signal.send(()).unwrap();
        };
        let (summary, ()) = tokio::time::timeout(DEADLINE, async { tokio::join!(run, watch) }).await.unwrap();
        assert_eq!(count(&client, "true").await as u64, summary.unwrap().events);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_content_is_committed_before_others_refer_to_it() {
    const SLOW_COMMIT: &str = "
        CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
          'BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END';
        CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON content DEFERRABLE INITIALLY DEFERRED
          FOR EACH ROW WHEN (NEW.publish_ts > now() - interval '1 minute') EXECUTE FUNCTION wait()";
    with_database(async |postgres, client| {
        run(&client, SLOW_COMMIT).await;
        let config = GenerateConfig { connections: 4, ..burst(9_000) };
        assert_eq!(generate(&postgres, &config).await.unwrap().events, 9_000);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_is_there_is_used() {
    with_database(async |postgres, client| {
        client
            .batch_execute(
                "INSERT INTO content (id, slug, title, publish_ts)
                 VALUES ('00000000-0000-4000-8000-000000000001', 'mine', 'Mine', now())",
            )
            .await
            .unwrap();
        generate(&postgres, &GenerateConfig { contents: 1, ..burst(1_000) }).await.unwrap();
        assert!(count(&client, "c.slug = 'mine'").await > 500);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_tables_are_named_with_the_fix() {
    with_database(async |postgres, client| {
        client.batch_execute("DROP TABLE engagement_events").await.unwrap();
        let error = generate(&postgres, &burst(1)).await.unwrap_err();
        assert_eq!(error.code(), Code::SourceTableUnfit);
        assert_eq!(error.to_string(), "the table public.engagement_events does not exist");
        assert!(error.advice().contains("walcast init"), "{error:?}");
    })
    .await;
}

#[tokio::test]
async fn a_setting_out_of_range_is_named() {
    let config = GenerateConfig { connections: 0, ..Default::default() };
    let error = generate(&PostgresConfig::default(), &config).await.unwrap_err();
    assert_eq!(error.code(), Code::Configuration);
    assert!(error.to_string().contains("generate.connections"), "{error}");
}
