//! What handlers want done once their batch is committed.
//!
//! An effect is recorded in the transaction of its batch, and removed when it was carried out. In between, whoever owns the
//! processor carries it out, after a crash or a takeover again. So it is carried out at least once, never for a batch that was
//! rolled back, and in order.

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor, Row as _};
use uuid::Uuid;

use crate::event::Position;
use crate::postgres::quote::quote_identifier;
use crate::postgres::row::from_row;
use crate::processing::tracker::ProcessorKey;

/// Work that a handler has asked for, to be done now that its batch is committed.
#[derive(Debug, Clone)]
pub struct Effect {
    pub(crate) id: i64,
    /// The position of the event that the work is about.
    pub event_id: Position,
    /// The identity of that event.
    pub event_uuid: Uuid,
    /// The type of that event, as the handler saw it.
    pub event_type: String,
    /// What the handler has handed to `after_commit`.
    pub payload: Box<RawValue>,
    /// How often the work was begun, from 1.
    pub attempt: i32,
}

impl Effect {
    /// Reads the payload.
    ///
    /// # Errors
    /// It is not a `T`.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.payload.get())
    }

    /// Whether the work may have been done before: the program has ended, lost its database or failed in the middle of it.
    pub fn may_be_repeated(&self) -> bool {
        self.attempt > 1
    }

    /// A number that stays the same in each attempt, and that no other effect of the database has: a key for receivers that
    /// recognise repetitions.
    pub fn key(&self) -> i64 {
        self.id
    }
}

/// The effects of one processor that are to be carried out, in order.
#[async_trait]
pub(crate) trait EffectQueue: Send {
    /// Removes the effect that was carried out, and begins the next one, if there is one.
    async fn next(&mut self, done: Option<i64>) -> Result<Option<Effect>, sqlx::Error>;

    /// Removes an effect that was carried out.
    async fn remove(&mut self, id: i64) -> Result<(), sqlx::Error>;
}

/// The queue in PostgreSQL.
pub(crate) struct RecordedEffects<'q> {
    pub(crate) effects: &'q Effects,
    pub(crate) connection: &'q mut PgConnection,
    pub(crate) key: &'q ProcessorKey,
}

#[async_trait]
impl EffectQueue for RecordedEffects<'_> {
    async fn next(&mut self, done: Option<i64>) -> Result<Option<Effect>, sqlx::Error> {
        self.effects.next(self.connection, self.key, done).await
    }

    async fn remove(&mut self, id: i64) -> Result<(), sqlx::Error> {
        self.effects.remove(self.connection, id).await
    }
}

/// An effect that is to be recorded.
#[derive(Debug, Clone)]
pub(crate) struct NewEffect {
    pub(crate) event_id: Position,
    pub(crate) event_uuid: Uuid,
    pub(crate) event_type: String,
    pub(crate) payload: Box<RawValue>,
}

impl NewEffect {
    /// The effect as it is recorded under a number.
    pub(crate) fn into_effect(self, id: i64) -> Effect {
        let Self { event_id, event_uuid, event_type, payload } = self;
        Effect { id, event_id, event_uuid, event_type, payload, attempt: 0 }
    }
}

/// The effects of one processor that are to be carried out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PendingEffects {
    pub(crate) processor: String,
    pub(crate) version: i32,
    pub(crate) partition: i32,
    pub(crate) count: i64,
    /// Age of the oldest of them, in seconds.
    pub(crate) oldest_seconds: f64,
}

from_row!(PendingEffects { processor, version, partition, count, oldest_seconds });

/// The table of effects in one schema.
#[derive(Debug, Clone)]
pub(crate) struct Effects {
    /// The quoted schema.
    schema: String,
}

impl Effects {
    /// Names the schema whose tables `migrations/processing` has created.
    pub(crate) fn new(schema: &str) -> Self {
        Self { schema: quote_identifier(schema) }
    }

    /// Records effects in the transaction of their batch, if a condition holds. Returns whether it does.
    pub(crate) async fn record(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        effects: &[NewEffect],
        condition: &str,
    ) -> Result<bool, sqlx::Error> {
        let statement = format!(
            "-- record_effects
             insert into {}.effects (processor, version, partition, event_id, event_uuid, event_type, payload)
             select {}, e.event_id, e.event_uuid, e.event_type, e.payload
             from unnest($1::bigint[], $2::uuid[], $3::text[], $4::jsonb[]) with ordinality
               as e (event_id, event_uuid, event_type, payload, place)
             where {condition}
             order by e.place",
            self.schema,
            key.arguments(),
        );
        let ids: Vec<i64> = effects.iter().map(|effect| effect.event_id.get()).collect();
        let uuids: Vec<Uuid> = effects.iter().map(|effect| effect.event_uuid).collect();
        let types: Vec<&str> = effects.iter().map(|effect| effect.event_type.as_str()).collect();
        let payloads: Vec<Json<&RawValue>> = effects.iter().map(|effect| Json(&*effect.payload)).collect();
        let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
        let recorded = query.bind(ids).bind(uuids).bind(types).bind(payloads).execute(connection).await?;
        Ok(recorded.rows_affected() > 0)
    }

    /// Whether any effect of the processor is to be carried out, whichever version has asked for it.
    pub(crate) async fn are_pending(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
    ) -> Result<bool, sqlx::Error> {
        let statement = format!(
            "-- find_effects\nselect exists (select from {}.effects where processor = $1 and partition = $2)",
            self.schema
        );
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
        query.bind(&key.name).bind(key.partition).fetch_one(connection).await
    }

    /// Counts the effects of each processor that are to be carried out; processors without any are left out.
    pub(crate) async fn summarise(
        &self,
        connection: impl PgExecutor<'_>,
    ) -> Result<Vec<PendingEffects>, sqlx::Error> {
        let statement = format!(
            "-- summarise_effects
             select processor, version, partition, count(*) as count,
                    extract(epoch from clock_timestamp() - min(created_at))::float8 as oldest_seconds
             from {}.effects group by processor, version, partition",
            self.schema
        );
        sqlx::query_as(AssertSqlSafe(statement)).persistent(false).fetch_all(connection).await
    }

    /// Removes an effect that was carried out.
    pub(crate) async fn remove(&self, connection: &mut PgConnection, id: i64) -> Result<(), sqlx::Error> {
        let statement = format!("-- remove_effect\ndelete from {}.effects where id = $1", self.schema);
        sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(id).execute(connection).await.map(drop)
    }

    /// Removes the effect that was carried out, and begins the next one, if there is one. If a crash of the server loses this,
    /// the effect that was carried out is carried out once more.
    pub(crate) async fn next(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        done: Option<i64>,
    ) -> Result<Option<Effect>, sqlx::Error> {
        let statement = format!(
            "-- begin_effect
             with done as (delete from {schema}.effects where id = $3)
             update {schema}.effects set attempts = attempts + 1
             where id = (select id from {schema}.effects
                         where processor = $1 and partition = $2 and id is distinct from $3 order by id limit 1)
             returning id, event_id, event_uuid, event_type, payload, attempts",
            schema = self.schema
        );
        let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
        let row = query.bind(&key.name).bind(key.partition).bind(done).fetch_optional(connection).await?;
        let Some(row) = row else { return Ok(None) };
        let Json(payload) = row.try_get("payload")?;
        Ok(Some(Effect {
            id: row.try_get("id")?,
            event_id: row.try_get("event_id")?,
            event_uuid: row.try_get("event_uuid")?,
            event_type: row.try_get("event_type")?,
            payload,
            attempt: row.try_get("attempts")?,
        }))
    }
}
