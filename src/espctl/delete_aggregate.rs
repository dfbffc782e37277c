//! `espctl delete-aggregate`: deletes all events of an aggregate for good.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use clap::Args;
use serde_json::json;
use uuid::Uuid;

use crate::config::Config;
use crate::espctl::output;
use crate::operations::databases::Databases;
use crate::operations::deletion::{
    HeldVersion, Holder, count_events, delete_aggregate, find_diverged, find_held_versions, find_holders,
};
use crate::operations::status::format::thousands;
use crate::store::DeletedAggregate;

#[derive(Args)]
#[command(
    after_help = "The events are gone from the table, with their contents. The table deleted_aggregates records who did it, when, why,\n\
    and how many events of which types there were. What espd keeps of them goes as well; what projections, their versions that\n\
    do not serve, receivers and backups have is listed. docs/audit.md has the details. Where only personal data must go, `espctl forget` keeps the events.\n\n\
    Example:\n  espctl delete-aggregate 149d5c70-a373-4857-91e2-1d5ea90c27e4 --why 'court order 12/27'"
)]
pub(crate) struct Arguments {
    /// The aggregate
    #[arg(value_name = "ID")]
    aggregate_id: Uuid,
    /// Why; it is recorded
    #[arg(long, value_name = "TEXT")]
    why: String,
    /// Print one object instead of sentences
    #[arg(long)]
    json: bool,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn run(arguments: Arguments, config: &Config, databases: &Databases) -> anyhow::Result<()> {
    let Arguments { aggregate_id, why, json, yes } = arguments;
    if why.trim().is_empty() {
        bail!("--why is empty: the reason is all that is left of the events");
    }
    let present = count_events(databases, aggregate_id).await?;
    if present.is_empty() {
        bail!("the event store has no event of aggregate {aggregate_id}");
    }
    let question = format!(
        "This deletes {} of aggregate {aggregate_id} for good. Nothing brings them back. Continue?",
        describe_types(&present)
    );
    if !yes && !output::confirm(&question)? {
        return output::print("nothing was done");
    }
    let Some(deleted) = delete_aggregate(databases, aggregate_id, &output::operator(), &why).await? else {
        bail!("somebody else has deleted aggregate {aggregate_id} just now");
    };
    databases.notify_runners().await;
    let types: BTreeSet<&str> = deleted.types.0.keys().map(String::as_str).collect();
    let holders = find_holders(&config.processors, &config.upcasts, &types);
    let versions = find_held_versions(databases, &config.processors, &config.upcasts, &types).await?;
    let (diverged, left) = (find_diverged(databases).await?, count_events(databases, aggregate_id).await?);
    if json {
        let report = json!({ "deleted": deleted, "holders": holders, "versions": versions,
            "diverged": diverged, "appended_meanwhile": left });
        return output::print_verbatim(&serde_json::to_string_pretty(&report)?);
    }
    output::print(&report(&deleted, (&holders, &versions), &diverged, &left).join("\n"))
}

/// What was done, and what is left to do.
fn report(
    deleted: &DeletedAggregate,
    (holders, versions): (&[Holder], &[HeldVersion]),
    diverged: &[String],
    left: &BTreeMap<String, i64>,
) -> Vec<String> {
    let DeletedAggregate { id, aggregate_id, types, removed, .. } = deleted;
    let mut lines = vec![format!(
        "deleted {} of aggregate {aggregate_id} for good, recorded under {id} in deleted_aggregates",
        describe_types(&types.0)
    )];
    let counts = removed.0.iter().filter(|(table, count)| **count > 0 && *table != "open_effects");
    let counts: Vec<String> =
        counts.map(|(table, count)| format!("{} {}", thousands(*count), table.replace('_', " "))).collect();
    if !counts.is_empty() {
        lines.push(format!("with them: {}", counts.join(", ")));
    }
    if !left.is_empty() {
        lines.push(format!("appended meanwhile, and left: {}; run this again", describe_types(left)));
    }
    lines.extend(diverged.iter().map(|name| {
        format!(
            "{name} follows a store that is not the same any more: `espctl resume {name} --accept-history`"
        )
    }));
    lines.push("what may hold something of them still:".to_owned());
    lines.extend(holders.iter().map(|holder| format!("  {}", holder.describe())));
    lines.extend(versions.iter().map(|version| format!("  {}", version.describe())));
    if let Some(effects) = removed.0.get("open_effects").filter(|effects| **effects > 0) {
        lines.push(format!("  {effects} effects that handlers have asked for are still to be carried out"));
    }
    lines.push("  states of workflows, logs, replicas, archived logs of PostgreSQL and backups".to_owned());
    lines
}

/// `3 events (1 OrderPlaced, 2 ItemAdded)`.
fn describe_types(types: &BTreeMap<String, i64>) -> String {
    let all: i64 = types.values().sum();
    let each: Vec<String> =
        types.iter().map(|(name, count)| format!("{} {name}", thousands(*count))).collect();
    format!("{} event{} ({})", thousands(all), if all == 1 { "" } else { "s" }, each.join(", "))
}
