//! Whether the processors move: what keeps them from it is as bad as a wrong setting.

use super::{Finding, Level};
use crate::config::Config;
use crate::operations::backlog::Backlog;
use crate::operations::databases::Databases;
use crate::operations::operator::Operator;
use crate::operations::status::groups::{describe, groups};
use crate::operations::status::{Advice, Topic};

const CHECK: &str = "running";

pub(super) async fn examine(databases: &Databases, config: &Config) -> anyhow::Result<Vec<Finding>> {
    let operator = Operator { databases, declared: &config.processors, name: "", native: None };
    let statuses = operator.statuses(None).await?;
    let mut findings: Vec<Finding> = groups(&statuses).iter().flat_map(|group| of_group(group)).collect();
    let backlog = Backlog::read(databases).await?;
    findings.extend(backlog.troubles().map(|(message, remedy)| Finding::warning(CHECK, message, remedy)));
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("{} processors, none in trouble", statuses.len())));
    }
    Ok(findings)
}

/// The findings about the same trouble of some processors.
fn of_group(group: &[&Advice]) -> Vec<Finding> {
    let Some(level) = level_of(group[0].topic) else { return Vec::new() };
    let finding =
        |(message, remedy): (String, String)| Finding { check: CHECK, level, message, remedy: Some(remedy) };
    describe(group).into_iter().map(finding).collect()
}

/// How serious a trouble is; `None`: it passes by itself, or another check tells of it.
fn level_of(topic: Topic) -> Option<Level> {
    match topic {
        Topic::Failed | Topic::Diverged | Topic::Retrying | Topic::Outage | Topic::Locked => {
            Some(Level::Failure)
        }
        Topic::StandingStill
        | Topic::Stopped
        | Topic::Paused
        | Topic::DeadLetters
        | Topic::RefusedEmissions
        | Topic::OverdueEmissions
        | Topic::WorkerDown
        | Topic::ReloadRefused
        | Topic::RebuildWaits
        | Topic::RowsDiffer
        | Topic::HandlersChanged => Some(Level::Warning),
        Topic::Standby | Topic::HorizonHeldBack | Topic::OtherVersion | Topic::NotVerified => None,
    }
}
