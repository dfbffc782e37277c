//! `espctl doctor`: prints one line for everything that espd needs, whether it is there or not.

use clap::Args;

use crate::config::Config;
use crate::espctl::output;
use crate::operations::databases::CONNECT_TIMEOUT;
use crate::operations::doctor::{Finding, Level, examine};
use crate::process::exit_code::{Exit, ExitCode};
use crate::visible::in_block;

#[derive(Args)]
#[command(
    after_help = "Exit code 1 if there is a failure; warnings do not count. Nothing is changed. The admin endpoint of a daemon\n\
    answers GET /api/v1/doctor with the same findings.\n\n\
    Examples:\n  \
    espctl doctor\n  \
    espctl doctor --json | jq '.[] | select(.level != \"ok\")'"
)]
pub(crate) struct Arguments {
    /// Print an array of objects (check, level, message, remedy) instead of lines
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments, config: &Config) -> anyhow::Result<()> {
    let findings = examine(config, "espctl doctor", CONNECT_TIMEOUT).await;
    if arguments.json {
        output::print_verbatim(&serde_json::to_string_pretty(&findings)?)?;
    } else {
        output::print(&render(&findings))?;
    }
    let failures = findings.iter().filter(|finding| finding.level == Level::Failure).count();
    if failures == 0 {
        return Ok(());
    }
    let message = format!("{failures} of {} checks failed", findings.len());
    Err(Exit { code: ExitCode::Failure, message }.into())
}

fn render(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let line = |finding: &Finding| {
        let Finding { check, level, message, remedy } = finding;
        let remedy = remedy
            .as_ref()
            .map_or_else(String::new, |remedy| format!("\n{:11}remedy: {}", "", in_block(remedy, 11)));
        format!("{:8} {check:width$}  {}{remedy}", level.as_str(), in_block(message, 11))
    };
    findings.iter().map(line).collect::<Vec<_>>().join("\n")
}
