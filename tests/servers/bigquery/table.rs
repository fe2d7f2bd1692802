//! The table: how it is made, and what is said of one of another shape.

use serde_json::json;
use walcast::error::Code;
use walcast::finding::Verdict;
use walcast::sink::SinkAdmin;
use walcast::sink::bigquery::{BigQueryConfig, BigQuerySink, Partitioning};

use super::world::{World, batches, batches_with};

#[tokio::test]
async fn the_table_is_partitioned_by_half_hours_by_hours_or_not_at_all() {
    for (partitioning, wanted) in [
        (
            Partitioning::HalfHour,
            json!({"field": "bucket_30m", "range": {"start": "0", "end": "9600", "interval": "1"}}),
        ),
        (Partitioning::Hour, json!({"field": "event_ts", "type": "HOUR"})),
        (Partitioning::None, json!(null)),
    ] {
        let world = World::with(|config| config.partitioning = partitioning).await;
        let table = world.table().await;
        let field = if partitioning == Partitioning::Hour { "timePartitioning" } else { "rangePartitioning" };
        assert_eq!(table[field], wanted);
        assert_eq!(table["clustering"]["fields"], json!(["content_type", "event_type"]));
        let (mut sink, _) = world.start().await;
        let batches = batches(3);
        world.deliver(&mut sink, None, &batches).await.unwrap();
        // events lie a minute apart, back from now
        let span = "TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 630 SECOND), CURRENT_TIMESTAMP()";
        let seen = world.query(&format!("SELECT COUNT(*) FROM engagement_between({span})")).await;
        assert_eq!(json!(seen), json!([["11"]]));

        sink.prepare().await.expect("run again it does nothing");
        let (mut sink, checkpoint) = world.start().await;
        assert_eq!(checkpoint, Some(batches[2].checkpoint()));
        assert!(sink.check().await.iter().all(|finding| finding.verdict != Verdict::Fail));
        world.end().await;
    }
}

#[tokio::test]
async fn engagement_between_knows_the_turn_of_the_ring() {
    let world = World::new().await;
    let (mut sink, _) = world.start().await;
    const TURN_MICROS: i64 = 9_600 * 1_800 * 1_000_000;
    let seam = 103 * TURN_MICROS; // where bucket 9,599 meets bucket 0
    let batches = batches_with(1, |_, event| event.event_ts = seam + (event.id - 5) * 1_800_000_000);
    world.deliver(&mut sink, None, &batches).await.unwrap();
    for (from, to, count) in [
        (seam - 2 * 1_800_000_000, seam + 2 * 1_800_000_000, "4"),
        (seam, seam + 1_800_000_000, "1"),
        (seam - 10 * 1_800_000_000, seam, "5"),
        (seam - TURN_MICROS, seam + TURN_MICROS, "10"),
        (seam + TURN_MICROS, seam + TURN_MICROS + 1_800_000_000, "0"),
    ] {
        let query = format!(
            "SELECT COUNT(*) FROM engagement_between(TIMESTAMP_MICROS({from}), TIMESTAMP_MICROS({to}))"
        );
        assert_eq!(json!(world.query(&query).await), json!([[count]]), "{from} {to}");
    }
    world.end().await;
}

#[tokio::test]
async fn a_table_of_another_shape_is_refused_and_left_alone() {
    let world = World::without_table(|_| {}).await;
    let mut sink = BigQuerySink::new(world.config.clone(), &world.postgres);
    let findings = sink.check().await;
    assert_eq!((findings[0].verdict, findings[0].message.as_str()), (Verdict::Warn, "does not exist yet"));

    world.query(&format!("CREATE SCHEMA {}", world.config.dataset)).await;
    world.query("CREATE TABLE engagement_events (event_id STRING)").await;
    let before = world.table().await;
    let error = sink.prepare().await.unwrap_err();
    assert_eq!(error.code(), Code::BigQueryTableUnfit);
    assert!(error.to_string().contains("column event_id is STRING, not INT64"), "{error}");
    assert!(error.advice().contains("bigquery.table"), "{}", error.advice());
    let findings = sink.check().await;
    let table = findings.iter().find(|finding| finding.id == "bigquery.table").unwrap();
    assert_eq!(table.verdict, Verdict::Fail);
    assert!(table.message.contains("event_id"), "{table:?}");
    assert_eq!(world.table().await, before);
    world.end().await;
}

#[tokio::test]
async fn another_partitioning_is_another_table() {
    let world = World::new().await;
    let config = BigQueryConfig { partitioning: Partitioning::Hour, ..world.config.clone() };
    let error = BigQuerySink::new(config, &world.postgres).prepare().await.unwrap_err();
    assert_eq!(error.code(), Code::BigQueryTableUnfit);
    assert!(error.advice().contains("bigquery.partitioning"), "{}", error.advice());
    world.end().await;
}

#[tokio::test]
async fn check_names_what_cannot_be_reached_and_what_is_not_set() {
    let world = World::without_table(|_| {}).await;
    let check = async |config: BigQueryConfig| BigQuerySink::new(config, &world.postgres).check().await;
    let config = world.config.clone();
    let findings = check(BigQueryConfig { rest_url: "http://127.0.0.1:1".into(), ..config.clone() }).await;
    assert_eq!(findings[0].verdict, Verdict::Fail);
    let findings = check(BigQueryConfig { project_id: String::new(), ..config.clone() }).await;
    assert!(findings[0].message.contains("bigquery.project_id"), "{findings:?}");
    let missing = "/nonexistent/key.json".to_owned();
    let config = BigQueryConfig { grpc_url: String::new(), credentials_file: missing, ..config };
    let findings = check(config).await;
    assert!(findings[0].message.contains("key.json"), "{findings:?}");
    world.end().await;
}
