//! What happens in the demo, and when: the processors catch up, a worker is killed, an event cannot be handled.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::PgPool;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::arriving::{IMPOSSIBLE_DAY, append_impossible_day};
use super::configuration::Configuration;
use super::read_model::{compare_with_events, dead_letter};
use crate::daemon::plan::supervision_plan;
use crate::operations::status::format::thousands;
use crate::processing::tracker::Owner;
use crate::store::PostgresEventStore;
use crate::supervision::{Snapshot, SupervisorRequest};

/// How often to look whether something has happened.
const GLANCE: Duration = Duration::from_millis(50);

/// How long anything may take to happen. A slow machine needs some of it.
const PATIENCE: Duration = Duration::from_secs(120);

/// The worker that is killed: it has one processor, whose name it has.
const KILLED_WORKER: &str = "outstanding_todos";

/// The demo as the story sees it.
pub(super) struct Story<'s> {
    pub(super) pool: PgPool,
    pub(super) store: PostgresEventStore,
    pub(super) configuration: &'s Configuration,
    pub(super) owner: Owner,
    pub(super) supervisor: mpsc::Sender<SupervisorRequest>,
    pub(super) snapshots: watch::Receiver<Vec<Snapshot>>,
    /// How many events the history has; their ids begin with 1.
    pub(super) history: i64,
    /// Time to look at what has just happened.
    pub(super) pause: Duration,
    /// How to call `espctl` for this demo.
    pub(super) espctl: String,
    pub(super) started: Instant,
    /// What has happened, in a few words, for the screen.
    pub(super) lines: watch::Sender<Vec<String>>,
}

impl Story<'_> {
    /// Lets everything happen, once. The events go on arriving afterwards.
    pub(super) async fn run(self) -> anyhow::Result<()> {
        self.catch_up().await?;
        sleep(self.pause).await;
        self.kill_worker().await?;
        sleep(self.pause).await;
        self.set_aside_one().await?;
        sleep(self.pause).await;
        self.say("that was all: events go on arriving until Ctrl-C");
        Ok(())
    }

    async fn catch_up(&self) -> anyhow::Result<()> {
        self.say("three projectors start at the first event, and catch up");
        let begun = Instant::now();
        let behind = async || {
            let count: i64 = sqlx::query_scalar(
                "-- count_behind
                 select 3 - count(*) from espd.trackers where position >= $1 and kind = 'projector'",
            )
            .bind(self.history)
            .fetch_one(&self.pool)
            .await?;
            Ok((count <= 0).then_some(()))
        };
        self.until("the projectors to catch up", behind).await?;
        let seconds = begun.elapsed().as_secs_f64();
        self.say(&format!(
            "caught up: 3 × {} events in {seconds:.1} s, in batches of 1,000 and more",
            thousands(self.history)
        ));
        Ok(())
    }

    async fn kill_worker(&self) -> anyhow::Result<()> {
        let pid = self.until("a worker", async || Ok(self.killed_worker_pid())).await?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).context("could not kill a worker")?;
        let begun = Instant::now();
        self.say(&format!("killed the worker of {KILLED_WORKER} while it worked: kill -9 {pid}"));
        let other = async || Ok(self.killed_worker_pid().filter(|other| *other != pid));
        let successor = self.until("the worker to start again", other).await?;
        let before = self.position().await?;
        let moved = async || Ok((self.position().await? > before).then_some(()));
        self.until("the new worker to go on", moved).await?;
        self.say(&format!("process {successor} goes on after {:.1} s", begun.elapsed().as_secs_f64()));
        let found = compare_with_events(&self.pool).await?;
        self.say(&match found.different {
            0 => format!(
                "its {} rows follow from the events: nothing lost, nothing twice",
                thousands(found.rows)
            ),
            different => bail!("{different} rows differ from what the events lead to: please report this"),
        });
        Ok(())
    }

    async fn set_aside_one(&self) -> anyhow::Result<()> {
        let event = append_impossible_day(&self.store).await?;
        self.say(&format!("a to-do was completed on {IMPOSSIBLE_DAY}, says event {event}: no such day"));
        let set_aside =
            self.until("the dead letter", async || Ok(dead_letter(&self.pool, event).await?)).await?;
        self.say(&format!(
            "set aside after {} attempts, as a dead letter; all others go on:",
            set_aside.attempts
        ));
        self.say(&format!("  {}", set_aside.message));
        sleep(self.pause).await;
        self.correct_handler().await?;
        self.say("corrected that handler, and reloaded. It handles the event with");
        self.say(&format!("  {} dead-letters retry completed_todos {event}", self.espctl));
        Ok(())
    }

    /// Changes the configuration, and has the supervisor take it over, as a reload does.
    async fn correct_handler(&self) -> anyhow::Result<()> {
        self.configuration.correct_handler()?;
        let plan = supervision_plan(&self.configuration.load()?, &self.owner)?;
        let request = SupervisorRequest::Replace(Box::new(plan));
        self.supervisor.send(request).await.ok().context("the supervisor has ended")
    }

    /// The process of the worker that is killed, or of its successor; `None`: there is none now.
    fn killed_worker_pid(&self) -> Option<i32> {
        self.snapshots.borrow().iter().find(|worker| worker.name == KILLED_WORKER)?.pid
    }

    async fn position(&self) -> sqlx::Result<i64> {
        sqlx::query_scalar("-- read_position\n select position from espd.trackers where name = $1")
            .bind(KILLED_WORKER)
            .fetch_one(&self.pool)
            .await
    }

    /// Looks again and again until there is something to see.
    async fn until<T>(
        &self,
        what: &str,
        glance: impl AsyncFn() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let looking = async {
            loop {
                match glance().await? {
                    Some(seen) => return Ok(seen),
                    None => sleep(GLANCE).await,
                }
            }
        };
        timeout(PATIENCE, looking).await.with_context(|| format!("waited two minutes for {what}"))?
    }

    fn say(&self, text: &str) {
        let seconds = self.started.elapsed().as_secs();
        let line = match text.strip_prefix("  ") {
            Some(more) => format!("        {more}"),
            None => format!("  {:02}:{:02} {text}", seconds / 60, seconds % 60),
        };
        self.lines.send_modify(|lines| lines.push(line));
    }
}
