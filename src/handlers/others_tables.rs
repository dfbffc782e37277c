//! Which tables of other processors, or of espd, a declared statement has changed while it was tried.
//!
//! Whoever writes, alters or drops a table holds a lock on it to the end of the transaction.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;

use crate::diagnostic::Diagnostic;
use crate::processing::declaration::{ProcessorDeclaration, SourceText};

/// The tables that a declaration must not change, and the locks on them that are known already.
#[derive(Debug)]
pub(super) struct OthersTables {
    /// The name of each, and whose it is.
    tables: BTreeMap<i64, (String, String)>,
    known: BTreeSet<(i64, String)>,
}

impl OthersTables {
    /// Finds the tables in these schemas that others of `all` declare, and espd's own.
    pub(super) async fn look(
        connection: &mut PgConnection,
        schemas: &[&str],
        declaration: &ProcessorDeclaration,
        all: &[ProcessorDeclaration],
    ) -> Result<Self, sqlx::Error> {
        let others = all.iter().filter(|other| other.name != declaration.name);
        let owners: BTreeMap<&str, &ProcessorDeclaration> = others
            .flat_map(|other| other.tables.iter().map(move |table| (table.name.as_str(), other)))
            .collect();
        // The migrations make a table of this name wherever espd is, and nobody can call it otherwise.
        let statement = "-- list_tables_of_others
            with recursive of_others as (
              select c.oid, n.nspname::text as schema, c.relname::text as name,
                n.nspname = any ($1) and c.relname = any ($2) as is_owned
              from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
              where c.relkind in ('r', 'p') and (n.nspname = any ($1) and c.relname = any ($2)
                or exists (select from pg_class as m where m.relnamespace = n.oid and m.relname = 'projection_tables'))
              union
              -- A partition is a part of its table.
              select i.inhrelid, o.schema, o.name, o.is_owned
              from of_others as o join pg_inherits as i on i.inhparent = o.oid
            )
            select oid::bigint, schema, name, is_owned from of_others";
        let names: Vec<&str> = owners.keys().copied().collect();
        let query = sqlx::query_as(statement).persistent(false).bind(schemas).bind(names);
        let found: Vec<(i64, String, String, bool)> = query.fetch_all(&mut *connection).await?;
        let name = |(oid, schema, table, is_owned): (i64, String, String, bool)| {
            let owner = owners.get(table.as_str()).filter(|_| is_owned);
            let whose = owner.map_or("espd itself".to_owned(), |owner| {
                format!("{} {}", owner.kind().as_str(), owner.name)
            });
            let shown = if owner.is_some() { table } else { format!("{schema}.{table}") };
            (oid, (shown, whose))
        };
        let tables = found.into_iter().map(name).collect();
        let known = list_locks(connection).await?;
        Ok(Self { tables, known })
    }

    /// What a statement that was run just now has changed.
    pub(super) async fn find_changed(
        &mut self,
        connection: &mut PgConnection,
        statement: &SourceText,
    ) -> Result<Vec<Diagnostic>, sqlx::Error> {
        let held = list_locks(connection).await?;
        let new: BTreeSet<i64> = held.difference(&self.known).map(|(table, _)| *table).collect();
        self.known = held;
        let changed = new.iter().filter_map(|table| self.tables.get(table));
        let diagnose = |(table, whose): &(String, String)| {
            let message = format!("this changes table {table}, which belongs to {whose}");
            let advice = "a processor may change its own tables only; `ddl` may read those of others";
            Diagnostic::in_source(statement, 0, message).with_advice(advice)
        };
        Ok(changed.map(diagnose).collect())
    }
}

/// The tables that this transaction has written, altered or dropped, with the lock that says so.
async fn list_locks(connection: &mut PgConnection) -> Result<BTreeSet<(i64, String)>, sqlx::Error> {
    let statement = "-- list_locks
        select relation::bigint, mode from pg_locks
        where locktype = 'relation' and pid = pg_backend_pid() and granted and relation is not null
          and mode in ('RowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
          and database = (select oid from pg_database where datname = current_database())";
    let locks: Vec<(i64, String)> = sqlx::query_as(statement).persistent(false).fetch_all(connection).await?;
    Ok(locks.into_iter().collect())
}
