//! What a row says, and what opens a door, is in no log, no answer of the web server and no error.

use crate::support::running::Running;
use crate::support::world::World;
use crate::support::{DEADLINE, fresh_database, postgres, run, wait_until};
use redis::AsyncCommands;
use tokio_postgres::Client;
use walcast::source::{PostgresConfig, sql};

/// The one value that may be told: an error names the Redis key that is in its way, and content's are named by it.
const CONTENT_ID: &str = "c0417e47-0000-4000-8000-c0417e470000";
/// In every value of every row, whatever its type.
const VALUES: [&str; 6] = [
    "canary-title",
    "canary-slug",
    "canary-payload",
    "canary-device",
    "ca4a41ca-ca4a-41ca-ca4a-41caca4a41ca",
    "1987654321",
];
const SECRETS: [&str; 3] = ["canary-of-postgres", "canary-of-redis", "canary-of-the-web-token"];

/// Fails when one of `planted` is in `text`, and shows where.
fn search(place: &str, text: &str, planted: &[&str]) {
    for canary in planted {
        if let Some(at) = text.find(canary) {
            let start = text[..at].char_indices().rev().nth(200).map_or(0, |(start, _)| start);
            panic!("{place} has {canary}: …{}", text[start..].chars().take(500).collect::<String>());
        }
    }
}

fn all() -> Vec<&'static str> {
    [&VALUES[..], &SECRETS[..]].concat()
}

/// A world whose every password is a canary, at the most that is promised of logs. `user` is nobody else's.
async fn world(user: &str) -> World {
    let server = postgres();
    let admin = sql::connect(&server).await.unwrap();
    let [password, redis_password, token] = SECRETS;
    run(
        &admin,
        &format!(
            "DO $$ BEGIN CREATE ROLE {user}; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;
             ALTER ROLE {user} SUPERUSER LOGIN PASSWORD '{password}'"
        ),
    )
    .await;
    let made = fresh_database(server).await;
    let world =
        World::new(PostgresConfig { user: user.into(), password: password.to_owned().into(), ..made }).await;
    let mut redis = world.redis().await;
    let mut account = redis::cmd("ACL");
    account
        .arg("SETUSER")
        .arg(user)
        .arg("reset")
        .arg("on")
        .arg(format!(">{redis_password}"))
        .arg("~*")
        .arg("&*")
        .arg("+@all");
    account.query_async::<()>(&mut redis).await.unwrap();
    let world = world
        .with("REDIS_USERNAME", user)
        .with("REDIS_PASSWORD", redis_password)
        .with("WEB_TOKEN", token)
        .with("WALCAST_LOG", "debug");
    let ended = world.walcast(["init"]).await;
    ended.expect(0, &[]);
    search("init", &ended.output, &all());
    world
}

/// Content, events that are fine, and one of each kind that is not.
async fn plant(client: &Client) {
    let (id, user_id) = (CONTENT_ID, VALUES[4]);
    run(
        client,
        &format!(
            "ALTER TABLE content DROP CONSTRAINT IF EXISTS content_content_type_check;
             INSERT INTO content VALUES ('{id}', 'canary-slug', 'canary-title', 'podcast', 1987654321, now());
             INSERT INTO content VALUES (gen_random_uuid(), 'canary-slug-2', 'canary-title', 'podcast', 1987654321, 'infinity');
             INSERT INTO engagement_events (content_id, user_id, event_type, event_ts, duration_ms, device, raw_payload)
             SELECT '{id}', '{user_id}', 'play', moment::timestamptz, duration, 'canary-device',
                    jsonb_build_object('canary-payload', repeat('canary-payload', size))
             FROM (VALUES ('2026-11-20', 1987654321, 1), ('2026-11-20', -1987654321, 1), ('infinity', 1987654321, 1),
                          ('-infinity', 1987654321, 1), ('20000-01-01', 1987654321, 1), ('2026-11-20', 1987654321, 200000))
                  AS odd (moment, duration, size)"
        ),
    )
    .await;
}

async fn answers(running: &Running) -> Vec<(String, String)> {
    let address = running.address().await;
    let client = reqwest::Client::new();
    let mut answers = Vec::new();
    let paths = [
        "/",
        "/livez",
        "/readyz",
        "/metrics",
        "/api/status",
        "/api/history",
        "/api/checks",
        "/api/boards/none",
        "/nothing",
    ];
    for path in paths {
        for token in [SECRETS[2], "wrong"] {
            let asked = client.get(format!("{address}{path}")).bearer_auth(token).send().await.unwrap();
            let head = format!("{:?}", asked.headers());
            answers.push((path.to_owned(), head + &asked.text().await.unwrap()));
        }
    }
    let mut stream =
        client.get(format!("{address}/api/stream")).bearer_auth(SECRETS[2]).send().await.unwrap();
    let first = tokio::time::timeout(DEADLINE, stream.chunk()).await.unwrap().unwrap().unwrap();
    answers.push(("/api/stream".to_owned(), String::from_utf8_lossy(&first).into_owned()));
    answers
}

async fn dead_letters(world: &World) -> usize {
    world.kafka_topic("dlq").await.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rows_and_passwords_say_is_in_no_log_and_no_answer() {
    let world = world("canary_in_rows").await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let mut running = world.start().await;
    plant(&client).await;
    wait_until("the odd rows are dead letters", async || dead_letters(&world).await >= 4).await;
    wait_until("the others are in BigQuery", async || world.bigquery_count().await >= 2).await;
    for (path, answer) in answers(&running).await {
        search(&path, &answer, &all());
    }
    let log = running.log.lock().await.clone();
    assert!(log.contains("dead letter") && log.contains("row_bytes_max") && log.contains("DEBUG"), "{log}");
    put_a_foreign_value_into_redis(&world, &client).await;
    // Redis holds something else under a key of ours
    wait_until("it is told", async || running.log.lock().await.contains("WC-232")).await;
    for (path, answer) in answers(&running).await {
        search(&path, &answer, &all());
    }
    search("the log", &running.log.lock().await, &all());

    let () = world.redis().await.del(content_key()).await.unwrap();
    refuse_in_postgres(&client).await;
    let ended = running.ended().await;
    assert!(ended.is_some_and(|code| code != 0), "{ended:?}");
    let log = running.log.lock().await;
    assert!(
        log.contains("check constraint \\\"refused") || log.contains("check constraint \"refused"),
        "{log}"
    );
    search("the log", &log, &all());
}

fn content_key() -> String {
    format!("content:{CONTENT_ID}")
}

/// Under a key whose name is of a row.
async fn put_a_foreign_value_into_redis(world: &World, client: &Client) {
    let mut redis = world.redis().await;
    let () = redis.del(content_key()).await.unwrap();
    let () = redis.set(content_key(), "canary-title").await.unwrap();
    run(client, "UPDATE content SET title = 'canary-title again' WHERE slug = 'canary-slug'").await;
}

/// PostgreSQL's words for a row that it refuses quote the row.
async fn refuse_in_postgres(client: &Client) {
    let refuse =
        "ALTER TABLE walcast.content_version ADD CONSTRAINT refused CHECK (title !~ 'never') NOT VALID";
    run(client, refuse).await;
    run(client, "UPDATE content SET title = 'canary-title never' WHERE slug = 'canary-slug'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_fails_says_no_secret() {
    let world = world("canary_in_runs").await;
    let wrong = "canary-of-a-wrong-one";
    let planted = [&all()[..], &[wrong]].concat();
    for name in ["POSTGRES_PASSWORD", "REDIS_PASSWORD"] {
        for command in ["check", "run"] {
            let ended = world.with(name, wrong).walcast([command]).await;
            ended.expect(2, &[]);
            search(&format!("{command} with a wrong {name}"), &ended.output, &planted);
        }
    }
    let shown = world.walcast(["config", "show"]).await;
    shown.expect(0, &["***"]);
    search("config show", &shown.output, &planted);
    let client = sql::connect(&world.postgres).await.unwrap();
    plant(&client).await;
    run(&client, "ALTER TABLE engagement_events DROP COLUMN duration_ms").await;
    let ended = world.walcast(["run"]).await;
    ended.expect(2, &["duration_ms"]);
    search("run without a column", &ended.output, &planted);
}
