//! After the storm, the store goes back: a copy is restored, a standby that lags is promoted, the tail is removed by hand.
//!
//! Whoever has handled events that are gone has to stop and say so, and must not go on when the head passes its position
//! again. Then an operator resets, and everything has to be the fold of what the store has now.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use espd::event::Position;
use sqlx::PgConnection;
use tokio::process::Command;
use tokio::time::sleep;

use crate::campaign::wait_until_converged;
use crate::fold::{fold, read_events};
use crate::projectors::{NAMES, Projections, REACTORS};
use crate::trackers::{self, Tracker};
use crate::world::World;

/// Events that are handled and then gone.
const TAIL: i64 = 60;

/// How long it may take until everybody has noticed.
const NOTICE_LIMIT: Duration = Duration::from_secs(60);

const POLL: Duration = Duration::from_millis(50);

/// How a store goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// A copy takes its place.
    Restore,
    /// A standby that lacks the tail takes its place, on a new timeline.
    FailOver,
    /// The tail is deleted, and the sequence set back; what is beside the events stays.
    SetBack,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Aftermath {
    /// How often the store went back.
    pub times: u32,
    /// Processors that stopped because of it.
    pub diverged: u64,
    /// Rows of projections that were compared after the resets.
    pub rows_compared: u64,
    pub complaints: Vec<String>,
}

/// Has the store go back in each way. The daemons run, nobody else appends, and everything has been handled.
pub async fn run(world: &mut World) -> anyhow::Result<Aftermath> {
    let mut aftermath = Aftermath::default();
    for way in [Way::Restore, Way::FailOver, Way::SetBack] {
        aftermath.go_back(world, way).await.with_context(|| format!("{way:?}"))?;
        aftermath.times += 1;
    }
    Ok(aftermath)
}

impl Aftermath {
    async fn go_back(&mut self, world: &mut World, way: Way) -> anyhow::Result<()> {
        let common = head(world).await?;
        let copy = world.copy_events().await?;
        append(world, TAIL).await?;
        converge(world).await?;
        match way {
            Way::Restore => world.replace_events(&copy, false).await?,
            Way::FailOver => world.replace_events(&copy, true).await?,
            Way::SetBack => cut_off(&mut world.events.connect().await?, common).await?,
        }
        // The head passes where it was.
        append(world, 2 * TAIL).await?;
        let stopped = self.wait_until_noticed(world, way, common).await?;
        self.diverged += stopped.len() as u64;
        for (place, name) in &stopped {
            reset(world, place, name, common).await?;
        }
        converge(world).await?;
        self.compare(world, way).await
    }

    /// Waits until those that were beyond the common event have stopped, and no other has. Returns their places and names.
    async fn wait_until_noticed(
        &mut self,
        world: &World,
        way: Way,
        common: Position,
    ) -> anyhow::Result<BTreeSet<(&'static str, String)>> {
        let mut expected: BTreeSet<(&'static str, String)> =
            NAMES.iter().map(|name| ("elsewhere", (*name).to_owned())).collect();
        if way == Way::SetBack {
            // A copy has the trackers beside its events, and these agree with it.
            expected.extend(NAMES.iter().chain(&REACTORS).map(|name| ("here", (*name).to_owned())));
        }
        let deadline = Instant::now() + NOTICE_LIMIT;
        loop {
            let stopped: BTreeSet<(&'static str, String)> = diverged(world).await?.into_keys().collect();
            if stopped == expected {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "diverged after {NOTICE_LIMIT:?}: {stopped:?}, should be {expected:?}"
            );
            sleep(POLL).await;
        }
        for ((place, name), tracker) in diverged(world).await? {
            // It stands where it was, whatever has come since.
            if tracker.position.get() < common.get() + TAIL {
                self.complaints
                    .push(format!("{way:?}: {name} {place} has moved while diverged: {tracker:?}"));
            }
        }
        Ok(expected)
    }

    async fn compare(&mut self, world: &World, way: Way) -> anyhow::Result<()> {
        let expected = fold(&read_events(&mut world.events.connect().await?).await?);
        for (place, server) in world.places() {
            let found = Projections::read(&mut server.connect().await?).await?;
            self.rows_compared += found.journal.len() as u64;
            if found != expected {
                self.complaints
                    .push(format!("{way:?}: the projections {place} are not the fold of the store"));
            }
        }
        Ok(())
    }
}

async fn converge(world: &World) -> anyhow::Result<()> {
    match wait_until_converged(world).await? {
        None => Ok(()),
        Some(laggards) => anyhow::bail!("{laggards}"),
    }
}

/// The trackers that have stopped because of their store, by place and name.
async fn diverged(world: &World) -> anyhow::Result<BTreeMap<(&'static str, String), Tracker>> {
    let mut all = BTreeMap::new();
    for (place, server) in [("here", &world.events), ("elsewhere", &world.projections)] {
        let trackers = trackers::read(&mut server.connect().await?).await?;
        let stopped = trackers.into_iter().filter(|(_, tracker)| tracker.diverged);
        all.extend(stopped.map(|(name, tracker)| ((place, name), tracker)));
    }
    Ok(all)
}

async fn head(world: &World) -> anyhow::Result<Position> {
    let statement = "-- read_head\nselect coalesce(max(id), 0) from espd.events";
    Ok(sqlx::query_scalar(statement).fetch_one(&mut world.events.connect().await?).await?)
}

/// Appends notes, each to an aggregate of its own.
async fn append(world: &World, count: i64) -> anyhow::Result<()> {
    let statement = "-- append_notes
         insert into espd.events (aggregate_id, type, version, body)
         select gen_random_uuid(), 'NoteAdded', 1, '{\"amount\": 1}' from generate_series(1, $1)";
    sqlx::query(statement).bind(count).execute(&mut world.events.connect().await?).await?;
    Ok(())
}

/// Removes what came after an event, and draws the same ids again.
async fn cut_off(connection: &mut PgConnection, last: Position) -> anyhow::Result<()> {
    sqlx::query("-- delete_tail\ndelete from espd.events where id > $1")
        .bind(last)
        .execute(&mut *connection)
        .await?;
    sqlx::query("-- set_sequence_back\nselect setval('espd.events_id_seq', $1)")
        .bind(last)
        .execute(connection)
        .await?;
    Ok(())
}

/// Resets as an operator would: a projector starts over, a reactor goes back to the last common event.
async fn reset(world: &World, place: &str, name: &str, common: Position) -> anyhow::Result<()> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_espctl"));
    command.args(["reset", name, "--yes", "--config"]).arg(world.config(place));
    if REACTORS.contains(&name) {
        command.args(["--to", &common.to_string()]);
    } else {
        command.arg("--in-place");
    }
    let output = command.output().await?;
    ensure!(output.status.success(), "espctl reset {name}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
