//! Snapshots beside the events in PostgreSQL.

use async_trait::async_trait;
use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, PgPool, SqlSafeStr, SqlStr};

use super::{Snapshot, SnapshotKey, SnapshotStore};
use crate::event::{Position, Version};
use crate::store::{AppendError, EventStore, PostgresEventStore, ReadError};

/// Snapshots in the table `snapshots` beside the events.
#[derive(Debug, Clone)]
pub struct PostgresSnapshots {
    pool: PgPool,
    load: SqlStr,
    save: SqlStr,
}

impl PostgresSnapshots {
    /// Those of a store, through its connections. [`Repository::with_snapshots`](crate::aggregate::Repository::with_snapshots) keeps
    /// them beside the events of the repository's store, whatever store is named here.
    ///
    /// # Errors
    /// espd only reads a store of this layout, and has made no table there; or the store has a codec, which may be there to keep
    /// bodies secret: states would lie beside them as they are. A [`SnapshotStore`] of one's own can encode them.
    pub fn of(store: &PostgresEventStore) -> Result<Self, AppendError> {
        if store.has_codec() {
            let reason =
                "the store has a codec, and snapshots would not be encoded by it: leave them out, or \
                          give the repository a SnapshotStore of your own that encodes states"
                    .to_owned();
            return Err(AppendError::Invalid { index: None, reason });
        }
        let (snapshots, events) = (&store.append_names()?.snapshots, store.layout().events_table());
        Ok(Self {
            pool: store.pool().clone(),
            load: AssertSqlSafe(format!(
                "-- load_snapshot
                select s.version, s.event_id, s.state::text
                from {snapshots} as s
                  join {events} as e
                    on e.aggregate_id = s.aggregate_id and e.version = s.version and e.id = s.event_id
                where s.aggregate_id = $1 and s.name = $2 and s.format = $3 and s.event_types = $4
                  and s.version <= $5"
            ))
            .into_sql_str(),
            save: AssertSqlSafe(format!(
                "-- save_snapshot
                insert into {snapshots} as s
                  (aggregate_id, name, format, event_types, version, event_id, state)
                select $1, $2, $3, $4, $5, $6, $7::json
                where exists (select from {events} as e where e.aggregate_id = $1 and e.version = $5 and e.id = $6)
                on conflict (aggregate_id, name, format, event_types) do update
                set version = excluded.version, event_id = excluded.event_id, state = excluded.state,
                  taken_at = clock_timestamp()
                where s.version < excluded.version or s.event_id not in (
                  select e.id from {events} as e where e.aggregate_id = s.aggregate_id and e.version = s.version)"
            ))
            .into_sql_str(),
        })
    }
}

/// What is read of a snapshot.
type Row = (Version, Position, String);

#[async_trait]
impl SnapshotStore for PostgresSnapshots {
    async fn load(&self, key: &SnapshotKey, upto: Version) -> Result<Option<Snapshot>, ReadError> {
        let row: Option<Row> = sqlx::query_as(self.load.clone())
            .bind(key.aggregate_id.as_uuid())
            .bind(key.name)
            .bind(i64::from(key.format))
            .bind(key.event_types)
            .bind(upto)
            .fetch_optional(&self.pool)
            .await
            .map_err(ReadError::beside("read a snapshot"))?;
        let snapshot = |(version, event_id, state)| -> Result<Snapshot, ReadError> {
            let state = RawValue::from_string(state).map_err(|error| sqlx::Error::Decode(error.into()))?;
            Ok(Snapshot { version, event_id, state })
        };
        row.map(snapshot).transpose()
    }

    async fn save(&self, key: &SnapshotKey, snapshot: &Snapshot) -> Result<(), ReadError> {
        let query = sqlx::query(self.save.clone())
            .bind(key.aggregate_id.as_uuid())
            .bind(key.name)
            .bind(i64::from(key.format))
            .bind(key.event_types)
            .bind(snapshot.version)
            .bind(snapshot.event_id)
            .bind(snapshot.state.get());
        query.execute(&self.pool).await.map_err(ReadError::beside("write a snapshot"))?;
        Ok(())
    }

    fn beside(self, store: &dyn EventStore) -> Self {
        let Some(store) = store.as_postgres() else { return self };
        let cannot =
            |error| panic!("snapshots cannot be kept beside the events of the repository's store: {error}");
        Self::of(store).unwrap_or_else(cannot)
    }
}
