//! Building a version that is to go live, and letting it.

use super::telling::{describe_live, describe_way, listener, note, show};
use crate::espctl::output;
use crate::operations::operator::Operator;
use crate::operations::rebuild::{Effort, FailedCheck, GoLive, Rebuilding, Way};
use crate::process::exit_code::{Exit, ExitCode};
use crate::processing::rebuild::Beside;

/// Builds the declared version, compares it, and has it go live.
pub(super) async fn go_live(
    operator: Operator<'_>,
    name: &str,
    wanted: GoLive,
    effort: Effort,
    (yes, json): (bool, bool),
) -> anyhow::Result<()> {
    let next = Rebuilding::begin(operator, name, Beside::Next, listener()).await?;
    let mut next = next.with_effort(effort);
    let (live, version) = next.versions();
    match bring_live(&mut next, name, wanted, (yes, json)).await {
        Ok(way) => {
            next.end().await?;
            let kept = format!(
                "version {live} of {name} serves as before, version {version} is kept beside it: `espctl rebuild {name}` goes on, \
                 `espctl rebuild abort {name}` gives it up"
            );
            let outcome = way.map_or(kept, |way| describe_live(name, live, version, &way));
            // Programs read one document on standard output.
            if json {
                note(&outcome);
                return Ok(());
            }
            output::print(&outcome)
        }
        Err(error) => {
            next.end_failed(&format!("{error:#}")).await;
            Err(error)
        }
    }
}

/// As [`go_live`], of a version that is begun. `None`: the operator has not agreed.
async fn bring_live(
    next: &mut Rebuilding<'_>,
    name: &str,
    wanted: GoLive,
    (yes, json): (bool, bool),
) -> anyhow::Result<Option<Way>> {
    let (live, version) = next.versions();
    if let Some(warning) = next.foresee(wanted).await? {
        note(&format!("warning: {warning}"));
    }
    next.catch_up().await?;
    note("caught up: comparing the versions");
    let difference = next.compare().await?;
    let way = next.choose_way(wanted, &difference).await?;
    show(name, &difference, json)?;
    refuse_failed(name, live, &next.run_checks().await?)?;
    let question = format!("Version {version} of {name} {}. Go live?", describe_way(way));
    if !yes && !difference.is_none() {
        let has_terminal = output::has_terminal();
        if !has_terminal || !output::confirm(&question)? {
            next.decline(way).await?;
            if has_terminal {
                return Ok(None);
            }
            let message = format!(
                "version {live} of {name} serves as before, version {version} is kept beside it: add --yes to agree, which goes on \
                 from there; `espctl rebuild abort {name}` gives it up\n{question}"
            );
            return Err(Exit { code: ExitCode::Failure, message }.into());
        }
    }
    Ok(Some(next.go_live(way, wanted).await?))
}

/// Builds the declared version of a projector and has it go live, whatever differs, for an operator who has agreed to just that.
/// Returns which version that is, and how it has gone live.
pub(in crate::espctl) async fn build_again(operator: Operator<'_>, name: &str) -> anyhow::Result<(i32, Way)> {
    let mut next = Rebuilding::begin(operator, name, Beside::Next, listener()).await?;
    let (_, version) = next.versions();
    match bring_live_again(&mut next, name).await {
        Ok(way) => {
            next.end().await?;
            Ok((version, way))
        }
        Err(error) => {
            next.end_failed(&format!("{error:#}")).await;
            Err(error)
        }
    }
}

/// As [`build_again`], of a version that is begun.
async fn bring_live_again(next: &mut Rebuilding<'_>, name: &str) -> anyhow::Result<Way> {
    let (live, _) = next.versions();
    // Where a swap would take something from others, what differs can still be brought into their tables.
    let obstacles = next.foresee(GoLive::Auto).await?;
    next.catch_up().await?;
    let difference = next.compare().await?;
    let wanted = if obstacles.is_some() { GoLive::Merge } else { GoLive::Auto };
    let way = next.choose_way(wanted, &difference).await;
    let way = match (way, obstacles) {
        (Err(_), Some(obstacles)) => anyhow::bail!(
            "{obstacles}; or `espctl reset {name} --in-place --cascade` drops what others have made, with the tables"
        ),
        (way, _) => way?,
    };
    refuse_failed(name, live, &next.run_checks().await?)?;
    Ok(next.go_live(way, wanted).await?)
}

/// # Errors
/// Checks of the author have failed.
pub(super) fn refuse_failed(name: &str, live: i32, failed: &[FailedCheck]) -> Result<(), Exit> {
    if failed.is_empty() {
        return Ok(());
    }
    let failed: Vec<String> = failed.iter().map(FailedCheck::describe).collect();
    let message = format!(
        "{}. Version {live} of {name} serves as before: correct the handlers or the check, then run this again",
        failed.join("; ")
    );
    Err(Exit { code: ExitCode::Failure, message })
}
