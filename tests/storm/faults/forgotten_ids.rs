//! A crash after which the server draws ids again that it had drawn before.
//!
//! Ids that are rolled back are in no file until somebody commits. If the server crashes before, it does not
//! know them any more, and gives them to the next events. Whoever has moved a position over them meanwhile, and
//! keeps it on another server, loses these events. Chance hardly ever gets there, so this is arranged.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sqlx::{Connection as _, PgConnection};
use tokio::time::sleep;

use super::Storm;
use crate::processes::{Process, State};
use crate::trackers;
use espd::event::Position;

/// Ids drawn for nothing: more than the 32 that one record in the server's log covers. They go to rows that
/// conflict with a stored one, as rows would fill the log, and a full page of the log is written at once.
const IDS: i64 = 40;

/// How long the daemon elsewhere may take to catch up with the quiet store.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(3);

/// How long it is given to go too far. The server writes its log by itself every 0.2 s, and that spoils it.
const TEMPTATION: Duration = Duration::from_millis(80);

const POLL: Duration = Duration::from_millis(2);

impl Storm<'_> {
    /// Returns whether the server has forgotten ids.
    pub(super) async fn forget_ids(&mut self) -> anyhow::Result<bool> {
        let lull = self.lull.clone();
        let _nobody_appends = lull.write().await;
        let frozen = self.freeze_all_that_commits();
        // A server that is down spoils it, that is all.
        let drawn = self.draw_ids_for_nothing().await.ok().flatten();
        if drawn.is_some() {
            self.world.events.crash();
        }
        self.welcome_servers(true).await?;
        for process in frozen {
            process.signal(Signal::SIGCONT);
        }
        let known = read_last_id(&mut self.world.events.connect().await?).await?;
        Ok(drawn.is_some_and(|drawn| known < drawn))
    }

    /// Freezes the daemons beside the events: any commit of theirs would have the log written.
    fn freeze_all_that_commits(&self) -> Vec<Process> {
        let mut here = self.world.processes_here();
        here.retain(|process| process.state() == State::Alive && process.signal(Signal::SIGSTOP));
        here
    }

    /// Waits until the daemon elsewhere is at the head, draws ids, rolls back, and waits whether the daemon
    /// moves over them. Returns the last of the ids; `None`: the daemon did not come to the head.
    async fn draw_ids_for_nothing(&mut self) -> Result<Option<Position>, sqlx::Error> {
        let mut events = self.world.events.connect().await?;
        let mut elsewhere = self.world.projections.connect().await?;
        let head = read_last_id(&mut events).await?;
        if !come_to(&mut elsewhere, head, CATCH_UP_LIMIT).await? {
            return Ok(None);
        }
        let mut transaction = events.begin().await?;
        let statement = "-- draw_ids
             insert into espd.events (uuid, aggregate_id, type, version, body)
             select uuid, gen_random_uuid(), 'NeverHappened', 1, '{}'
             from (select uuid from espd.events limit 1) as stored, generate_series(1, $1)
             on conflict do nothing";
        sqlx::query(statement).bind(IDS).execute(&mut *transaction).await?;
        let drawn = read_last_id(&mut transaction).await?;
        transaction.rollback().await?;
        come_to(&mut elsewhere, drawn, TEMPTATION).await?;
        Ok(Some(drawn))
    }
}

/// Whether all trackers come to a position within `limit`.
async fn come_to(
    connection: &mut PgConnection,
    position: Position,
    limit: Duration,
) -> Result<bool, sqlx::Error> {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if trackers::read(connection).await?.values().all(|tracker| tracker.position >= position) {
            return Ok(true);
        }
        sleep(POLL).await;
    }
    Ok(false)
}

async fn read_last_id(connection: &mut PgConnection) -> Result<Position, sqlx::Error> {
    let statement = "-- read_last_id\nselect coalesce(pg_sequence_last_value('espd.events_id_seq'), 0)";
    sqlx::query_scalar(statement).fetch_one(connection).await
}
