//! `espctl check`: prints the mistakes in configuration, databases and handlers, as text or as data.

use clap::Args;

use crate::config::{Config, InvalidConfig};
use crate::diagnostic::{Diagnostic, Severity};
use crate::espctl::output;
use crate::operations::check::check;
use crate::process::exit_code::Exit;

#[derive(Args)]
#[command(
    after_help = "Tries every declaration in a transaction that is rolled back. Each mistake is shown with file, line and\n\
    column. Exit code 64 if there is any. What a deploy would lose is a warning, and no mistake: `espctl plan` says all that\n\
    it would do, and has an exit code for it.\n\n\
    Example, before a deployment:\n  espctl check --config espd.toml"
)]
pub(crate) struct Arguments {
    /// Print the mistakes as an array of objects (file, line, column, message, advice) instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments, config: Result<Config, InvalidConfig>) -> anyhow::Result<()> {
    if !arguments.json {
        let config = config.map_err(Exit::configuration)?;
        let report = check(&config).await?;
        for warning in report.warnings() {
            output::print_note(&warning.render())?;
        }
        return output::print(&report.into_result()?);
    }
    match config {
        Err(invalid) => print_json(invalid.diagnostics()),
        Ok(config) => print_json(&check(&config).await?.diagnostics),
    }
}

fn print_json(diagnostics: &[Diagnostic]) -> anyhow::Result<()> {
    output::print_verbatim(&serde_json::to_string_pretty(diagnostics)?)?;
    match diagnostics.iter().filter(|one| one.severity == Severity::Error).count() {
        0 => Ok(()),
        1 => Err(Exit::configuration("there is 1 mistake").into()),
        count => Err(Exit::configuration(format!("there are {count} mistakes")).into()),
    }
}
