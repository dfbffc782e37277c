//! The operator's tool `espctl`. It works on the databases, whether or not a daemon runs; running daemons are notified.

mod append;
mod check;
mod commands;
mod dead_letters;
mod delete_aggregate;
mod doctor;
mod emissions;
mod events;
mod explain;
mod forget;
mod graph;
mod import_positions;
mod manual;
mod moment;
mod new;
mod operate;
pub(crate) mod output;
mod plan;
mod rebuild;
mod reload;
mod reset;
mod retire;
mod roles;
mod schema;
mod snapshots;
mod status;
mod trace;
mod wait;
mod webhook_test;
mod workflows;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, ConfigArgument, DATABASE_URL, EXAMPLE, InvalidConfig, demo_file};
use crate::handlers::native::Registry;
use crate::operations::databases::{Databases, running_private_database};
use crate::operations::declared_events::apply_after_migration;
use crate::operations::lock_watch::say_who_locks;
use crate::operations::outcome;
use crate::postgres::query_text::show_literals;
use crate::process::descriptors;
use crate::process::exit_code::Exit;

#[derive(Parser)]
#[command(
    name = "espctl",
    version,
    about = "Operate an event store and its processors",
    after_help = "--config, espd.toml in the current folder, or DATABASE_URL names the database; without any of them,\n\
                  it is that of an `espd demo` that runs.\n\
                  Exit codes: 0 done, 1 failed, 2 wrong usage (plan: something would be lost), 64 wrong configuration, 65 the event store is not the one\n\
                  that was followed (wait), 75 time limit exceeded."
)]
struct Cli {
    #[command(flatten)]
    config: ConfigArgument,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Create espd's tables, or migrate them to the version of this program
    #[command(after_help = "Does nothing if the tables are up to date. Safe while daemons run.\n\n\
        Tables that were made by hand with the files of migrations/ are recognised and recorded.\n\
        What [[event]] declares is brought into the event store as well, as by `espctl schema apply`.\n\n\
        Example:\n  DATABASE_URL=postgres://localhost/shop espctl migrate")]
    Migrate(MigrateArguments),
    /// Append events from standard input: one JSON object per line
    Append(append::Arguments),
    /// Print events, ordered by id
    Events(events::Arguments),
    /// Show what led to an event and what it has led to, as a tree
    Trace(trace::Arguments),
    /// Show every processor: its state, its position, what is wrong and what to do
    Status(status::Arguments),
    /// Build a projector's tables anew beside those that serve, or in place, or only move its position
    Reset(reset::ResetArguments),
    /// Build the declared version of a projector beside the one that serves, and have it go live
    Rebuild(rebuild::RebuildArguments),
    /// Go back to the version of a projector that served before
    Rollback(rebuild::RollbackArguments),
    /// Handle all events of a projector again beside its tables, and compare every row
    Verify(rebuild::VerifyArguments),
    /// Remove a processor that no daemon runs any more, with its tables
    Drop(retire::DropArguments),
    /// Give a projector that no daemon runs another name
    Rename(retire::RenameArguments),
    /// Pause processors until they are resumed
    #[command(
        after_help = "A processor stays paused through restarts and deployments. `espctl status` shows who paused it and when.\n\n\
        Examples:\n  espctl pause outstanding_todos && espctl status outstanding_todos\n  espctl pause --all"
    )]
    Pause(operate::Target),
    /// Try failing events again now, even if a processor has stopped because of one
    #[command(
        after_help = "The number of attempts starts again from zero.\n\nExamples:\n  espctl retry outstanding_todos\n  espctl retry --all"
    )]
    Retry(operate::Target),
    /// Resume paused or failed processors, or accept an event store that is not the one that they followed
    Resume(operate::ResumeArguments),
    /// List the events that were set aside, have them handled again, or discard them
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLettersCommand),
    /// List what reactors have emitted for later, cancel it, or have what the event store has refused tried again
    Emissions {
        #[command(subcommand)]
        command: Option<emissions::EmissionsCommand>,
    },
    /// Delete the key of a person, so that what was sealed for him can be read no more
    Forget(forget::ForgetArguments),
    /// Make the tables of keys of personal data, or wrap the keys by another master key
    #[command(subcommand)]
    Keys(forget::KeysCommand),
    /// Delete all events of an aggregate for good, and record that
    DeleteAggregate(delete_aggregate::Arguments),
    /// Import the positions that the processors of event_sourcery have reached
    ImportPositions(import_positions::Arguments),
    /// Have the running daemons read their configuration again
    Reload(reload::Arguments),
    /// Wait until processors have reached a position
    Wait(wait::Arguments),
    /// Check the configuration, the databases and every handler, without changing anything
    Check(check::Arguments),
    /// Show what a deploy of this configuration would start, stop, rebuild, alter and leave
    Plan(plan::Arguments),
    /// Examine everything that espd needs from its databases, and say how to fix what is missing
    Doctor(doctor::Arguments),
    /// Show which path the batches of SQL projectors take, and why not the fast one
    Explain(explain::Arguments),
    /// Show which processor handles and emits which events, owns which tables, and reads whose
    Graph(graph::Arguments),
    /// Show what the events of each type look like, and tell the event store what they have to look like
    #[command(subcommand)]
    Schema(schema::SchemaCommand),
    /// List the snapshots that applications keep of their aggregates, or remove them
    #[command(subcommand)]
    Snapshots(snapshots::SnapshotsCommand),
    /// List the instances of workflows, how far they have come and what they wait for
    Workflows(workflows::Arguments),
    /// List the commands that applications have recorded, newest first, or remove old ones
    #[command(args_conflicts_with_subcommands = true)]
    Commands(commands::Arguments),
    /// Show the request that a webhook reactor sends for an event, and the answer of the receiver
    WebhookTest(webhook_test::Arguments),
    /// Print SQL that creates roles with the least rights for appending, reading, running and operating
    Roles(roles::Arguments),
    /// Print a completion script for a shell
    Completions(manual::CompletionsArguments),
    /// Print the manual page, or write all pages to a folder
    Man(manual::ManArguments),
    /// Make a project that writes events: a web service with commands, processors, queries and tests
    New(new::Arguments),
    /// Print the configuration, an example of it, or its JSON Schema
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Args)]
pub(crate) struct MigrateArguments {
    /// Print the SQL that would be run, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the configuration as espd reads it, with included files and defaults, without secrets
    #[command(
        after_help = "The TOML that is printed is a configuration again, except for secrets, which are shown as ***.\n\n\
        Example:\n  espctl config show --config espd.toml"
    )]
    Show {
        /// Print JSON instead of TOML
        #[arg(long)]
        json: bool,
    },
    /// Print a commented example of every key
    #[command(after_help = "Example:\n  espctl config example > espd.toml")]
    Example,
    /// Print a JSON Schema of the files, for editors that complete and check them
    #[command(after_help = "Example, for editors with the taplo language server:\n  \
        espctl config schema > espd.schema.json\n  \
        and as the first line of espd.toml: #:schema ./espd.schema.json")]
    Schema,
}

/// The program that commands are given to, as far as they depend on it.
pub(crate) struct Tool<'t> {
    /// Reads the configuration, with the processors that the program itself has, and says which declarations are missing because
    /// they are wrong.
    pub load: &'t dyn Fn() -> Result<(Config, Option<InvalidConfig>), InvalidConfig>,
    /// The command lines that manual pages and completions are made of; the first is the program's own.
    pub command_lines: &'t [clap::Command],
    /// The processors in Rust of the program; `None`: it is espd's own tool, which has none.
    pub native: Option<&'t Registry>,
}

/// Runs the tool and returns its exit code. `daemon` is the command line of espd, for manual pages and completions.
pub fn main(daemon: clap::Command) -> std::process::ExitCode {
    let Cli { config, command } = Cli::parse();
    let command_lines = [<Cli as clap::CommandFactory>::command(), daemon];
    execute(command, &Tool { load: &|| load(&config), command_lines: &command_lines, native: None })
}

/// Does what a command says and returns the exit code.
pub(crate) fn execute(command: Command, tool: &Tool<'_>) -> std::process::ExitCode {
    let runtime = descriptors::require()
        .and_then(|()| tokio::runtime::Builder::new_current_thread().enable_all().build());
    let ended = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(command, tool)));
    let (code, complaint) = outcome::conclude(ended);
    if let Some(complaint) = complaint {
        // Where the complaint cannot be written, the exit code tells.
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{complaint}\n"));
    }
    code.into()
}

async fn run(command: Command, tool: &Tool<'_>) -> anyhow::Result<()> {
    match &command {
        Command::Config(ConfigCommand::Example) => return output::print_verbatim(EXAMPLE.trim_end()),
        Command::Config(ConfigCommand::Schema) => {
            return output::print_verbatim(&serde_json::to_string_pretty(&Config::json_schema())?);
        }
        Command::Completions(arguments) => return manual::completions(arguments, tool.command_lines),
        Command::Man(arguments) => return manual::man(arguments, tool.command_lines),
        _ => {}
    }
    if let Command::New(arguments) = command {
        return new::run(arguments);
    }
    let config = match (tool.load)() {
        Ok((config, Some(faults))) if command.needs_few_declarations() => {
            note_faults(&faults)?;
            Ok(config)
        }
        Ok((_, Some(faults))) | Err(faults) => Err(faults),
        Ok((config, None)) => Ok(config),
    };
    let command = match command {
        Command::Check(arguments) => return check::run(arguments, config).await,
        command => command,
    };
    let mut config = config.map_err(Exit::configuration)?;
    show_literals(config.log.query_literals);
    if config.event_store.url.is_none() && !matches!(command, Command::Config(_)) {
        config.event_store.url = running_private_database();
    }
    note_other_database(&config)?;
    match command {
        Command::Config(ConfigCommand::Show { json: false }) => {
            output::print_verbatim(toml::to_string_pretty(&config.redacted())?.trim_end())
        }
        Command::Config(_) => output::print_verbatim(&serde_json::to_string_pretty(&config.redacted())?),
        Command::Roles(arguments) => roles::run(&arguments, &config),
        Command::Doctor(arguments) => doctor::run(arguments, &config).await,
        Command::Graph(arguments) => graph::run(arguments, &config).await,
        command => {
            let databases = if command.only_looks() {
                Databases::connect_to_look(&config, "espctl").await?
            } else {
                Databases::connect(&config, "espctl").await?
            };
            let done = Box::pin(run_on(command, &config, &databases, tool.native));
            say_who_locks(&databases, tell, done).await?;
            databases.close().await;
            Ok(())
        }
    }
}

async fn run_on(
    command: Command,
    config: &Config,
    databases: &Databases,
    native: Option<&Registry>,
) -> anyhow::Result<()> {
    if let Command::Migrate(MigrateArguments { dry_run }) = command {
        return output::print_verbatim(&migrate(config, databases, dry_run).await?);
    }
    databases.check_schema().await?;
    match command {
        Command::Append(arguments) => append::run(arguments, databases).await,
        Command::Events(arguments) => events::run(arguments, config, databases).await,
        Command::Trace(arguments) => trace::run(arguments, databases).await,
        Command::Plan(arguments) => plan::run(arguments, config, databases).await,
        Command::Explain(arguments) => explain::run(arguments, config, databases).await,
        Command::Status(arguments) => status::run(arguments, config, databases).await,
        Command::Drop(arguments) => retire::drop_processor(arguments, config, databases).await,
        Command::Rename(arguments) => retire::rename(arguments, config, databases).await,
        Command::Reset(arguments) => reset::reset(arguments, config, databases, native).await,
        Command::Rebuild(arguments) => rebuild::rebuild(arguments, config, databases, native).await,
        Command::Rollback(arguments) => rebuild::rollback(arguments, config, databases, native).await,
        Command::Verify(arguments) => rebuild::verify(arguments, config, databases, native).await,
        Command::Pause(target) => operate::pause(target, config, databases).await,
        Command::Retry(target) => operate::retry(target, config, databases).await,
        Command::Resume(arguments) => operate::resume(arguments, config, databases).await,
        Command::DeadLetters(command) => dead_letters::run(command, config, databases).await,
        Command::Emissions { command } => emissions::run(command, config, databases).await,
        Command::Forget(arguments) => forget::forget(arguments, config, databases).await,
        Command::Keys(command) => forget::keys(command, databases).await,
        Command::DeleteAggregate(arguments) => delete_aggregate::run(arguments, config, databases).await,
        Command::ImportPositions(arguments) => import_positions::run(arguments, config, databases).await,
        Command::Reload(arguments) => reload::run(arguments, config, databases).await,
        Command::Wait(arguments) => wait::run(arguments, config, databases).await,
        Command::Schema(command) => schema::run(command, config, databases).await,
        Command::Snapshots(command) => snapshots::run(command, databases).await,
        Command::Workflows(arguments) => workflows::run(arguments, config, databases).await,
        Command::Commands(arguments) => commands::run(arguments, databases).await,
        Command::WebhookTest(arguments) => webhook_test::run(arguments, config, databases).await,
        Command::Migrate(_)
        | Command::Check(_)
        | Command::Doctor(_)
        | Command::Graph(_)
        | Command::Roles(_)
        | Command::Completions(_)
        | Command::Man(_)
        | Command::New(_)
        | Command::Config(_) => {
            unreachable!("handled before a database is connected")
        }
    }
}

/// Tells what is no result. Where it cannot be written, nothing depends on it.
fn tell(text: &str) {
    let _ = output::print_note(text);
}

async fn migrate(config: &Config, databases: &Databases, dry_run: bool) -> anyhow::Result<String> {
    if dry_run {
        return Ok(databases.plan_migration().await?.trim_end().to_owned());
    }
    let mut done = databases.migrate().await?;
    done.extend(apply_after_migration(databases, &config.events).await?);
    Ok(done.join("\n"))
}

impl Command {
    /// Whether a command changes nothing, so that whoever gives it wants an answer soon.
    fn only_looks(&self) -> bool {
        matches!(
            self,
            Self::Status(_)
                | Self::Events(_)
                | Self::Trace(_)
                | Self::Plan(_)
                | Self::Explain(_)
                | Self::Workflows(_)
        )
    }

    /// Whether a command is of use while declarations of processors are wrong that a daemon may still run as they were: it looks at
    /// processors, or does with one what its declaration says nothing about.
    fn needs_few_declarations(&self) -> bool {
        matches!(
            self,
            Self::Status(_)
                | Self::Events(_)
                | Self::Trace(_)
                | Self::Wait(_)
                | Self::Pause(_)
                | Self::Retry(_)
                | Self::Resume(_)
                | Self::Commands(_)
                | Self::DeadLetters(_)
        )
    }
}

/// Says so where the daemon of this folder works on another database than this command, which `DATABASE_URL` has led away.
fn note_other_database(config: &Config) -> anyhow::Result<()> {
    let Some(url) = &config.event_store.url else { return Ok(()) };
    let is_of_environment = std::env::var(DATABASE_URL).is_ok_and(|named| named == url.expose());
    if is_of_environment && running_private_database().is_some_and(|private| private != *url) {
        output::print_note(
            "warning: this is about the database that DATABASE_URL names. The daemon that was started in this folder runs on its private \
             PostgreSQL: unset the variable, or write url = \"${DATABASE_URL}\" under [event_store] and restart the daemon",
        )?;
    }
    Ok(())
}

/// Says that the configuration is wrong to whoever looks at what runs all the same.
fn note_faults(faults: &InvalidConfig) -> anyhow::Result<()> {
    let count = faults.count();
    let number = if count == 1 { "1 fault".to_owned() } else { format!("{count} faults") };
    let first = faults.diagnostics().first().map(ToString::to_string).unwrap_or_default();
    output::print_note(&format!(
        "warning: {number} in the configuration, which `espctl check` shows; what is declared there is left out here. {first}"
    ))
}

fn load(argument: &ConfigArgument) -> Result<(Config, Option<InvalidConfig>), InvalidConfig> {
    let from_environment = || Config::from_environment().map(|config| (config, None));
    if let Some(file) = argument.file() {
        return Config::load_usable(&file)
            .map(|(config, faults)| (config.or_database_of_environment(), faults));
    }
    if std::env::var_os(DATABASE_URL).is_some() {
        return from_environment();
    }
    match demo_file() {
        // A daemon in this folder is nearer than the demo.
        _ if running_private_database().is_some() => Ok((Config::default(), None)),
        Some(demo) => Config::load_usable(&demo),
        None => from_environment(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        super::Cli::command().debug_assert();
    }
}
