//! What workflows remember in the file.

use serde_json::value::RawValue;
use sqlx::{Row as _, SqliteConnection, SqlitePool};

use crate::event::Position;
use crate::local::ledger::WorkflowChanges;
use crate::processing::workflow::{Step, WorkflowInstance};
use crate::store::sqlite::row;

/// Makes the tables, unless they are there: a file may be older than workflows.
pub(super) async fn make_tables(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let statement = "-- make_workflow_tables
        create table if not exists espd_workflow_instances (
          workflow text not null,
          instance text not null,
          state text not null,
          timeouts text not null,
          events integer not null,
          last_event_id integer not null,
          last_event_type text not null,
          has_ended integer not null,
          primary key (workflow, instance)
        ) strict;
        create table if not exists espd_workflow_steps (
          workflow text not null,
          event_uuid text not null,
          step text not null,
          result text not null,
          primary key (workflow, event_uuid, step)
        ) strict;";
    sqlx::raw_sql(statement).execute(connection).await.map(drop)
}

pub(super) async fn load_instance(
    pool: &SqlitePool,
    workflow: &str,
    instance: &str,
) -> Result<Option<WorkflowInstance>, sqlx::Error> {
    let statement = "-- load_workflow_instance
        select state, timeouts, events, last_event_id, last_event_type, has_ended
        from espd_workflow_instances where workflow = ? and instance = ?";
    let query = sqlx::query(statement).bind(workflow).bind(instance);
    let Some(found) = query.fetch_optional(pool).await? else { return Ok(None) };
    let timeouts: String = found.try_get("timeouts")?;
    Ok(Some(WorkflowInstance {
        instance: instance.to_owned(),
        state: row::json(&found, "state")?,
        timeouts: serde_json::from_str(&timeouts).map_err(|error| sqlx::Error::Decode(error.into()))?,
        events: found.try_get("events")?,
        last_event_id: Position::new(found.try_get("last_event_id")?),
        last_event_type: found.try_get("last_event_type")?,
        has_ended: found.try_get("has_ended")?,
    }))
}

pub(super) async fn find_step(
    pool: &SqlitePool,
    workflow: &str,
    step: Step<'_>,
) -> Result<Option<Box<RawValue>>, sqlx::Error> {
    let statement = "-- find_workflow_step
        select result from espd_workflow_steps where workflow = ? and event_uuid = ? and step = ?";
    let query = sqlx::query(statement).bind(workflow).bind(step.event_uuid.to_string()).bind(step.name);
    query.fetch_optional(pool).await?.map(|found| row::json(&found, "result")).transpose()
}

pub(super) async fn record_step(
    connection: &mut SqliteConnection,
    workflow: &str,
    step: Step<'_>,
    result: &RawValue,
) -> Result<Box<RawValue>, sqlx::Error> {
    let statement = "-- record_workflow_step
        insert into espd_workflow_steps (workflow, event_uuid, step, result) values (?, ?, ?, ?)
        on conflict (workflow, event_uuid, step) do update set step = excluded.step returning result";
    let query = sqlx::query(statement).bind(workflow).bind(step.event_uuid.to_string()).bind(step.name);
    row::json(&query.bind(result.get()).fetch_one(connection).await?, "result")
}

/// Keeps what has changed.
pub(super) async fn change(
    connection: &mut SqliteConnection,
    workflow: &str,
    changes: WorkflowChanges,
) -> Result<(), sqlx::Error> {
    for (instance, kept) in changes.instances {
        match kept {
            Some(kept) => save(connection, workflow, &kept).await?,
            None => {
                let statement = "-- remove_workflow_instance
                    delete from espd_workflow_instances where workflow = ? and instance = ?";
                let query = sqlx::query(statement).bind(workflow).bind(instance);
                query.execute(&mut *connection).await?;
            }
        }
    }
    for event in changes.done {
        let statement =
            "-- forget_workflow_steps\ndelete from espd_workflow_steps where workflow = ? and event_uuid = ?";
        let query = sqlx::query(statement).bind(workflow).bind(event.to_string());
        query.execute(&mut *connection).await?;
    }
    Ok(())
}

async fn save(
    connection: &mut SqliteConnection,
    workflow: &str,
    kept: &WorkflowInstance,
) -> Result<(), sqlx::Error> {
    let statement = "-- save_workflow_instance
        insert or replace into espd_workflow_instances
          (workflow, instance, state, timeouts, events, last_event_id, last_event_type, has_ended)
        values (?, ?, ?, ?, ?, ?, ?, ?)";
    let timeouts =
        serde_json::to_string(&kept.timeouts).map_err(|error| sqlx::Error::Encode(error.into()))?;
    let query =
        sqlx::query(statement).bind(workflow).bind(&kept.instance).bind(kept.state.get()).bind(timeouts);
    let query = query.bind(kept.events).bind(kept.last_event_id.get()).bind(&kept.last_event_type);
    query.bind(kept.has_ended).execute(connection).await.map(drop)
}
