//! Personal data: what [privacy] drops is in no sink, no dead letter and no state of walcast, and what it hashes is the same
//! pseudonym in all of them.

use serde_json::Value;
use tokio_postgres::Client;
use walcast::event::privacy::{Privacy, PrivacyConfig, Rule};
use walcast::source::sql;

use crate::support::world::World;
use crate::support::{fresh_database, fresh_name, postgres, run, wait_until};

const KEY: &str = "a key of the tests that has more than 32 characters";
const USER: &str = "11111111-2222-4333-8444-555555555555";
const OTHER: &str = "99999999-2222-4333-8444-555555555555";
/// Nothing of this may be found anywhere.
const SECRETS: [&str; 5] = [USER, "jane's phone", "jane@example.org", "headline of jane", "card-4711"];

/// A database with tables that have more than walcast wants, before `init`.
async fn shop() -> (World, Client) {
    let world = World::new(fresh_database(postgres()).await).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, include_str!("../../migrations/0001_source.sql")).await;
    run(&client, "ALTER TABLE engagement_events ADD COLUMN email text, ADD COLUMN country text").await;
    run(
        &client,
        "INSERT INTO content VALUES ('00000000-0000-0000-0000-00000000000a', 'slug-of-jane', 'headline of jane', 'podcast', 100, now())",
    )
    .await;
    (world, client)
}

fn discreet(world: &World) -> World {
    world
        .with("PRIVACY_USER_ID", "hash")
        .with("PRIVACY_DEVICE", "drop")
        .with("PRIVACY_RAW_PAYLOAD", "hash")
        .with("PRIVACY_TITLE", "hash")
        .with("PRIVACY_SLUG", "drop")
        .with("PRIVACY_KEY_FILE", &world.file(KEY))
        .with("POSTGRES_EXTRA_COLUMNS", "country")
}

fn rules() -> Privacy {
    let key = KEY.to_owned().into();
    PrivacyConfig { user_id: Rule::Hash, key, ..PrivacyConfig::default() }.rules().unwrap()
}

async fn insert(client: &Client, user: &str, duration_ms: i64) {
    let insert = format!(
        "INSERT INTO engagement_events
           (content_id, user_id, event_type, event_ts, duration_ms, device, raw_payload, email, country)
         VALUES ('00000000-0000-0000-0000-00000000000a', '{user}', 'play', now(), {duration_ms}, 'jane''s phone',
           '{{\"card\": \"card-4711\"}}', 'jane@example.org', 'PL')"
    );
    run(client, &insert).await;
}

fn expect_discreet(what: &str, told: &str) {
    for secret in SECRETS {
        assert!(!told.contains(secret), "{what} has {secret}: {told}");
    }
}

#[tokio::test]
async fn what_is_dropped_or_hashed_is_so_everywhere() {
    let (world, client) = shop().await;
    let world = discreet(&world);
    world.walcast(["init"]).await.expect(0, &[]);
    // what nobody wants does not leave PostgreSQL
    let published =
        "SELECT tablename::text, array_to_string(attnames, ' ') FROM pg_publication_tables ORDER BY 1";
    let published: Vec<(String, String)> =
        client.query(published, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
    let [content, events] = published.as_slice() else { panic!("{published:?}") };
    assert_eq!(content.1, "id title content_type length_seconds publish_ts");
    assert_eq!(events.1, "id content_id user_id event_type event_ts duration_ms raw_payload country");
    world
        .walcast(["check"])
        .await
        .expect(0, &["columns device of engagement_events", "columns slug of content"]);
    let running = world.start().await;
    insert(&client, USER, 1_000).await;
    insert(&client, USER, -1).await;
    // an update that says nothing of the title: what is kept of it is no pseudonym of a pseudonym
    run(&client, "UPDATE content SET length_seconds = 50").await;
    insert(&client, USER, 2_000).await;
    world.wait_until_all_hold(2).await;
    running.stop().await;
    // the contents are read back from what walcast keeps
    let running = world.start().await;
    insert(&client, USER, 3_000).await;
    world.wait_until_all_hold(3).await;
    world.verify().await;

    let rules = rules();
    let user = rules.uuid(USER.parse().unwrap()).to_string();
    let title = rules.pseudonym("headline of jane");
    let payload = rules.pseudonym(r#"{"card": "card-4711"}"#);
    for event in world.kafka_events().await {
        expect_discreet("Kafka", &event.to_string());
        assert_eq!(event["user_id"], user.as_str(), "{event}");
        assert_eq!(event["title"], title.as_str(), "{event}");
        assert_eq!(event["raw_payload"], payload.as_str(), "{event}");
        assert_eq!(event["country"], "PL", "{event}");
        assert!(event["device"].is_null() && event["slug"].is_null(), "{event}");
    }
    for value in world.kafka_topic("content").await {
        expect_discreet("the topic of contents", &String::from_utf8_lossy(&value));
    }
    let columns =
        "SELECT user_id, title, country, device, slug, raw_payload FROM {dataset}.engagement_events";
    let rows = world.bigquery(&columns.replace("{dataset}", &world.dataset)).await;
    assert_eq!(rows.len(), 3);
    for row in rows {
        let told = Value::from(row.clone()).to_string();
        expect_discreet("BigQuery", &told);
        assert_eq!(
            row.get(..5).unwrap(),
            [user.as_str().into(), title.as_str().into(), "PL".into(), Value::Null, Value::Null]
        );
        assert!(told.contains(&payload), "{told}");
    }
    let mut redis = world.redis().await;
    let shown: Option<String> = redis::cmd("HGET")
        .arg("content:00000000-0000-0000-0000-00000000000a")
        .arg("title")
        .query_async(&mut redis)
        .await
        .unwrap();
    assert_eq!(shown.as_deref(), Some(title.as_str()));

    // the row that was refused
    let letters = "SELECT to_jsonb(letter)::text, record::jsonb ->> 'user_id', event::jsonb ->> 'user_id', record::jsonb ? 'device'
                   FROM walcast.dead_letter AS letter";
    let letter = client.query_one(letters, &[]).await.unwrap();
    expect_discreet("a dead letter", &letter.get::<_, String>(0));
    let kept = (letter.get::<_, String>(1), letter.get::<_, String>(2), letter.get::<_, bool>(3));
    assert_eq!(kept, (user.clone(), user.clone(), false));
    let versions = "SELECT coalesce(string_agg(to_jsonb(version)::text, ' '), '') FROM walcast.content_version AS version";
    expect_discreet(
        "walcast.content_version",
        &client.query_one(versions, &[]).await.unwrap().get::<_, String>(0),
    );

    // sent again, with the pseudonym that it has; what is set goes by the rules too
    let all = ["dead-letters", "replay", "--sink", "all", "--set", "duration_ms=7"];
    world
        .walcast(all.into_iter().chain(["--set", "device=jane's phone"]))
        .await
        .expect(2, &["privacy.device"]);
    world.walcast(all.into_iter().chain(["--set", &format!("user_id={OTHER}")])).await.expect(0, &[]);
    world.wait_until_all_hold(4).await;
    let set = rules.uuid(OTHER.parse().unwrap()).to_string();
    let again = world.kafka_events().await.into_iter().find(|event| event["duration_ms"] == 7).unwrap();
    assert_eq!((&again["user_id"], &again["device"]), (&Value::from(set), &Value::Null), "{again}");
    world.verify().await;
    expect_discreet("the log", &running.log.lock().await);
    running.stop().await;
}

/// A role need not be let read what nobody wants, and a pseudonym can still be told from another.
#[tokio::test]
async fn what_is_dropped_need_not_be_readable() {
    let (world, client) = shop().await;
    let role = fresh_name("role");
    let world = discreet(&world).with("PIPELINE_SINKS", "redis");
    world.walcast(["init"]).await.expect(0, &[]);
    // nor does the role that init makes get to read it
    let may = "SELECT has_column_privilege('walcast', 'engagement_events', 'device', 'SELECT'),
                 has_column_privilege('walcast', 'content', 'slug', 'SELECT'),
                 has_column_privilege('walcast', 'engagement_events', 'email', 'SELECT'),
                 has_column_privilege('walcast', 'engagement_events', 'user_id', 'SELECT')";
    let may = client.query_one(may, &[]).await.unwrap();
    assert_eq!([0, 1, 2, 3].map(|at| may.get::<_, bool>(at)), [false, false, false, true]);
    let grants = format!(
        "CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'x';
         GRANT USAGE ON SCHEMA walcast TO {role};
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA walcast TO {role};
         GRANT SELECT (id, title, content_type, length_seconds, publish_ts) ON content TO {role};
         GRANT SELECT (id, content_id, user_id, event_type, event_ts, duration_ms, raw_payload, country) ON engagement_events
           TO {role}"
    );
    run(&client, &grants).await;
    let small = world.with("POSTGRES_USER", &role).with("POSTGRES_PASSWORD", "x");
    let missing = format!("GRANT SELECT (xmin) ON \"public\".\"engagement_events\" TO \"{role}\";");
    small.walcast(["check"]).await.expect(2, &[&missing]);
    run(&client, &missing).await;
    small.walcast(["check"]).await.expect(0, &[]);
    let running = small.start().await;
    insert(&client, USER, 1_000).await;
    wait_until("Redis counts it", async || world.redis_plays().await == 1).await;
    small.verify().await;
    running.stop().await;
    small.walcast(["rebuild", "redis"]).await.expect(0, &["redis holds 1 events"]);
    run(&client, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

/// A rule that is changed holds for what comes from then on; `verify` names what went out before by another.
#[tokio::test]
async fn what_went_out_before_a_rule_is_told() {
    let (world, client) = shop().await;
    let world = world.with("PIPELINE_SINKS", "kafka");
    world.walcast(["init"]).await.expect(0, &[]);
    let running = world.start().await;
    insert(&client, USER, 1_000).await;
    wait_until("Kafka holds it", async || world.kafka_events().await.len() == 1).await;
    running.stop().await;
    let world = world.with("PRIVACY_DEVICE", "drop");
    let running = world.start().await;
    insert(&client, USER, 1_000).await;
    wait_until("Kafka holds both", async || world.kafka_events().await.len() == 2).await;
    let mut devices: Vec<Value> =
        world.kafka_events().await.into_iter().map(|event| event["device"].clone()).collect();
    devices.sort_by_key(Value::is_null);
    assert_eq!(devices, [Value::from("jane's phone"), Value::Null]);
    world.walcast(["verify"]).await.expect(2, &["device"]);
    running.stop().await;
}

async fn bigquery_users(world: &World) -> Vec<String> {
    let query = format!("SELECT DISTINCT user_id FROM {}.engagement_events ORDER BY 1", world.dataset);
    let rows = world.bigquery(&query).await;
    rows.into_iter().map(|row| row.first().and_then(Value::as_str).unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn a_person_and_a_content_are_erased_where_that_can_be_done() {
    let (world, client) = shop().await;
    world.walcast(["init"]).await.expect(0, &[]);
    // what went out before a rule, and what went out by it
    let hashed = world.with("PRIVACY_USER_ID", "hash").with("PRIVACY_KEY", KEY);
    for (world, events) in [(&world, 2), (&hashed, 4)] {
        let running = world.start().await;
        for user in [USER, OTHER] {
            insert(&client, user, 1_000).await;
            insert(&client, user, -1).await;
        }
        world.wait_until_all_hold(events).await;
        running.stop().await;
    }
    let pseudonym = |user: &str| rules().uuid(user.parse().unwrap()).to_string();
    let of_other = {
        let mut of_other = vec![OTHER.to_owned(), pseudonym(OTHER)];
        of_other.sort();
        of_other
    };
    let erase = ["erase", "--user-id", USER];
    let told = [
        "PostgreSQL",
        "4 rows are there",
        "bigquery      2 to erase",
        "redis         nothing",
        "for 168 hours",
        "dead letters  2 to erase",
    ];
    hashed.walcast(erase).await.expect(0, &told);
    assert_eq!(bigquery_users(&world).await.len(), 4, "nothing is gone yet");
    run(&client, &format!("DELETE FROM engagement_events WHERE user_id = '{USER}'")).await;
    hashed
        .walcast(erase.into_iter().chain(["--yes"]))
        .await
        .expect(0, &["bigquery      2 erased", "dead letters  2 erased"]);
    hashed
        .walcast(erase)
        .await
        .expect(0, &["PostgreSQL    nothing", "bigquery      nothing", "dead letters  nothing"]);
    assert_eq!(bigquery_users(&world).await, of_other);
    let letters = "SELECT count(*) FILTER (WHERE record IS NULL AND event IS NULL AND state = 'discarded'),
                     count(*) FILTER (WHERE record IS NOT NULL AND state = 'open') FROM walcast.dead_letter";
    let letters = client.query_one(letters, &[]).await.unwrap();
    assert_eq!((letters.get::<_, i64>(0), letters.get::<_, i64>(1)), (2, 2));
    let forgotten = "SELECT sink || '@' || commit_lsn || '#' || ordinal FROM walcast.dead_letter WHERE record IS NULL LIMIT 1";
    let name: String = client.query_one(forgotten, &[]).await.unwrap().get(0);
    hashed.walcast(["dead-letters", "show", &name]).await.expect(0, &["negative_duration"]);
    hashed.walcast(["dead-letters", "list", "--state", "any"]).await.expect(0, &[&name, "discarded"]);
    // the deletes are marked once the stream has brought them
    let running = hashed.start().await;
    let content = "00000000-0000-0000-0000-00000000000a";
    hashed.walcast(["erase", "--content-id", content]).await.expect(0, &["redis         ", " to erase"]);
    run(&client, "DELETE FROM engagement_events; DELETE FROM content").await;
    hashed.walcast(["erase", "--content-id", content, "--yes"]).await.expect(0, &["bigquery      2 erased"]);
    assert_eq!(bigquery_users(&world).await, [""; 0]);
    let mut redis = world.redis().await;
    for key in [format!("content:{content}"), format!("engagement:{content}:*")] {
        let left: Vec<String> = redis::cmd("KEYS").arg(&key).query_async(&mut redis).await.unwrap();
        assert!(left.is_empty(), "{left:?}");
    }
    running.stop().await;
    world.walcast(["rebuild", "redis"]).await.expect(0, &["redis holds 0 events"]);
    let mut redis = world.redis().await;
    let totals: usize = redis::cmd("HLEN").arg("walcast:all").query_async(&mut redis).await.unwrap();
    assert_eq!(totals, 0);
    world.walcast(["erase", "--content-id", content, "--user-id", USER]).await.expect(64, &[]);
}

#[tokio::test]
async fn the_rows_of_old_dead_letters_are_forgotten() {
    let (world, client) = shop().await;
    let world = world.with("PIPELINE_SINKS", "redis").with("DEAD_LETTERS_RETENTION_DAYS", "30");
    world.walcast(["init"]).await.expect(0, &[]);
    let letters = async || -> Vec<(bool, String, bool)> {
        let letters =
            "SELECT record IS NULL, state, event IS NULL FROM walcast.dead_letter ORDER BY created_at";
        let rows = client.query(letters, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
    };
    let running = world.start().await;
    for _ in 0..3 {
        insert(&client, USER, -1).await;
    }
    wait_until("there are letters", async || letters().await.len() == 3).await;
    running.stop().await;
    run(
        &client,
        "UPDATE walcast.dead_letter SET created_at = now() - interval '31 days';
         UPDATE walcast.dead_letter SET created_at = now() - interval '29 days', state = 'open'
         WHERE ctid = (SELECT max(ctid) FROM walcast.dead_letter);
         UPDATE walcast.dead_letter SET state = 'replayed', repair = '{\"duration_ms\":1}'
         WHERE ctid = (SELECT min(ctid) FROM walcast.dead_letter WHERE created_at < now() - interval '30 days')",
    )
    .await;
    let running = world.start().await;
    insert(&client, USER, 1_000).await;
    wait_until("one is forgotten", async || letters().await.iter().any(|(forgotten, ..)| *forgotten)).await;
    let mut kept = letters().await;
    kept.sort();
    let (open, replayed) = ((false, "open".to_owned(), false), (false, "replayed".to_owned(), false));
    assert_eq!(kept, [open, replayed, (true, "discarded".to_owned(), true)]);
    assert!(running.log.lock().await.contains("dead_letters.retention_days"));
    let replay = ["dead-letters", "replay", "--since", "100d", "--set", "duration_ms=1"];
    world.walcast(replay).await.expect(0, &["1 dead letter sent again"]);
    running.stop().await;
}
