//! What workflows remember: the state of each instance, and the results of steps whose event is not handled yet.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row as _};
use uuid::Uuid;

use crate::event::Position;
use crate::postgres::quote::quote_identifier;

/// An instance of a workflow as it is kept.
#[derive(Debug, Clone)]
pub(crate) struct WorkflowInstance {
    pub(crate) instance: String,
    pub(crate) state: Box<RawValue>,
    /// The time-outs that it waits for: the type of each, with the uuid that its event will have.
    pub(crate) timeouts: BTreeMap<String, Uuid>,
    /// How many events it has handled, and the last one.
    pub(crate) events: i64,
    pub(crate) last_event_id: Position,
    pub(crate) last_event_type: String,
    /// Whether it handles no further event.
    pub(crate) has_ended: bool,
}

/// A step of a workflow: a part of how one event is handled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step<'s> {
    pub(crate) instance: &'s str,
    pub(crate) event_id: Position,
    pub(crate) event_uuid: Uuid,
    pub(crate) name: &'s str,
}

/// What one workflow remembers, in PostgreSQL.
#[derive(Debug)]
pub(crate) struct WorkflowTables<'w> {
    /// The quoted schema.
    schema: String,
    workflow: &'w str,
}

impl<'w> WorkflowTables<'w> {
    pub(crate) fn new(schema: &str, workflow: &'w str) -> Self {
        Self { schema: quote_identifier(schema), workflow }
    }

    /// Reads an instance.
    pub(crate) async fn load(
        &self,
        connection: &mut PgConnection,
        instance: &str,
    ) -> Result<Option<WorkflowInstance>, sqlx::Error> {
        let statement = format!(
            "-- load_workflow_instance
             select state, timeouts, events, last_event_id, last_event_type, ended_at is not null as has_ended
             from {}.workflow_instances where workflow = $1 and instance = $2",
            self.schema
        );
        let query =
            sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(self.workflow).bind(instance);
        let Some(row) = query.fetch_optional(connection).await? else { return Ok(None) };
        Ok(Some(WorkflowInstance {
            instance: instance.to_owned(),
            state: row.try_get::<Json<Box<RawValue>>, _>("state")?.0,
            timeouts: row.try_get::<Json<BTreeMap<String, Uuid>>, _>("timeouts")?.0,
            events: row.try_get("events")?,
            last_event_id: row.try_get("last_event_id")?,
            last_event_type: row.try_get("last_event_type")?,
            has_ended: row.try_get("has_ended")?,
        }))
    }

    /// Keeps an instance, and forgets the steps of the event that is `done`, also those of an attempt of which the present one knows
    /// nothing.
    pub(crate) async fn save(
        &self,
        connection: &mut PgConnection,
        kept: &WorkflowInstance,
        done: Uuid,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- save_workflow_instance
             with forgotten as (delete from {0}.workflow_steps where workflow = $1 and event_uuid = $9)
             insert into {0}.workflow_instances as i
               (workflow, instance, state, timeouts, events, last_event_id, last_event_type, ended_at)
             values ($1, $2, $3, $4, $5, $6, $7, case when $8 then clock_timestamp() end)
             on conflict (workflow, instance) do update
               set state = excluded.state, timeouts = excluded.timeouts, events = excluded.events,
                   last_event_id = excluded.last_event_id, last_event_type = excluded.last_event_type,
                   ended_at = excluded.ended_at, updated_at = clock_timestamp()",
            self.schema
        );
        let query = sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(self.workflow);
        let query = query.bind(&kept.instance).bind(Json(&*kept.state)).bind(Json(&kept.timeouts));
        let query = query.bind(kept.events).bind(kept.last_event_id).bind(&kept.last_event_type);
        query.bind(kept.has_ended).bind(done).execute(connection).await.map(drop)
    }

    /// Forgets an instance, and the steps of the event that is `done`.
    pub(crate) async fn remove(
        &self,
        connection: &mut PgConnection,
        instance: &str,
        done: Uuid,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- remove_workflow_instance
             with forgotten as (delete from {0}.workflow_steps where workflow = $1 and event_uuid = $3)
             delete from {0}.workflow_instances where workflow = $1 and instance = $2",
            self.schema
        );
        let query =
            sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(self.workflow).bind(instance);
        query.bind(done).execute(connection).await.map(drop)
    }

    /// The result of a step, if it was done.
    pub(crate) async fn find_step(
        &self,
        connection: &mut PgConnection,
        step: Step<'_>,
    ) -> Result<Option<Box<RawValue>>, sqlx::Error> {
        let statement = format!(
            "-- find_workflow_step
             select result from {}.workflow_steps where workflow = $1 and event_uuid = $2 and step = $3",
            self.schema
        );
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
        let query = query.bind(self.workflow).bind(step.event_uuid).bind(step.name);
        let found: Option<Json<Box<RawValue>>> = query.fetch_optional(connection).await?;
        Ok(found.map(|result| result.0))
    }

    /// Records the result of a step, at once and whatever becomes of the batch. Returns what is recorded; `None`: another owner has
    /// handled the event meanwhile, and nothing would remove the record.
    pub(crate) async fn record_step(
        &self,
        pool: &PgPool,
        trackers: &str,
        step: Step<'_>,
        result: &RawValue,
    ) -> Result<Option<Box<RawValue>>, sqlx::Error> {
        let statement = format!(
            "-- record_workflow_step
             insert into {schema}.workflow_steps (workflow, event_uuid, step, instance, result)
             select $1, $2, $3, $4, $5
             where exists (select from {trackers} as t where t.name = $1 and t.position < $6)
                or exists (select from {schema}.dead_letters as d where d.processor = $1 and d.event_id = $6)
             on conflict (workflow, event_uuid, step) do update set step = excluded.step returning result",
            schema = self.schema
        );
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
        let query = query.bind(self.workflow).bind(step.event_uuid).bind(step.name).bind(step.instance);
        let recorded: Option<Json<Box<RawValue>>> =
            query.bind(Json(result)).bind(step.event_id).fetch_optional(pool).await?;
        Ok(recorded.map(|recorded| recorded.0))
    }
}
