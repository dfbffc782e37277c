//! Whether a newer espd has declared the tables to be not for this program. A program that works on them already asks that again
//! and again, as a part of statements that it makes anyway.

use super::files::{MigrationSet, PROCESSING};
use crate::postgres::quote::quote_identifier;

#[cfg(feature = "daemon")]
pub(crate) use asking::{Tables, excluding, find_exclusion, read_exclusion};

/// The condition that the tables of processors in `schema`, which is quoted, let this program go on.
pub(crate) fn lets_go_on(schema: &str) -> String {
    let (table, known) = (quote_identifier(PROCESSING.table), PROCESSING.newest());
    format!(
        "not exists (select from {schema}.{table} as m where m.success and m.version > {known} and {})",
        excludes(&PROCESSING)
    )
}

/// The condition that the migration `m`, which this program does not know, excludes it. One that does not say excludes every
/// program that does not know it; programs of before have not even made the column.
fn excludes(set: &MigrationSet) -> String {
    format!("coalesce((to_jsonb(m) ->> 'oldest_program')::bigint, m.version) > {}", set.newest())
}

#[cfg(feature = "daemon")]
mod asking {
    use serde::Deserialize;
    use sqlx::PgConnection;
    use sqlx::types::Json;

    use super::super::SchemaError;
    use super::super::files::{EVENT_STORE, MigrationSet, PROCESSING};
    use super::excludes;
    use crate::postgres::literal::simple;
    use crate::postgres::quote::{quote_identifier, quote_literal};
    use sqlx::Row as _;

    /// A set of tables that migrations make.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Tables {
        EventStore,
        Processing,
    }

    impl Tables {
        fn set(self) -> &'static MigrationSet {
            match self {
                Self::EventStore => &EVENT_STORE,
                Self::Processing => &PROCESSING,
            }
        }
    }

    /// An SQL expression that says what excludes this program from these tables in `schema`, as [`read_exclusion`] reads it; null:
    /// nothing does.
    pub(crate) fn excluding(tables: &[Tables], schema: &str) -> String {
        let one = |tables: &Tables| {
            let set = tables.set();
            format!(
                "(select jsonb_build_object('set', {name}, 'found', max(m.version),
                    'applied_by', (array_agg(to_jsonb(m) ->> 'applied_by' order by m.version desc) filter (where {excludes}))[1])
                  from {schema}.{table} as m where m.success and m.version > {known} having bool_or({excludes}))",
                name = quote_literal(set.name),
                schema = quote_identifier(schema),
                table = quote_identifier(set.table),
                known = set.newest(),
                excludes = excludes(set),
            )
        };
        let each: Vec<String> = tables.iter().map(one).collect();
        format!("coalesce(null::jsonb, {})", each.join(", "))
    }

    /// What [`excluding`] has found.
    #[derive(Debug, Deserialize)]
    struct Found {
        set: String,
        found: i64,
        applied_by: Option<String>,
    }

    /// Reads the value of [`excluding`].
    pub(crate) fn read_exclusion(
        row: &sqlx::postgres::PgRow,
        column: usize,
        schema: &str,
    ) -> Result<Option<SchemaError>, sqlx::Error> {
        let value: Option<Json<Found>> = row.try_get(column)?;
        Ok(value.map(|Json(Found { set, found, applied_by })| {
            let set = if set == EVENT_STORE.name { &EVENT_STORE } else { &PROCESSING };
            let (known, schema) = (set.newest(), schema.to_owned());
            SchemaError::Newer { set: set.name, schema, found, known, applied_by }
        }))
    }

    /// What excludes this program from these tables, in a statement of its own.
    pub(crate) async fn find_exclusion(
        connection: &mut PgConnection,
        tables: &[Tables],
        schema: &str,
    ) -> Result<Option<SchemaError>, sqlx::Error> {
        let statement = format!("-- find_exclusion\nselect {}", excluding(tables, schema));
        let row = simple(statement).fetch_one(connection).await?;
        read_exclusion(&row, 0, schema)
    }
}
