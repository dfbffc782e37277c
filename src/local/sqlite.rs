//! The ledger in the file of a SQLite store: a program that is started again goes on where it was.

mod effects;
mod workflow;

use async_trait::async_trait;
use serde_json::value::RawValue;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};

use effects::SqliteEffects;

use super::ledger::{Commit, DeadLetter, Later, Ledger, Pending, Standing, Unit};
use crate::event::{NewEvent, Position};
use crate::processing::effects::{EffectQueue, NewEffect};
use crate::processing::tracker::ProcessorKey;
use crate::processing::workflow::{Step, WorkflowInstance};
use crate::store::AppendError;
use crate::store::sqlite::{SqliteEventStore, WriteTransaction, row};

/// What processors on a SQLite store remember.
#[derive(Debug)]
pub(super) struct SqliteLedger {
    store: SqliteEventStore,
}

impl SqliteLedger {
    pub(super) fn new(store: SqliteEventStore) -> Self {
        Self { store }
    }
}

#[async_trait]
impl Ledger for SqliteLedger {
    async fn register(&self, key: &ProcessorKey, start: Position) -> Result<(), sqlx::Error> {
        let statement = "-- register_processor
            insert into espd_positions (name, version, position) values (?, ?, ?) on conflict do nothing";
        let mut writing = self.store.begin_writing().await?;
        workflow::make_tables(&mut writing.transaction).await?;
        let query = sqlx::query(statement).bind(&key.name).bind(key.version).bind(start.get());
        query.execute(&mut *writing.transaction).await?;
        writing.commit().await
    }

    async fn standing(&self, key: &ProcessorKey) -> Result<Standing, sqlx::Error> {
        let pool = self.store.pool();
        let statement =
            "-- find_processor\nselect position from espd_positions where name = ? and version = ?";
        let query = sqlx::query_scalar(statement).bind(&key.name).bind(key.version);
        let position: Option<i64> = query.fetch_optional(pool).await?;
        let statement = "-- find_parked
            select distinct aggregate_id from espd_dead_letters where name = ? and version = ? and blocks";
        let query = sqlx::query_scalar(statement).bind(&key.name).bind(key.version);
        let parked: Vec<String> = query.fetch_all(pool).await?;
        let parked = parked.into_iter().filter_map(|id| id.parse().ok()).collect();
        Ok(Standing { position: position.map(Position::new), parked })
    }

    async fn open_unit(&self) -> Result<Box<dyn Unit + '_>, sqlx::Error> {
        Ok(Box::new(SqliteUnit { store: &self.store, writing: None, has_appended: false }))
    }

    async fn pending(&self) -> Result<Vec<Pending>, sqlx::Error> {
        let statement = "-- list_emissions
            select id, reactor, uuid, aggregate_id, type, body, metadata, correlation_id, causation_id, key, due_at
            from espd_emissions order by due_at, id";
        let rows = sqlx::query(statement).fetch_all(self.store.pool()).await?;
        rows.iter().map(pending).collect()
    }

    async fn append_pending(&self, id: i64, event: NewEvent) -> Result<(), AppendError> {
        let mut writing = self.store.begin_writing().await?;
        let query = sqlx::query("-- take_emission\ndelete from espd_emissions where id = ?").bind(id);
        if query.execute(&mut *writing.transaction).await?.rows_affected() == 0 {
            return Ok(());
        }
        self.store.append_missing(&mut writing, &[event]).await?;
        writing.commit().await?;
        self.store.notify();
        Ok(())
    }

    fn effects<'l>(&'l self, processor: &'l str) -> Box<dyn EffectQueue + 'l> {
        Box::new(SqliteEffects::new(&self.store, processor))
    }

    async fn load_instance(
        &self,
        workflow: &str,
        instance: &str,
    ) -> Result<Option<WorkflowInstance>, sqlx::Error> {
        workflow::load_instance(self.store.pool(), workflow, instance).await
    }

    async fn find_step(&self, workflow: &str, step: Step<'_>) -> Result<Option<Box<RawValue>>, sqlx::Error> {
        workflow::find_step(self.store.pool(), workflow, step).await
    }

    async fn record_step(
        &self,
        workflow: &str,
        step: Step<'_>,
        result: &RawValue,
    ) -> Result<Box<RawValue>, sqlx::Error> {
        let mut writing = self.store.begin_writing().await?;
        let recorded = workflow::record_step(&mut writing.transaction, workflow, step, result).await?;
        writing.commit().await?;
        Ok(recorded)
    }

    async fn has_effects(&self, processor: &str) -> Result<bool, sqlx::Error> {
        let statement = "-- find_effects\nselect exists (select 1 from espd_effects where processor = ?)";
        sqlx::query_scalar(statement).bind(processor).fetch_one(self.store.pool()).await
    }
}

fn pending(found: &SqliteRow) -> Result<Pending, sqlx::Error> {
    let aggregate_id: String = found.try_get("aggregate_id")?;
    let aggregate_id: crate::event::AggregateId = aggregate_id
        .parse()
        .map_err(|error: crate::event::InvalidAggregateId| sqlx::Error::Decode(error.into()))?;
    let event_type: String = found.try_get("type")?;
    let mut event = NewEvent::new(aggregate_id, event_type, row::json(found, "body")?);
    event.uuid = row::uuid(found, "uuid")?.unwrap_or_default();
    event.metadata = row::json(found, "metadata")?;
    event.correlation_id = row::uuid(found, "correlation_id")?;
    event.causation_id = row::uuid(found, "causation_id")?;
    Ok(Pending {
        id: found.try_get("id")?,
        reactor: found.try_get("reactor")?,
        event,
        key: found.try_get("key")?,
        due_at: row::time(found, "due_at")?,
    })
}

/// Handlers write nothing in it, so it need not begin before something is to be stored, and keeps no other writer waiting
/// while they work.
struct SqliteUnit<'l> {
    store: &'l SqliteEventStore,
    writing: Option<WriteTransaction>,
    has_appended: bool,
}

impl SqliteUnit<'_> {
    async fn writing(&mut self) -> Result<&mut WriteTransaction, sqlx::Error> {
        if self.writing.is_none() {
            self.writing = Some(self.store.begin_writing().await?);
        }
        self.writing.as_mut().ok_or(sqlx::Error::PoolClosed)
    }
}

#[async_trait]
impl Unit for SqliteUnit<'_> {
    async fn savepoint(&mut self) -> Result<(), sqlx::Error> {
        Ok(())
    }

    async fn rollback_to_savepoint(&mut self) -> Result<(), sqlx::Error> {
        Ok(())
    }

    async fn begin_event(&mut self) -> Result<(), sqlx::Error> {
        Ok(())
    }

    async fn undo_event(&mut self) -> Result<(), sqlx::Error> {
        Ok(())
    }

    async fn emit(&mut self, now: Vec<NewEvent>, later: Vec<Later>) -> Result<(), AppendError> {
        if now.is_empty() && later.is_empty() {
            return Ok(());
        }
        self.has_appended |= !now.is_empty();
        let store = self.store;
        let writing = self.writing().await?;
        // What is refused is refused before anything is written.
        store.append_missing(writing, &now).await?;
        for change in later {
            change_emissions(&mut writing.transaction, change).await?;
        }
        Ok(())
    }

    async fn commit(mut self: Box<Self>, commit: Commit<'_>) -> Result<bool, sqlx::Error> {
        let Commit { key, from, position, effects, dead_letters, workflow } = commit;
        let statement = "-- move_position
            update espd_positions set position = ? where name = ? and version = ? and position = ?";
        let query =
            sqlx::query(statement).bind(position.get()).bind(&key.name).bind(key.version).bind(from.get());
        let connection = &mut *self.writing().await?.transaction;
        if query.execute(&mut *connection).await?.rows_affected() == 0 {
            return Ok(false);
        }
        workflow::change(connection, &key.name, workflow).await?;
        for effect in effects {
            record_effect(connection, &key.name, effect).await?;
        }
        for letter in dead_letters {
            record_dead_letter(connection, key, letter).await?;
        }
        if let Some(writing) = self.writing.take() {
            writing.commit().await?;
        }
        if self.has_appended {
            self.store.notify();
        }
        Ok(true)
    }
}

async fn change_emissions(connection: &mut SqliteConnection, change: Later) -> Result<(), sqlx::Error> {
    let (reactor, event, key, due_at) = match change {
        Later::Cancel { reactor, key } => {
            let statement = "-- cancel_emission\ndelete from espd_emissions where reactor = ? and key = ?";
            return sqlx::query(statement).bind(reactor).bind(key).execute(connection).await.map(drop);
        }
        Later::Keep { reactor, event, key, due_at } => (reactor, event, key, due_at),
    };
    let uuid = event.uuid.to_string();
    let statement = "-- replace_emission
        delete from espd_emissions where reactor = ?1 and key = ?2 and uuid <> ?3
        and not exists (select 1 from events where events.uuid = ?3)";
    let query = sqlx::query(statement).bind(&reactor).bind(&key).bind(&uuid);
    query.execute(&mut *connection).await?;
    let statement = "-- keep_emission
        insert into espd_emissions
          (reactor, uuid, aggregate_id, type, body, metadata, correlation_id, causation_id, key, due_at)
        select ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10
        where not exists (select 1 from events where uuid = ?2) on conflict (uuid) do nothing";
    let query = sqlx::query(statement)
        .bind(reactor)
        .bind(uuid)
        .bind(event.aggregate_id.to_string())
        .bind(&event.event_type)
        .bind(event.body.get())
        .bind(event.metadata.get())
        .bind(event.correlation_id.map(|id| id.to_string()))
        .bind(event.causation_id.map(|id| id.to_string()))
        .bind(key)
        .bind(due_at.timestamp_micros());
    query.execute(connection).await.map(drop)
}

async fn record_effect(
    connection: &mut SqliteConnection,
    processor: &str,
    effect: NewEffect,
) -> Result<(), sqlx::Error> {
    let statement = "-- record_effect
        insert into espd_effects (processor, event_id, event_uuid, event_type, payload) values (?, ?, ?, ?, ?)";
    let query = sqlx::query(statement)
        .bind(processor)
        .bind(effect.event_id.get())
        .bind(effect.event_uuid.to_string())
        .bind(&effect.event_type)
        .bind(effect.payload.get());
    query.execute(connection).await.map(drop)
}

async fn record_dead_letter(
    connection: &mut SqliteConnection,
    key: &ProcessorKey,
    DeadLetter { event, reason, blocks }: DeadLetter,
) -> Result<(), sqlx::Error> {
    let statement = "-- record_dead_letter
        insert into espd_dead_letters
          (name, version, event_id, event_uuid, event_type, aggregate_id, reason, blocks)
        values (?, ?, ?, ?, ?, ?, ?, ?) on conflict do nothing";
    let query = sqlx::query(statement)
        .bind(&key.name)
        .bind(key.version)
        .bind(event.id.get())
        .bind(event.uuid.to_string())
        .bind(event.event_type)
        .bind(event.aggregate_id.to_string())
        .bind(reason)
        .bind(blocks);
    query.execute(connection).await.map(drop)
}
