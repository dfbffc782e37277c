//! Transactions that began before a version was complete, and would see its tables as they were then.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::event::Position;
use crate::postgres::literal::simple;
use crate::postgres::row::from_row;

/// When a version beside was complete, up to a position.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Complete {
    /// A version that has handled more has other rows; `None`: it was not complete.
    pub(crate) position: Option<Position>,
    at: DateTime<Utc>,
    /// A snapshot that waits for no transaction below it has seen the version complete.
    next_xid: i64,
}

from_row!(Complete { position, at, next_xid });

impl Complete {
    /// Before it was, nobody could be told to be late.
    pub(crate) fn unknown() -> Self {
        Self { position: None, at: Utc::now(), next_xid: 0 }
    }

    /// Now, by the server's clock, where it has committed everything up to this position.
    pub(crate) async fn now(connection: &mut PgConnection, position: Position) -> Result<Self, sqlx::Error> {
        let statement = "-- read_clock
            select $1 as position, clock_timestamp() as at, txid_snapshot_xmax(txid_current_snapshot()) as next_xid";
        sqlx::query_as(statement).persistent(false).bind(position).fetch_one(connection).await
    }
}

/// A session whose transaction began before the new tables were complete, and would see them so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewerSnapshot {
    pub(crate) pid: i32,
    application_name: Option<String>,
    /// `None`: it is of a role whose activity this one may not see, or of a standby.
    begun_at: Option<DateTime<Utc>>,
}

from_row!(NewerSnapshot { pid, application_name, begun_at });

impl NewerSnapshot {
    /// The sessions whose snapshot is older than `complete`, also those of no client, such as of a standby or an extension. Autovacuum reads
    /// no rows for anybody, and whoever waits for the session that asks goes on with a later snapshot. Of sessions of other roles only the
    /// right `pg_read_all_stats` shows since when they are; which transactions a snapshot still waits for, everybody sees.
    pub(crate) async fn list_older(
        connection: &mut PgConnection,
        complete: Complete,
    ) -> Result<Vec<Self>, sqlx::Error> {
        // Within a transaction, the server goes on showing what it has shown first.
        simple("-- look_anew\nselect pg_stat_clear_snapshot()".to_owned()).execute(&mut *connection).await?;
        let statement = "-- list_older_snapshots
            select pid, application_name, xact_start as begun_at from pg_stat_activity
            where backend_xmin is not null and datname = current_database() and pid <> pg_backend_pid()
              and backend_type is distinct from 'autovacuum worker' and usesysid is not null
              -- The server shows no time of a standby's session, and none that the role may not see.
              and case when xact_start is not null then xact_start < $1
                    else age(backend_xmin) > age(($2::bigint % 4294967296)::text::xid) end
              and not pg_backend_pid() = any (pg_blocking_pids(pid))
            order by xact_start";
        let query = sqlx::query_as(statement).persistent(false).bind(complete.at).bind(complete.next_xid);
        query.fetch_all(connection).await
    }

    /// Whether its transaction had lasted for longer than that when the tables were complete: then it may last for as long again.
    pub(crate) fn had_lasted(&self, time: Duration, complete: Complete) -> bool {
        self.begun_at.is_none_or(|at| (complete.at - at).to_std().is_ok_and(|lasted| lasted > time))
    }

    /// As a person reads it.
    pub(crate) fn describe(&self) -> String {
        let program = self.application_name.as_deref().filter(|name| !name.is_empty());
        let program = program.map_or(String::new(), |name| format!(" ({name})"));
        let since = self.begun_at.map_or_else(
            || ", of another role (with pg_read_all_stats it is seen since when) or a standby".to_owned(),
            |begun_at| format!(", since {}", begun_at.format("%Y-%m-%d %H:%M:%S UTC")),
        );
        format!("pid {}{program}{since}", self.pid)
    }
}
