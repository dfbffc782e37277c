//! Rows of the table `workers` while the daemon waits for a way to its database: where one way works, `espctl status` goes
//! it, and says what the daemon waits for.

use std::time::Duration;

use tracing::debug;

use super::worker_rows::{Entry, replace_workers};
use super::worker_table_place::WorkerTablePlace;
use crate::config::Config;
use crate::processing::tracker::Owner;

/// How long the database may take for a write.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The rows of a daemon that has no worker yet.
#[derive(Debug)]
pub(super) struct WaitingRows {
    owner: Owner,
    /// Where the rows are; `None` while there are none.
    shown: Option<WorkerTablePlace>,
}

impl WaitingRows {
    pub(super) fn new() -> Self {
        Self { owner: Owner::generate(), shown: None }
    }

    /// Shows what the workers of the configuration wait for, if there is a way to the table.
    pub(super) async fn show(&mut self, config: &Config, reason: &str) {
        let Some(place) = WorkerTablePlace::of(config) else { return };
        if self.write(&place, &Entry::all_waiting(config, reason)).await {
            self.shown = Some(place);
        }
    }

    /// Removes the rows.
    pub(super) async fn remove(&mut self) {
        if let Some(place) = self.shown.take() {
            self.write(&place, &[]).await;
        }
    }

    async fn write(&self, place: &WorkerTablePlace, entries: &[Entry]) -> bool {
        let writing = async {
            let mut connection = place.database.named("espd: daemon").connect().await?.connection;
            replace_workers(&mut connection, &place.schema, &self.owner, entries).await?;
            sqlx::Connection::close(connection).await
        };
        let written = tokio::time::timeout(ANSWER_TIMEOUT, writing).await;
        let is_written = matches!(written, Ok(Ok(())));
        if !is_written {
            debug!("could not record what the daemon waits for");
        }
        is_written
    }
}
