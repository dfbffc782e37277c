//! What is outside of the schema that a version is built in: its DDL must leave that as it is.

use std::collections::BTreeSet;

use sqlx::{AssertSqlSafe, PgConnection};

use crate::postgres::quote::quote_literal;

/// Every relation, routine, type and extension outside, and whether this transaction has changed it: its entries in the catalog are
/// newer than the transaction, or it is locked as whoever changes one does. That a foreign key refers to a table is no change of it.
const LIST: &str = "-- list_outside
    with locked as (
      select l.relation from pg_locks as l
      where l.locktype = 'relation' and l.pid = pg_backend_pid() and l.granted
        and l.mode not in ('AccessShareLock', 'RowShareLock', 'ShareRowExclusiveLock')
        and l.database = (select d.oid from pg_database as d where d.datname = current_database())
    ), outside as (
      select n.oid, n.nspname from pg_namespace as n
      where n.nspname !~ '^pg_' and n.nspname not in ({building_in}, {own_schema}, 'information_schema')
    )
    select case c.relkind when 'v' then 'view' when 'm' then 'materialized view' when 'S' then 'sequence' when 'i' then 'index'
             when 'I' then 'index' when 'c' then 'type' when 'f' then 'foreign table' else 'table' end
           || format(' %I.%I', n.nspname, c.relname) as item,
           (age(c.xmin) <= 0 and not exists (select from pg_constraint as f
              where f.confrelid = c.oid and f.contype = 'f' and age(f.xmin) <= 0)
            or c.relkind <> 'S' and c.oid in (select l.relation from locked as l)
            or exists (select from pg_trigger as t where t.tgrelid = c.oid and not t.tgisinternal and age(t.xmin) <= 0)) as is_changed
    from pg_class as c join outside as n on n.oid = c.relnamespace
    union all
    select case p.prokind when 'p' then 'procedure' when 'a' then 'aggregate' else 'function' end
           || format(' %I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)), age(p.xmin) <= 0
    from pg_proc as p join outside as n on n.oid = p.pronamespace
    union all
    select case t.typtype when 'd' then 'domain' else 'type' end || format(' %I.%I', n.nspname, t.typname), age(t.xmin) <= 0
    from pg_type as t join outside as n on n.oid = t.typnamespace where t.typtype in ('e', 'd', 'r')
    union all
    select format('extension %I', e.extname), age(e.xmin) <= 0 from pg_extension as e";

/// What was there before the tables of a version were made.
pub(super) struct Outside {
    statement: String,
    before: BTreeSet<String>,
}

impl Outside {
    /// Looks at what is there. The transaction sees what others commit from here on as little as they see what it does, so whatever
    /// has changed at the end it has changed itself. Nothing was done in it before.
    pub(super) async fn look(
        transaction: &mut PgConnection,
        own_schema: &str,
        building_in: &str,
    ) -> Result<Self, sqlx::Error> {
        let isolate = "-- see_own_changes_only\nset transaction isolation level repeatable read";
        sqlx::raw_sql(isolate).execute(&mut *transaction).await?;
        let statement = LIST
            .replace("{building_in}", &quote_literal(building_in))
            .replace("{own_schema}", &quote_literal(own_schema));
        let before = list(transaction, &statement).await?.into_iter().map(|(item, _)| item).collect();
        Ok(Self { statement, before })
    }

    /// The first thing that is gone, new or another one than before, in words.
    pub(super) async fn find_change(
        &self,
        transaction: &mut PgConnection,
    ) -> Result<Option<String>, sqlx::Error> {
        let now = list(transaction, &self.statement).await?;
        let items: BTreeSet<&str> = now.iter().map(|(item, _)| item.as_str()).collect();
        if let Some(gone) = self.before.iter().find(|item| !items.contains(item.as_str())) {
            return Ok(Some(format!("drops {gone}")));
        }
        // What was made tells more than the index that came with it.
        let is_new = |item: &str| !self.before.contains(item);
        let mut changed: Vec<&str> =
            now.iter().filter(|(_, is_changed)| *is_changed).map(|(item, _)| item.as_str()).collect();
        changed.sort_by_key(|item| item.starts_with("index "));
        Ok(changed.first().map(|item| format!("{} {item}", if is_new(item) { "makes" } else { "changes" })))
    }
}

async fn list(connection: &mut PgConnection, statement: &str) -> Result<Vec<(String, bool)>, sqlx::Error> {
    // Names are written alike whatever the path was.
    let path = "-- list_with_schemas\nset local search_path = pg_catalog, pg_temp";
    sqlx::raw_sql(path).execute(&mut *connection).await?;
    sqlx::query_as(AssertSqlSafe(statement.to_owned())).persistent(false).fetch_all(connection).await
}
