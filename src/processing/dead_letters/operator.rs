//! Operators list, retry and discard dead letters with these statements. The SQL functions that change something record
//! who did it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor, Row as _};

use super::{DeadLetter, DeadLetters, Selection};
use crate::event::Position;
use crate::postgres::literal::{json_literal, simple};
use crate::postgres::quote::quote_literal;
use crate::postgres::row::from_row;
use crate::processing::failure::Failure;
use crate::processing::tracker::ProcessorKey;

/// The columns of a [`DeadLetter`].
const COLUMNS: &str = "processor, version, partition, event_id, event_uuid, event_type, aggregate_id, instance, reason, blocks, \
     failure, attempts, set_aside_at, tried_at, retry_requested_at, replaying";

/// What later events wait behind: the instance of a workflow, or else the aggregate.
const LINE: &str = "coalesce(instance, aggregate_id)";

/// A retry of dead letters that the owner of a processor was asked for.
#[derive(Debug, Clone)]
pub(crate) struct RetryRequest {
    /// When an operator asked for it, by the server's clock.
    pub at: DateTime<Utc>,
    /// The events, in the order in which they will be handled.
    pub events: Vec<Position>,
    /// How many dead letters were selected but wait behind earlier ones that were not.
    pub left_out: i64,
}

from_row!(RetryRequest { at, events, left_out });

/// The dead letters of an aggregate around one of them. The field names are an interface: `espctl dead-letters show
/// --json` prints them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct AggregateQueue {
    /// The earlier dead letter that has to be handled first, if there is one.
    pub waits_for: Option<Position>,
    /// How many later dead letters wait behind this one.
    pub waiting: i64,
    /// The first of the dead letters that wait.
    pub waiting_event_ids: Vec<Position>,
}

from_row!(AggregateQueue { waits_for, waiting, waiting_event_ids });

/// The dead letters whose retry was asked for and that are still set aside.
#[derive(Debug, Clone)]
pub(crate) struct Remaining {
    /// The dead letters that were tried and failed again.
    pub failed: Vec<DeadLetter>,
    /// How many failed again; `failed` has only the first of them.
    pub failed_count: i64,
    /// How many wait behind one that failed again.
    pub waiting: i64,
    /// How many have not been tried yet.
    pub pending: i64,
}

impl DeadLetters {
    /// Lists the selected dead letters by processor and event, `limit` at most.
    pub(crate) async fn list(
        &self,
        connection: impl PgExecutor<'_>,
        selection: &Selection,
        limit: i64,
    ) -> Result<Vec<DeadLetter>, sqlx::Error> {
        let statement = format!(
            "-- list_dead_letters
             select {COLUMNS} from {}.dead_letters as d where {} order by processor, version, partition, event_id
             limit {limit}",
            self.schema,
            selection.condition()
        );
        sqlx::query_as(AssertSqlSafe(statement)).persistent(false).fetch_all(connection).await
    }

    /// Counts the selected dead letters.
    pub(crate) async fn count(
        &self,
        connection: impl PgExecutor<'_>,
        selection: &Selection,
    ) -> Result<i64, sqlx::Error> {
        let statement = format!(
            "-- count_dead_letters
             select count(*) from {}.dead_letters as d where {}",
            self.schema,
            selection.condition()
        );
        sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).fetch_one(connection).await
    }

    /// The processors that were asked to handle dead letters again and have not tried all of them yet.
    pub(crate) async fn processors_with_requests(
        &self,
        connection: impl PgExecutor<'_>,
    ) -> Result<Vec<String>, sqlx::Error> {
        let statement = format!(
            "-- find_requested_dead_letters
             select distinct processor from {}.dead_letters where retry_requested_at is not null",
            self.schema
        );
        sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).fetch_all(connection).await
    }

    /// Finds what a dead letter waits for, and what waits for it.
    pub(crate) async fn queue_around(
        &self,
        connection: impl PgExecutor<'_>,
        dead_letter: &DeadLetter,
    ) -> Result<AggregateQueue, sqlx::Error> {
        const SHOWN: i64 = 20;
        let statement = format!(
            "-- find_dead_letters_around
             with line as (
               select event_id, blocks from {schema}.dead_letters
               where {is_processor} and {LINE} = {line}
             )
             select (select min(event_id) from line where event_id < {id} and blocks) as waits_for,
                    (select count(*) from line where event_id > {id} and {blocks}) as waiting,
                    array(select event_id from line where event_id > {id} and {blocks} order by 1 limit {SHOWN})
                      as waiting_event_ids",
            schema = self.schema,
            is_processor = dead_letter.key().is_processor(),
            line = quote_literal(&dead_letter.line()),
            id = dead_letter.event_id,
            blocks = dead_letter.blocks,
        );
        sqlx::query_as(AssertSqlSafe(statement)).persistent(false).fetch_one(connection).await
    }

    /// Sets an event aside that the processor fails at or has not come to; the failure names it. With `blocks`, later events of
    /// its aggregate wait. The claim ends. Returns `false` if the processor is beyond the event.
    pub(crate) async fn set_aside_now(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        failure: &Failure,
        blocks: bool,
        operator: &str,
    ) -> Result<bool, sqlx::Error> {
        let statement = format!(
            "-- set_aside_by_operator
             select {}.set_aside_by_operator({}, failure => {}::jsonb, blocks => {blocks}, operator => {}) as done",
            self.schema,
            key.arguments(),
            json_literal(failure)?,
            quote_literal(operator)
        );
        simple(statement).fetch_one(connection).await?.try_get("done")
    }

    /// Asks the owner of a processor to handle the selected dead letters again, and with each one that blocks all that wait
    /// behind it. A dead letter that waits behind one that is not selected is left out.
    pub(crate) async fn request_retry(
        &self,
        connection: impl PgExecutor<'_>,
        processor: &str,
        selection: &Selection,
        operator: &str,
    ) -> Result<RetryRequest, sqlx::Error> {
        let statement = format!(
            "-- request_retry_of_dead_letters
             with judged as materialized ({judged}),
             -- The first in each line that others wait behind.
             heads as materialized (
               select distinct on (version, partition, line) version, partition, line, event_id, meant
               from judged where blocks order by version, partition, line, event_id
             ),
             lined_up as materialized (
               select version, partition, j.event_id, j.meant,
                      case when h.event_id < j.event_id then h.meant else j.meant end as chosen
               from judged as j left join heads as h using (version, partition, line)
             ),
             picked as (select version, partition, event_id from lined_up where chosen)
             select r.requested_at as at, r.requested as events,
                    (select count(*) from lined_up where meant and not chosen) as left_out
             from ({picked}) as p, {schema}.retry_dead_letters($2, $1, p.versions, p.partitions, p.events) as r",
            picked = listed("picked"),
            judged = self.judged(selection),
            schema = self.schema,
        );
        let query = sqlx::query_as(AssertSqlSafe(statement)).persistent(false);
        query.bind(processor).bind(operator).fetch_one(connection).await
    }

    /// Returns the query of all dead letters of processor `$1` in the lines of the selected ones. Its column `meant` says
    /// which are selected.
    fn judged(&self, selection: &Selection) -> String {
        let condition = selection.condition();
        format!(
            "select version, partition, {LINE} as line, event_id, blocks, coalesce({condition}, false) as meant
             from {schema}.dead_letters as d
             where processor = $1 and {LINE} in (
               select {LINE} from {schema}.dead_letters as d where processor = $1 and {condition})",
            schema = self.schema
        )
    }

    /// Counts the dead letters of a request that have not been tried yet.
    pub(crate) async fn count_pending(
        &self,
        connection: impl PgExecutor<'_>,
        processor: &str,
        request: &RetryRequest,
    ) -> Result<i64, sqlx::Error> {
        let statement = format!(
            "-- count_pending_dead_letters
             select count(*) from {}.dead_letters where processor = $1 and retry_requested_at = $2",
            self.schema
        );
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
        query.bind(processor).bind(request.at).fetch_one(connection).await
    }

    /// Finds out which dead letters of a request are still set aside, with `shown` of those that failed again.
    pub(crate) async fn remaining(
        &self,
        connection: &mut PgConnection,
        processor: &str,
        request: &RetryRequest,
        shown: i64,
    ) -> Result<Remaining, sqlx::Error> {
        let mine = "processor = $1 and event_id = any($2)";
        let statement = format!(
            "-- count_remaining_dead_letters
             select count(*) filter (where tried_at >= $3) as failed,
                    count(*) filter (where retry_requested_at is not null) as pending,
                    count(*) filter (where retry_requested_at is null and (tried_at < $3) is not false) as waiting
             from {}.dead_letters where {mine}",
            self.schema
        );
        let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
        let counts =
            query.bind(processor).bind(&request.events).bind(request.at).fetch_one(&mut *connection).await?;
        let statement = format!(
            "-- list_dead_letters_that_failed_again
             select {COLUMNS} from {}.dead_letters where {mine} and tried_at >= $3 order by event_id limit {shown}",
            self.schema
        );
        let query = sqlx::query_as(AssertSqlSafe(statement)).persistent(false);
        let failed =
            query.bind(processor).bind(&request.events).bind(request.at).fetch_all(connection).await?;
        Ok(Remaining {
            failed,
            failed_count: counts.try_get("failed")?,
            waiting: counts.try_get("waiting")?,
            pending: counts.try_get("pending")?,
        })
    }

    /// Removes the selected dead letters of a processor for good. Returns how many there were.
    pub(crate) async fn discard(
        &self,
        connection: &mut PgConnection,
        processor: &str,
        selection: &Selection,
        operator: &str,
    ) -> Result<i64, sqlx::Error> {
        let statement = format!(
            "-- discard_dead_letters
             select {schema}.discard_dead_letters($2, $1, p.versions, p.partitions, p.events) from ({picked}) as p",
            schema = self.schema,
            picked = listed(&format!("{}.dead_letters as d where {}", self.schema, selection.condition())),
        );
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
        query.bind(processor).bind(operator).fetch_one(connection).await
    }

    /// Counts the dead letters that would stay set aside behind the selected ones of a processor, if those were discarded.
    pub(crate) async fn count_left_behind(
        &self,
        connection: impl PgExecutor<'_>,
        processor: &str,
        selection: &Selection,
    ) -> Result<i64, sqlx::Error> {
        let statement = format!(
            "-- count_dead_letters_left_behind
             with judged as materialized ({}),
             heads as materialized (
               select version, partition, line, min(event_id) as event_id
               from judged where meant and blocks group by version, partition, line
             )
             select count(*) from judged as j join heads as h using (version, partition, line)
             where not j.meant and j.event_id > h.event_id",
            self.judged(selection)
        );
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
        query.bind(processor).fetch_one(connection).await
    }
}

/// Returns the query of the keys of some dead letters, as the arrays that the SQL functions take.
fn listed(dead_letters: &str) -> String {
    format!(
        "select coalesce(array_agg(version), '{{}}') as versions, coalesce(array_agg(partition), '{{}}') as partitions,
                coalesce(array_agg(event_id), '{{}}') as events from {dead_letters}"
    )
}
