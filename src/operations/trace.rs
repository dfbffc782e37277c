//! What belongs to a trace beside the events: what is still to be appended because of them, and who could not handle them.

use serde::Serialize;
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use crate::event::StoredTime;
use crate::operations::databases::Databases;
use crate::postgres::row::from_row;
use crate::store::layout::CreatedBy;
use crate::store::{Trace, TraceLimits, trace};

/// The most rows of a kind that are shown.
const SHOWN_MAX: i64 = 200;

/// A trace with what waits. The field names are an interface: `espctl trace --json` prints them.
#[derive(Debug, Serialize)]
pub(crate) struct WholeTrace {
    /// The events.
    #[serde(flatten)]
    pub(crate) trace: Trace,
    /// What events of the trace have led to and is not in the store yet.
    pub(crate) pending: Vec<Pending>,
    /// Events of the trace that were set aside for a processor.
    pub(crate) dead_letters: Vec<Letter>,
    /// What handlers have asked for and was not carried out yet.
    pub(crate) effects: Vec<OpenEffect>,
}

/// An event that is not in the store yet.
#[derive(Debug, Serialize)]
pub(crate) struct Pending {
    /// The identity that the event will have.
    pub(crate) uuid: Uuid,
    /// The event that has led to it.
    pub(crate) causation_id: Uuid,
    #[serde(rename = "type")]
    pub(crate) event_type: String,
    /// The reactor that has emitted it; `None`: an application has scheduled it.
    pub(crate) reactor: Option<String>,
    pub(crate) due_at: StoredTime,
    /// Why the store has refused it the last time.
    pub(crate) last_error: Option<String>,
}

from_row!(Pending { uuid, causation_id, event_type, reactor, due_at, last_error });

/// An event that was set aside.
#[derive(Debug, Serialize)]
pub(crate) struct Letter {
    pub(crate) event_uuid: Uuid,
    pub(crate) processor: String,
    /// `failed`, or `waiting` behind an earlier dead letter of the same aggregate.
    pub(crate) reason: String,
    /// What happened, in one sentence.
    pub(crate) message: Option<String>,
}

from_row!(Letter { event_uuid, processor, reason, message });

/// Work that a handler has asked for, to be done after its commit.
#[derive(Debug, Serialize)]
pub(crate) struct OpenEffect {
    pub(crate) event_uuid: Uuid,
    pub(crate) processor: String,
    pub(crate) attempts: i32,
}

from_row!(OpenEffect { event_uuid, processor, attempts });

impl WholeTrace {
    /// Traces the event of this uuid, or what waits to become one. `None`: there is neither.
    pub(crate) async fn find(
        databases: &Databases,
        asked: Uuid,
        limits: TraceLimits,
    ) -> anyhow::Result<Option<Self>> {
        let store = databases.stored_events();
        let mut found = trace(&store, asked, limits).await?;
        if found.is_none()
            && let Some(cause) = Waiting(databases).find_cause_of_pending(asked).await?
        {
            found = trace(&store, cause, limits).await?.map(|trace| Trace { asked, ..trace });
        }
        let Some(trace) = found else { return Ok(None) };
        let uuids: Vec<Uuid> =
            trace.events.iter().map(|traced| traced.event.uuid).chain(trace.cause).collect();
        let waiting = Waiting(databases);
        Ok(Some(Self {
            pending: waiting.pending(&uuids).await?,
            dead_letters: waiting.dead_letters(&uuids).await?,
            effects: waiting.effects(&uuids).await?,
            trace,
        }))
    }
}

/// Reads the tables of what waits. They are small, and no index serves these columns.
struct Waiting<'d>(&'d Databases);

impl Waiting<'_> {
    fn table(&self, name: &str) -> String {
        format!("{}.{name}", self.0.layout.quoted_schema())
    }

    /// The tables that have pending events, with where they are and an expression for the reactor.
    fn tables_of_pending(&self) -> Vec<(&PgPool, String, &'static str)> {
        let mut tables = vec![(&self.0.projections, self.table("emissions"), "reactor")];
        if self.0.layout.created_by == CreatedBy::Migrations {
            tables.push((&self.0.events, self.table("scheduled_events"), "null::text"));
        }
        tables
    }

    async fn find_cause_of_pending(&self, uuid: Uuid) -> Result<Option<Uuid>, sqlx::Error> {
        for (pool, table, _) in self.tables_of_pending() {
            let statement =
                format!("-- find_cause_of_pending\nselect causation_id from {table} where uuid = $1");
            let found: Option<Option<Uuid>> =
                sqlx::query_scalar(AssertSqlSafe(statement)).bind(uuid).fetch_optional(pool).await?;
            if let Some(cause) = found {
                return Ok(cause);
            }
        }
        Ok(None)
    }

    async fn pending(&self, causes: &[Uuid]) -> Result<Vec<Pending>, sqlx::Error> {
        let mut pending = Vec::new();
        for (pool, table, reactor) in self.tables_of_pending() {
            let statement = format!(
                "-- list_pending_of_causes
                 select uuid, causation_id, type as event_type, {reactor} as reactor, due_at, last_error
                 from {table} where causation_id = any ($1) order by due_at, id limit {SHOWN_MAX}"
            );
            pending.extend(read(pool, statement, causes).await?);
        }
        Ok(pending)
    }

    async fn dead_letters(&self, events: &[Uuid]) -> Result<Vec<Letter>, sqlx::Error> {
        let statement = format!(
            "-- list_dead_letters_of_events
             select event_uuid, processor, reason, failure ->> 'message' as message
             from {} where event_uuid = any ($1) order by processor, event_id limit {SHOWN_MAX}",
            self.table("dead_letters")
        );
        read(&self.0.projections, statement, events).await
    }

    async fn effects(&self, events: &[Uuid]) -> Result<Vec<OpenEffect>, sqlx::Error> {
        let statement = format!(
            "-- list_effects_of_events
             select event_uuid, processor, attempts
             from {} where event_uuid = any ($1) order by id limit {SHOWN_MAX}",
            self.table("effects")
        );
        read(&self.0.projections, statement, events).await
    }
}

async fn read<T>(pool: &PgPool, statement: String, uuids: &[Uuid]) -> Result<Vec<T>, sqlx::Error>
where
    T: for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow> + Send + Unpin,
{
    sqlx::query_as(AssertSqlSafe(statement)).bind(uuids).fetch_all(pool).await
}
