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
              select n.name, to_regclass(n.name)::oid as oid from unnest($1::text[]) as n (name)
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
                "view {} cannot be made on the new tables: {}. Drop or change it, then run this again",
                self.name,
                describe(&error)
            ))),
        }
    }
}
