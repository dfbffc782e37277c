//! The event store: the preconditions of the settled horizon, and the transactions that hold it back.

use std::time::Duration;

use sqlx::PgConnection;

use super::{Finding, Level};
use crate::operations::databases::Databases;
use crate::postgres::error::chain;
use crate::postgres::quote::quote_identifier;
use crate::schema;
use crate::store::horizon::observe_once;
use crate::store::layout::{CreatedBy, Layout};
use crate::store::preconditions::{self, PreconditionError, UnmetKind};

/// How long to wait for the horizon to settle before naming the transactions that hold it back.
const PATIENCE: Duration = Duration::from_secs(1);

/// The preconditions by subject: the message if they hold, and the kinds that mean that they do not.
const PRECONDITIONS: [(&str, &str, &[UnmetKind]); 7] = [
    ("server_version", "PostgreSQL 13 or newer", &[UnmetKind::NotPostgres, UnmetKind::ServerTooOld]),
    ("primary", "the server is the primary", &[UnmetKind::Standby]),
    (
        "events_table",
        "the table of events exists, with the columns of its layout",
        &[UnmetKind::TableMissing, UnmetKind::ColumnUnfit],
    ),
    ("events_logged", "the table of events survives a crash", &[UnmetKind::Unlogged]),
    ("events_readable", "this role may read all events", &[UnmetKind::NotReadable, UnmetKind::RowSecurity]),
    (
        "sequence",
        "each insert draws its ids itself, one by one, upward",
        &[
            UnmetKind::Replicated,
            UnmetKind::SequenceMissing,
            UnmetKind::SequenceNotOwned,
            UnmetKind::SequenceCached,
            UnmetKind::SequenceIncrement,
            UnmetKind::SequenceCycles,
            UnmetKind::IdNotDrawn,
        ],
    ),
    ("ids", "readers can reach every event", &[UnmetKind::IdTooSmall, UnmetKind::SequenceBehindEvents]),
];

pub(super) async fn examine(databases: &Databases) -> anyhow::Result<Vec<Finding>> {
    let mut connection = databases.events.acquire().await?;
    let mut findings = Vec::new();
    if databases.layout.created_by == CreatedBy::Migrations {
        findings.push(schema_version(databases).await);
    }
    findings.extend(preconditions(&mut connection, &databases.layout).await?);
    if findings.iter().all(|finding| finding.level < Level::Failure) {
        findings.extend(triggers(&mut connection, &databases.layout).await?);
        findings.push(horizon(&mut connection, &databases.layout).await?);
        findings.push(visibility(&mut connection).await?);
    }
    findings.push(old_transactions(&mut connection).await?);
    Ok(findings)
}

async fn schema_version(databases: &Databases) -> Finding {
    let layout = &databases.layout;
    match schema::describe_event_store(&databases.events, layout.schema(), layout.names()).await {
        Ok(version) => Finding::ok("event_store_schema", version),
        Err(error) => Finding::failure("event_store_schema", chain(&error), error.remedy()),
    }
}

async fn preconditions(connection: &mut PgConnection, layout: &Layout) -> anyhow::Result<Vec<Finding>> {
    let unmet = match preconditions::check(connection, layout).await {
        Ok(()) => Vec::new(),
        Err(PreconditionError::Unmet(unmet)) => unmet,
        Err(error) => return Err(error.into()),
    };
    // Some unmet preconditions prevent the other checks.
    let hidden = unmet.iter().any(|one| one.kind.prevents_reading());
    let mut findings = Vec::new();
    for (check, good, kinds) in PRECONDITIONS {
        let found: Vec<_> = unmet.iter().filter(|one| kinds.contains(&one.kind)).collect();
        findings
            .extend(found.iter().map(|one| Finding::failure(check, one.problem.clone(), one.repair.clone())));
        if found.is_empty() && !hidden {
            findings.push(Finding::ok(check, good));
        }
    }
    Ok(findings)
}

/// The triggers on the table of events, and whether espd has made each: then its function is one of espd's, in a schema of an
/// installation of espd, whatever that is called. A synchronous projector has its trigger itself examined, by `running`.
const LIST_TRIGGERS: &str = r"
    -- list_triggers
    select t.tgname::text as name,
           (p.proname in ('archive_change', 'take_turn') or p.proname like 'handle\_inserted\_%')
           and exists (select from pg_proc as o where o.pronamespace = p.pronamespace
                       and o.proname in ('archive_changes', 'synchronous_triggers')) as is_own
    from pg_trigger as t join pg_proc as p on p.oid = t.tgfoid
    where t.tgrelid = to_regclass($1) and not t.tgisinternal and t.tgenabled <> 'D'
    order by t.tgname";

async fn triggers(connection: &mut PgConnection, layout: &Layout) -> anyhow::Result<Vec<Finding>> {
    let table = layout.events_table();
    let found: Vec<(String, bool)> = sqlx::query_as(LIST_TRIGGERS).bind(table).fetch_all(connection).await?;
    let (own, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|(_, is_own)| *is_own);
    if others.is_empty() {
        let own: Vec<String> = own.into_iter().map(|(name, _)| name).collect();
        let but = if own.is_empty() { String::new() } else { format!(" but espd's own: {}", own.join(", ")) };
        return Ok(vec![Finding::ok("triggers", format!("none on the table of events{but}"))]);
    }
    let finding = |(name, _): &(String, bool)| {
        let message = format!("trigger {name} on {table} runs in every append and can make it fail");
        let remedy = format!(
            "replace the trigger by a projector if possible, then: drop trigger {} on {table};",
            quote_identifier(name)
        );
        Finding::warning("triggers", message, remedy)
    };
    Ok(others.iter().map(finding).collect())
}

async fn horizon(connection: &mut PgConnection, layout: &Layout) -> anyhow::Result<Finding> {
    let horizon = observe_once(connection, layout, PATIENCE).await?;
    if horizon.held_by.is_empty() {
        return Ok(Finding::ok(
            "horizon",
            format!("settled up to {}, the head is {}", horizon.settled, horizon.head),
        ));
    }
    let holders: Vec<String> = horizon.held_by.iter().map(ToString::to_string).collect();
    let message = format!(
        "events up to the head ({}) wait for open transactions of writers: {}",
        horizon.head,
        holders.join("; ")
    );
    Ok(Finding::warning("horizon", message, "`espctl status` says how to end them"))
}

/// Whether the sessions that hold the horizon back can be described.
async fn visibility(connection: &mut PgConnection) -> anyhow::Result<Finding> {
    let statement = "-- may_see_sessions\nselect pg_has_role(current_user, 'pg_read_all_stats', 'usage')";
    if sqlx::query_scalar(statement).fetch_one(connection).await? {
        return Ok(Finding::ok("sessions_visible", "sessions that hold the horizon back can be described"));
    }
    let message = "sessions of other roles that hold the horizon back can only be counted, not described";
    Ok(Finding::warning(
        "sessions_visible",
        message,
        "grant pg_read_all_stats to the role that espd connects as",
    ))
}

/// Transactions that have been open for an hour: they prevent vacuum from cleaning up the whole database.
async fn old_transactions(connection: &mut PgConnection) -> anyhow::Result<Finding> {
    let statement = "
        -- count_old_transactions
        select (select count(*) from pg_stat_activity
                 where datname = current_database() and xact_start < now() - interval '1 hour'),
               (select count(*) from pg_prepared_xacts
                 where database = current_database() and prepared < now() - interval '1 minute')";
    let (open, prepared): (i64, i64) = sqlx::query_as(statement).fetch_one(connection).await?;
    if open + prepared == 0 {
        return Ok(Finding::ok("old_transactions", "none"));
    }
    let message =
        format!("{open} transactions have been open for an hour, {prepared} prepared ones for a minute");
    let remedy = "find them in pg_stat_activity and pg_prepared_xacts; end them with pg_terminate_backend or `rollback prepared`";
    Ok(Finding::warning("old_transactions", message, remedy))
}
