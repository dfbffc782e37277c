//! `espctl completions` and `espctl man`: generated from the definitions of the commands, so they are never outdated.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::espctl::{Cli, output};

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    espctl completions bash > /etc/bash_completion.d/espctl\n  \
    espctl completions bash --program espd > /etc/bash_completion.d/espd\n  \
    espctl completions zsh > ~/.zfunc/_espctl\n  \
    espctl completions fish > ~/.config/fish/completions/espctl.fish")]
pub(crate) struct CompletionsArguments {
    /// The shell
    shell: Shell,
    /// The program whose arguments the shell completes
    #[arg(long, value_enum, default_value_t = Binary::Espctl)]
    program: Binary,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    espctl man | man -l -                 read the page of espctl\n  \
    espctl man /usr/local/share/man/man1  install the pages of both programs")]
pub(crate) struct ManArguments {
    /// Write the pages of espctl, espd and all their commands to this folder
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Binary {
    Espctl,
    Espd,
}

impl Binary {
    /// The command line. `daemon` is the one of espd.
    fn command(self, daemon: &clap::Command) -> clap::Command {
        match self {
            Self::Espctl => Cli::command(),
            Self::Espd => daemon.clone(),
        }
    }
}

pub(crate) fn completions(arguments: &CompletionsArguments, daemon: &clap::Command) -> anyhow::Result<()> {
    let mut command = arguments.program.command(daemon);
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, name, &mut script);
    output::print_verbatim(String::from_utf8(script)?.trim_end())
}

pub(crate) fn man(arguments: &ManArguments, daemon: &clap::Command) -> anyhow::Result<()> {
    let Some(folder) = &arguments.folder else {
        let mut page = Vec::new();
        Man::new(Cli::command()).render(&mut page)?;
        return output::print_verbatim(String::from_utf8(page)?.trim_end());
    };
    std::fs::create_dir_all(folder).with_context(|| format!("could not create {}", folder.display()))?;
    for command in [Cli::command(), daemon.clone()] {
        clap_mangen::generate_to(command, folder)
            .with_context(|| format!("could not write to {}", folder.display()))?;
    }
    Ok(())
}
