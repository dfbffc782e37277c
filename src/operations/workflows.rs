//! Instances of workflows: which there are, and what they wait for.

use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgPool, Row as _};

use crate::event::StoredTime;
use crate::store::layout::Layout;

/// An instance of a workflow. The field names are an interface: `espctl workflows --json` prints them.
#[derive(Debug, Serialize)]
pub(crate) struct ListedInstance {
    pub(crate) workflow: String,
    pub(crate) instance: String,
    /// `None`: its first event is not handled yet, and some of its steps are done.
    pub(crate) state: Option<Box<RawValue>>,
    /// How many events it has handled, and the last one.
    pub(crate) events: i64,
    pub(crate) last_event_id: Option<i64>,
    pub(crate) last_event_type: Option<String>,
    pub(crate) began_at: Option<StoredTime>,
    pub(crate) updated_at: Option<StoredTime>,
    pub(crate) ended_at: Option<StoredTime>,
    /// The time-outs that will come, the next ones first.
    pub(crate) waits_for: Vec<Awaited>,
    /// The steps that are done of an event that is not handled yet.
    pub(crate) steps: Vec<String>,
}

/// A time-out that will come.
#[derive(Debug, Serialize, serde::Deserialize)]
pub(crate) struct Awaited {
    #[serde(rename = "type")]
    pub(crate) event_type: String,
    /// When it is due; `None`: it is in the event store already, and will be handled.
    pub(crate) due_at: Option<chrono::DateTime<chrono::Utc>>,
}

/// Which instances are meant.
#[derive(Debug, Default)]
pub(crate) struct InstanceSelection {
    pub(crate) workflow: Option<String>,
    pub(crate) instance: Option<String>,
    /// Whether those that have ended are listed too.
    pub(crate) ended: bool,
    pub(crate) limit: i64,
}

/// Lists instances, those that have changed last first.
pub(crate) async fn list(
    projections: &PgPool,
    layout: &Layout,
    selection: &InstanceSelection,
) -> Result<Vec<ListedInstance>, sqlx::Error> {
    let schema = layout.quoted_schema();
    let statement = format!(
        "-- list_workflow_instances
        select workflow, instance, i.state, coalesce(i.events, 0) as events, i.last_event_id, i.last_event_type,
          i.began_at, i.updated_at, i.ended_at,
          coalesce((select jsonb_agg(jsonb_build_object('type', t.key, 'due_at', e.due_at) order by e.due_at nulls first)
                    from jsonb_each_text(i.timeouts) as t left join {schema}.emissions as e on e.uuid = t.value::uuid),
                   '[]') as waits_for,
          array(select s.step from {schema}.workflow_steps as s
                where s.workflow = n.workflow and s.instance = n.instance order by s.recorded_at) as steps
        from (select workflow, instance from {schema}.workflow_instances
              union select workflow, instance from {schema}.workflow_steps) as n
          left join {schema}.workflow_instances as i using (workflow, instance)
        where ($1::text is null or workflow = $1) and ($2::text is null or instance = $2)
          and ($3 or i.ended_at is null)
        order by i.updated_at desc nulls first, workflow, instance
        limit $4"
    );
    let InstanceSelection { workflow, instance, ended, limit } = selection;
    let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
    let rows = query.bind(workflow).bind(instance).bind(ended).bind(limit).fetch_all(projections).await?;
    rows.iter().map(read).collect()
}

fn read(row: &sqlx::postgres::PgRow) -> Result<ListedInstance, sqlx::Error> {
    let state: Option<Json<Box<RawValue>>> = row.try_get("state")?;
    Ok(ListedInstance {
        workflow: row.try_get("workflow")?,
        instance: row.try_get("instance")?,
        state: state.map(|state| state.0),
        events: row.try_get("events")?,
        last_event_id: row.try_get("last_event_id")?,
        last_event_type: row.try_get("last_event_type")?,
        began_at: row.try_get("began_at")?,
        updated_at: row.try_get("updated_at")?,
        ended_at: row.try_get("ended_at")?,
        waits_for: row.try_get::<Json<Vec<Awaited>>, _>("waits_for")?.0,
        steps: row.try_get("steps")?,
    })
}
