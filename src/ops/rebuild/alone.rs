//! Has a sink that keeps sums count all events anew while no walcast runs: one that begins meanwhile is shut out.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::watch;

use crate::backfill::recount::{Recounting, readable};
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::failpoint::failpoint;
use crate::lsn::{Checkpoint, Lsn, Session};
use crate::ops::terminal::print;
use crate::ops::verify::sums::Follow;
use crate::resume::SinkName;
use crate::sink::recount::Recount;
use crate::source::connection::Connection;
use crate::source::snapshot::Snapshot;
use crate::source::{check, slot, sql};
use crate::state::lanes::{self, LaneRecord};
use crate::state::marks::EventMarks;
use crate::state::{State, backfills, history};
use crate::transform::Transform;
use crate::transform::content_cache::ContentCache;

/// Nobody waits for a rebuild to be given up.
const FOREVER: Duration = Duration::from_secs(7 * 86_400);
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Counts, with the rows that were there before walcast if that is asked for, or was once.
pub async fn recount(
    config: &Config,
    sink: SinkName,
    target: &mut dyn Recount,
    with_history: bool,
) -> Result<()> {
    let mut state = State::new(config.postgres.clone());
    let (history_id, timelines) = history::find(&config.postgres, state.client().await?).await?;
    let sinks = [sink.to_string()];
    let mut last_id = backfills::counts_before(state.client().await?, &history_id, &sinks).await?;
    if with_history {
        last_id = Some(EventMarks::begin(state.client().await?, &history_id).await?.end_of_before()?);
    }
    // what would end it later is found before anybody is shut out
    let places = readable(&config.postgres, state.client().await?).await?;
    target.check(&config.postgres.slot).await?;
    let confirmed = history::confirmed(&config.postgres, state.client().await?).await?;
    let session = state.take_fencing_token(history_id, timelines, confirmed).await?;
    target.begin(&session).await?;
    tracing::info!("{sink} is ours alone and empty");
    let snapshot = Snapshot::take(&config.postgres).await?;
    let end = snapshot.consistent_point;
    require_not_ahead(&mut state, config, sink, end).await?;
    let mut marks = EventMarks::load(state.client().await?, &session.history_id).await?;
    add_late(&mut marks, &mut state, config, end).await?;
    let with_history = last_id.is_some();
    let recounting =
        Recounting { session: &session, places: &places, marks: &marks, with_history, beside: None };
    let (told, tells) = watch::channel(0);
    let counted = tokio::select! {
        counted = recounting.count(target, &snapshot, &told) => counted?,
        () = show(&tells) => return Ok(()),
    };
    if let Some(last_id) = last_id {
        // before the target is whole: a rebuild that is begun again knows it
        let transaction = state.guarded(&session).await?;
        let counts = (last_id, counted.of_before);
        backfills::counted(&transaction, &session.history_id, sink.as_str(), counts).await?;
        transaction.commit().await.map_err(sql::error)?;
    }
    failpoint!("redis_rebuild_before_check");
    require_not_ahead(&mut state, config, sink, end).await?;
    target.end(end).await?;
    failpoint!("redis_rebuild_before_lane");
    close_lane(&mut state, &session, sink).await?;
    tracing::info!(events = counted.events, checkpoint = %end, "{sink} rebuilt");
    let of_before = last_id.map(|_| format!(", {} of them from before walcast", counted.of_before));
    print(&format!(
        "{sink} holds {} events{}, all up to {end}; `walcast run` goes on from there\n",
        counted.events,
        of_before.unwrap_or_default()
    ));
    Ok(())
}

/// Shows how many events are counted, without end.
async fn show(tells: &watch::Receiver<u64>) {
    let template = "{pos} events {per_sec}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner());
    let progress = ProgressBar::new_spinner().with_style(style);
    loop {
        progress.set_position(*tells.borrow());
        tokio::time::sleep(TELL_EVERY).await;
    }
}

/// The sink stands at or beyond the walcast slot now: a slot of its own that it had, or lost, is needed no more.
async fn close_lane(state: &mut State, session: &Session, sink: SinkName) -> Result<()> {
    let open = check::lanes::lanes(state.client().await?, session.history_id.uuid).await?;
    for lane in open.into_iter().filter(|lane| lane.sink == sink.as_str()) {
        lanes::close(state, session, &LaneRecord { sink: lane.sink, slot: lane.slot, given_up: false })
            .await?;
    }
    Ok(())
}

/// Rows with low ids that came after all are marked as the stream brings them: those that it has not brought yet are read
/// from the slot, up to the snapshot, and not confirmed.
async fn add_late(marks: &mut EventMarks, state: &mut State, config: &Config, end: Lsn) -> Result<()> {
    if marks.last_id_before.is_none() {
        return Ok(());
    }
    let postgres = &config.postgres;
    slot::wait_until_free(state.client().await?, &postgres.slot, || {}).await?;
    let start = history::confirmed(postgres, state.client().await?).await?;
    let places = history::publication(postgres, state.client().await?).await?.places;
    let connection = Connection::connect(postgres).await?;
    let stream = connection.start_replication(&postgres.slot, &postgres.publication, start).await?;
    let transform = Transform::new(&places, start, ContentCache::default(), config.pipeline.bounds());
    let follow = Follow { stream, transform, start, requests: None };
    follow
        .up_to(Checkpoint::at(end), FOREVER, |batch| {
            batch.events().for_each(|event| marks.inserted(event.id))
        })
        .await
}

/// What the slot has let go of before the target's checkpoint, nobody would bring.
async fn require_not_ahead(state: &mut State, config: &Config, sink: SinkName, end: Lsn) -> Result<()> {
    let confirmed = history::confirmed(&config.postgres, state.client().await?).await?;
    if confirmed <= end {
        return Ok(());
    }
    let message = format!(
        "slot {} has moved to {confirmed}, beyond {end}, where {sink} would begin",
        config.postgres.slot
    );
    Err(Error::new(Code::SlotMovedDuringRebuild, message).hint(format!(
        "a walcast without {sink} reads the slot: stop it, and run `walcast rebuild {sink}` again"
    )))
}
