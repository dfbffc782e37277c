//! The worker processes that processors run in, as their daemons have recorded them.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::postgres::row::from_row;
use crate::postgres::sqlstate::is_missing_right;
use crate::store::layout::Layout;

/// The worker of a processor. The field names are an interface: `espctl status --json` prints them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct WorkerStatus {
    /// A processor that runs in the worker.
    #[serde(skip)]
    pub processor: String,
    /// Name of the worker: that of its processor, of its group, or of all.
    pub worker: String,
    /// Host and process id of the worker's daemon.
    pub owner: String,
    /// Process id of the worker on the daemon's host; `None` while it is not alive.
    pub pid: Option<i32>,
    /// `waiting` | `crash_looping` | `running` | `restarting` | `stopping` | `stopped`.
    pub state: String,
    /// How often the worker was started.
    pub starts: i64,
    /// How the worker ended last.
    pub last_end: Option<String>,
    /// When the worker ended last.
    pub last_end_at: Option<DateTime<Utc>>,
    /// When the worker is started again.
    pub next_start_at: Option<DateTime<Utc>>,
    /// When the daemon recorded this.
    #[serde(skip)]
    pub recorded_at: DateTime<Utc>,
    /// Whether its daemon gives signs of life.
    #[serde(skip)]
    pub is_present: bool,
}

from_row!(WorkerStatus {
    processor,
    worker,
    owner,
    pid,
    state,
    starts,
    last_end,
    last_end_at,
    next_start_at,
    recorded_at,
    is_present
});

/// A daemon that goes on with an older configuration, because it has refused the one that it was to follow.
#[derive(Debug, Clone)]
pub(crate) struct RefusedReload {
    /// Host and process id of the daemon.
    pub(super) daemon: String,
    pub(super) at: DateTime<Utc>,
    /// What is wrong, line by line.
    pub(super) report: Vec<String>,
}

from_row!(RefusedReload { daemon, at, report });

/// The daemons that are alive and have refused the last reload.
pub(super) async fn list_refused(
    connection: &mut PgConnection,
    layout: &Layout,
) -> Result<Vec<RefusedReload>, sqlx::Error> {
    let statement = format!(
        "-- list_refused_reloads
         select owner_label as daemon, answered_at as at, coalesce(report, '{{}}') as report from (
           select distinct on (r.owner) r.outcome, r.answered_at, r.report, w.owner_label
           from {schema}.reload_requests as r
           join {schema}.workers as w on w.owner = r.owner
           where r.answered_at is not null and w.updated_at > clock_timestamp() - interval '30 seconds'
           order by r.owner, r.answered_at desc, r.id desc
         ) as last where outcome = 'refused' order by 1",
        schema = layout.quoted_schema()
    );
    match sqlx::query_as(AssertSqlSafe(statement)).fetch_all(connection).await {
        // A role of before need not see these.
        Err(error) if is_missing_right(&error) => Ok(Vec::new()),
        listed => listed,
    }
}

impl WorkerStatus {
    /// Whether the worker is not alive though it should be.
    pub(crate) fn is_down(&self) -> bool {
        matches!(self.state.as_str(), "waiting" | "crash_looping") && self.last_end.is_some()
    }

    /// Whether its process is there.
    pub(crate) fn is_alive(&self) -> bool {
        self.pid.is_some() && self.state == "running"
    }
}

/// The workers of all daemons that are alive, and of those that have vanished within a day without having ended in order, the most recently
/// recorded first. Any other daemon removes what the latter have left after a minute.
pub(super) async fn list(
    connection: &mut PgConnection,
    layout: &Layout,
) -> Result<Vec<WorkerStatus>, sqlx::Error> {
    // A daemon renews its rows every ten seconds.
    let statement = format!(
        "-- list_workers
         select unnest(processors) as processor, worker, owner_label as owner, pid, state, starts, last_end, last_end_at,
                next_start_at, updated_at as recorded_at,
                updated_at > clock_timestamp() - interval '30 seconds' as is_present
         from {}.workers where updated_at > clock_timestamp() - interval '1 day' order by updated_at desc",
        layout.quoted_schema()
    );
    sqlx::query_as(AssertSqlSafe(statement)).fetch_all(connection).await
}

/// The worker of a processor: that of the daemon that owns it, or else the most recently recorded.
pub(super) fn of(workers: &[WorkerStatus], processor: &str, owner: Option<&str>) -> Option<WorkerStatus> {
    let own = || workers.iter().filter(|worker| worker.processor == processor);
    own().find(|worker| Some(worker.owner.as_str()) == owner).or_else(|| own().next()).cloned()
}
