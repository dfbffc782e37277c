//! The daemon `espd`, with its commands: `run`, `demo`, `check`, `probe`, and `worker`, which is what its children run.

mod announce;
mod building;
mod companions;
mod demo;
mod exclusion;
mod handler_thread;
mod in_process;
mod own_program;
pub(crate) mod plan;
mod program;
mod readiness;
mod registered;
mod reload;
mod requests;
mod running;
mod scheduling;
mod start_error;
mod test_kit;
pub(crate) mod todo_history;
mod verifying;
mod waiting_rows;
mod worker_rows;
mod worker_table;
mod worker_table_place;

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use crate::admin::probe;
use crate::config::{Config, ConfigArgument};
use crate::handlers::native::Registry;
use crate::operations::{check, outcome};
use crate::process::descriptors;
use crate::process::exit_code::Exit;
use crate::process::signal;
use crate::{telemetry, worker};

pub use in_process::Running;
pub use program::Program;
pub use start_error::StartError;
pub use test_kit::{TestDatabase, TestFailure, TestRunning, database};

use plan::single_assignment;
use registered::add_registered;
use running::Afterwards;

#[derive(Parser)]
#[command(
    name = "espd",
    version,
    about = "Run projectors and reactors on a PostgreSQL event store",
    after_help = "Without a command, `espd --config FILE` means `espd run --config FILE`.\n\
                  New here? `espd demo` shows everything on a private PostgreSQL, and leaves nothing behind.\n\
                  Exit codes: 0 done, 1 failed, 2 wrong usage, 64 wrong configuration,\n\
                  70 stopped, but a worker had to be killed or had failed, 130 interrupted twice."
)]
struct Cli {
    #[command(flatten)]
    config: ConfigArgument,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run every declared processor, in child processes, until TERM or INT
    Run,
    /// Show everything on a private PostgreSQL: events arriving, projectors following
    Demo(demo::Arguments),
    /// Check the configuration, the databases and every handler, without changing anything
    Check,
    /// Ask a running daemon whether it is alive (or can work): for health checks
    Probe {
        /// What to ask
        #[arg(value_enum, default_value = "livez")]
        question: probe::Question,
    },
    /// Run one declared processor in this process
    Worker(WorkerArguments),
}

#[derive(Args)]
struct WorkerArguments {
    /// Name of the processor
    name: String,
    /// Read the assignment from standard input, where a supervisor writes it
    #[arg(long, hide = true)]
    supervised: bool,
}

impl WorkerArguments {
    /// The name of a worker that a daemon has started.
    fn supervised_name(&self) -> Option<String> {
        self.supervised.then(|| self.name.clone())
    }
}

/// The command line of espd, for manual pages and completions.
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// Runs the daemon and returns its exit code.
pub fn main() -> std::process::ExitCode {
    let Cli { config, command } = Cli::parse();
    let registry = Arc::new(Registry::default());
    let worker = match &command {
        Some(Command::Worker(arguments)) => arguments.supervised_name(),
        _ => None,
    };
    let ended = descriptors::require().map_err(Into::into).and_then(|()| run(&config, command, registry));
    conclude(ended, worker.as_deref())
}

/// The exit code that belongs to the end of the daemon, or of a `worker` of this name, which is reported.
fn conclude(ended: anyhow::Result<()>, worker: Option<&str>) -> std::process::ExitCode {
    let (code, complaint) = outcome::conclude(ended);
    if let Some(complaint) = complaint {
        telemetry::report_end(&complaint, worker);
    }
    telemetry::finish();
    code.into()
}

fn run(argument: &ConfigArgument, command: Option<Command>, registry: Arc<Registry>) -> anyhow::Result<()> {
    let config = || load(argument, &registry);
    match command.unwrap_or(Command::Run) {
        Command::Run => run_daemon(argument, registry),
        Command::Demo(arguments) => block_on(demo::run(arguments)),
        Command::Check => block_on(check_configuration(&config()?)),
        Command::Probe { question } => probe::run(&config()?, question),
        Command::Worker(arguments) => run_worker(argument, &arguments, registry),
    }
}

fn run_worker(
    argument: &ConfigArgument,
    arguments: &WorkerArguments,
    registry: Arc<Registry>,
) -> anyhow::Result<()> {
    if arguments.supervised {
        return worker::run_supervised(&arguments.name, registry);
    }
    let assignment = single_assignment(&load(argument, &registry)?, &arguments.name)?;
    worker::run(&arguments.name, assignment, registry, false)
}

fn run_daemon(argument: &ConfigArgument, registry: Arc<Registry>) -> anyhow::Result<()> {
    // This comes first: a request that comes while the configuration is read must not be lost.
    let requests = signal::requests_and_reloads().context("could not listen for signals")?;
    let config = load(argument, &registry)?;
    let work = running::run(config, file(argument)?, registry, requests);
    match tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)? {
        Afterwards::End => Ok(()),
        Afterwards::StartAgain(program) => {
            Err(program.start_again()).context("could not run the program that has replaced this one")
        }
    }
}

async fn check_configuration(config: &Config) -> anyhow::Result<()> {
    let report = check::check(config).await?;
    for warning in report.warnings() {
        writeln!(std::io::stderr().lock(), "{}", warning.render())?;
    }
    let summary = report.into_result()?;
    Ok(writeln!(std::io::stdout().lock(), "{summary}")?)
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

fn load(argument: &ConfigArgument, registry: &Registry) -> anyhow::Result<Config> {
    let mut config = Config::load(&file(argument)?).map_err(Exit::configuration)?;
    add_registered(&mut config, registry).map_err(|faults| Exit::configuration(faults.join("\n")))?;
    Ok(config)
}

fn file(argument: &ConfigArgument) -> Result<PathBuf, Exit> {
    argument.file().ok_or_else(|| {
        Exit::configuration(
            "no configuration: there is no espd.toml here; name a file with --config, or see `espd demo` and \
             `espctl config example`",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}
