//! Events that applications have scheduled: what operators see and do about them, and the scheduler, which appends them.
//!
//! Scheduling is a matter of the library (`postgres/scheduling.rs`) and of the SQL functions that it calls.

mod scheduler;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgExecutor};
use uuid::Uuid;

use crate::event::StoredTime;
use crate::postgres::quote::quote_literal;
use crate::postgres::row::from_row;
use crate::store::layout::Layout;

pub(crate) use scheduler::Scheduler;

/// An event that an application has scheduled and that is not appended yet.
#[derive(Debug, Clone)]
pub(crate) struct ScheduledEvent {
    pub(crate) id: i64,
    pub(crate) uuid: Uuid,
    pub(crate) aggregate_id: Uuid,
    pub(crate) event_type: String,
    pub(crate) key: Option<String>,
    pub(crate) due_at: StoredTime,
    pub(crate) is_due: bool,
    pub(crate) attempts: i32,
    pub(crate) sqlstate: Option<String>,
    pub(crate) last_error: Option<String>,
    pub(crate) tried_at: Option<DateTime<Utc>>,
    pub(crate) next_try_at: Option<DateTime<Utc>>,
    pub(crate) causation_id: Option<Uuid>,
    pub(crate) correlation_id: Option<Uuid>,
}

from_row!(ScheduledEvent {
    id,
    uuid,
    aggregate_id,
    event_type,
    key,
    due_at,
    is_due,
    attempts,
    sqlstate,
    last_error,
    tried_at,
    next_try_at,
    causation_id,
    correlation_id
});

/// What waits in a table of scheduled events.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct ScheduledSummary {
    /// The events that are not appended yet.
    pub(crate) pending: i64,
    /// Those of them that the table of events has refused.
    pub(crate) refused: i64,
    /// Those that are due and were not refused.
    pub(crate) due: i64,
    /// For how long the first of those has been due; 0 when there is none.
    pub(crate) overdue_seconds: f64,
    /// Why the one that was tried last was refused; `None`: none is.
    pub(crate) refusal: Option<String>,
}

from_row!(ScheduledSummary { pending, refused, due, overdue_seconds, refusal });

/// Which scheduled events an operator means. What is left out selects nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ScheduledSelection {
    pub(crate) id: Option<i64>,
    pub(crate) key: Option<String>,
    pub(crate) event_type: Option<String>,
    pub(crate) only_refused: bool,
}

impl ScheduledSelection {
    /// The arguments that the SQL functions take.
    fn arguments(&self) -> String {
        let text = |text: &Option<String>| text.as_deref().map_or("null".to_owned(), quote_literal);
        let id = self.id.map_or("null".to_owned(), |id| id.to_string());
        format!("id => {id}, key => {}, type => {}", text(&self.key), text(&self.event_type))
    }

    fn condition(&self) -> String {
        let equals = |column: &str, text: &Option<String>| {
            text.as_ref().map(|text| format!(" and {column} = {}", quote_literal(text)))
        };
        let conditions = [
            self.id.map(|id| format!(" and id = {id}")),
            equals("key", &self.key),
            equals("type", &self.event_type),
            self.only_refused.then(|| " and attempts > 0".to_owned()),
        ];
        conditions.into_iter().flatten().fold("true".to_owned(), |all, one| all + &one)
    }
}

/// The table of scheduled events of one store.
#[derive(Debug, Clone)]
pub(crate) struct ScheduledEvents {
    /// The quoted schema.
    schema: String,
}

impl ScheduledEvents {
    /// The scheduled events of a store of this layout; `None`: espd appends nothing to it.
    pub(crate) fn of(layout: &Layout) -> Option<Self> {
        layout.append.as_ref().map(|_| Self { schema: layout.quoted_schema() })
    }

    /// Lists the selected events in the order in which they are appended, `limit` at most.
    pub(crate) async fn list(
        &self,
        connection: impl PgExecutor<'_>,
        selection: &ScheduledSelection,
        limit: i64,
    ) -> Result<Vec<ScheduledEvent>, sqlx::Error> {
        let statement = format!(
            "-- list_scheduled_events
             select id, uuid, aggregate_id, type as event_type, key, due_at, due_at <= clock_timestamp() as is_due, attempts,
                    sqlstate, last_error, tried_at, case when attempts > 0 then next_try_at end as next_try_at,
                    causation_id, correlation_id
             from {}.scheduled_events where {} order by scheduled_events.next_try_at, id limit {limit}",
            self.schema,
            selection.condition()
        );
        sqlx::query_as(AssertSqlSafe(statement)).persistent(false).fetch_all(connection).await
    }

    /// Counts the selected events.
    pub(crate) async fn count(
        &self,
        connection: impl PgExecutor<'_>,
        selection: &ScheduledSelection,
    ) -> Result<i64, sqlx::Error> {
        let statement = format!(
            "-- count_scheduled_events\nselect count(*) from {}.scheduled_events where {}",
            self.schema,
            selection.condition()
        );
        sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).fetch_one(connection).await
    }

    /// What waits, in numbers.
    pub(crate) async fn summarise(
        &self,
        connection: impl PgExecutor<'_>,
    ) -> Result<ScheduledSummary, sqlx::Error> {
        let statement = format!(
            "-- summarise_scheduled_events
             select count(*) as pending, count(*) filter (where attempts > 0) as refused,
                    count(*) filter (where attempts = 0 and due_at <= clock_timestamp()) as due,
                    coalesce(extract(epoch from clock_timestamp() - min(due_at)
                      filter (where attempts = 0 and due_at <= clock_timestamp())), 0)::float8 as overdue_seconds,
                    (array_agg(last_error order by tried_at desc) filter (where attempts > 0))[1] as refusal
             from {}.scheduled_events",
            self.schema
        );
        sqlx::query_as(AssertSqlSafe(statement)).persistent(false).fetch_one(connection).await
    }

    /// Removes the selected events for good, and records who did it. Returns how many there were.
    pub(crate) async fn cancel(
        &self,
        connection: impl PgExecutor<'_>,
        operator: &str,
        selection: &ScheduledSelection,
    ) -> Result<i64, sqlx::Error> {
        let statement = format!(
            "-- cancel_scheduled_events\nselect {}.cancel_scheduled_events($1, {}, only_refused => {})",
            self.schema,
            selection.arguments(),
            selection.only_refused
        );
        sqlx::query_scalar(AssertSqlSafe(statement))
            .persistent(false)
            .bind(operator)
            .fetch_one(connection)
            .await
    }

    /// Has the selected events that were refused tried again at once, and records who asked. Returns how many there are.
    pub(crate) async fn retry(
        &self,
        connection: impl PgExecutor<'_>,
        operator: &str,
        selection: &ScheduledSelection,
    ) -> Result<i64, sqlx::Error> {
        let statement = format!(
            "-- retry_scheduled_events\nselect {}.retry_scheduled_events($1, {})",
            self.schema,
            selection.arguments()
        );
        sqlx::query_scalar(AssertSqlSafe(statement))
            .persistent(false)
            .bind(operator)
            .fetch_one(connection)
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_selects_by_what_it_names() {
        assert_eq!(ScheduledSelection::default().condition(), "true");
        let some = ScheduledSelection { id: Some(7), key: Some("it's".into()), ..Default::default() };
        assert_eq!(some.condition(), "true and id = 7 and key = 'it''s'");
        assert_eq!(some.arguments(), "id => 7, key => 'it''s', type => null");
    }
}
