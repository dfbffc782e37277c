//! Building a version only to look at it: a dry run, a verification.

use super::going_live::refuse_failed;
use super::telling::{listener, note, show};
use crate::operations::operator::Operator;
use crate::operations::rebuild::{Effort, Rebuilding, Selection, find_since};
use crate::process::exit_code::{Exit, ExitCode};
use crate::processing::rebuild::Beside;

/// Builds a version only to see how it differs from the one that serves.
pub(super) async fn look(
    operator: Operator<'_>,
    name: &str,
    beside: Beside,
    selection: &Selection,
    effort: Effort,
    json: bool,
) -> anyhow::Result<()> {
    let scratch = Rebuilding::begin_with(operator, name, beside, selection, listener()).await?;
    let mut scratch = scratch.with_effort(effort);
    let versions = scratch.versions();
    if beside == Beside::DryRun
        && let Some(warning) = scratch.foresee_swap().await?
    {
        note(&format!("warning: {warning}"));
    }
    let compared = match scratch.catch_up().await {
        Ok(()) => scratch.compare().await,
        Err(error) => Err(error),
    };
    let checked = match &compared {
        Ok(_) => scratch.run_checks().await,
        Err(_) => Ok(Vec::new()),
    };
    // Before anybody else can find something.
    let is_of_all = beside == Beside::Verification && selection.is_whole();
    let cleared = match (&compared, &checked) {
        (Ok(difference), Ok(failed)) if is_of_all && failed.is_empty() && !difference.has_rows() => {
            operator.clear_found(name).await
        }
        _ => Ok(()),
    };
    scratch.remove().await?;
    let (mut difference, failed) = (compared?, checked?);
    cleared?;
    if !failed.is_empty() {
        show(name, &difference, json)?;
        refuse_failed(name, versions.0, &failed)?;
    }
    let is_as_it_was = match beside {
        Beside::Verification | Beside::Part => !difference.has_rows(),
        _ => !difference.changes_what_is_read(),
    };
    if is_as_it_was {
        return show(name, &difference, json);
    }
    if beside == Beside::Verification
        && let Some(reason) = find_since(operator, name, &mut difference, listener()).await?
    {
        note(&format!("since which event is not known: {reason}"));
    }
    show(name, &difference, json)?;
    let message = match beside {
        Beside::Verification | Beside::Part => format!("the tables of {name} are not what their events say"),
        _ if versions.0 == versions.1 => {
            format!("what is declared now of version {} of {name} would change what it shows", versions.1)
        }
        _ => format!("version {} of {name} would change what version {} shows", versions.1, versions.0),
    };
    Err(Exit { code: ExitCode::Failure, message }.into())
}
