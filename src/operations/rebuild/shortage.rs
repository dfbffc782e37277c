//! A build waits while the database server lacks disk or memory, or while the database is larger than it may be: the version that
//! serves needs both more.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::{Beside, OperatorError, Rebuilding};
use crate::operations::status::format::format_size;
use crate::postgres::sqlstate::{DISK_FULL, OUT_OF_MEMORY, describe};
use crate::processing::rebuild::write_rest;

/// The pauses after the server has lacked something, from the first to the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// How often is looked how large the database is.
const SIZE_INTERVAL: Duration = Duration::from_secs(5);

/// How much of what there is a build may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// The share of the time that it works while events are appended.
    pub(crate) share: f64,
    /// How many may handle events at once, each those of its share of the aggregates.
    pub(crate) workers: i64,
    /// It waits while the database has more bytes; `None`: it may have as many as there are.
    pub(crate) database_size_max: Option<i64>,
}

impl Default for Effort {
    fn default() -> Self {
        Self { share: 1.0, workers: 1, database_size_max: None }
    }
}

impl Rebuilding<'_> {
    /// Handles events until the version beside is where the serving one is, and gives the planner its statistics. While the server
    /// lacks disk or memory it waits, at growing intervals.
    ///
    /// # Errors
    /// An event cannot be handled, or the database does not answer. What is built stays for the next try.
    pub(crate) async fn catch_up(&mut self) -> Result<(), OperatorError> {
        let mut pause = PAUSES.0;
        loop {
            let handled = self.replay.handled;
            let Err(error) = self.catch_up_once().await else { return Ok(()) };
            let Some(because) = find_shortage(&error) else { return Err(self.explain(error).await) };
            if self.replay.handled > handled {
                pause = PAUSES.0;
            }
            self.rest(&because, pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Says what has become of tables that are gone: an exchange that another run has begun may have been committed after that run was
    /// killed.
    async fn explain(&self, error: OperatorError) -> OperatorError {
        const GONE: [&str; 2] = ["42P01", "3F000"];
        let OperatorError::Database(cause) = &error else { return error };
        let code = cause.as_database_error().and_then(|answer| answer.code());
        if self.beside != Beside::Next || !code.is_some_and(|code| GONE.contains(&code.as_ref())) {
            return error;
        }
        let (name, version) = (&self.live.name, self.declaration.version);
        match self.operator.find(name).await {
            Ok(row) if row.key() != self.live => OperatorError::Rebuild(format!(
                "version {} of {name} has gone live meanwhile, by somebody who has built it as well, or was killed in the last step: \
                 `espctl status {name}` says what serves",
                row.version
            )),
            _ => OperatorError::Rebuild(format!(
                "version {version} of {name} is not whole: {}. `espctl rebuild abort {name}` gives it up, then build it again",
                describe(cause)
            )),
        }
    }

    /// Waits while the database is larger than it may be.
    pub(super) async fn wait_for_room(&mut self) -> Result<(), OperatorError> {
        while let Some(because) = self.find_no_room().await? {
            self.rest(&because, SIZE_INTERVAL).await;
        }
        Ok(())
    }

    /// Why there is no room, as it was a moment ago; `None`: there is some.
    pub(super) async fn find_no_room(&mut self) -> Result<Option<String>, OperatorError> {
        let Some(most) = self.effort.database_size_max else { return Ok(None) };
        let now = Instant::now();
        if let Some((at, answer)) = &self.room
            && now.duration_since(*at) < SIZE_INTERVAL
        {
            return Ok(answer.clone());
        }
        let query = sqlx::query_scalar("-- find_size\nselect pg_database_size(current_database())");
        let size: i64 = query.persistent(false).fetch_one(&mut *self.worker).await?;
        let answer = (size > most).then(|| {
            format!(
                "the database has {}, and `database_size_max` in [rebuild] is {}",
                format_size(size),
                format_size(most)
            )
        });
        self.room = Some((now, answer.clone()));
        Ok(answer)
    }

    /// Writes down why nothing is done for a while, as far as there is room for that.
    async fn rest(&mut self, because: &str, pause: Duration) {
        let tracker = self.beside.name(&self.live.name);
        let schema = self.operator.trackers().schema().to_owned();
        let _ = write_rest(&mut *self.worker, &schema, &tracker, because).await;
        (self.listener.note)(&format!("waits, because {because}"));
        sleep(pause).await;
    }
}

/// What the server lacks, and may have again; `None`: it is another error.
fn find_shortage(error: &OperatorError) -> Option<String> {
    let OperatorError::Database(error) = error else { return None };
    let code = error.as_database_error()?.code()?;
    match code.as_ref() {
        DISK_FULL => Some(format!("the disk of the database server is full: {}", describe(error))),
        OUT_OF_MEMORY => Some(format!("the database server is out of memory: {}", describe(error))),
        _ => None,
    }
}
