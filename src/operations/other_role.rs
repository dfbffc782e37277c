//! The role that asks, where it plainly runs no processors: a member of one of the other roles (`migrations/roles.sql`), and not of the
//! daemon's, which is there. What it may not see or does not own says nothing of the daemon.

use anyhow::bail;
use sqlx::{AssertSqlSafe, PgExecutor};

use crate::processing::rebuild::RUNS_NO_PROCESSORS;

/// The role, if it runs no processors.
pub(super) async fn find_other_role(executor: impl PgExecutor<'_>) -> Result<Option<String>, sqlx::Error> {
    let statement =
        format!("-- find_other_role\nselect current_user::text as role where {RUNS_NO_PROCESSORS}");
    sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).fetch_optional(executor).await
}

/// Refuses a role that runs no processors. `told`: what only the daemon's role is told.
pub(super) async fn refuse_other_role(executor: impl PgExecutor<'_>, told: &str) -> anyhow::Result<()> {
    match find_other_role(executor).await? {
        Some(role) => bail!(
            "{role} is no member of espd_daemon, and only that role is told {told}: run this as a login of the daemon"
        ),
        None => Ok(()),
    }
}
