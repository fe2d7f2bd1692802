//! `walcast adopt`: goes on with the server that pg_upgrade has made of the one that walcast knows.

use std::fmt::Write;
use std::process::ExitCode;

use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::lsn::{Lsn, Session};
use crate::ops::check::standing;
use crate::ops::terminal::print;
use crate::resume::{RESYNC, Resume};
use crate::sinks;
use crate::source::sql;
use crate::state::drained::{self, Adoption};

/// `adopt`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Options {
    /// Do it. Without this the command says what it has found.
    #[arg(long)]
    yes: bool,
}

/// Says what was found, and with `--yes` notes it. Exit code 0 where there is nothing to adopt.
pub async fn adopt(config: &Config, options: Options) -> Result<ExitCode> {
    let client = sql::connect(&config.postgres).await?;
    let Some(found) = drained::look(&config.postgres, &client).await? else {
        print("This is the server that walcast knows: nothing is to be adopted.\n");
        return Ok(ExitCode::SUCCESS);
    };
    let mut text = String::new();
    let (ours, slot) = (&found.history_id, &config.postgres.slot);
    // writing to a string cannot fail
    let _ = writeln!(text, "{:12}{} has become {}", "system", found.former, ours.system_id);
    let _ = match found.slot {
        Some(begins) => writeln!(text, "{:12}{slot} is there, and begins at {begins}", "slot"),
        None => writeln!(text, "{:12}{slot} was not kept", "slot"),
    };
    refused(config, &found, &mut text).await?;
    if !options.yes {
        let _ = writeln!(text, "Nothing is changed yet: walcast adopt --yes");
        print(&text);
        return Ok(ExitCode::SUCCESS);
    }
    found.adopt(&client).await?;
    let next = match found.slot {
        Some(_) => "`walcast run` goes on".to_owned(),
        None => format!("the sinks keep what they hold; now a new slot is to be made: {RESYNC}"),
    };
    let _ = writeln!(text, "Adopted: {next}");
    print(&text);
    Ok(ExitCode::SUCCESS)
}

/// Tells where each sink stands; an error for one that could not go on.
async fn refused(config: &Config, found: &Adoption, text: &mut String) -> Result<()> {
    let session = Session {
        history_id: found.history_id.clone(),
        fencing_token: 0,
        timelines: found.timelines.clone(),
        settled_timeline: found.history_id.timeline,
        start: found.slot.unwrap_or(Lsn::ZERO),
    };
    for sink in sinks::wanted(config)?.into_iter().filter(|sink| sink.guarantee().keeps_checkpoint()) {
        let standing = standing(config, sink, session.clone()).await;
        let name = standing.target.id();
        let _ = match standing.judged? {
            Resume::From(checkpoint) => {
                writeln!(text, "{:12}holds all up to {}", name.as_str(), checkpoint.durable_lsn)
            }
            Resume::Fresh(_) => writeln!(text, "{:12}has nothing yet", name.as_str()),
            Resume::Refused(refusal) => {
                let refusal = refusal.into_error(name, &session);
                let message = format!("{name} could not go on here: {}", refusal.chain());
                return Err(Error::new(Code::OtherCluster, message).hint(RESYNC));
            }
        };
    }
    Ok(())
}
