//! `espctl check`: prints the mistakes in configuration, databases and handlers, as text or as data.

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;
use tokio::time::timeout;

use crate::config::{Config, InvalidConfig};
use crate::diagnostic::{Diagnostic, Severity};
use crate::espctl::output;
use crate::operations::check::{CheckReport, check};
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

/// After which time somebody at a terminal is told that there is much to check.
const PATIENCE: Duration = Duration::from_secs(3);

pub(crate) async fn run(arguments: Arguments, config: Result<Config, InvalidConfig>) -> anyhow::Result<()> {
    if !arguments.json {
        let config = config.map_err(Exit::configuration)?;
        let report = check_patiently(&config).await?;
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

/// Checks, and says after a while how much there is to check.
async fn check_patiently(config: &Config) -> anyhow::Result<CheckReport> {
    let mut checking = std::pin::pin!(check(config));
    if let Ok(report) = timeout(PATIENCE, &mut checking).await {
        return report;
    }
    if std::io::stderr().is_terminal() {
        let handlers: usize = config.processors.iter().map(|processor| processor.handlers().len()).sum();
        let processors = config.processors.len();
        output::print_note(&format!(
            "{handlers} handlers of {processors} processors are tried on the database, one after the other"
        ))?;
    }
    checking.await
}

fn print_json(diagnostics: &[Diagnostic]) -> anyhow::Result<()> {
    output::print_verbatim(&serde_json::to_string_pretty(diagnostics)?)?;
    match diagnostics.iter().filter(|one| one.severity == Severity::Error).count() {
        0 => Ok(()),
        1 => Err(Exit::configuration("there is 1 mistake").into()),
        count => Err(Exit::configuration(format!("there are {count} mistakes")).into()),
    }
}
