//! The daemon: `espd run`, `espd demo`, `espd check`, and `espd worker`, which is one child.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::admin::{Endpoint, Limits};
use crate::config::Config;
use crate::database::{Databases, PRIVATE_FOLDER, start_private};
use crate::embedded::EmbeddedPostgres;
use crate::exit_code::{Exit, ExitCode, chain, report};
use crate::failure::is_infrastructure_error;
use crate::retry::{Retry, RetryPolicy};
use crate::signal::{self, Request};
use crate::supervisor::lifecycle::Policy;
use crate::supervisor::{Ending, Order, Plan, Program, Supervisor};
use crate::tracker::Owner;
use crate::worker::{self, Assignment};
use crate::{demo, espctl, telemetry};

#[derive(Parser)]
#[command(
    name = "espd",
    version,
    about = "Run projectors on a PostgreSQL event store",
    after_help = "Without a command, `espd --config FILE` means `espd run --config FILE`.\n\
                  New here? `espd demo` shows everything on a private PostgreSQL, and leaves nothing behind.\n\
                  Exit codes: 0 done, 1 failed, 2 wrong usage, 64 wrong configuration, 130 interrupted twice."
)]
struct Cli {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args)]
struct Place {
    /// Configuration file
    #[arg(long, short, global = true, env = "ESPD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Run every declared processor, in child processes, until TERM or INT
    Run,
    /// Show everything on a private PostgreSQL: events arriving, projectors following
    Demo(demo::Arguments),
    /// Check the configuration, the database and every handler's SQL, without changing anything
    Check,
    /// Run one declared processor in this process
    Worker(WorkerArguments),
}

#[derive(Args)]
struct WorkerArguments {
    /// Name of the processor
    name: String,
    /// The assignment comes on standard input, from a supervisor
    #[arg(long, hide = true)]
    supervised: bool,
}

/// The command line, for manual pages and completions.
pub(crate) fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// Runs the daemon and returns its exit code.
pub fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    report(run(cli))
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let config = || load(&cli.place);
    match cli.command.unwrap_or(Command::Run) {
        Command::Run => block_on(run_daemon(config()?)),
        Command::Demo(arguments) => block_on(demo::run(arguments)),
        Command::Check => block_on(espctl::check(&config()?)),
        Command::Worker(arguments) if arguments.supervised => worker::run_supervised(),
        Command::Worker(arguments) => worker::run(assignment(&config()?, &arguments.name)?, false),
    }
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

fn load(place: &Place) -> anyhow::Result<Config> {
    let file = place.config.as_deref().ok_or_else(|| {
        Exit::configuration(
            "no configuration: name a file with --config, or see `espd demo` and `espctl config example`",
        )
    })?;
    Config::load(file).map_err(|faults| Exit::configuration(faults).into())
}

fn assignment(config: &Config, name: &str) -> anyhow::Result<Assignment> {
    let processor = config.projectors.iter().find(|projector| projector.name == name);
    let processor =
        processor.ok_or_else(|| Exit::configuration(format!("no processor {name} is declared")))?;
    let url = config.event_store.url.as_ref();
    let url =
        url.ok_or_else(|| Exit::configuration("a worker needs a database: write url under [event_store]"))?;
    Ok(Assignment { owner: Owner::draw(), settings: config.worker_settings(&[processor], url) })
}

/// Boot, in one order: log, signals, database, checks, workers.
async fn run_daemon(mut config: Config) -> anyhow::Result<()> {
    telemetry::start(&config.log);
    let mut requests = signal::requests().context("could not listen for signals")?;
    info!(version = env!("CARGO_PKG_VERSION"), processors = config.projectors.len(), "espd starts");
    let start_endpoint = |settings| Endpoint::start(settings, Limits::default());
    let endpoint = config.admin.as_ref().map(start_endpoint).transpose()?;
    let server = provide_database(&mut config, Path::new(PRIVATE_FOLDER)).await?;
    if let Some(endpoint) = &endpoint {
        endpoint.show_config(&config);
    }
    let outcome = match wait_until_fit(&config, server.is_some(), &mut requests).await {
        Ok(true) => supervise(&config, requests, endpoint.as_ref()).await,
        Ok(false) => Ok(()),
        Err(unfit) => Err(unfit),
    };
    if let Some(endpoint) = endpoint {
        endpoint.stop().await;
    }
    if let Some(server) = server {
        server.stop().await;
    }
    info!("espd has stopped");
    outcome
}

/// Starts the private PostgreSQL where the configuration names no database.
async fn provide_database(config: &mut Config, folder: &Path) -> anyhow::Result<Option<EmbeddedPostgres>> {
    if config.event_store.url.is_some() {
        return Ok(None);
    }
    let (server, url) = start_private(folder).await?;
    info!(DATABASE_URL = url.expose(), "no database is configured: running a private PostgreSQL");
    config.event_store.url = Some(url);
    Ok(Some(server))
}

/// Waits until the database answers, then checks that it is fit. `false`: asked to stop meanwhile.
///
/// A database that is down may come up; one that is not fit needs an operator, so that is an error.
async fn wait_until_fit(
    config: &Config,
    private: bool,
    requests: &mut mpsc::Receiver<Request>,
) -> anyhow::Result<bool> {
    let mut outage = Retry::new(RetryPolicy::infrastructure());
    loop {
        // A server that says nothing is given seconds by the driver.
        let error = tokio::select! {
            _ = requests.recv() => return Ok(false),
            examined = examine(config, private) => match examined {
                Ok(Err(error)) if is_outage(&error) => error,
                Ok(checked) => return checked.map(|()| true),
                Err(error) => error,
            },
        };
        let delay: Duration = outage.failed(());
        warn!(error = chain(&error), retry_in_ms = delay.as_millis() as u64, "the database does not answer");
        tokio::select! {
            _ = requests.recv() => return Ok(false),
            () = tokio::time::sleep(delay) => {}
        }
    }
}

/// Checks a database that can be reached; it may go down again meanwhile.
async fn examine(config: &Config, private: bool) -> Result<anyhow::Result<()>, anyhow::Error> {
    let databases = Databases::connect(config, "espd").await?;
    let checked = check_fitness(&databases, private).await;
    databases.close().await;
    Ok(checked)
}

/// Whether this says nothing about the database but that it cannot be asked now.
fn is_outage(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<sqlx::Error>());
    causes.any(is_infrastructure_error)
}

async fn check_fitness(databases: &Databases, private: bool) -> anyhow::Result<()> {
    if private {
        databases.migrate().await?;
    }
    databases.check_schema().await?;
    databases.check_store().await
}

/// Orders that the supervisor has not looked at yet. Nobody gives more than a few.
const ORDERS_MAX: usize = 4;

/// Runs the workers until they have stopped after a request.
async fn supervise(
    config: &Config,
    requests: mpsc::Receiver<Request>,
    endpoint: Option<&Endpoint>,
) -> anyhow::Result<()> {
    if config.projectors.is_empty() {
        return Err(Exit::configuration("no processor is declared: see `espctl config example`").into());
    }
    let (orders, ordered) = mpsc::channel(ORDERS_MAX);
    let supervisor = Supervisor::new(plan(config, &Owner::draw())?);
    if let Some(endpoint) = endpoint {
        endpoint.show_workers(&supervisor);
    }
    let supervising = supervisor.run(ordered);
    let ending = tokio::select! {
        ending = supervising => ending,
        () = steer(requests, orders) => bail!("nobody steers the workers any more"),
    };
    match ending {
        Ending::Orderly => Ok(()),
        Ending::Forced => {
            let message = "asked twice to stop: batches were given up, they will be handled again".to_owned();
            Err(Exit { code: ExitCode::Interrupted, message }.into())
        }
    }
}

/// Passes requests on to the supervisor for as long as there are any.
async fn steer(mut requests: mpsc::Receiver<Request>, orders: mpsc::Sender<Order>) {
    while let Some(request) = requests.recv().await {
        let Request::Stop = request;
        if orders.send(Order::Stop).await.is_err() {
            break;
        }
    }
    std::future::pending::<()>().await;
}

/// All workers of the configuration, working for `owner`.
pub(crate) fn plan(config: &Config, owner: &Owner) -> anyhow::Result<Plan> {
    let url = config.event_store.url.as_ref().context("the database is known by now")?;
    let mut programs = Vec::new();
    for (name, members) in config.workers() {
        let assignment = Assignment { owner: owner.clone(), settings: config.worker_settings(&members, url) };
        let processors = members.iter().map(|processor| processor.name.clone()).collect();
        programs.push(Program { name, processors, settings: serde_json::to_string(&assignment)? });
    }
    let policy = Policy {
        grace: config.runner.shutdown_timeout,
        restart_max: config.runner.restart_max,
        hang_timeout: config.runner.hang_timeout,
        ..Policy::default()
    };
    Ok(Plan { programs, policy, memory_max: config.runner.memory_max.map(i64::unsigned_abs) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::SchemaError;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn an_outage_while_looking_is_told_from_an_unfit_database() {
        let broken_pipe = || sqlx::Error::Io(std::io::ErrorKind::BrokenPipe.into());
        assert!(is_outage(&SchemaError::Database(broken_pipe()).into()));
        assert!(is_outage(&anyhow::Error::from(broken_pipe()).context("the event store")));
        let (set, schema) = ("event store", "espd".to_owned());
        assert!(!is_outage(&SchemaError::NotMigrated { set, schema, found: 0, needed: 3 }.into()));
        assert!(!is_outage(&Exit::configuration("the sequence is cached").into()));
    }
}
