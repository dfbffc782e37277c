//! The command line of a program with processors of its own: that of `espd` and that of `espctl` in one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::builder::StyledStr;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use super::registered::add_registered;
use super::{WorkerArguments, conclude, load, run_daemon, run_worker};
use crate::admin::probe;
use crate::config::{Config, ConfigArgument, InvalidConfig};
use crate::diagnostic::Diagnostic;
use crate::espctl::{self, Tool};
use crate::handlers::native::Registry;
use crate::own_name::call_itself;
use crate::process::descriptors;
use crate::supervision::is_worker_title;

/// What the program is called where nobody has said so.
const UNNAMED: &str = "program";

#[derive(Parser)]
#[command(
    about = "Run and operate the processors of this program, on a PostgreSQL event store",
    after_help = "Without a command it means `run`. --config, espd.toml in the current folder, or (but for `run`) DATABASE_URL names\n\
                  the database. It is espd with processors of its own.\n\
                  Exit codes: 0 done, 1 failed, 2 wrong usage, 64 wrong configuration, 65 the event store is not the one\n\
                  that was followed (wait), 70 stopped, but a worker had to be killed or had failed, 75 time limit\n\
                  exceeded, 130 interrupted twice."
)]
struct Cli {
    #[command(flatten)]
    config: ConfigArgument,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run every processor, in child processes, until TERM or INT
    Run,
    /// Ask a running daemon whether it is alive (or can work): for health checks
    Probe {
        /// What to ask
        #[arg(value_enum, default_value = "livez")]
        question: probe::Question,
    },
    /// Run one processor in this process
    Worker(WorkerArguments),
    #[command(flatten)]
    Operate(Box<espctl::Command>),
}

/// Does what the command line says and returns the exit code.
pub(super) fn main(registry: Registry) -> std::process::ExitCode {
    let name = own_name();
    call_itself(name);
    let command_line = command_line(name);
    let matches = command_line.clone().get_matches();
    let Cli { config, command } = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let registry = Arc::new(registry);
    let daemon = |work: &dyn Fn() -> anyhow::Result<()>, worker: Option<&str>| {
        conclude(descriptors::require().map_err(Into::into).and_then(|()| work()), worker)
    };
    match command.unwrap_or(Command::Run) {
        Command::Run => daemon(&|| run_daemon(&config, Arc::clone(&registry)), None),
        Command::Probe { question } => daemon(&|| probe::run(&load(&config, &registry)?, question), None),
        Command::Worker(arguments) => {
            let run = || run_worker(&config, &arguments, Arc::clone(&registry));
            daemon(&run, arguments.supervised_name().as_deref())
        }
        Command::Operate(command) => {
            let load = || load_for_tool(&config, &registry);
            espctl::execute(
                *command,
                &Tool { load: &load, command_lines: &[command_line], native: Some(&registry) },
            )
        }
    }
}

/// The configuration of a command that works on the databases: of a file, or of `DATABASE_URL` alone.
fn load_for_tool(
    argument: &ConfigArgument,
    registry: &Registry,
) -> Result<(Config, Option<InvalidConfig>), InvalidConfig> {
    let file = argument.file();
    let (mut config, faults) = match &file {
        Some(file) => Config::load_usable(file)?,
        None => (Config::from_environment()?, None),
    };
    config = config.or_database_of_environment();
    let place = file.map_or_else(|| "the program".to_owned(), |file| file.display().to_string());
    add_registered(&mut config, registry).map_err(|faults| {
        let faults = faults.into_iter().map(|fault| Diagnostic::of_file(&place, fault));
        InvalidConfig::several(faults.collect())
    })?;
    Ok((config, faults))
}

/// What the program was called by. A worker is called by what it does, and its name is that of its file.
fn own_name() -> &'static str {
    let called = std::env::args_os().next().map(PathBuf::from).filter(|called| !is_worker_title(called));
    let path = called.or_else(|| std::env::current_exe().ok());
    let file = path.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy());
    // The command line keeps it to the end of the process. Linux says so of a file that was replaced by an upgrade.
    file.map_or(UNNAMED, |name| String::leak(name.trim_end_matches(" (deleted)").to_owned()))
}

/// The command line, whose help names this program and leaves out what is of espd's own two.
fn command_line(name: &'static str) -> clap::Command {
    let command =
        Cli::command().name(name).bin_name(name).version(concat!("(espd ", env!("CARGO_PKG_VERSION"), ")"));
    let command = command.mut_subcommand("completions", |completions| {
        completions.mut_arg("program", |program| program.hide(true))
    });
    rename(command, name)
}

/// A command whose texts and arguments name this program.
fn rename(command: clap::Command, name: &str) -> clap::Command {
    let own = |text: Option<&StyledStr>| own_text(text, name);
    let (short, long, examples) =
        (own(command.get_about()), own(command.get_long_about()), own(command.get_after_help()));
    let command = match short {
        Some(text) => command.about(text),
        None => command,
    };
    let command = match long {
        Some(text) => command.long_about(text),
        None => command,
    };
    let command = match examples {
        Some(text) => command.after_help(text),
        None => command,
    };
    command.mut_args(|argument| rename_argument(argument, name)).mut_subcommands(|inner| rename(inner, name))
}

fn rename_argument(argument: clap::Arg, name: &str) -> clap::Arg {
    let (short, long) = (own_text(argument.get_help(), name), own_text(argument.get_long_help(), name));
    let argument = match short {
        Some(help) => argument.help(help),
        None => argument,
    };
    match long {
        Some(help) => argument.long_help(help),
        None => argument,
    }
}

/// A text that names espd's own program, with the name of this one instead; `None`: it may stay as it is.
fn own_text(text: Option<&StyledStr>, name: &str) -> Option<String> {
    text.map(ToString::to_string).filter(|text| text.contains("espctl")).map(|text| renamed(&text, name))
}

/// The text with the name of this program for those of espd's own; what is about the other of the two is left out.
fn renamed(help: &str, name: &str) -> String {
    let lines = help.lines().filter(|line| !line.contains("--program espd"));
    lines.map(|line| line.replace("espctl", name)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound_and_names_the_program() {
        command_line("todo").debug_assert();
        let mut wait = command_line("todo");
        let wait = wait.find_subcommand_mut("wait").unwrap();
        let help = wait.render_help().to_string();
        assert!(help.contains("todo wait --all") && !help.contains("espctl"), "{help}");
        let mut rebuild = command_line("todo");
        let help = rebuild.find_subcommand_mut("rebuild").unwrap().render_long_help().to_string();
        assert!(help.contains("todo rebuild NAME --go-live swap") && !help.contains("espctl"), "{help}");
    }

    #[test]
    fn every_command_of_espctl_is_there_and_the_demo_is_not() {
        let command = command_line("todo");
        let has = |name: &str| command.find_subcommand(name).is_some();
        for name in ["run", "check", "worker", "status", "migrate", "reset", "dead-letters", "wait", "config"]
        {
            assert!(has(name), "{name}");
        }
        assert!(!has("demo"));
    }
}
