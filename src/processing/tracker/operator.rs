//! Operators pause, resume, retry and reset processors through SQL functions, which also record who did it.

use sqlx::{AssertSqlSafe, PgConnection, PgExecutor};

use super::{ProcessorKey, Trackers};
use crate::event::Position;
use crate::postgres::literal::json_literal;
use crate::processing::divergence::Divergence;
use crate::store::witness::Witness;

/// Decides what a reactor does with events that it handles again after a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReplayEffects {
    /// A reactor emits nothing up to the position that it had reached, and nothing is done after commits.
    #[default]
    Suppress,
    /// The processor handles the events as if for the first time. What a reactor has emitted for them is still not emitted twice.
    Repeat,
}

/// The parameters of a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reset {
    /// The new position.
    pub to: Position,
    /// The version of the tables that are created after the old ones were dropped. `None`: the tables stay.
    pub rebuilt_as: Option<i32>,
    /// What a reactor does with events that it has handled before.
    pub effects: ReplayEffects,
    /// The last event at or below the new position in the store as it is; `None`: it is not known, and the next batch notes
    /// it.
    pub witness: Option<Witness>,
    /// The last event that the store has in common with the one that was followed; `None`: that is the same, or a daemon has
    /// recorded how it differs.
    pub last_common: Option<Position>,
}

impl Reset {
    /// Returns a reset that only moves the position. A reactor does not repeat what it has done already.
    pub fn to(position: Position) -> Self {
        Self {
            to: position,
            rebuilt_as: None,
            effects: ReplayEffects::Suppress,
            witness: None,
            last_common: None,
        }
    }
}

impl Trackers {
    /// The position before the last reset of the processor `name`, and the one that it was reset to: its owner may have moved
    /// on since.
    pub async fn last_reset(
        &self,
        connection: impl PgExecutor<'_>,
        name: &str,
    ) -> Result<(Position, Position), sqlx::Error> {
        let statement = format!(
            "-- find_last_reset
             select from_position, to_position from {}.operator_log
             where processor = $1 and action = 'reset' order by id desc limit 1",
            self.schema
        );
        sqlx::query_as(AssertSqlSafe(statement)).bind(name).fetch_one(connection).await
    }

    /// Pauses a processor, which keeps its owner. Returns whether it was running.
    pub async fn pause(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        operator: &str,
    ) -> Result<bool, sqlx::Error> {
        self.act(connection, "pause_processor", key, operator, "").await
    }

    /// Has the failing event tried now instead of later, with attempts that are counted anew; also if the processor has stopped
    /// because of it, or waits for the end of an outage. Returns whether there was a failure or an outage; a paused processor is
    /// left alone, and the result is `false`.
    pub async fn retry(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        operator: &str,
    ) -> Result<bool, sqlx::Error> {
        self.act(connection, "retry_processor", key, operator, "").await
    }

    /// Makes the retries of these processors due that are still to come, because somebody may have fixed what fails. Counts
    /// go on. Those of webhooks stay as they are. Returns the number of processors concerned.
    pub(crate) async fn make_retries_due(
        &self,
        connection: &mut PgConnection,
        names: &[String],
    ) -> Result<u64, sqlx::Error> {
        let statement = format!(
            "-- make_retries_due
             update {trackers} as t set next_retry_at = clock_timestamp()
             where name = any($1) and attempts > 0 and next_retry_at > clock_timestamp() and paused_at is null
               -- The receiver of a webhook may have asked for the time.
               and not exists (select from {schema}.deliveries as d
                               where d.processor = t.name and d.version = t.version and d.partition = t.partition
                                 and not d.is_done)",
            schema = self.schema,
            trackers = self.table
        );
        let query = sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(names);
        Ok(query.execute(connection).await?.rows_affected())
    }

    /// Lets a paused or failed processor continue. Returns whether it was paused or failed.
    pub async fn resume(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        operator: &str,
    ) -> Result<bool, sqlx::Error> {
        self.act(connection, "resume_processor", key, operator, "").await
    }

    /// Lets a processor continue from its position although its store is not the one that it has followed: `found` says how
    /// it differs. `witness` is the last event at or below the position in the store as it is.
    pub(crate) async fn accept_history(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        operator: &str,
        found: &Divergence,
        witness: Witness,
    ) -> Result<bool, sqlx::Error> {
        let found = json_literal(found)?;
        let rest = format!(", divergence => ({found})::jsonb, {}", witness_arguments(Some(witness)));
        self.act(connection, "accept_history", key, operator, &rest).await
    }

    /// Sets the position back (or forward), ends every claim, and records who did it. Returns whether there was a tracker.
    pub async fn reset(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        operator: &str,
        reset: Reset,
    ) -> Result<bool, sqlx::Error> {
        let Reset { to, rebuilt_as, effects, witness, last_common } = reset;
        let (function, rebuilt_as) = match rebuilt_as {
            Some(version) => ("rebuild_processor", format!(", rebuilt_as => {version}")),
            None => ("reset_processor", String::new()),
        };
        let rest = format!(
            ", to_position => {to}{rebuilt_as}, repeat_effects => {}, last_common => {}, {}",
            effects == ReplayEffects::Repeat,
            last_common.map_or_else(|| "null".to_owned(), |position| position.to_string()),
            witness_arguments(witness)
        );
        self.act(connection, function, key, operator, &rest).await
    }

    /// Calls one of the functions that do something to a tracker and record it. Returns whether they have done it. `rest` is
    /// what comes behind operator and tracker in the list of arguments.
    pub(super) async fn act(
        &self,
        connection: &mut PgConnection,
        function: &str,
        key: &ProcessorKey,
        operator: &str,
        rest: &str,
    ) -> Result<bool, sqlx::Error> {
        let statement =
            format!("-- {function}\nselect {}.{function}($1, {}{rest})", self.schema, key.arguments());
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).bind(operator);
        query.fetch_one(connection).await
    }
}

/// Returns the arguments that give a tracker a witness, or take it away.
fn witness_arguments(witness: Option<Witness>) -> String {
    match witness {
        Some(Witness { at, id, uuid }) => {
            format!("witness_at => {at}, witness_id => {id}, witness_uuid => '{uuid}'")
        }
        None => "witness_at => null, witness_id => null, witness_uuid => null".to_owned(),
    }
}
