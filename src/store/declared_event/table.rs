//! The schemas that a store has, and what of its events departs from a schema.

use std::collections::BTreeMap;

use serde_json::Value;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgExecutor, Row as _};

use super::DeclaredEvent;
use crate::event::Position;
use crate::postgres::literal::{json_text_literal, simple};
use crate::postgres::quote::quote_literal;
use crate::store::layout::Layout;

/// What a store has been told of a type.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StoredSchema {
    /// As JSON text, because a number that is read may be rounded.
    pub(crate) schema: String,
    pub(crate) is_checked: bool,
}

/// Events that are not as they are declared.
#[derive(Debug, Clone)]
pub(crate) struct Departures {
    /// How many of those that were looked at.
    pub(crate) count: i64,
    /// How many were looked at: also those that an upcast reads as this type.
    pub(crate) looked_at: i64,
    /// The newest of them, with the path, what is expected and what is found.
    pub(crate) newest: Option<(Position, Value)>,
}

/// The table of schemas of one store.
#[derive(Debug, Clone)]
pub(crate) struct EventSchemas {
    /// The quoted schema of the database.
    schema: String,
}

impl EventSchemas {
    /// The schemas of a store of this layout; `None`: espd appends nothing to it, and so checks nothing.
    pub(crate) fn of(layout: &Layout) -> Option<Self> {
        layout.append.as_ref().map(|_| Self { schema: layout.quoted_schema() })
    }

    /// All schemas, by type.
    pub(crate) async fn list(
        &self,
        connection: impl PgExecutor<'_>,
    ) -> Result<BTreeMap<String, StoredSchema>, sqlx::Error> {
        let statement = format!(
            "-- list_event_schemas\nselect type, schema::text as schema, check_at_append from {}.event_schemas",
            self.schema
        );
        let rows = sqlx::query(AssertSqlSafe(statement)).persistent(false).fetch_all(connection).await?;
        let stored = |row: &sqlx::postgres::PgRow| {
            let (schema, is_checked) = (row.try_get("schema")?, row.try_get("check_at_append")?);
            Ok((row.try_get("type")?, StoredSchema { schema, is_checked }))
        };
        rows.iter().map(stored).collect()
    }

    /// Tells the store of a type, instead of what it was told before.
    pub(crate) async fn declare(
        &self,
        connection: impl PgExecutor<'_>,
        event: &DeclaredEvent,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- declare_event
             insert into {}.event_schemas (type, schema, check_at_append) values ({}, {}::jsonb, {})
             on conflict (type) do update set schema = excluded.schema, check_at_append = excluded.check_at_append,
               declared_at = excluded.declared_at, declared_by = excluded.declared_by",
            self.schema,
            quote_literal(&event.event_type),
            json_text_literal(&event.text),
            event.is_checked,
        );
        simple(statement).execute(connection).await.map(drop)
    }

    /// Has the store forget what it was told of a type.
    pub(crate) async fn forget(
        &self,
        connection: impl PgExecutor<'_>,
        event_type: &str,
    ) -> Result<(), sqlx::Error> {
        let name = quote_literal(event_type);
        let statement =
            format!("-- forget_event\ndelete from {}.event_schemas where type = {name}", self.schema);
        simple(statement).execute(connection).await.map(drop)
    }

    /// What of the newest events of a type, `sample` at most, departs from a schema. `source` is where they are read.
    pub(crate) async fn find_departures(
        &self,
        connection: impl PgExecutor<'_>,
        source: &str,
        event_type: &str,
        schema: &str,
        sample: i64,
    ) -> Result<Departures, sqlx::Error> {
        let statement = format!(
            "-- find_departures
             with looked_at as (
               select e.id, {schemas}.find_departure({schema}::jsonb, e.body) as departure
               from (select id, body from {source} as e where type = {name} order by id desc limit {sample}) as e
             )
             select count(departure) as count, count(*) as looked_at, max(id) filter (where departure is not null) as newest,
                    (array_agg(departure order by id desc) filter (where departure is not null))[1] as departure
             from looked_at",
            schemas = self.schema,
            schema = json_text_literal(schema),
            name = quote_literal(event_type),
        );
        let row = sqlx::query(AssertSqlSafe(statement)).persistent(false).fetch_one(connection).await?;
        let newest: Option<Position> = row.try_get("newest")?;
        let departure: Option<Json<Value>> = row.try_get("departure")?;
        let newest = newest.zip(departure.map(|Json(departure)| departure));
        Ok(Departures { count: row.try_get("count")?, looked_at: row.try_get("looked_at")?, newest })
    }
}
