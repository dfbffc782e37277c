//! The right without which no version is built beside the one that serves: to make schemas in the database.

use std::fmt;

use sqlx::{AssertSqlSafe, PgConnection};

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
