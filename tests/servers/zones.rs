//! A local time is the instant that PostgreSQL's `AT TIME ZONE` makes of it.

use std::ops::RangeInclusive;

use tokio_postgres::Client;
use walcast::event::zone::Zone;
use walcast::source::sql;

use crate::support::postgres;

const ZONES: [&str; 14] = [
    "UTC",
    "Europe/Warsaw",
    "America/New_York",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
    "America/Sao_Paulo",
    "Africa/Casablanca",
    "Asia/Tehran",
    "Europe/Dublin",
    "Europe/Moscow",
    "America/Santiago",
    "Pacific/Apia",
    "Asia/Gaza",
    "Antarctica/Troll",
];

/// Local times of a zone beside the instants that they are, both in microseconds since 1970.
async fn instants(client: &Client, locals: &str, zone: &str) -> Vec<(i64, i64)> {
    let query = format!(
        "SELECT (extract(epoch FROM local) * 1000000)::bigint, (extract(epoch FROM local AT TIME ZONE $1) * 1000000)::bigint
         FROM ({locals}) AS locals (local)"
    );
    let rows = client.query(&query, &[&zone]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// What the database has that is linked in, and those of older servers have not: a zone, and years that releases of 2026
/// say other things of.
const CORRECTED: [(&str, RangeInclusive<i32>); 4] = [
    ("America/Sao_Paulo", 1965..=1966),
    ("Asia/Tehran", 1979..=1979),
    ("Europe/Dublin", 1925..=1925),
    ("Asia/Gaza", 2073..=2086),
];

fn is_corrected(zone: &str, local: i64) -> bool {
    let year = 1970.0 + local as f64 / 31_556_952e6;
    CORRECTED.iter().any(|(name, years)| *name == zone && years.contains(&(year.floor() as i32)))
}

fn compare(zone: &str, instants: &[(i64, i64)]) {
    let ours = Zone::named(zone, "postgres.timestamp_zone").unwrap();
    let other =
        |(local, instant): &&(i64, i64)| ours.instant(*local) != *instant && !is_corrected(zone, *local);
    let others: Vec<_> = instants.iter().filter(other).collect();
    assert!(others.is_empty(), "{zone}: {}, from {:?} to {:?}", others.len(), others.first(), others.last());
}

/// Every half hour for days around each day whose length is another, and a microsecond before and after.
#[tokio::test]
async fn clocks_that_were_set_from_1970_to_2037_are_read_as_postgresql_reads_them() {
    let client = sql::connect(&postgres()).await.unwrap();
    let locals = "
        SELECT at + micros * interval '1 microsecond'
        FROM (SELECT day, day AT TIME ZONE $1 - lag(day AT TIME ZONE $1) OVER (ORDER BY day) AS length
              FROM generate_series(timestamp '1970-01-01', '2038-01-02', '1 day') AS day) AS days,
             generate_series(day - interval '2 days', day + interval '1 day', '30 minutes') AS at,
             generate_series(-1, 1) AS micros
        WHERE length <> interval '24 hours'";
    for zone in ZONES {
        let instants = instants(&client, locals, zone).await;
        println!("{zone}: {} times", instants.len());
        assert!(
            instants.len() > 500 || zone == "UTC" || zone == "Asia/Kolkata",
            "{zone}: {}",
            instants.len()
        );
        compare(zone, &instants);
    }
}

#[tokio::test]
async fn other_years_have_the_clocks_that_postgresql_gives_them() {
    let client = sql::connect(&postgres()).await.unwrap();
    let locals = "
        SELECT at FROM generate_series(timestamp '0001-01-01', '2600-01-01', '333:20:33') AS at
        UNION ALL SELECT at FROM generate_series(timestamp '9700-01-01', '10000-01-02', '33:20:33') AS at";
    for zone in ZONES {
        compare(zone, &instants(&client, locals, zone).await);
    }
}
