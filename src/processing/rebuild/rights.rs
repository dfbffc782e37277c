//! The rights without which no version is built beside the one that serves, or goes live: to make schemas in the database, and what
//! belongs to the owner of a schema and of tables.

use std::fmt;

use sqlx::{AssertSqlSafe, PgConnection};

use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::postgres::row::from_row;

/// The role that plainly runs no processors, because it is a member of one of the other roles (`migrations/roles.sql`), and not of the
/// daemon's, which is there: `true` if so.
pub(crate) const RUNS_NO_PROCESSORS: &str = "exists (
    select from pg_catalog.pg_roles as daemon
    where daemon.rolname = 'espd_daemon' and not pg_has_role(daemon.oid, 'member') and exists (
      select from pg_catalog.pg_roles as other
      where other.rolname in ('espd_reader', 'espd_appender', 'espd_operator') and pg_has_role(other.oid, 'member')))";

/// A role that may make no schemas in its database. Both names are quoted where that is needed.
#[derive(Debug, Clone)]
pub(crate) struct LacksSchemas {
    role: String,
    database: String,
}

from_row!(LacksSchemas { role, database });

impl LacksSchemas {
    /// Whether the role of this session lacks the right.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn find(connection: &mut PgConnection) -> Result<Option<Self>, sqlx::Error> {
        Self::find_of(connection, "current_user::text").await
    }

    /// Whether the role of daemons lacks it: that of this session, unless that plainly runs no processors.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn find_of_daemon(connection: &mut PgConnection) -> Result<Option<Self>, sqlx::Error> {
        let role = format!("case when {RUNS_NO_PROCESSORS} then 'espd_daemon' else current_user::text end");
        Self::find_of(connection, &role).await
    }

    async fn find_of(connection: &mut PgConnection, role: &str) -> Result<Option<Self>, sqlx::Error> {
        let statement = format!(
            "-- find_role_without_schemas
             select quote_ident(d.role) as role, quote_ident(current_database()) as database from (select {role} as role) as d
             where not has_database_privilege(d.role, current_database(), 'create')"
        );
        sqlx::query_as(AssertSqlSafe(statement)).persistent(false).fetch_optional(connection).await
    }

    /// The role, quoted where that is needed.
    pub(crate) fn role(&self) -> &str {
        &self.role
    }

    /// What gives the right.
    pub(crate) fn grant(&self) -> String {
        format!("grant create on database {} to {};", self.database, self.role)
    }
}

/// As people read it, behind `because`, with what to do.
impl fmt::Display for LacksSchemas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { role, database } = self;
        write!(
            f,
            "role {role} may make no schemas in database {database}, and each version has one of its own: `{}` gives it that right",
            self.grant()
        )
    }
}

/// Gives the schema of a version, and its tables, to the role that has the tables of the processor which serve: whoever has made them may be
/// another one, such as a login that is a member of the daemon's role, and then the others could not go on. `own` is the quoted schema of the
/// trackers. Where the role of this session may not, they stay as they are.
///
/// # Errors
/// The database does not answer.
pub(crate) async fn give_to_owner(
    connection: &mut PgConnection,
    (own, live): (&str, &str),
    schema: &str,
) -> Result<(), sqlx::Error> {
    let statement = format!(
        "-- give_to_owner
         do $give$ declare owners text[]; one regclass; begin
           select array_agg(distinct pg_get_userbyid(c.relowner)) into owners
             from {own}.projection_tables as p join pg_namespace as n on n.nspname = p.table_schema
               join pg_class as c on c.relnamespace = n.oid and c.relname = p.table_name
             where p.processor = {live};
           if cardinality(owners) = 1 and not owners[1] = current_user then
             execute format('alter schema %I owner to %I', {schema}, owners[1]);
             for one in select c.oid from pg_class as c
                        where c.relnamespace = to_regnamespace({quoted}) and c.relkind in ('r', 'p')
                          and pg_get_userbyid(c.relowner) = current_user loop
               execute format('alter table %s owner to %I', one, owners[1]);
             end loop;
           end if;
         exception when insufficient_privilege then
           null;
         end $give$",
        live = quote_literal(live),
        schema = quote_literal(schema),
        quoted = quote_literal(&quote_identifier(schema))
    );
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.map(drop)
}

/// What the role of this session lacks for the schema of a version and its tables, in words, with what gives it the right; `None`: nothing.
///
/// # Errors
/// The database does not answer.
pub(crate) async fn find_missing_on_place(
    connection: &mut PgConnection,
    schema: &str,
) -> Result<Option<String>, sqlx::Error> {
    let statement = format!(
        "-- find_missing_on_place
         select format('schema %1$I belongs to %2$I, and %3$I is no member of that role: `alter schema %1$I owner to %3$I`, as that owner or a superuser, gives it to it',
                  n.nspname, pg_get_userbyid(n.nspowner), current_user)
         from pg_namespace as n where n.nspname = {schema} and not pg_has_role(n.nspowner, 'usage')
         union all
         (select format('table %1$I.%2$I belongs to %3$I, and %4$I is no member of that role: `alter table %1$I.%2$I owner to %4$I`, as that owner or a superuser, gives it to it',
                  n.nspname, c.relname, pg_get_userbyid(c.relowner), current_user)
          from pg_namespace as n join pg_class as c on c.relnamespace = n.oid and c.relkind in ('r', 'p', 'S', 'v', 'm')
          where n.nspname = {schema} and not pg_has_role(c.relowner, 'usage') order by c.relname)
         limit 1",
        schema = quote_literal(schema)
    );
    sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).fetch_optional(connection).await
}

/// Tables of a processor that only another role can move, in words. `own` is the quoted schema of the trackers.
///
/// # Errors
/// The database does not answer.
pub(super) async fn list_unmovable_tables(
    connection: &mut PgConnection,
    own: &str,
    processor: &str,
) -> Result<Vec<String>, sqlx::Error> {
    let statement = format!(
        "-- list_unmovable_tables
         select format('table %I.%I belongs to %I, and only its owner can move it: `grant %I to %I`', n.nspname, c.relname,
                  pg_get_userbyid(c.relowner), pg_get_userbyid(c.relowner), current_user)
         from {own}.projection_tables as p join pg_namespace as n on n.nspname = p.table_schema
           join pg_class as c on c.relnamespace = n.oid and c.relname = p.table_name
         where p.processor = {} and not pg_has_role(c.relowner, 'usage') order by 1",
        quote_literal(processor)
    );
    sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).fetch_all(connection).await
}
