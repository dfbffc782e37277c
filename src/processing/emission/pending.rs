//! Operators list, cancel and retry pending emissions with these statements. The SQL functions that change something
//! record who did it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{AssertSqlSafe, PgExecutor};
use uuid::Uuid;

use crate::event::{Position, StoredTime};
use crate::postgres::quote::quote_literal;
use crate::postgres::row::from_row;
use crate::processing::tracker::Trackers;
use crate::store::layout::Layout;

/// An event that a reactor has emitted and that is not in the event store yet. The field names are an interface: `espctl
/// emissions list --json` prints them.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PendingEmission {
    /// Number of the emission among those of all reactors, or among what applications have scheduled.
    pub(crate) id: i64,
    /// The reactor that has emitted it; `-`: an application has scheduled it.
    pub(crate) reactor: String,
    /// Partition of the reactor.
    pub(crate) partition: i32,
    /// What keeps it from being in the event store.
    pub(crate) state: EmissionState,
    /// The identity that the event will have.
    pub(crate) uuid: Uuid,
    /// The aggregate that the event will belong to.
    pub(crate) aggregate_id: String,
    /// The type of the event.
    #[serde(rename = "type")]
    pub(crate) event_type: String,
    /// Names it among those of its reactor.
    pub(crate) key: Option<String>,
    /// When the reactor wants it emitted.
    pub(crate) due_at: StoredTime,
    /// How often the event store has refused it.
    pub(crate) attempts: i32,
    /// The event store's code for the last refusal.
    pub(crate) sqlstate: Option<String>,
    /// Why it was refused the last time; if it never was, what the relay waits for.
    pub(crate) last_error: Option<String>,
    /// When it was refused the last time.
    pub(crate) tried_at: Option<DateTime<Utc>>,
    /// When one that was refused is tried again.
    pub(crate) next_try_at: Option<DateTime<Utc>>,
    /// The event that led to it.
    pub(crate) causation_id: Option<Uuid>,
    /// The conversation that it belongs to.
    pub(crate) correlation_id: Option<Uuid>,
}

/// What keeps an emission from being in the event store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EmissionState {
    /// Its time has not come.
    Later,
    /// Nothing but the relay's next look, or what the relay waits for.
    Due,
    /// The event store has refused it. It is tried again.
    Refused,
    /// An operator has paused the reactor; or it handles events again, is behind, or has stopped, and one that is to come may cancel it.
    Held,
}

impl EmissionState {
    /// The state in one word.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Later => "later",
            Self::Due => "due",
            Self::Refused => "refused",
            Self::Held => "held",
        }
    }

    fn of_word(word: &str) -> Self {
        let known = [Self::Later, Self::Due, Self::Refused];
        known.into_iter().find(|state| state.as_str() == word).unwrap_or(Self::Held)
    }
}

/// A row as the listing reads it.
struct Row {
    state: String,
    rest: PendingEmission,
}

impl<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow> for Row {
    fn from_row(row: &'r sqlx::postgres::PgRow) -> Result<Self, sqlx::Error> {
        use sqlx::Row as _;
        let rest = PendingEmission {
            id: row.try_get("id")?,
            reactor: row.try_get("reactor")?,
            partition: row.try_get("partition")?,
            state: EmissionState::Due,
            uuid: row.try_get("uuid")?,
            aggregate_id: row.try_get("aggregate_id")?,
            event_type: row.try_get("event_type")?,
            key: row.try_get("key")?,
            due_at: row.try_get("due_at")?,
            attempts: row.try_get("attempts")?,
            sqlstate: row.try_get("sqlstate")?,
            last_error: row.try_get("last_error")?,
            tried_at: row.try_get("tried_at")?,
            next_try_at: row.try_get("next_try_at")?,
            causation_id: row.try_get("causation_id")?,
            correlation_id: row.try_get("correlation_id")?,
        };
        Ok(Self { state: row.try_get("state")?, rest })
    }
}

/// What an operator does about pending emissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EmissionChange {
    /// They are removed for good.
    Cancel,
    /// Those that the event store has refused are tried again at once.
    Retry,
}

impl EmissionChange {
    /// The SQL function, and the word in the operators' log.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Cancel => "cancel_emissions",
            Self::Retry => "retry_emissions",
        }
    }
}

/// Which emissions an operator means. What is left out selects nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct EmissionSelection {
    pub(crate) reactor: Option<String>,
    pub(crate) id: Option<i64>,
    pub(crate) key: Option<String>,
    pub(crate) event_type: Option<String>,
    pub(crate) only_refused: bool,
}

impl EmissionSelection {
    /// The arguments that the SQL functions take beside operator and reactor. Only what was refused can be retried.
    fn arguments(&self, change: EmissionChange) -> String {
        let text = |text: &Option<String>| text.as_deref().map_or("null".to_owned(), quote_literal);
        let id = self.id.map_or("null".to_owned(), |id| id.to_string());
        let arguments = format!("id => {id}, key => {}, type => {}", text(&self.key), text(&self.event_type));
        match change {
            EmissionChange::Cancel => format!("{arguments}, only_refused => {}", self.only_refused),
            EmissionChange::Retry => arguments,
        }
    }

    fn condition(&self) -> String {
        let equals = |column: &str, text: &Option<String>| {
            text.as_ref().map(|text| format!("e.{column} = {}", quote_literal(text)))
        };
        let conditions = [
            equals("reactor", &self.reactor),
            equals("key", &self.key),
            equals("type", &self.event_type),
            self.id.map(|id| format!("e.id = {id}")),
            self.only_refused.then(|| "e.attempts > 0".to_owned()),
        ];
        let conditions: Vec<String> = conditions.into_iter().flatten().collect();
        if conditions.is_empty() { "true".to_owned() } else { conditions.join(" and ") }
    }
}

/// How many emissions of a reactor are pending.
#[derive(Debug, Clone)]
pub(crate) struct PendingOfReactor {
    pub(crate) reactor: String,
    pub(crate) pending: i64,
}

from_row!(PendingOfReactor { reactor, pending });

/// The table of emissions in one schema.
#[derive(Debug, Clone)]
pub(crate) struct PendingEmissions {
    /// The quoted schema.
    schema: String,
    /// The table of trackers, qualified and quoted.
    trackers: String,
}

impl PendingEmissions {
    /// The emissions of a store of this layout.
    pub(crate) fn of(layout: &Layout) -> Self {
        let trackers = Trackers::of(layout);
        Self { schema: trackers.schema().to_owned(), trackers: trackers.table().to_owned() }
    }

    /// Lists the selected emissions by reactor, in the order in which they are moved, `limit` at most.
    pub(crate) async fn list(
        &self,
        connection: impl PgExecutor<'_>,
        selection: &EmissionSelection,
        limit: i64,
    ) -> Result<Vec<PendingEmission>, sqlx::Error> {
        let statement = format!(
            "-- list_emissions
             select e.id, e.reactor, e.partition, e.uuid, e.aggregate_id, e.type as event_type, e.key, e.due_at, e.attempts,
                    e.sqlstate,
                    -- What is held does not wait for what it waited for before.
                    case when e.attempts > 0 or not {held} then e.last_error end as last_error, e.tried_at, e.next_try_at, e.causation_id, e.correlation_id,
                    case when {held} then 'held' when e.attempts > 0 then 'refused'
                         when e.due_at > clock_timestamp() then 'later' when {waits} then 'held' else 'due' end as state
             from {schema}.emissions as e where {condition}
             order by e.reactor, coalesce(e.next_try_at, e.due_at), e.id limit {limit}",
            schema = self.schema,
            held = is_held(&self.trackers),
            waits = may_wait(&self.trackers),
            condition = selection.condition(),
        );
        let rows: Vec<Row> =
            sqlx::query_as(AssertSqlSafe(statement)).persistent(false).fetch_all(connection).await?;
        let emission = |row: Row| PendingEmission { state: EmissionState::of_word(&row.state), ..row.rest };
        Ok(rows.into_iter().map(emission).collect())
    }

    /// Counts the selected emissions.
    pub(crate) async fn count(
        &self,
        connection: impl PgExecutor<'_>,
        selection: &EmissionSelection,
    ) -> Result<i64, sqlx::Error> {
        let statement = format!(
            "-- count_emissions
             select count(*) from {}.emissions as e where {}",
            self.schema,
            selection.condition()
        );
        sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).fetch_one(connection).await
    }

    /// Counts the emissions of each reactor that has any.
    pub(crate) async fn count_by_reactor(
        &self,
        connection: impl PgExecutor<'_>,
    ) -> Result<Vec<PendingOfReactor>, sqlx::Error> {
        let statement = format!(
            "-- count_emissions_of_reactors
             select reactor, count(*) as pending from {}.emissions group by reactor order by reactor",
            self.schema
        );
        sqlx::query_as(AssertSqlSafe(statement)).persistent(false).fetch_all(connection).await
    }

    /// Cancels or retries the selected emissions of a reactor. Returns how many there were.
    pub(crate) async fn change(
        &self,
        connection: impl PgExecutor<'_>,
        change: EmissionChange,
        operator: &str,
        reactor: &str,
        selection: &EmissionSelection,
    ) -> Result<i64, sqlx::Error> {
        let (function, schema) = (change.as_str(), &self.schema);
        let arguments = selection.arguments(change);
        let statement = format!("-- {function}\nselect {schema}.{function}($1, $2, {arguments})");
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
        query.bind(operator).bind(reactor).fetch_one(connection).await
    }
}

/// Whether the emission `e` is held: by an operator, who has paused its reactor; or, if it has a key, because the event that cancels or
/// replaces it may be still to come: the reactor repeats its effects after a reset, or has stopped until an operator acts.
pub(super) fn is_held(trackers: &str) -> String {
    held_by(
        trackers,
        "t.paused_at is not null or e.key is not null
             and (t.position < t.repeated_until or t.failed_at is not null or t.diverged is not null)",
    )
}

/// Whether the emission `e` has a key, and its reactor has not caught up: the relay may be waiting for that.
fn may_wait(trackers: &str) -> String {
    held_by(trackers, "e.key is not null and not t.caught_up")
}

/// Whether the emission `e` has a key, and its reactor has not handled everything up to a position.
pub(super) fn is_behind(trackers: &str, position: Position) -> String {
    held_by(trackers, &format!("e.key is not null and t.position < {position}"))
}

fn held_by(trackers: &str, condition: &str) -> String {
    format!(
        "exists (select from {trackers} as t
           where t.name = e.reactor and t.partition = e.partition and ({condition}))"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_selects_by_what_it_names() {
        assert_eq!(EmissionSelection::default().condition(), "true");
        let some = EmissionSelection {
            reactor: Some("r".into()),
            id: Some(7),
            key: Some("it's".into()),
            only_refused: true,
            ..EmissionSelection::default()
        };
        assert_eq!(some.condition(), "e.reactor = 'r' and e.key = 'it''s' and e.id = 7 and e.attempts > 0");
        let arguments = "id => 7, key => 'it''s', type => null";
        assert_eq!(some.arguments(EmissionChange::Retry), arguments);
        assert_eq!(some.arguments(EmissionChange::Cancel), format!("{arguments}, only_refused => true"));
    }
}
