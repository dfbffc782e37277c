//! The operator's tool. It works on the database, whether or not a daemon runs; a daemon notices at once.

mod append;
mod dead_letters;
mod doctor;
mod events;
mod import_positions;
mod manual;
mod operate;
pub(crate) mod output;
mod roles;
mod status;
mod wait;
mod webhook_test;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, EXAMPLE};
use crate::operations::check::check;
use crate::operations::databases::Databases;
use crate::process::exit_code::{Exit, report};

#[derive(Parser)]
#[command(
    name = "espctl",
    version,
    about = "Look after an event store and its processors",
    after_help = "The database is the one that --config or DATABASE_URL names.\n\
                  Exit codes: 0 done, 1 failed, 2 wrong usage, 64 wrong configuration, 75 time is over."
)]
struct Cli {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Place {
    /// Configuration file; without it only DATABASE_URL is used
    #[arg(long, short, global = true, env = "ESPD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Create espd's tables, or bring them to the version that this program knows
    #[command(after_help = "Harmless where nothing is to be done, and while daemons run.\n\n\
        Example:\n  DATABASE_URL=postgres://localhost/shop espctl migrate")]
    Migrate,
    /// Append events: JSON objects, one per line, from standard input
    Append(append::Arguments),
    /// Print events by id
    Events(events::Arguments),
    /// Show every processor: what it does, how far it is, what is wrong and what to do
    Status(status::Arguments),
    /// Drop a projector's tables and let it start over, or only move a position
    Reset(operate::ResetArguments),
    /// Pause a processor until it is resumed
    #[command(
        after_help = "It stays paused through restarts and deployments; who paused it and when is in the status.\n\n\
        Example:\n  espctl pause outstanding_todos && espctl status outstanding_todos"
    )]
    Pause(operate::Target),
    /// Try the event that fails now instead of later, also where the processor has stopped over it
    #[command(
        after_help = "The count of attempts begins anew.\n\nExample:\n  espctl retry outstanding_todos"
    )]
    Retry(operate::Target),
    /// Let a paused or failed processor go on
    #[command(after_help = "Example:\n  espctl resume outstanding_todos && espctl wait outstanding_todos")]
    Resume(operate::Target),
    /// See events that were set aside, and have them handled again or discard them
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLettersCommand),
    /// Take over the positions that the processors of event_sourcery have reached
    ImportPositions(import_positions::Arguments),
    /// Wait until a processor has reached a position
    Wait(wait::Arguments),
    /// Check the configuration, the database and every handler's SQL, without changing anything
    #[command(
        after_help = "Tries every declaration in a transaction that is rolled back. Mistakes come with file, line and\n\
        column; any of them makes the exit code 64.\n\nExample, before a deployment:\n  espctl check --config espd.toml"
    )]
    Check,
    /// Look at everything that espd needs of its databases, and say what to do where it is missing
    Doctor(doctor::Arguments),
    /// Show the request that a webhook reactor sends for an event, and what the receiver answers
    WebhookTest(webhook_test::Arguments),
    /// Print SQL that makes roles with no more rights than appending, reading, running or operating needs
    Roles(roles::Arguments),
    /// Print a script that lets a shell complete commands and options
    Completions(manual::CompletionsArguments),
    /// Print the manual page, or write all pages into a folder
    Man(manual::ManArguments),
    /// Print configuration
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// The configuration as understood, included files and defaults filled in, without secrets
    #[command(after_help = "Prints TOML that can be read again, apart from the secrets, which are ***.\n\n\
        Example:\n  espctl config show --config espd.toml")]
    Show {
        /// JSON instead of TOML
        #[arg(long)]
        json: bool,
    },
    /// A commented example of every key
    #[command(after_help = "Example:\n  espctl config example > espd.toml")]
    Example,
    /// A JSON Schema of the files, for editors that complete and check
    #[command(after_help = "Example, for editors with the taplo language server:\n  \
        espctl config schema > espd.schema.json\n  \
        and as the first line of espd.toml: #:schema ./espd.schema.json")]
    Schema,
}

/// Runs the tool and returns its exit code. `daemon` is the command line of espd, for manual pages and completions.
pub fn main(daemon: clap::Command) -> std::process::ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    report(runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(cli, &daemon))))
}

async fn run(cli: Cli, daemon: &clap::Command) -> anyhow::Result<()> {
    match &cli.command {
        Command::Config(ConfigCommand::Example) => return output::print(EXAMPLE.trim_end()),
        Command::Config(ConfigCommand::Schema) => {
            return output::print(&serde_json::to_string_pretty(&Config::json_schema())?);
        }
        Command::Completions(arguments) => return manual::completions(arguments, daemon),
        Command::Man(arguments) => return manual::man(arguments, daemon),
        _ => {}
    }
    let config = load(&cli.place)?;
    match cli.command {
        Command::Config(ConfigCommand::Show { json: false }) => {
            output::print(toml::to_string_pretty(&config.redacted())?.trim_end())
        }
        Command::Config(_) => output::print(&serde_json::to_string_pretty(&config.redacted())?),
        Command::Check => output::print(&check(&config).await?.into_result()?),
        Command::Roles(_) => roles::run(&config),
        Command::Doctor(arguments) => doctor::run(arguments, &config).await,
        command => {
            let databases = Databases::connect(&config, "espctl").await?;
            run_on(command, &config, &databases).await?;
            databases.close().await;
            Ok(())
        }
    }
}

async fn run_on(command: Command, config: &Config, databases: &Databases) -> anyhow::Result<()> {
    if let Command::Migrate = command {
        return output::print(&databases.migrate().await?.join("\n"));
    }
    databases.check_schema().await?;
    match command {
        Command::Append(arguments) => append::run(arguments, databases).await,
        Command::Events(arguments) => events::run(arguments, databases).await,
        Command::Status(arguments) => status::run(arguments, config, databases).await,
        Command::Reset(arguments) => operate::reset(arguments, config, databases).await,
        Command::Pause(target) => operate::pause(target, config, databases).await,
        Command::Retry(target) => operate::retry(target, config, databases).await,
        Command::Resume(target) => operate::resume(target, config, databases).await,
        Command::DeadLetters(command) => dead_letters::run(command, config, databases).await,
        Command::ImportPositions(arguments) => import_positions::run(arguments, config, databases).await,
        Command::Wait(arguments) => wait::run(arguments, databases).await,
        Command::WebhookTest(arguments) => webhook_test::run(arguments, config, databases).await,
        Command::Migrate
        | Command::Check
        | Command::Doctor(_)
        | Command::Roles(_)
        | Command::Completions(_)
        | Command::Man(_)
        | Command::Config(_) => {
            unreachable!("handled before a database was needed")
        }
    }
}

fn load(place: &Place) -> anyhow::Result<Config> {
    let config = match &place.config {
        Some(file) => Config::load(file).map(Config::or_database_of_environment),
        None => Config::from_environment(),
    };
    config.map_err(|faults| Exit::configuration(faults).into())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        super::Cli::command().debug_assert();
    }
}
