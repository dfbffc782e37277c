//! The trackers, looked at all the time: a position or an epoch never goes back, and no fault of the
//! infrastructure is ever taken for a failing event.
//!
//! A crash of the server may forget a move over ids without an event for the processor, which no commit waits for. What has been
//! handled stays handled.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use espd::event::Position;
use espd::internals::shutdown::{self, Shutdown, ShutdownHandle};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use uuid::Uuid;

use crate::projectors::NOTIFIER_NAME;
use crate::servers::connect_driver;

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(25);

/// A tracker as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracker {
    pub position: Position,
    /// The number of events that it has handled.
    pub handled: i64,
    /// Every claim raises it by one.
    pub epoch: i64,
    pub owner: Option<Uuid>,
    /// What the daemon takes for a failing event.
    pub failure: Option<String>,
    /// Whether it has stopped because the store is not the one that it has followed.
    pub diverged: bool,
}

impl Tracker {
    /// Whether it may be seen after `before`; in a session that began in between, the server may have crashed.
    fn follows(&self, before: &Self, may_have_crashed: bool) -> bool {
        let has_forgotten_nothing_but_ids = may_have_crashed && self.handled == before.handled;
        let has_moved_on = self.position >= before.position && self.handled >= before.handled;
        self.epoch >= before.epoch && (has_moved_on || has_forgotten_nothing_but_ids)
    }
}

/// Reads the trackers of the versions that serve, by the name of their processor.
pub async fn read(connection: &mut PgConnection) -> Result<BTreeMap<String, Tracker>, sqlx::Error> {
    let statement = "-- read_trackers
         select name, position, handled, epoch, owner, case when attempts > 0 or failed_at is not null then last_error::text end as failure,
           diverged is not null as diverged
         from espd.trackers where strpos(name, '$') = 0";
    let tracker = |row: PgRow| {
        let tracker = Tracker {
            position: row.try_get("position")?,
            handled: row.try_get("handled")?,
            epoch: row.try_get("epoch")?,
            owner: row.try_get("owner")?,
            failure: row.try_get("failure")?,
            diverged: row.try_get("diverged")?,
        };
        Ok((row.try_get("name")?, tracker))
    };
    let trackers = sqlx::query(statement).try_map(tracker).fetch_all(connection).await?;
    Ok(trackers.into_iter().collect())
}

/// What was seen of the trackers in one database.
#[derive(Debug, Default)]
pub struct History {
    pub looks: u64,
    /// How often another daemon than before was seen as an owner.
    pub owner_changes: u64,
    pub complaints: Vec<String>,
    latest: BTreeMap<String, Tracker>,
    owners: BTreeMap<String, Uuid>,
}

impl History {
    /// How often processors were claimed.
    pub fn claims(&self) -> i64 {
        self.latest.values().map(|tracker| tracker.epoch).sum()
    }

    /// Takes note of a look, which is the first one of a session or not.
    fn note(&mut self, now: BTreeMap<String, Tracker>, is_first: bool) {
        self.looks += 1;
        for (name, before) in &self.latest {
            match now.get(name) {
                Some(now) if now.follows(before, is_first) => {}
                now => self.complaints.push(format!("tracker {name} went back from {before:?} to {now:?}")),
            }
        }
        for (name, tracker) in &now {
            if let Some(failure) = tracker.failure.as_ref().filter(|_| name != NOTIFIER_NAME) {
                self.complaints.push(format!("{name} takes this for a failing event: {failure}"));
            }
            if let Some(owner) = tracker.owner
                && self.owners.insert(name.clone(), owner).is_some_and(|before| before != owner)
            {
                self.owner_changes += 1;
            }
        }
        self.latest = now;
    }
}

/// Looks at the trackers of one database until it is told to stop.
pub struct Lookout {
    task: JoinHandle<History>,
    stop: ShutdownHandle,
}

impl Lookout {
    /// Begins to look.
    pub fn post(url: &str) -> Self {
        let (stop, stopping) = shutdown::channel();
        Self { task: tokio::spawn(look(url.to_owned(), stopping)), stop }
    }

    /// Ends and tells what it has seen.
    pub async fn report(self) -> anyhow::Result<History> {
        self.stop.request();
        self.task.await.context("the lookout has failed")
    }
}

async fn look(url: String, mut stop: Shutdown) -> History {
    let mut history = History::default();
    while !stop.is_requested() {
        // A server that is down will be up again.
        if let Ok(mut connection) = connect_driver(&url).await {
            let mut is_first = true;
            while let (Ok(trackers), false) = (read(&mut connection).await, stop.is_requested()) {
                history.note(trackers, is_first);
                is_first = false;
                sleep(INTERVAL).await;
            }
        }
        stop.run_until_requested(sleep(INTERVAL)).await;
    }
    history
}
