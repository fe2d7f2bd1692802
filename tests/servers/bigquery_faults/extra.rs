//! Columns that come while events flow.

use std::sync::Arc;

use walcast::batch::{Batch, BatchBuilder, Event, ExtraColumn, Row, Span};
use walcast::error;
use walcast::event::extra::{Extra, Shape};
use walcast::lsn::{Checkpoint, Lsn, Position};

use super::world::{CALLS, EVENTS_A_COMMIT, FAILURES, HOLDS, START, World, each, pairs, with_database};
use crate::support::bigquery_server::fault::{Call, Fault};

/// Eight commits: the third is the first whose events have a column, and the sixth the first of two.
fn stream() -> Vec<Arc<Batch>> {
    let column = |name: &str| ExtraColumn { name: name.into(), shape: Shape::Text };
    let one: Arc<[ExtraColumn]> = [column("extra_country")].into();
    let two: Arc<[ExtraColumn]> = [column("extra_country"), column("extra_city")].into();
    let mut builder = BatchBuilder::new(Checkpoint::at(START));
    let mut commit = |number: u64| {
        for ordinal in 0..EVENTS_A_COMMIT {
            let id = (number * EVENTS_A_COMMIT + ordinal) as i64;
            let position = Position { commit_lsn: Lsn(100 * (number + 1)), ordinal };
            let mut event = Event::new(position, id, id, id * 600_000_000);
            for (columns, from) in [(&one, 2), (&two, 5)] {
                if (from..from + 3).contains(&number) {
                    let member = |column: &ExtraColumn| format!(",\"{}\":\"{id}\"", column.name);
                    let plain = builder.intern(&columns.iter().map(member).collect::<String>());
                    event.extra =
                        builder.put_extra(position, columns, |_| Extra { plain, json: Span::default() });
                }
            }
            builder.push(Row::Event(event));
        }
        builder.hold(Lsn(100 * (number + 1) + 50));
        Arc::new(builder.finish(false))
    };
    (0..8).map(&mut commit).collect()
}

/// Each row has the columns that its event had, and no other.
fn check_columns(world: &World) {
    for row in world.server.rows(&world.config.table_path()) {
        let found: Vec<&str> = row.extra.keys().map(String::as_str).collect();
        let wanted: &[&str] = match row.event_id as u64 / EVENTS_A_COMMIT {
            0..2 => &[],
            2..5 => &["extra_country"],
            _ => &["extra_city", "extra_country"],
        };
        assert_eq!(found, wanted, "event {}", row.event_id);
        assert!(row.extra.values().all(|value| *value == row.event_id.to_string()), "{row:?}");
    }
}

#[tokio::test]
async fn a_column_is_made_before_its_first_row_and_awaited() {
    with_database(async |postgres| {
        let world = World::with(postgres, stream(), |_| {}).await;
        world.server.store().streams_behind = 3;
        world.live().await.unwrap();
        assert_eq!(world.server.store().streams_behind, 0);
        world.check_delivers().await;
        check_columns(&world);
    })
    .await;
}

#[tokio::test]
async fn a_failure_or_a_crash_on_the_way_to_a_new_column_loses_nothing() {
    with_database(async |postgres| {
        let calls: Vec<Call> = CALLS.into_iter().chain([Call::GetTable]).collect();
        let faults: Vec<_> = FAILURES.into_iter().chain(HOLDS).collect();
        each(pairs(&pairs(&calls, &faults), &[0, 1, 2, 3, 4, 5]), async |((call, fault), before)| {
            let world = World::with(postgres, stream(), |_| {}).await;
            world.server.store().streams_behind = 1;
            (0..before).for_each(|_| world.server.next(call, Fault::None));
            world.server.next(call, fault);
            if HOLDS.contains(&fault) {
                let lives = world.spawn().await;
                tokio::select! {
                    () = world.is_held() => {}
                    () = async { while !lives.is_finished() { tokio::task::yield_now().await } } => {}
                }
                lives.abort();
            } else if let Err(error) = world.live().await {
                let codes = [error::Code::Lost, error::Code::BigQueryUnreachable];
                assert!(codes.contains(&error.code()), "{call:?} {fault:?} {error:?}");
            }
            world.check_delivers().await;
            check_columns(&world);
        })
        .await;
    })
    .await;
}
