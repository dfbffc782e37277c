//! The call of the generated function for a batch, and where in the author's file a failure of it is.

use serde::Deserialize;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection as _, FromRow as _, PgConnection};

use super::{SqlProcessor, remote};
use crate::event::Position;
use crate::postgres::literal::interval;
use crate::postgres::row::from_row;
use crate::postgres::server_mark;
use crate::postgres::sqlstate::{is_infrastructure_error, is_unprepared};
use crate::processing::declaration::{BatchLimits, Handler};
use crate::processing::failure::Failure;
use crate::processing::processor::{BatchRequest, ProcessorError, Work};

/// What the function returns. All is null if it did nothing.
#[derive(Debug)]
pub(super) struct Returned {
    pub(super) espd_position: Option<Position>,
    pub(super) espd_handled: Option<i32>,
    pub(super) espd_failure: Option<Json<RawFailure>>,
}

from_row!(Returned { espd_position, espd_handled, espd_failure });

/// A failure as the function reports it: with PostgreSQL's context instead of a place in a file.
#[derive(Debug, Deserialize)]
pub(super) struct RawFailure {
    context: String,
    #[serde(flatten)]
    failure: Failure,
}

impl SqlProcessor {
    /// Calls the function, which finds the events itself, in one round trip.
    pub(super) async fn call(
        &self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
    ) -> Result<Returned, sqlx::Error> {
        if request.keeps_session && request.mark.is_none() {
            match self.call_prepared(connection, request).await {
                // A handler has thrown away what was prepared.
                Err(error) if is_unprepared(&error) => connection.clear_cached_statements().await?,
                returned => return returned,
            }
        }
        let call = self.statement(&Self::arguments(request, request.upto()));
        let statement = format!("{}\n{call}", server_mark::prelude(request.mark));
        let row = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_one(connection).await?;
        Returned::from_row(&row)
    }

    /// Calls the function by a statement that is prepared when it is called first on the session: to parse and plan it takes a tenth
    /// of the time of a small batch.
    async fn call_prepared(
        &self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
    ) -> Result<Returned, sqlx::Error> {
        let BatchRequest { claim, limits, lease, .. } = request;
        let (time, lease) = (interval(limits.time), interval(*lease));
        let statement = self.statement(&format!("$1, $2, $3, $4, $5, $6, {time}, {lease}, $7, $8"));
        let call = sqlx::query_as(AssertSqlSafe(statement))
            .bind(claim.key.partition)
            .bind(claim.epoch)
            .bind(request.after().get())
            .bind(request.upto().get())
            .bind(size_of(limits))
            .bind(limits.bytes)
            .bind(rate_of(&request.work))
            .bind(request.dead_letter().map(Position::get));
        call.fetch_one(connection).await
    }

    /// Fetches the events from their database and calls the function with them. No other owner does so at the same time,
    /// because the tracker is locked.
    pub(super) async fn fetch_and_call(
        &self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
    ) -> Result<Option<Returned>, ProcessorError> {
        let mut transaction = connection.begin_with(server_mark::begin(request.mark)).await?;
        // Where a pooler hides which backend this is, no other daemon could end it if this process was frozen now.
        let limit = "-- limit_silence\nset local idle_in_transaction_session_timeout = '60s'";
        sqlx::raw_sql(limit).execute(&mut *transaction).await?;
        let trackers = self.base.trackers();
        let Some(locked) = trackers.lock_for_reading(&mut transaction, request.claim).await? else {
            return Ok(None);
        };
        let (witness, partitions) = (locked.witness, locked.partitions.as_deref());
        let batch = match self.base.read_batch(&mut transaction, request, witness, partitions).await {
            Err(ProcessorError::Database(error)) if !is_infrastructure_error(&error) => {
                self.base
                    .read_before_unreadable(&mut transaction, request, witness, partitions, &error)
                    .await?
            }
            read => read?,
        };
        let arrays = (1..=remote::ARRAYS).map(remote::parameter).collect::<Vec<_>>().join(", ");
        let statement = self.statement(&format!("{}, {arrays}", Self::arguments(request, batch.upto)));
        let call = remote::bind(&batch, sqlx::query_as(AssertSqlSafe(statement)).persistent(false));
        let returned: Returned = call.fetch_one(&mut *transaction).await?;
        let position = returned.espd_position.filter(|_| request.dead_letter().is_none());
        if let Some(witness) = position.and_then(|position| batch.trail.upto(position)) {
            trackers.note_witness(&mut *transaction, request.claim, witness).await?;
        }
        transaction.commit().await?;
        Ok(Some(returned))
    }

    pub(super) fn statement(&self, arguments: &str) -> String {
        // Leaving the function early would commit rows without a position, so that has to be an error.
        format!(
            "-- project_batch
             select espd_position, espd_handled, espd_failure,
                    coalesce(espd_finished::text, 'a handler has left the function')::boolean as finished
             from {}({arguments}) as returned (espd_position, espd_handled, espd_failure, espd_finished)",
            self.older.as_ref().unwrap_or(&self.function.name)
        )
    }

    /// The function's arguments, without those of a batch that is passed.
    pub(super) fn arguments(request: &BatchRequest<'_>, upto: Position) -> String {
        let BatchRequest { claim, work, limits, lease, .. } = request;
        let (size, rate) = (size_of(limits), rate_of(work));
        let (partition, epoch) = (claim.key.partition, claim.epoch);
        let (bytes, time, lease) = (limits.bytes, interval(limits.time), interval(*lease));
        // The event of a dead letter is a batch of its own, whatever the position is.
        let position = request.after();
        let dead_letter = request.dead_letter().map_or("null".to_owned(), |id| id.to_string());
        format!(
            "{partition}, {epoch}, {position}, {upto}, {size}, {bytes}, {time}, {lease}, {rate}::real, {dead_letter}"
        )
    }

    /// The failure, with the place in the author's file instead of the line of the function.
    pub(super) fn locate(&self, raw: RawFailure) -> Failure {
        if self.older.is_some() {
            // The text of its handlers is not the declared one.
            return raw.failure;
        }
        let place = line_in_context(&raw.context, &self.function.name)
            .and_then(|line| self.function.place_of_line(line, self.base.declaration.handlers()))
            .map(|place| describe(&self.base.declaration.handlers()[place.handler], place.offset));
        Failure { place, ..raw.failure }
    }
}

/// How many events a batch may have, as the function takes it.
fn size_of(limits: &BatchLimits) -> i32 {
    i32::try_from(limits.size).unwrap_or(i32::MAX)
}

/// The rate that the tracker is to show.
fn rate_of(work: &Work) -> f32 {
    match work {
        Work::Batch { rate, .. } if rate.is_finite() => *rate,
        _ => 0.0,
    }
}

/// `file:line` of a place in a handler.
fn describe(handler: &Handler, offset: usize) -> String {
    let characters = handler.sql.text[..offset].chars().count();
    let (line, _) = handler.sql.locate(characters);
    format!("{}:{line}", handler.sql.file)
}

/// The line of the generated function in an error's context: the first number after the function's signature.
///
/// Only the function's name is looked for, so the language of the server's messages does not matter.
fn line_in_context(context: &str, qualified_name: &str) -> Option<usize> {
    let name = qualified_name.rsplit('.').next()?.trim_matches('"');
    let line = context.lines().rfind(|line| line.contains(name))?;
    let behind = &line[line.find(name)? + name.len()..];
    let digits = behind[behind.find(')')?..].split(|c: char| !c.is_ascii_digit());
    digits.into_iter().find(|number| !number.is_empty())?.parse().ok()
}
