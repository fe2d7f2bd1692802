//! `walcast erase`: says what there is of a person, or a content, in each place, and takes out what can be taken out.

use std::fmt::Write;
use std::process::ExitCode;

use serde::Serialize;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::event::privacy::Rule;
use crate::ops::terminal::print;
use crate::sink::erasure::{Subject, Traces};
use crate::sinks;
use crate::source::{quote, rows, slot, sql};
use crate::state::dead_letters::{self, NamedLetter};
use crate::state::{State, history};

/// `erase`.
#[derive(Debug, clap::Args)]
pub struct Erase {
    /// The user, by his id in PostgreSQL. His pseudonym is looked for too.
    #[arg(long, value_name = "UUID", required_unless_present = "content_id", conflicts_with = "content_id")]
    user_id: Option<Uuid>,
    /// The content, by its id.
    #[arg(long, value_name = "UUID")]
    content_id: Option<Uuid>,
    /// Do it. Without this the command only says what there is.
    #[arg(long)]
    yes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What there is in one place.
#[derive(Debug, Serialize)]
struct Found {
    place: String,
    #[serde(flatten)]
    traces: Traces,
}

/// Says what there is, and takes it out where that is wanted.
pub async fn erase(config: &Config, options: Erase) -> Result<ExitCode> {
    let subject = subject(config, &options)?;
    let mut state = State::new(config.postgres.clone());
    history::find(&config.postgres, state.client().await?).await?;
    let mut found = vec![source(config, state.client().await?, &subject).await?];
    // what cannot be asked is known before anything is gone
    let mut targets = sinks::wanted(config)?;
    for target in &mut targets {
        let (place, traces) = (target.name().to_owned(), target.traces(&subject).await?);
        found.push(Found { place, traces });
    }
    let (letters, traces) = letters(state.client().await?, &subject).await?;
    found.push(Found { place: "dead letters".into(), traces });
    if options.yes {
        for target in &mut targets {
            target.erase(&subject).await?;
        }
        dead_letters::forget_named(state.client().await?, &letters).await?;
    }
    print(&match options.json {
        true => json(&found, options.yes),
        false => table(&found, options.yes),
    });
    Ok(ExitCode::SUCCESS)
}

fn subject(config: &Config, options: &Erase) -> Result<Subject> {
    let privacy = &config.postgres.privacy;
    match (options.user_id, options.content_id) {
        (Some(id), _) => Ok(Subject::User(match privacy.rule("user_id") {
            Rule::Hash => vec![id, privacy.uuid(id)],
            Rule::Keep | Rule::Drop => vec![id],
        })),
        (None, Some(id)) => Ok(Subject::Content(id)),
        (None, None) => {
            Err(Error::new(Code::Configuration, "nobody is named").hint("walcast erase --user-id …"))
        }
    }
}

/// The table that all comes from: what stays in it comes back with the next rebuild.
async fn source(config: &Config, client: &Client, subject: &Subject) -> Result<Found> {
    let publication = history::publication(&config.postgres, client).await?;
    let places = slot::now(client, &publication.places).await?;
    let (events, id) = (&places.events, subject.ids().first().copied().unwrap_or_default());
    let condition = format!(
        "{} = {}",
        quote::identifier(events.called(subject.field())),
        quote::literal(&id.to_string())
    );
    let query = format!("SELECT count(*) FROM {}{}", events.sql(), rows::only(events, Some(&condition)));
    let count: i64 = sql::get(&client.query_one(&query, &[]).await.map_err(sql::error)?, 0)?;
    let traces = match count {
        0 => Traces::default(),
        _ => Traces::staying(format!(
            "{count} rows are there, and a rebuild or a backfill would bring them back; yours to delete: DELETE FROM {} WHERE \
             {condition};",
            events.sql()
        )),
    };
    Ok(Found { place: "PostgreSQL".into(), traces })
}

/// The letters whose rows name the subject.
async fn letters(client: &Client, subject: &Subject) -> Result<(Vec<NamedLetter>, Traces)> {
    // a row of the contents has the id as its own
    let fields: &[&str] = match subject {
        Subject::User(_) => &["user_id"],
        Subject::Content(_) => &["content_id", "id"],
    };
    let named = dead_letters::naming(client, fields, subject.ids()).await?;
    let (on_their_way, kept): (Vec<_>, Vec<_>) = named.into_iter().partition(|letter| letter.replaying);
    let traces = Traces::of(kept.len() as u64);
    let traces = match on_their_way.len() {
        0 => traces,
        some => {
            let stays = Some(format!("{some} are sent again just now: run this again in a minute"));
            Traces { stays, ..traces }
        }
    };
    Ok((kept, traces))
}

fn json(found: &[Found], erased: bool) -> String {
    let told = serde_json::json!({ "erased": erased, "places": found });
    serde_json::to_string_pretty(&told).unwrap_or_default() + "\n"
}

fn table(found: &[Found], erased: bool) -> String {
    let mut text = String::new();
    for Found { place, traces: Traces { found, stays } } in found {
        let what = match found {
            Some(0) => "nothing".to_owned(),
            Some(count) if erased => format!("{count} erased"),
            Some(count) => format!("{count} to erase"),
            None if stays.is_none() => "nothing".to_owned(),
            None => "not erased by walcast".to_owned(),
        };
        let _ = writeln!(text, "{place:<14}{what}");
        if let Some(stays) = stays {
            let _ = writeln!(text, "{:<14}{stays}", "");
        }
    }
    if !erased && found.iter().any(|found| found.traces.found.is_some_and(|count| count > 0)) {
        text += "nothing has been erased yet; with --yes it is, and does not come back\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_and_what_stays_are_told_apart() {
        let found = |place: &str, traces| Found { place: place.into(), traces };
        let places = [
            found("PostgreSQL", Traces::default()),
            found("kafka", Traces::staying("for 7 days")),
            found("bigquery", Traces::of(3).but("time travel")),
            found("redis", Traces::of(0)),
        ];
        insta::assert_snapshot!(table(&places, false), @r"
        PostgreSQL    nothing
        kafka         not erased by walcast
                      for 7 days
        bigquery      3 to erase
                      time travel
        redis         nothing
        nothing has been erased yet; with --yes it is, and does not come back
        ");
        insta::assert_snapshot!(table(&places, true), @r"
        PostgreSQL    nothing
        kafka         not erased by walcast
                      for 7 days
        bigquery      3 erased
                      time travel
        redis         nothing
        ");
    }
}
