//! Views that others have made on the tables that serve: they are dropped and made again on the new ones, within the exchange.

use sqlx::{AssertSqlSafe, PgConnection};

use super::SwapError;
use crate::postgres::row::from_row;
use crate::postgres::sqlstate::{describe, is_infrastructure_error};

/// An option that no table, view and column has: to reset it changes nothing, writes the entry in the catalog, and locks a view as to read it
/// needs.
pub(super) const NO_OPTION: &str = "fastupdate";

/// A view, and how it is made again.
#[derive(Debug)]
pub(super) struct View {
    /// Its qualified name.
    name: String,
    definition: String,
    /// Such as `security_barrier=true`.
    options: Option<Vec<String>>,
    owner: String,
}

from_row!(View { name, definition, options, owner });

impl View {
    /// Reads views by their qualified names, each behind those that it selects from. The search path is empty, so that every name in
    /// a definition is written with its schema.
    pub(super) async fn read(
        connection: &mut PgConnection,
        names: &[String],
    ) -> Result<Vec<Self>, sqlx::Error> {
        let statement = "-- read_views
            with recursive named as (
              select n.name, c.oid from unnest($1::text[]) as n (name)
                join (pg_class as c join pg_namespace as s on s.oid = c.relnamespace)
                  on format('%I.%I', s.nspname, c.relname) = n.name
            ), edges as (
              select distinct r.ev_class as upper, d.refobjid as lower
              from pg_rewrite as r join pg_depend as d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
                and d.refclassid = 'pg_class'::regclass and d.refobjid <> r.ev_class
              where r.ev_class in (select oid from named) and d.refobjid in (select oid from named)
            ), levels as (
              select oid, 0 as level from named
              union all
              select e.upper, l.level + 1 from levels as l join edges as e on e.lower = l.oid
            )
            select n.name, pg_get_viewdef(c.oid) as definition, c.reloptions as options,
                   quote_ident(pg_get_userbyid(c.relowner)) as owner
            from named as n join pg_class as c on c.oid = n.oid join levels as l on l.oid = n.oid
            group by n.name, c.oid, c.reloptions, c.relowner order by max(l.level), n.name";
        sqlx::query_as(statement).persistent(false).bind(names).fetch_all(connection).await
    }

    /// Why these views could not be dropped and made again on the tables of `next`, in words, as far as that is known beforehand. `own` is
    /// the quoted schema of the trackers.
    pub(super) async fn find_obstacles(
        connection: &mut PgConnection,
        names: &[String],
        (own, live, next): (&str, &str, &str),
    ) -> Result<Vec<String>, sqlx::Error> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let statement = format!(
            "-- find_obstacles_of_views
             with views as (
               select n.name, c.oid, c.relowner, c.relnamespace
               from unnest($1::text[]) as n (name)
                -- Whoever may not use its schema may not ask by name.
                join (pg_class as c join pg_namespace as s on s.oid = c.relnamespace)
                  on format('%I.%I', s.nspname, c.relname) = n.name
             ), tables as (
               select p.processor, p.table_name, c.oid from {own}.projection_tables as p
                 join pg_namespace as n on n.nspname = p.table_schema
                 join pg_class as c on c.relnamespace = n.oid and c.relname = p.table_name
               where p.processor in ($2, $3)
             ), used as (
               select distinct v.name, t.table_name, a.attname, x.oid as next
               from views as v join pg_rewrite as r on r.ev_class = v.oid
                 join pg_depend as d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
                   and d.refclassid = 'pg_class'::regclass
                 join tables as t on t.processor = $2 and t.oid = d.refobjid
                 left join tables as x on x.processor = $3 and x.table_name = t.table_name
                 left join pg_attribute as a on a.attrelid = t.oid and a.attnum = d.refobjsubid and a.attnum > 0
             )
             select format('view %s reads %s, which the new version does not have: drop it, or have it read something else', name,
                      string_agg(distinct quote_ident(table_name)
                        || case when next is null then '' else '.' || quote_ident(attname) end, ', ')) as obstacle
             from used
             where next is null or attname is not null and not exists (select from pg_attribute as b
               where b.attrelid = used.next and b.attname = used.attname and b.attnum > 0 and not b.attisdropped)
             group by name
             union all
             select format('view %s belongs to %I, and only its owner can drop it and make it again: `grant %I to %I`', v.name,
                      pg_get_userbyid(v.relowner), pg_get_userbyid(v.relowner), current_user)
             from views as v where not pg_has_role(v.relowner, 'usage')
             union all
             select format('view %s is in a schema that %I may not use: `grant usage on schema %I to %I`', v.name,
                      current_user, n.nspname, current_user)
             from views as v join pg_namespace as n on n.oid = v.relnamespace
             where not has_schema_privilege(n.oid, 'usage')
             union all
             select format('view %s belongs to %I, who may make nothing in its schema: `grant create on schema %I to %I`', v.name,
                      pg_get_userbyid(v.relowner), n.nspname, pg_get_userbyid(v.relowner))
             from views as v join pg_namespace as n on n.oid = v.relnamespace
             where v.relowner <> (select oid from pg_roles where rolname = current_user) and not has_schema_privilege(v.relowner, n.oid, 'create')
               and not (select rolsuper from pg_roles where rolname = current_user)
             order by 1"
        );
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
        query.bind(names).bind(live).bind(next).fetch_all(connection).await
    }

    /// The statement that keeps others from reading and changing it. `lock table` would lock what it reads from as well.
    pub(super) fn lock(&self) -> String {
        format!("alter view {} reset ({NO_OPTION})", self.name)
    }

    /// Drops views that [`Self::read`] has read.
    pub(super) async fn drop_all(connection: &mut PgConnection, views: &[Self]) -> Result<(), SwapError> {
        for view in views.iter().rev() {
            view.run(connection, format!("-- drop_view\ndrop view {}", view.name)).await?;
        }
        Ok(())
    }

    /// Makes them again. Rights and comments are for others to restore.
    pub(super) async fn create_all(connection: &mut PgConnection, views: &[Self]) -> Result<(), SwapError> {
        for view in views {
            let Self { name, definition, options, owner } = view;
            let options =
                options.as_ref().map_or(String::new(), |options| format!(" with ({})", options.join(", ")));
            let statement = format!(
                "-- create_view\ncreate view {name}{options} as {definition}; alter view {name} owner to {owner}",
                definition = definition.trim_end_matches(';')
            );
            view.run(connection, statement).await?;
        }
        Ok(())
    }

    async fn run(&self, connection: &mut PgConnection, statement: String) -> Result<(), SwapError> {
        match sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await {
            Ok(_) => Ok(()),
            Err(error) if is_infrastructure_error(&error) => Err(error.into()),
            Err(error) => Err(SwapError::Refused(format!(
                "view {} cannot be made on the new tables: {}. Drop or change it",
                self.name,
                describe(&error)
            ))),
        }
    }
}

/// The materialized views in a schema that have rows, or had when they were made, quoted, each behind those that it may be made from.
pub(crate) async fn list_populated_views(
    connection: &mut PgConnection,
    schema: &str,
) -> Result<Vec<String>, sqlx::Error> {
    let statement = "-- list_populated_views
        select format('%I.%I', n.nspname, c.relname) from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
        where n.nspname = $1 and c.relkind = 'm' and c.relispopulated order by c.oid";
    sqlx::query_scalar(statement).persistent(false).bind(schema).fetch_all(connection).await
}
