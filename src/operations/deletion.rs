//! Deleting an aggregate for good, and what holds something of it afterwards.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use uuid::Uuid;

use crate::operations::databases::Databases;
use crate::operations::operator::{Operator, OperatorError};
use crate::postgres::server_mark;
use crate::processing::declaration::{Handling, ProcessorDeclaration};
use crate::processing::history::find_divergence;
use crate::processing::rebuild::{Beside, find_declared};
use crate::processing::tracker::Trackers;
use crate::store::upcast::{Upcast, stored_types};
use crate::store::{DeletedAggregate, DeletionError, delete_aggregate_on};

/// What has handled events that are no more, or can no longer be read. The field names are an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Holder {
    pub(crate) processor: String,
    /// `projector` or `reactor`.
    pub(crate) kind: &'static str,
    /// Those of the types that it handles.
    pub(crate) types: Vec<String>,
    /// Its tables.
    pub(crate) tables: Vec<String>,
    /// Whether it has told somebody outside of the database.
    pub(crate) acts_outside: bool,
}

impl Holder {
    /// What to do about it, in one line.
    pub(crate) fn describe(&self) -> String {
        let Self { processor, kind, types, tables, acts_outside } = self;
        let outside = if *acts_outside { "; what it has sent or done elsewhere is known there" } else { "" };
        let tables = match tables.as_slice() {
            [] => String::new(),
            tables => format!(": tables {}; `espctl reset {processor}` builds them anew", tables.join(", ")),
        };
        format!("{kind} {processor} handles {}{tables}{outside}", types.join(", "))
    }
}

/// A version of a projector that does not serve, and has tables of its own: no rebuild of those that serve reaches them. The field names are an
/// interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct HeldVersion {
    pub(crate) processor: String,
    pub(crate) version: i32,
    /// Where its tables are.
    pub(crate) schema: String,
    /// Whether it has served before; otherwise it is built, and may go live with what it has.
    pub(crate) is_former: bool,
}

impl HeldVersion {
    /// What to do about it, in one line.
    pub(crate) fn describe(&self) -> String {
        let Self { processor, version, schema, is_former } = self;
        if *is_former {
            return format!(
                "version {version} of {processor}, which is kept in schema {schema} and which `espctl rollback {processor}` brings \
                 back: `espctl rebuild drop {processor}` drops all former versions"
            );
        }
        format!(
            "version {version} of {processor}, which is built in schema {schema}, and may go live with what it has: \
             `espctl rebuild abort {processor}` gives it up, and `espctl rebuild {processor}` builds it anew"
        )
    }
}

/// The versions of declared projectors that do not serve and have handled any of these types, as they are stored, or may have.
pub(crate) async fn find_held_versions<'d>(
    databases: &Databases,
    declared: impl IntoIterator<Item = &'d ProcessorDeclaration>,
    upcasts: &[Upcast],
    types: &BTreeSet<&str>,
) -> Result<Vec<HeldVersion>, OperatorError> {
    let mut connection = databases.projections.acquire().await?;
    let operator = Operator { databases, declared: &[], name: "", native: None };
    let mut held = Vec::new();
    for ProcessorDeclaration { name, .. } in declared {
        for (beside, version) in operator.list_beside(&mut connection, name).await? {
            if Beside::TO_LOOK_AT.contains(&beside) {
                continue;
            }
            let trackers = operator.trackers();
            let recorded =
                find_declared(&mut connection, trackers.schema(), &beside.name(name), version).await?;
            let handles_none =
                recorded.is_some_and(|recorded| find_holders(&[recorded], upcasts, types).is_empty());
            if !handles_none {
                held.push(HeldVersion {
                    processor: name.clone(),
                    version,
                    schema: beside.schema(&databases.scope.schema, name),
                    is_former: matches!(beside, Beside::Archived(_)),
                });
            }
        }
    }
    Ok(held)
}

/// The declared processors that handle any of these types, as they are stored.
pub(crate) fn find_holders(
    declared: &[ProcessorDeclaration],
    upcasts: &[Upcast],
    types: &BTreeSet<&str>,
) -> Vec<Holder> {
    let holder = |declaration: &ProcessorDeclaration| {
        let handled: Vec<String> = match declaration.event_types() {
            None => types.iter().map(|name| (*name).to_owned()).collect(),
            Some(handled) => {
                let stored = stored_types(upcasts, handled);
                stored.into_iter().filter(|name| types.contains(name)).map(str::to_owned).collect()
            }
        };
        (!handled.is_empty()).then(|| Holder {
            processor: declaration.name.clone(),
            kind: declaration.kind().as_str(),
            types: handled,
            tables: declaration.table_names(),
            acts_outside: declaration.acts_outside() || matches!(declaration.handling, Handling::Webhook(_)),
        })
    };
    declared.iter().filter_map(holder).collect()
}

/// The events that an aggregate has now, by type.
pub(crate) async fn count_events(
    databases: &Databases,
    aggregate_id: Uuid,
) -> Result<BTreeMap<String, i64>, sqlx::Error> {
    let statement = format!(
        "-- count_events_of_aggregate
         select type, count(*) from {} where aggregate_id = $1 group by type",
        databases.layout.events_table()
    );
    let rows: Vec<(String, i64)> =
        sqlx::query_as(AssertSqlSafe(statement)).bind(aggregate_id).fetch_all(&databases.events).await?;
    Ok(rows.into_iter().collect())
}

/// Deletes all events of an aggregate for good. `None`: there was none.
pub(crate) async fn delete_aggregate(
    databases: &Databases,
    aggregate_id: Uuid,
    deleted_by: &str,
    why: &str,
) -> Result<Option<DeletedAggregate>, DeletionError> {
    let mut events = databases.events.acquire().await?;
    if databases.layout.append.is_none() || has_trackers(&mut events, databases).await? {
        return delete_aggregate_on(&mut *events, &databases.layout, aggregate_id, deleted_by, why).await;
    }
    let mut projections = databases.projections.acquire().await?;
    let mut held = projections.begin_with(server_mark::begin(None)).await?;
    let at: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(format!(
        "-- hold_trackers\nselect {}.hold_trackers()",
        databases.layout.quoted_schema()
    )))
    .fetch_one(&mut *held)
    .await?;
    let gone = find_ids(&mut events, databases, aggregate_id).await?;
    let deleted = delete_aggregate_on(&mut *events, &databases.layout, aggregate_id, deleted_by, why).await?;
    let Some(mut deleted) = deleted else { return Ok(None) };
    let last = find_last(&mut events, databases, &at).await?;
    let forgotten = forget(&mut held, databases, &gone, aggregate_id, &last).await?;
    held.commit().await?;
    deleted.removed.0.extend(forgotten);
    Ok(Some(deleted))
}

/// Whether the processors are in the database of the events, where the function knows them.
async fn has_trackers(events: &mut PgConnection, databases: &Databases) -> Result<bool, sqlx::Error> {
    let function = format!("{}.hold_trackers()", databases.layout.quoted_schema());
    let statement = "-- find_trackers\nselect to_regprocedure($1) is not null";
    sqlx::query_scalar(statement).bind(function).fetch_one(events).await
}

async fn find_ids(
    events: &mut PgConnection,
    databases: &Databases,
    aggregate_id: Uuid,
) -> Result<Vec<i64>, sqlx::Error> {
    let table = databases.layout.events_table();
    let statement = format!("-- find_ids_of_aggregate\nselect id from {table} where aggregate_id = $1");
    sqlx::query_scalar(AssertSqlSafe(statement)).bind(aggregate_id).fetch_all(events).await
}

/// The last event at or below each position; 0 and a nil uuid where there is none.
async fn find_last(
    events: &mut PgConnection,
    databases: &Databases,
    at: &[i64],
) -> Result<Vec<(i64, i64, Uuid)>, sqlx::Error> {
    let statement = format!(
        "-- find_last_at_positions
         select p.at, coalesce(e.id, 0), coalesce(e.uuid, '00000000-0000-0000-0000-000000000000')
         from unnest($1::bigint[]) as p (at)
           left join lateral (select id, uuid from {} where id <= p.at order by id desc limit 1) as e on true",
        databases.layout.events_table()
    );
    sqlx::query_as(AssertSqlSafe(statement)).bind(at).fetch_all(events).await
}

async fn forget(
    projections: &mut PgConnection,
    databases: &Databases,
    gone: &[i64],
    aggregate_id: Uuid,
    last: &[(i64, i64, Uuid)],
) -> Result<BTreeMap<String, i64>, sqlx::Error> {
    let statement = format!(
        "-- forget_events\nselect to_jsonb(f) from {}.forget_events($1, $2, $3, $4, $5) as f",
        databases.layout.quoted_schema()
    );
    let query = sqlx::query_scalar(AssertSqlSafe(statement)).bind(gone).bind(aggregate_id);
    let at: Vec<i64> = last.iter().map(|(at, ..)| *at).collect();
    let ids: Vec<i64> = last.iter().map(|(_, id, _)| *id).collect();
    let uuids: Vec<Uuid> = last.iter().map(|(.., uuid)| *uuid).collect();
    let counts: Json<BTreeMap<String, i64>> =
        query.bind(at).bind(ids).bind(uuids).fetch_one(projections).await?;
    Ok(counts.0)
}

/// The processors whose store is not the one that they have followed.
pub(crate) async fn find_diverged(databases: &Databases) -> anyhow::Result<Vec<String>> {
    let trackers = Trackers::of(&databases.layout);
    let rows = trackers.list(&databases.projections, None).await?;
    let (mut events, mut projections) =
        (databases.events.acquire().await?, databases.projections.acquire().await?);
    let mut diverged = Vec::new();
    for row in rows {
        let found =
            find_divergence(&trackers, &row, &mut events, &mut projections, &databases.layout).await?;
        if found.is_some() {
            diverged.push(row.name);
        }
    }
    Ok(diverged)
}
