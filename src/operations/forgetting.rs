//! Forgetting a person: the keys go, and what may hold something of him is found.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::json;
use serde_json::value::to_raw_value;
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use crate::config::Config;
use crate::event::NewEvent;
use crate::operations::databases::Databases;
use crate::operations::deletion::{HeldVersion, Holder, find_held_versions, find_holders};
use crate::postgres::row::from_row;
use crate::postgres::{server_mark, transaction};
use crate::processing::declaration::Handling;
use crate::store::EventStore as _;
use crate::store::layout::CreatedBy;

/// The type of the event that tells everybody who follows the store.
pub(crate) const SUBJECT_FORGOTTEN: &str = "SubjectForgotten";

/// The namespace of the uuids of these events and of their aggregates.
const NAMESPACE: Uuid = Uuid::from_u128(0x5c1f_2f7e_6b0a_4e3d_9a54_8d1e_7c02_b96f);

/// What may hold data of a subject. The field names are an interface: `espctl forget --json` prints them.
#[derive(Debug, Serialize)]
pub(crate) struct SubjectReport {
    /// How many events have sealed fields of the subject, by type.
    pub(crate) events: BTreeMap<String, i64>,
    /// The processors in Rust that handle these types: they may have read the fields.
    pub(crate) readers: Vec<Holder>,
    /// Versions of the processors in Rust that do not serve: the same.
    pub(crate) reader_versions: Vec<HeldVersion>,
    /// The other processors that handle these types: they have got the fields sealed.
    pub(crate) got_sealed: Vec<Holder>,
    /// Versions of these that do not serve: they have got the fields sealed as well.
    pub(crate) got_sealed_versions: Vec<HeldVersion>,
    /// Dead letters of the events, by processor: their failures may quote a field.
    pub(crate) dead_letters: BTreeMap<String, i64>,
    /// Processors that have failed at one of the events last: the same.
    pub(crate) failing: Vec<String>,
    /// Projectors that handle the types, and of which `[verify]` keeps keys of rows that differ.
    pub(crate) differing_keys: Vec<String>,
    /// Pending emissions and scheduled events with sealed fields of the subject, which cannot be read any more either.
    pub(crate) pending: i64,
    /// How many snapshots of the aggregates of the events were removed.
    pub(crate) snapshots_removed: u64,
}

/// An event with sealed fields of the subject.
struct Held {
    event_id: i64,
    event_type: String,
    aggregate_id: String,
}

from_row!(Held { event_id, event_type, aggregate_id });

/// A JSON path of sealed fields of the subject in `$subject`.
const PATH: &str = "'$.**.\"$sealed\".s ? (@ == $subject)'";

/// Removes the snapshots of whatever has sealed fields of the subject, and finds what else may hold something. It reads every event
/// of the store.
pub(crate) async fn clean_up_and_report(
    config: &Config,
    databases: &Databases,
    subject: &str,
) -> anyhow::Result<SubjectReport> {
    let held = find_held(databases, subject).await?;
    let mut events: BTreeMap<String, i64> = BTreeMap::new();
    for one in &held {
        *events.entry(one.event_type.clone()).or_default() += 1;
    }
    let ids: Vec<i64> = held.iter().map(|one| one.event_id).collect();
    let types: BTreeSet<&str> = events.keys().map(String::as_str).collect();
    let holders = find_holders(&config.processors, &config.upcasts, &types);
    let is_rust = |holder: &Holder| {
        let mut declared = config.processors.iter().filter(|declared| declared.name == holder.processor);
        declared.any(|declared| matches!(declared.handling, Handling::Native(_)))
    };
    let (readers, got_sealed): (Vec<Holder>, Vec<Holder>) = holders.into_iter().partition(is_rust);
    let (in_rust, others): (Vec<_>, Vec<_>) =
        config.processors.iter().partition(|declared| matches!(declared.handling, Handling::Native(_)));
    let reader_versions = find_held_versions(databases, in_rust, &config.upcasts, &types).await?;
    let got_sealed_versions = find_held_versions(databases, others, &config.upcasts, &types).await?;
    Ok(SubjectReport {
        differing_keys: find_differing_keys(databases, readers.iter().chain(&got_sealed)).await?,
        readers,
        reader_versions,
        got_sealed,
        got_sealed_versions,
        dead_letters: count_dead_letters(databases, &ids).await?,
        failing: find_failing(databases, &ids).await?,
        pending: count_pending(databases, subject).await?,
        snapshots_removed: remove_snapshots(databases, &held).await?,
        events,
    })
}

async fn find_held(databases: &Databases, subject: &str) -> Result<Vec<Held>, sqlx::Error> {
    let statement = format!(
        "-- find_sealed_of_subject
         select e.id as event_id, e.type as event_type, e.aggregate_id::text as aggregate_id from {} as e
         where jsonb_path_exists(e.body::jsonb, {PATH}, jsonb_build_object('subject', $1::text))",
        databases.layout.events_table()
    );
    sqlx::query_as(AssertSqlSafe(statement))
        .persistent(false)
        .bind(subject)
        .fetch_all(&databases.events)
        .await
}

async fn count_dead_letters(
    databases: &Databases,
    ids: &[i64],
) -> Result<BTreeMap<String, i64>, sqlx::Error> {
    let statement = format!(
        "-- count_dead_letters_of_events
         select processor, count(*) from {}.dead_letters where event_id = any ($1) group by processor",
        databases.layout.quoted_schema()
    );
    let query = sqlx::query_as(AssertSqlSafe(statement)).persistent(false).bind(ids);
    let rows: Vec<(String, i64)> = query.fetch_all(&databases.projections).await?;
    Ok(rows.into_iter().collect())
}

async fn find_failing(databases: &Databases, ids: &[i64]) -> Result<Vec<String>, sqlx::Error> {
    let trackers = crate::processing::tracker::Trackers::of(&databases.layout);
    let statement = format!(
        "-- find_failing_at_events
         select name from {trackers} where (last_error->>'event_id')::bigint = any ($1)
         union select processor from {schema}.deliveries where event_id = any ($1) and failure is not null
         union select processor from {schema}.build_progress where exists (
           select from unnest($1) as e (id) where strpos(blocked_because, format(' event %s (', e.id)) > 0)
         order by 1",
        trackers = trackers.table(),
        schema = databases.layout.quoted_schema()
    );
    let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).bind(ids);
    query.fetch_all(&databases.projections).await
}

/// Those of the holders of which keys of rows are kept that a slice has found to differ.
async fn find_differing_keys(
    databases: &Databases,
    holders: impl Iterator<Item = &Holder>,
) -> Result<Vec<String>, sqlx::Error> {
    let names: Vec<&str> = holders.map(|holder| holder.processor.as_str()).collect();
    let statement = format!(
        "-- find_differing_keys\nselect processor from {}.verifications where processor = any ($1) and found is not null order by 1",
        databases.layout.quoted_schema()
    );
    let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).bind(names);
    query.fetch_all(&databases.projections).await
}

async fn count_pending(databases: &Databases, subject: &str) -> Result<i64, sqlx::Error> {
    let count = async |pool: &PgPool, table: &str| -> Result<i64, sqlx::Error> {
        let statement = format!(
            "-- count_sealed_of_subject
             select count(*) from {}.{table} as e
             where jsonb_path_exists(e.body, {PATH}, jsonb_build_object('subject', $1::text))",
            databases.layout.quoted_schema()
        );
        sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).bind(subject).fetch_one(pool).await
    };
    let emitted = count(&databases.projections, "emissions").await?;
    if databases.layout.created_by != CreatedBy::Migrations {
        return Ok(emitted);
    }
    Ok(emitted + count(&databases.events, "scheduled_events").await?)
}

async fn remove_snapshots(databases: &Databases, held: &[Held]) -> Result<u64, sqlx::Error> {
    let Some(append) = &databases.layout.append else { return Ok(0) };
    let aggregates: BTreeSet<&str> = held.iter().map(|one| one.aggregate_id.as_str()).collect();
    let statement = format!(
        "-- remove_snapshots_of_aggregates
         delete from {} where aggregate_id = any ($1::text[]::uuid[])",
        append.snapshots
    );
    let aggregates: Vec<&str> = aggregates.into_iter().collect();
    let query = sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(aggregates);
    Ok(query.execute(&databases.events).await?.rows_affected())
}

/// Appends an event that tells everybody who follows the store, once for each subject. Returns whether that is possible here.
pub(crate) async fn announce(databases: &Databases, subject: &str) -> anyhow::Result<bool> {
    if databases.layout.append.is_none() {
        return Ok(false);
    }
    databases.stored_events().append(&[announcement(subject)?]).await?;
    Ok(true)
}

/// Finds out whether [`announce`] will be refused, by a declared schema or a synchronous projector for example, before anything is done
/// that cannot be undone.
///
/// # Errors
/// Why it is refused.
pub(crate) async fn try_to_announce(databases: &Databases, subject: &str) -> anyhow::Result<()> {
    if databases.layout.append.is_none() {
        return Ok(());
    }
    let mut transaction = transaction::begin(&databases.events, server_mark::begin(None)).await?;
    databases.stored_events().append_in(&mut transaction, &[announcement(subject)?]).await?.rolled_back();
    Ok(transaction.rollback().await?)
}

fn announcement(subject: &str) -> Result<NewEvent, serde_json::Error> {
    let aggregate = Uuid::new_v5(&NAMESPACE, subject.as_bytes());
    let body = to_raw_value(&json!({ "subject": subject }))?;
    let uuid = Uuid::new_v5(&aggregate, SUBJECT_FORGOTTEN.as_bytes());
    Ok(NewEvent { uuid, ..NewEvent::new(aggregate, SUBJECT_FORGOTTEN, body) })
}
