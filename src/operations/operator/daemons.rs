//! Asking running daemons to read their configuration again.
//!
//! A request is a row in the database, so it reaches a daemon on any host. The daemon writes its answer into the same row.

use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::{Operator, OperatorError};
use crate::postgres::row::from_row;

/// A daemon that was asked to read its configuration again, and what it has answered.
#[derive(Debug, Clone)]
pub(crate) struct ReloadRequest {
    /// The request's number.
    pub id: i64,
    /// Host and process id of the daemon.
    pub daemon: String,
    /// When the daemon answered; `None`: it has not.
    pub answered_at: Option<DateTime<Utc>>,
    /// `changed`, `unchanged` or `refused`.
    pub outcome: Option<String>,
    /// What the daemon says about it, line by line.
    pub report: Option<Vec<String>>,
}

from_row!(ReloadRequest { id, daemon, answered_at, outcome, report });

/// A daemon that runs workers on this database.
#[derive(Debug, Clone)]
pub(crate) struct RunningDaemon {
    pub owner: Uuid,
    /// Host and process id.
    pub label: String,
    /// The processors that it is configured to run.
    pub processors: Vec<String>,
}

from_row!(RunningDaemon { owner, label, processors });

impl Operator<'_> {
    /// The daemons that have shown in the last half minute that they live.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn daemons(&self) -> Result<Vec<RunningDaemon>, OperatorError> {
        let statement = format!(
            "-- list_daemons
             select owner, owner_label as label, array_agg(processor order by processor) as processors
             from {}.workers, unnest(processors) as processor
             where updated_at > clock_timestamp() - interval '30 seconds'
             group by owner, owner_label order by owner_label",
            self.databases.layout.quoted_schema()
        );
        let query = sqlx::query_as(AssertSqlSafe(statement)).persistent(false);
        Ok(query.fetch_all(&self.databases.projections).await?)
    }

    /// Whether a daemon has been there that has not ended in order, and has given no sign of life for half a minute: it is gone, or was
    /// frozen and is back in a moment.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn may_have_daemon(&self) -> Result<bool, OperatorError> {
        let statement = format!(
            "-- find_silent_daemons
             select exists (select from {}.workers where updated_at <= clock_timestamp() - interval '30 seconds')",
            self.databases.layout.quoted_schema()
        );
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
        Ok(query.fetch_one(&self.databases.projections).await?)
    }

    /// Asks every running daemon to read its configuration again. Returns the requests, one for each daemon.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn request_reload(&self) -> Result<Vec<ReloadRequest>, OperatorError> {
        let owners: Vec<Uuid> = self.daemons().await?.into_iter().map(|daemon| daemon.owner).collect();
        let statement = format!(
            "-- request_reload
             select * from {}.request_reload($2, $1)",
            self.databases.layout.quoted_schema()
        );
        let query =
            sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).bind(owners).bind(self.name);
        let ids: Vec<i64> = query.fetch_all(&self.databases.projections).await?;
        self.reload_requests(&ids).await
    }

    /// These requests as they are now.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn reload_requests(&self, ids: &[i64]) -> Result<Vec<ReloadRequest>, OperatorError> {
        let statement = format!(
            "-- list_reload_requests
             select r.id, coalesce(w.owner_label, r.owner::text) as daemon, r.answered_at, r.outcome, r.report
             from {0}.reload_requests as r
             left join lateral (select owner_label from {0}.workers as w where w.owner = r.owner limit 1) as w on true
             where r.id = any($1) order by daemon",
            self.databases.layout.quoted_schema()
        );
        let query = sqlx::query_as(AssertSqlSafe(statement)).persistent(false).bind(ids);
        Ok(query.fetch_all(&self.databases.projections).await?)
    }
}
