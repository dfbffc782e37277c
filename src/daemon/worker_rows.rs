//! Rows of the table `workers`: how the workers of a daemon are.

use std::time::Instant;

use serde::Serialize;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::config::Config;
use crate::postgres::quote::quote_identifier;
use crate::processing::declaration::ProcessorDeclaration;
use crate::processing::tracker::Owner;
use crate::supervision::{End, Snapshot};

/// What is written of a worker, each time that it changes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    worker: String,
    processors: Vec<String>,
    pid: Option<i32>,
    state: &'static str,
    starts: u32,
    last_end: Option<End>,
    next_start: Option<Instant>,
}

/// An entry as it is sent. Times are sent as distances from now, because the server's clock decides.
#[derive(Debug, Serialize)]
struct Row<'e> {
    worker: &'e str,
    processors: &'e [String],
    pid: Option<i32>,
    state: &'static str,
    starts: u32,
    last_end: Option<&'e str>,
    ended_seconds_ago: Option<f64>,
    starts_in_seconds: Option<f64>,
}

/// Replaces the rows of `owner`, and removes the rows of daemons that have not written for a minute.
pub(super) async fn replace_workers(
    connection: &mut PgConnection,
    schema: &str,
    owner: &Owner,
    entries: &[Entry],
) -> Result<(), sqlx::Error> {
    let rows: Vec<Row<'_>> = entries.iter().map(Entry::row).collect();
    let statement = format!(
        "-- replace_workers
         with shown as (
           select * from jsonb_to_recordset($3) as shown (
             worker text, processors text[], pid integer, state text, starts bigint, last_end text,
             ended_seconds_ago float8, starts_in_seconds float8
           )
         ),
         removed as (
           delete from {0}.workers
           where owner = $1 and worker not in (select worker from shown)
              or owner <> $1 and updated_at < clock_timestamp() - interval '1 minute'
         )
         insert into {0}.workers as present (
           owner, owner_label, worker, processors, pid, state, starts, last_end, last_end_at, next_start_at, updated_at
         )
         select $1, $2, worker, processors, pid, state, starts, last_end,
                clock_timestamp() - make_interval(secs => ended_seconds_ago),
                clock_timestamp() + make_interval(secs => starts_in_seconds),
                clock_timestamp()
         from shown
         on conflict (owner, worker) do update set
           processors = excluded.processors, pid = excluded.pid, state = excluded.state, starts = excluded.starts,
           last_end = excluded.last_end, last_end_at = excluded.last_end_at,
           next_start_at = excluded.next_start_at, updated_at = excluded.updated_at",
        quote_identifier(schema)
    );
    let query = sqlx::query(AssertSqlSafe(statement)).bind(owner.id).bind(&owner.label).bind(Json(rows));
    query.execute(connection).await?;
    Ok(())
}

impl Entry {
    /// A worker that the daemon has not started, because it waits for something.
    fn waiting(worker: String, processors: Vec<String>, reason: &str) -> Self {
        let last_end = Some(End { how: reason.to_owned(), at: Instant::now() });
        Self { worker, processors, pid: None, state: "waiting", starts: 0, last_end, next_start: None }
    }

    /// All workers of a configuration, which the daemon does not run, because it waits for something.
    pub(super) fn all_waiting(config: &Config, reason: &str) -> Vec<Self> {
        let waiting = |(worker, processors): (String, Vec<&ProcessorDeclaration>)| {
            let processors = processors.iter().map(|processor| processor.name.clone()).collect();
            Self::waiting(worker, processors, reason)
        };
        config.workers().into_iter().map(waiting).collect()
    }

    /// The name of the worker.
    pub(super) fn worker(&self) -> &str {
        &self.worker
    }

    pub(super) fn from(snapshot: &Snapshot) -> Self {
        Self {
            worker: snapshot.name.clone(),
            processors: snapshot.processors.clone(),
            pid: snapshot.pid,
            state: snapshot.state.word(),
            starts: snapshot.starts,
            last_end: snapshot.last_end.clone(),
            next_start: snapshot.next_start,
        }
    }

    fn row(&self) -> Row<'_> {
        let until = |time: Instant| time.saturating_duration_since(Instant::now()).as_secs_f64();
        Row {
            worker: &self.worker,
            processors: &self.processors,
            pid: self.pid,
            state: self.state,
            starts: self.starts,
            last_end: self.last_end.as_ref().map(|end| end.how.as_str()),
            ended_seconds_ago: self.last_end.as_ref().map(|end| end.at.elapsed().as_secs_f64()),
            starts_in_seconds: self.next_start.map(until),
        }
    }
}
