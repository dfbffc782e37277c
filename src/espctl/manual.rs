//! `espctl completions` and `espctl man`: generated from the definitions of the commands, so they are never outdated.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::espctl::output;

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
    /// Write the pages of all commands to this folder
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Binary {
    Espctl,
    Espd,
}

pub(crate) fn completions(
    arguments: &CompletionsArguments,
    command_lines: &[clap::Command],
) -> anyhow::Result<()> {
    let command = command_lines.get(arguments.program as usize);
    let mut command = command.context("this program completes its own arguments only")?.clone();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, name, &mut script);
    output::print_verbatim(String::from_utf8(script)?.trim_end())
}

pub(crate) fn man(arguments: &ManArguments, command_lines: &[clap::Command]) -> anyhow::Result<()> {
    let Some(folder) = &arguments.folder else {
        let mut page = Vec::new();
        let own = command_lines.first().context("the program has a command line")?;
        Man::new(own.clone()).render(&mut page)?;
        return output::print_verbatim(String::from_utf8(page)?.trim_end());
    };
    std::fs::create_dir_all(folder).with_context(|| format!("could not create {}", folder.display()))?;
    for command in command_lines {
        clap_mangen::generate_to(command.clone(), folder)
            .with_context(|| format!("could not write to {}", folder.display()))?;
    }
    Ok(())
}
