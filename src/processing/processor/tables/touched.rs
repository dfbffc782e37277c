//! Tables of other processors, and espd's own, that declared statements have written, altered or dropped: nothing of that is committed.

use std::collections::BTreeSet;

use sqlx::{AssertSqlSafe, PgConnection};

use super::Tables;
use crate::postgres::quote::quote_literal;
use crate::processing::processor::ProcessorError;

/// A table that is not the processor's by its id, with its name and whose it is.
type Table = (i64, String, String);

/// What there is of tables that are not the processor's.
#[derive(Debug)]
pub(super) struct Touched {
    tables: BTreeSet<Table>,
    /// The locks of this transaction that only those take who write, alter or drop a table.
    locks: BTreeSet<(i64, String)>,
}

impl Tables<'_> {
    /// The tables that the processor must not change, and what this transaction has changed.
    pub(super) async fn list_touched(&self, connection: &mut PgConnection) -> Result<Touched, sqlx::Error> {
        let statement = format!(
            "-- list_tables_of_others
             select o.oid::bigint, o.name, 'processor ' || o.processor
             from {schema}.owned_relations as o where o.processor <> $1 and o.oid is not null
             union
             select c.oid::bigint, n.nspname || '.' || c.relname, 'espd itself'
             from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
             where c.relnamespace = {literal}::regnamespace and c.relkind in ('r', 'p')",
            schema = self.schema,
            literal = quote_literal(&self.schema),
        );
        let query = sqlx::query_as(AssertSqlSafe(statement)).persistent(false).bind(&self.declaration.name);
        let tables: Vec<Table> = query.fetch_all(&mut *connection).await?;
        let statement = "-- list_locks
            select relation::bigint, mode from pg_locks
            where locktype = 'relation' and pid = pg_backend_pid() and granted and relation is not null
              and mode in ('RowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
              and database = (select oid from pg_database where datname = current_database())";
        let locks: Vec<(i64, String)> =
            sqlx::query_as(statement).persistent(false).fetch_all(connection).await?;
        Ok(Touched { tables: tables.into_iter().collect(), locks: locks.into_iter().collect() })
    }

    /// Refuses what the declared statements have done to tables of others. `before`: what there was before them.
    pub(super) async fn refuse_touched(
        &self,
        connection: &mut PgConnection,
        before: &Touched,
    ) -> Result<(), ProcessorError> {
        let after = self.list_touched(connection).await?;
        let locked: BTreeSet<i64> = after.locks.difference(&before.locks).map(|(table, _)| *table).collect();
        let Some(table) = before.tables.iter().find(|(table, ..)| locked.contains(table)) else {
            return Ok(());
        };
        let done = if after.tables.contains(table) { "change" } else { "drop" };
        let (_, name, owner) = table;
        Err(ProcessorError::Blocked(format!(
            "the declared tables or the ddl of {} {done} table {name}, which belongs to {owner}, so nothing of them is made: a processor may \
             change its own tables only",
            self.declaration.name
        )))
    }
}
