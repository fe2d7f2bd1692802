//! The `walcast` command.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use walcast::config::{Config, Loaded};
use walcast::error::{Code, Error, Result};
use walcast::event::time::micros_of;
use walcast::shutdown::Shutdown;
use walcast::sink::read_back::{Part, Sample};
use walcast::sink::{bigquery, http, kafka, redis};
use walcast::{generate as generator, ops, sinks, telemetry};

/// Delivers engagement events from PostgreSQL's WAL to Kafka, Redis and BigQuery, exactly once.
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Cli {
    /// TOML file with settings. Environment variables override it.
    #[arg(long, global = true, env = "WALCAST_CONFIG", hide_env_values = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What to log, such as `info` or `walcast=debug`.
    #[arg(
        long,
        global = true,
        env = "WALCAST_LOG",
        hide_env_values = true,
        default_value = "info",
        value_name = "FILTER"
    )]
    log: String,
    /// Format of log lines: auto (pretty on a terminal, else JSON), pretty or json.
    #[arg(
        long,
        global = true,
        env = "WALCAST_LOG_FORMAT",
        hide_env_values = true,
        default_value = "auto",
        value_name = "FORMAT"
    )]
    log_format: telemetry::LogFormat,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0   done
  1   any other error
  2   a prerequisite is missing or wrong (`walcast check` lists them), or `walcast verify` found a difference
  4   the stream or a sink cannot go on without a gap: docs/operate/resync.md
  5   a newer instance has taken over
  64  wrong usage
  78  wrong configuration

Example: POSTGRES_HOST=db REDIS_HOST=cache KAFKA_BROKERS=kafka:9092 BIGQUERY_PROJECT_ID=acme walcast run";

#[derive(Subcommand)]
enum Command {
    /// Stream from PostgreSQL to the sinks until SIGTERM or Ctrl-C.
    #[command(after_help = "Example: walcast --config walcast.toml run")]
    Run,
    /// Create what walcast needs: state schema, publication, slot, topics, tables.
    ///
    /// It leaves alone what exists. A second run does nothing.
    #[command(
        after_help = "Examples: POSTGRES_USER=postgres walcast init\n          POSTGRES_USER=postgres walcast init --with-history"
    )]
    Init {
        /// Have the rows too that are there already: Redis at once, the other sinks by `walcast run`, beside the stream.
        #[arg(long)]
        with_history: bool,
    },
    /// Check every prerequisite, and change nothing. Exit code 2 if one fails.
    ///
    /// Below each line that is not ok stands its fix. Paste it into psql, redis-cli or a shell.
    #[command(
        after_help = "Examples: walcast check\n          walcast check --json | jq -r '.[] | select(.verdict != \"ok\") | .id, .fix'"
    )]
    Check {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show the state of the running walcast. Exit code 1 if it is not ready.
    ///
    /// The list goes from the end of PostgreSQL's WAL down to the oldest WAL that it keeps. The lowest sink is the one
    /// that PostgreSQL keeps WAL for.
    #[command(
        after_help = "Examples: walcast status --watch\n          walcast status --json | jq .problems"
    )]
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Repeat every second until Ctrl-C: in place on a terminal, else one line each time.
        #[arg(long)]
        watch: bool,
    },
    /// Compare PostgreSQL with every sink, event by event, while walcast runs. Exit code 2 if they differ.
    ///
    /// It compares everything that was committed before it began, and waits until every sink has that. PostgreSQL keeps
    /// old row versions meanwhile, as it does for any long transaction. The command needs one free replication slot for a
    /// moment, and 120 bytes of temporary disk for each event in each place.
    #[command(
        after_help = "Examples: walcast verify --json | jq .total\n          walcast verify --sinks kafka,bigquery --since 2026-01-01T00:00:00Z --sample 1%"
    )]
    Verify(VerifyOptions),
    /// Show the rows that a sink, or walcast itself, has refused, and say what becomes of them.
    #[command(subcommand, after_help = "Example: walcast dead-letters list --sink bigquery --since 2d")]
    DeadLetters(DeadLettersCommand),
    /// Fill a sink from PostgreSQL after it has lost its data.
    #[command(
        subcommand,
        after_help = "Examples: walcast rebuild kafka --yes\n          walcast rebuild redis"
    )]
    Rebuild(RebuildCommand),
    /// Find what does not fit together any more, the slot and what the sinks hold, and say what mends it; with --yes, do it.
    ///
    /// For a slot that is lost, a server that was restored from an older state or another cluster, sinks that were emptied or
    /// restored. Where the slot is whole, the sinks that cannot go on are filled anew, and the others go on. Else a new slot is made,
    /// with walcast stopped, and every sink is filled anew from what PostgreSQL has.
    #[command(after_help = "Examples: walcast resync\n          walcast resync --yes")]
    Resync(ops::resync::Options),
    /// Bring every sink level with PostgreSQL and leave nothing to be read by the slot, for pg_upgrade.
    ///
    /// It takes the place of `walcast run`, once nobody writes events any more. It reads on until PostgreSQL is stopped, so that what
    /// PostgreSQL itself writes until then is read too: pg_upgrade refuses a slot that has anything left. Exit code 2 if rows
    /// still come. Ended before (Ctrl-C), or PostgreSQL not upgraded after all, `walcast run` goes on where it was.
    #[command(after_help = "Example: walcast drain")]
    Drain,
    /// Go on with the server that pg_upgrade has made, after `walcast drain`; without --yes, say what was found.
    ///
    /// It looks whether that server can be the one that was drained: its WAL lies behind, the slot is there with nothing read by
    /// anybody else, the publication and its tables are the same. Then what each sink holds counts on.
    #[command(after_help = "Examples: walcast adopt\n          walcast adopt --yes")]
    Adopt(ops::adopt::Options),
    /// Bring the rows that were there before walcast to Kafka, BigQuery or HTTP, while it runs.
    ///
    /// `walcast run` does the work: each row goes out once, whoever is killed meanwhile, and only as fast as the sinks take them
    /// beside the stream. The command shows how far it is; ended, it changes nothing. Redis has rows of before by
    /// `walcast rebuild redis`. The records have `op = r` in Kafka's headers, and their content as it is now.
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "Examples: walcast backfill --dry-run\n          walcast backfill --sinks bigquery --since 2026-01-01T00:00:00Z"
    )]
    Backfill(ops::backfill::Backfill),
    /// Say what there is of a person, or of a content, in each place; with --yes, take it out.
    ///
    /// Delete it in PostgreSQL first: what is there comes back with a rebuild. Rows of BigQuery, the rows of dead letters and
    /// a content's own keys in Redis are deleted; records in Kafka stay until their retention ends. It cannot be undone.
    #[command(
        after_help = "Examples: walcast erase --user-id 0b8e1f2c-6f0e-4c8e-9a51-3f1f0c9a2d11\n          walcast erase --user-id 0b8e1f2c-6f0e-4c8e-9a51-3f1f0c9a2d11 --yes"
    )]
    Erase(ops::erase::Erase),
    /// Write realistic events into the source tables, for trials and load tests.
    #[command(
        after_help = "Examples: GENERATION_RATE=200000 walcast generate\n          BURST_MODE=true BURST_COUNT=100000 walcast generate"
    )]
    Generate,
    /// Say what an error code means, why it happens, and what to do.
    #[command(after_help = "Example: walcast explain WC-401")]
    Explain {
        /// The code, such as WC-401; all of them without one.
        #[arg(value_name = "CODE")]
        code: Option<Code>,
    },
    /// Show the configuration.
    #[command(subcommand, after_help = "Example: walcast config show | grep -v '# default'")]
    Config(ConfigCommand),
}

#[derive(clap::Args)]
struct VerifyOptions {
    /// Which sinks to compare, with commas between them. Default: all of pipeline.sinks.
    #[arg(long, value_name = "SINKS", value_delimiter = ',')]
    sinks: Vec<String>,
    /// Compare events with an event_ts from this time on.
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<i64>,
    /// Compare events with an event_ts before this time.
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<i64>,
    /// Compare this share of the events, the same in every sink: 1% takes a fraction of the time.
    #[arg(long, value_name = "PERCENT")]
    sample: Option<Sample>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// How long to wait for the sinks, in seconds, before comparing.
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    wait_seconds: u64,
    /// Folder for temporary files. Default: the system's.
    #[arg(long, value_name = "FOLDER")]
    temp_dir: Option<PathBuf>,
}

impl From<VerifyOptions> for ops::verify::Options {
    fn from(options: VerifyOptions) -> Self {
        let VerifyOptions { sinks, since, until, sample, json, wait_seconds, temp_dir } = options;
        let part = Part { since, until, sample };
        ops::verify::Options { sinks, part, json, wait: Duration::from_secs(wait_seconds), temp_dir }
    }
}

fn time(text: &str) -> Result<i64, String> {
    micros_of(text).ok_or_else(|| "it is a time such as 2026-11-29T12:00:00Z".to_owned())
}

#[derive(Subcommand)]
enum RebuildCommand {
    /// Compute every counter and leaderboard from PostgreSQL as of now, while the other sinks go on.
    ///
    /// `walcast run` does the work, and Redis gets what came meanwhile. Where no walcast runs the command does it at once. Readers see
    /// the old leaderboards for 30 s, then empty ones, then the new ones. If it is interrupted, it begins once more. Counts and
    /// milliseconds are exact. Percentages use each content's current length.
    #[command(after_help = "Examples: walcast rebuild redis\n          walcast rebuild redis --with-history")]
    Redis(ops::rebuild::RecountOptions),
    /// Delete the records of the events topic, and bring the rows that PostgreSQL has, while the other sinks go on.
    ///
    /// `walcast run` does the work. Offsets go on, so that consumers do. Topics that are gone are made. The newest state of every
    /// content is written to the content topic. `walcast backfill status`, `pause` and `resume` serve for it too.
    #[command(after_help = "Example: walcast rebuild kafka --yes")]
    Kafka(ops::rebuild::Options),
    /// Empty the table, or make it if it is gone, and bring the rows that PostgreSQL has, while the other sinks go on.
    ///
    /// `walcast run` does the work. `walcast backfill status`, `pause` and `resume` serve for it too.
    #[command(
        after_help = "Examples: walcast rebuild bigquery --yes\n          walcast rebuild bigquery --since 2026-01-01T00:00:00Z --yes"
    )]
    Bigquery(ops::rebuild::Options),
    /// Send the rows that PostgreSQL has to the HTTP target again, while the other sinks go on.
    ///
    /// `walcast run` does the work. What the target has it keeps; the rows come under other ids than before.
    #[command(after_help = "Example: walcast rebuild http --yes", mut_arg("missing", |arg| arg.hide(true)))]
    Http(ops::rebuild::Options),
}

#[derive(Subcommand)]
enum DeadLettersCommand {
    /// List dead letters, without the rows' values.
    #[command(
        after_help = "Examples: walcast dead-letters list\n          walcast dead-letters list --state any --json | jq -r '.[].name'"
    )]
    List(ops::dead_letters::List),
    /// Show one dead letter: why the row was refused, and its fields with their types and lengths.
    #[command(after_help = "Example: walcast dead-letters show bigquery@16/B374D848#7 --values")]
    Show(ops::dead_letters::Show),
    /// Say that rows are not wanted: they are not counted as open any more. They stay in the store.
    #[command(
        after_help = "Example: walcast dead-letters discard --reason negative_duration --since 1h --dry-run"
    )]
    Discard(ops::dead_letters::Discard),
    /// Send rows again to those that refused them. Each sink gets a row once, however often this is asked for.
    ///
    /// What refused them is to be mended first. The rows go through PostgreSQL's WAL as they were kept, to the sink that
    /// refused them, or to all sinks if none has them. A row that is refused again is open again, with one more try.
    #[command(
        after_help = "Examples: walcast dead-letters replay --sink bigquery --dry-run\n          walcast dead-letters replay all@16/B374D848#7 --set duration_ms=0"
    )]
    Replay(ops::dead_letters::Replay),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print every setting, its value and where the value came from. Secrets are hidden.
    #[command(after_help = "Example: walcast config show | grep -v '# default'")]
    Show,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) => {
            let _ = usage.print();
            return ExitCode::from(if usage.use_stderr() { 64 } else { 0 });
        }
    };
    keep_memory_private();
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            let (code, advice) = (error.code(), error.advice());
            eprintln!(
                "error {code}: {}\n  what to do: {advice}\n  more: walcast explain {code}",
                error.chain()
            );
            ExitCode::from(error.exit_code())
        }
    }
}

/// No dump of a crash and no other process of this user gets to see the passwords.
fn keep_memory_private() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        // a kernel that knows no such thing is no reason not to run
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
}

/// Threads for reading and writing beside each other. With more of them the batches would be strewn over the allocator's
/// arenas, one a thread, none of which gives back what it had at its fullest; Kafka's producer has threads of its own.
const WORKER_THREADS: usize = 2;

/// Runs the command as a task: the thread that waits for the stream's socket is then the one that reads it. From
/// the main thread every read would begin with one thread waking another.
fn run(cli: Cli) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()
        .map_err(|error| Error::new(Code::Prerequisite, "no runtime").because(error))?;
    let command = runtime.spawn(dispatch(cli));
    runtime
        .block_on(command)
        .unwrap_or_else(|panic| Err(Error::new(Code::WalcastBroke, "walcast broke down").because(panic)))
}

async fn dispatch(cli: Cli) -> Result<ExitCode> {
    if let Command::Explain { code } = cli.command {
        ops::explain::explain(code); // also where nothing of the configuration is right
        return Ok(ExitCode::SUCCESS);
    }
    telemetry::init_logging(&cli.log, cli.log_format)?;
    let loaded = Loaded::load(cli.config.as_deref(), std::env::vars())?;
    let config: &Config = &loaded.config;
    sinks::validate(config)?;
    let one_host;
    let config = match cli.command {
        Command::Init { .. }
        | Command::Rebuild(_)
        | Command::DeadLetters(_)
        | Command::Backfill(_)
        | Command::Resync(_)
        | Command::Adopt(_)
        | Command::Erase(_)
        | Command::Verify(_) => {
            one_host = config.on_one_host().await?;
            &one_host
        }
        // a stream goes on with another server, the others ask each of them or none
        _ => config,
    };
    match cli.command {
        Command::Run => ops::run::run(config, Shutdown::on_signals()?).await?,
        Command::Init { with_history } => ops::init::init(config, with_history).await?,
        Command::Rebuild(RebuildCommand::Redis(options)) => {
            return ops::rebuild::recount(config, redis::NAME, options).await;
        }
        Command::Rebuild(RebuildCommand::Kafka(options)) => {
            return ops::rebuild::rebuild(config, kafka::NAME, options).await;
        }
        Command::Rebuild(RebuildCommand::Bigquery(options)) => {
            return ops::rebuild::rebuild(config, bigquery::NAME, options).await;
        }
        Command::Rebuild(RebuildCommand::Http(options)) => {
            return ops::rebuild::rebuild(config, http::NAME, options).await;
        }
        Command::DeadLetters(command) => {
            return match command {
                DeadLettersCommand::List(options) => ops::dead_letters::list(config, options).await,
                DeadLettersCommand::Show(options) => ops::dead_letters::show(config, options).await,
                DeadLettersCommand::Replay(options) => ops::dead_letters::replay(config, options).await,
                DeadLettersCommand::Discard(options) => ops::dead_letters::discard(config, options).await,
            };
        }
        Command::Backfill(options) => return ops::backfill::backfill(config, options).await,
        Command::Resync(options) => return ops::resync::resync(config, options).await,
        Command::Drain => ops::drain::drain(config, Shutdown::on_signals()?).await?,
        Command::Adopt(options) => return ops::adopt::adopt(config, options).await,
        Command::Erase(options) => return ops::erase::erase(config, options).await,
        Command::Generate => generate(config).await?,
        Command::Check { json } => return ops::check::check(config, json).await,
        Command::Verify(options) => return ops::verify::verify(config, &options.into()).await,
        Command::Status { json, watch: true } => {
            return ops::status::watch(config, json, Shutdown::on_signals()?).await;
        }
        Command::Status { json, watch: false } => return ops::status::status(config, json).await,
        Command::Explain { .. } => {}
        Command::Config(ConfigCommand::Show) => print!("{}", loaded.show()),
    }
    Ok(ExitCode::SUCCESS)
}

async fn generate(config: &Config) -> Result<()> {
    let mut shutdown = Shutdown::on_signals()?;
    let summary = generator::run(&config.postgres, &config.generate, shutdown.wait()).await?;
    println!("{summary}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_command_has_help_with_an_example() {
        fn without_example(command: &clap::Command, path: &str, into: &mut Vec<String>) {
            let path = format!("{path} {}", command.get_name());
            let help = command.clone().render_long_help().to_string();
            if !help.contains("Example") || command.get_about().is_none() {
                into.push(path.clone());
            }
            for one in command.get_subcommands().filter(|one| one.get_name() != "help") {
                without_example(one, &path, into);
            }
        }
        let mut found = Vec::new();
        without_example(&Cli::command(), "", &mut found);
        assert!(found.is_empty(), "{found:?}");
    }
}
