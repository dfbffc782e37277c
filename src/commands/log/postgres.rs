//! Records beside the events in PostgreSQL.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, SqlSafeStr, SqlStr};
use uuid::Uuid;

use super::{CommandLog, CommandRecord, Complete};
use crate::commands::Outcome;
use crate::event::{AggregateId, Appended, NewEvent};
use crate::postgres::literal::without_nul;
use crate::store::{AppendError, EventStore, PostgresEventStore, ReadError};

/// What is tried when records are read.
const READ: &str = "read records of commands";

/// Records in the table `commands` beside the events. A command and its events are stored in one transaction.
#[derive(Debug, Clone)]
pub struct PostgresCommandLog {
    store: PostgresEventStore,
    find: SqlStr,
    insert: SqlStr,
    newest: SqlStr,
    prune: SqlStr,
}

impl PostgresCommandLog {
    /// Those beside the events of a store, which is that of the commands. [`Commands::recorded_by`](crate::commands::Commands::recorded_by)
    /// takes database, codec and hooks from the store of the repository, so it does not matter whether they were added before.
    ///
    /// # Errors
    /// espd only reads a store of this layout, and has made no table there.
    pub fn of(store: &PostgresEventStore) -> Result<Self, AppendError> {
        let commands = &store.append_names()?.commands;
        let sql = |text: String| AssertSqlSafe(text).into_sql_str();
        let columns = "command_id, name, aggregate_id, body, metadata, answer, at";
        Ok(Self {
            store: store.clone(),
            find: sql(format!(
                "-- find_command
                select {columns} from {commands} where command_id = $1"
            )),
            insert: sql(format!(
                "-- record_command
                insert into {commands} (command_id, name, aggregate_id, body, metadata, outcome, answer, at)
                values ($1, $2, $3, $4, $5, $6, $7, $8)
                on conflict (command_id) do nothing"
            )),
            newest: sql(format!(
                "-- newest_commands
                select {columns} from {commands} where ($1::timestamptz is null or at < $1)
                order by at desc limit $2"
            )),
            prune: sql(format!(
                "-- prune_commands
                delete from {commands} where at < $1"
            )),
        })
    }

    fn pool(&self) -> &PgPool {
        self.store.pool()
    }

    /// Returns whether the id was free.
    async fn insert(
        &self,
        connection: &mut PgConnection,
        record: &CommandRecord,
    ) -> Result<bool, sqlx::Error> {
        let query = sqlx::query(self.insert.clone())
            .bind(record.command_id)
            .bind(&record.name)
            .bind(record.aggregate_id.to_string())
            .bind(Json(&record.body))
            .bind(Json(&record.metadata))
            .bind(record.outcome.label())
            .bind(Json(to_kept(&record.outcome)?))
            .bind(record.at);
        Ok(query.execute(connection).await?.rows_affected() == 1)
    }
}

/// The outcome as `jsonb` can keep it: a refusal may quote what no text of a database can have.
fn to_kept(outcome: &Outcome) -> Result<Box<RawValue>, sqlx::Error> {
    let text = serde_json::to_string(outcome).map(without_nul);
    text.and_then(RawValue::from_string).map_err(|error| sqlx::Error::Encode(error.into()))
}

/// What is read of a record.
type Row = (Uuid, String, String, Json<Value>, Json<Map<String, Value>>, Json<Outcome>, DateTime<Utc>);

fn record_of(row: Row) -> Result<CommandRecord, sqlx::Error> {
    let (command_id, name, aggregate_id, Json(body), Json(metadata), Json(outcome), at) = row;
    let aggregate_id: AggregateId =
        aggregate_id.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    Ok(CommandRecord { command_id, name, aggregate_id, body, metadata, outcome, at })
}

#[async_trait]
impl CommandLog for PostgresCommandLog {
    async fn find(&self, command_id: Uuid) -> Result<Option<CommandRecord>, ReadError> {
        let row = sqlx::query_as(self.find.clone()).bind(command_id).fetch_optional(self.pool()).await;
        row.and_then(|row| row.map(record_of).transpose()).map_err(ReadError::beside(READ))
    }

    async fn record(&self, record: &CommandRecord) -> Result<bool, AppendError> {
        let mut connection = self.pool().acquire().await?;
        Ok(self.insert(&mut connection, record).await?)
    }

    async fn append(
        &self,
        events: &[NewEvent],
        complete: &Complete<'_>,
    ) -> Result<Vec<Appended>, AppendError> {
        let mut transaction = self.store.begin().await?;
        let uncommitted = self.store.append_in(&mut transaction, events).await?;
        let record = complete(&uncommitted);
        if !self.insert(&mut transaction, &record).await? {
            transaction.rollback().await?;
            return Err(AppendError::UuidReused { uuid: record.command_id });
        }
        Ok(uncommitted.commit(transaction).await?.to_vec())
    }

    fn beside(self, store: &dyn EventStore) -> Self {
        let Some(store) = store.as_postgres() else { return self };
        let cannot = |error| {
            panic!("commands cannot be recorded beside the events of the repository's store: {error}")
        };
        Self::of(store).unwrap_or_else(cannot)
    }

    async fn newest(
        &self,
        limit: u32,
        before: Option<DateTime<Utc>>,
    ) -> Result<Vec<CommandRecord>, ReadError> {
        let query = sqlx::query_as(self.newest.clone()).bind(before).bind(i64::from(limit));
        let rows = query.fetch_all(self.pool()).await;
        rows.and_then(|rows| rows.into_iter().map(record_of).collect()).map_err(ReadError::beside(READ))
    }

    async fn prune(&self, before: DateTime<Utc>) -> Result<u64, ReadError> {
        let removed = sqlx::query(self.prune.clone()).bind(before).execute(self.pool()).await;
        Ok(removed.map_err(ReadError::beside("remove records of commands"))?.rows_affected())
    }
}
