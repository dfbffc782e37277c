//! `espctl rebuild NAME --aggregate …`: the rows of some aggregates alone.

use chrono::{DateTime, Utc};
use clap::Args;
use uuid::Uuid;

use super::telling::{listener, note, show};
use crate::espctl::moment::parse_moment;
use crate::espctl::output;
use crate::operations::operator::Operator;
use crate::operations::rebuild::{Rebuilding, Selection};
use crate::operations::status::format::thousands;
use crate::process::exit_code::{Exit, ExitCode};
use crate::processing::rebuild::{Beside, Difference};
use crate::store::upcast::{Upcast, stored_types};

#[derive(Args)]
pub(super) struct PartArguments {
    /// Only the rows of this aggregate (repeatable)
    #[arg(long = "aggregate", value_name = "ID")]
    aggregates: Vec<Uuid>,
    /// Only the rows of aggregates that have events of this type (repeatable)
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,
    /// Only the rows of aggregates that have events of this time or later: RFC 3339, or how long ago, like 2d
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    since: Option<DateTime<Utc>>,
}

#[derive(Args)]
pub(super) struct SampleArguments {
    /// Only the rows of this share of the aggregates, by their hash: 0.1, 5
    #[arg(long, value_name = "PERCENT", value_parser = read_percent, conflicts_with_all = ["aggregates", "types", "since"])]
    pub(super) sample: Option<f64>,
}

fn read_percent(text: &str) -> Result<f64, String> {
    let percent = text.trim_end_matches('%').parse::<f64>().map_err(|error| error.to_string())?;
    if percent > 0.0 && percent <= 100.0 {
        return Ok(percent);
    }
    Err("a share is more than 0 and at most 100 percent".to_owned())
}

impl PartArguments {
    /// Whether one of them is given.
    pub(super) fn is_given(&self) -> bool {
        !self.aggregates.is_empty() || !self.types.is_empty() || self.since.is_some()
    }

    /// What is asked for. A type has the names that `[[upcast]]` reads as it as well.
    pub(super) fn selection(self, upcasts: &[Upcast]) -> Selection {
        let types = stored_types(upcasts, self.types.iter().map(String::as_str));
        Selection {
            aggregates: self.aggregates,
            event_types: types.into_iter().map(str::to_owned).collect(),
            since: self.since,
            ..Selection::default()
        }
    }
}

/// Computes the rows of some aggregates anew, and replaces them, if somebody agrees.
pub(super) async fn rebuild_part(
    operator: Operator<'_>,
    name: &str,
    selection: &Selection,
    dry_run: bool,
    yes: bool,
    json: bool,
) -> anyhow::Result<()> {
    let mut part = Rebuilding::begin_with(operator, name, Beside::Part, selection, listener()).await?;
    if let Some(number) = part.number_of_aggregates() {
        note(&format!(
            "{} aggregates are handled again",
            thousands(i64::try_from(number).unwrap_or(i64::MAX))
        ));
    }
    let outcome = replace(&mut part, name, dry_run, yes, json).await;
    part.remove().await?;
    outcome
}

async fn replace(
    part: &mut Rebuilding<'_>,
    name: &str,
    dry_run: bool,
    yes: bool,
    json: bool,
) -> anyhow::Result<()> {
    part.catch_up().await?;
    let difference: Difference = part.compare().await?;
    show(name, &difference, json)?;
    if difference.is_none() {
        return Ok(());
    }
    if dry_run {
        let message = format!("the rows of these aggregates in {name} would change");
        return Err(Exit { code: ExitCode::Failure, message }.into());
    }
    if !yes && !output::confirm("The rows above are changed in the tables that serve. Continue?")? {
        return output::print("nothing was done");
    }
    let changed = part.replace_part(&difference).await?;
    let changed = thousands(i64::try_from(changed).unwrap_or(i64::MAX));
    output::print(&format!("{changed} rows of {name} were changed"))
}
