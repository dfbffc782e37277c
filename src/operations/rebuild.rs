//! Builds a version of a projector beside the one that serves, compares the two, and has the new one go live.
//!
//! A rebuild is a row ([`State`]), a schema and a tracker, so whoever calls [`Rebuilding::begin`] again after a kill goes on where
//! it was. A lock of the session keeps two from building the same version at once.

mod approving;
mod beginning;
mod checks;
mod comparing;
mod continuous;
mod followed_store;
mod frozen;
mod going_live;
mod indexes;
mod looking;
mod part;
mod preparation;
mod probe;
mod processors;
pub(in crate::operations) mod publications;
mod removal;
mod rollback;
mod shares;
mod shortage;
mod since;
mod unattended;

use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, PgConnection, Postgres};

use crate::event::Position;
use crate::handlers::sql::function_names;
use crate::operations::operator::{Operator, OperatorError};
use crate::postgres::quote::quote_identifier;
use crate::processing::declaration::{Handling, ProcessorDeclaration};
use crate::processing::rebuild::{
    Beside, Complete, Difference, Finding, LeftAside, Pace, Part, Phase, Rebuilds, Replay, ReplayError,
    State, Throttle, Written, count_dead_letters, drop_place, write_progress,
};
use crate::processing::tracker::ProcessorKey;

pub(crate) use crate::processing::rebuild::{Progress, Wish};
use beginning::{Prepared, unlock_session};
pub(crate) use checks::FailedCheck;
pub(crate) use continuous::VerifiedSlice;
pub(crate) use frozen::{BUILDS, VERIFIES_SLICES};
pub(crate) use going_live::{GoLive, Way};
pub(crate) use looking::{Look, Outcome};
pub(crate) use part::Selection;
use preparation::{By, refuse_synchronous};
use probe::Probe;
pub(crate) use removal::GivenUp;
pub(crate) use shortage::Effort;
pub(crate) use since::find_since;
pub(crate) use unattended::{Built, Wanted};

/// What a session that builds is set to: its statements may take long, and what a large batch sorts stays in memory, of which it
/// takes no less than the database gives to everybody. Whoever waits for a statement may be killed: the server looks (from
/// PostgreSQL 14 on, on most systems), because the locks of the session keep the next one from going on.
const SESSION: &str = "set statement_timeout = 0; do $set$ begin
  perform set_config('work_mem', greatest(pg_size_bytes(current_setting('work_mem')) / 1024, 32 * 1024) || 'kB', false);
  if current_setting('client_connection_check_interval', true) = '0' then
    begin
      perform set_config('client_connection_check_interval', '2s', false);
    exception when others then
      null;
    end;
  end if;
end $set$";

/// What is told while a version is built.
#[derive(Clone, Copy)]
pub(crate) struct Listener<'l> {
    /// Told how far it is, about once a second.
    pub(crate) progress: &'l (dyn Fn(Progress) + Sync),
    /// Told what happens.
    pub(crate) note: &'l (dyn Fn(&str) + Sync),
}

/// A version that is built beside the one that serves.
pub(crate) struct Rebuilding<'o> {
    operator: Operator<'o>,
    listener: Listener<'o>,
    beside: Beside,
    live: ProcessorKey,
    declaration: ProcessorDeclaration,
    /// The schema of the version beside.
    building_in: String,
    replay: Replay,
    /// Where the version begins.
    start: Position,
    /// Has the lock of the session, and runs the batches.
    worker: PoolConnection<Postgres>,
    /// Since when the version beside has the rows that it has, as far as that was noted.
    complete: Complete,
    /// The tables of the version that serves.
    live_tables: Vec<String>,
    pace: Pace,
    /// What of them is built again; `None`: all.
    part: Option<Part>,
    /// The events that are left aside because the version that serves has set them aside.
    left_aside: LeftAside,
    effort: Effort,
    /// Why there was no room when that was last looked, and when that was.
    room: Option<(Instant, Option<String>)>,
    throttle: Throttle,
    /// Measures how long commits take beside it; `None`: it rests for nobody.
    probe: Option<Probe>,
    /// Whether it was told that they are slowed.
    is_slowing_told: bool,
}

impl<'o> Rebuilding<'o> {
    /// Begins to build a version, or goes on with what is there.
    ///
    /// # Errors
    /// The processor cannot be built beside, somebody else builds it, or the database does not answer.
    pub(crate) async fn begin(
        operator: Operator<'o>,
        name: &str,
        beside: Beside,
        listener: Listener<'o>,
    ) -> Result<Self, OperatorError> {
        Self::begin_with(operator, name, beside, &Selection::default(), listener).await
    }

    /// As [`Self::begin`], for the rows of some aggregates.
    ///
    /// # Errors
    /// As for [`Self::begin`]; or the rows of an aggregate are not known, or nothing is selected.
    pub(crate) async fn begin_with(
        operator: Operator<'o>,
        name: &str,
        beside: Beside,
        selection: &Selection,
        listener: Listener<'o>,
    ) -> Result<Self, OperatorError> {
        operator.refuse_unsuitable(&operator.find(name).await?, operator.declaration(name)?, beside)?;
        let worker = operator.lock_versions_after_slice(name, listener).await?;
        Self::begin_locked(operator, name, (beside, selection), listener, worker).await
    }

    /// As [`Self::begin_with`], by a session that has the lock of the versions. It lets go of it where nothing is begun.
    async fn begin_locked(
        operator: Operator<'o>,
        name: &str,
        (beside, selection): (Beside, &Selection),
        listener: Listener<'o>,
        mut worker: PoolConnection<Postgres>,
    ) -> Result<Self, OperatorError> {
        let what = (beside, selection, By::Operator);
        match Prepared::find(operator, name, what, listener, &mut worker).await {
            Ok(prepared) => Ok(prepared.begin(operator, beside, listener, worker)),
            Err(error) => {
                // The session may be what has failed, and its lock ends with it.
                let _ = unlock_session(&mut worker, name).await;
                Err(error)
            }
        }
    }

    /// Has it take so much of what there is.
    #[must_use]
    pub(crate) fn with_effort(self, effort: Effort) -> Self {
        Self { effort, ..self }
    }

    /// As [`Self::catch_up`], without waiting for what the server lacks.
    async fn catch_up_once(&mut self) -> Result<(), OperatorError> {
        self.begin_probe();
        self.defer_indexes().await?;
        self.follow_in_shares().await?;
        self.follow().await?;
        self.tell_set_aside().await?;
        self.note(Finding::CaughtUp).await?;
        self.make_indexes().await?;
        self.enter(Phase::Analyzing).await?;
        for table in self.declaration.table_names() {
            let table = format!("{}.{}", quote_identifier(&self.building_in), quote_identifier(&table));
            let statement = format!("-- analyze_table\nvacuum (analyze) {table}");
            sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *self.worker).await?;
        }
        self.note(Finding::Analyzed).await?;
        self.follow().await?;
        Ok(self.note_complete().await?)
    }

    /// Says how many events were set aside so far, by whoever has built the version.
    async fn tell_set_aside(&mut self) -> Result<(), OperatorError> {
        let (schema, key) = (self.operator.trackers().schema().to_owned(), self.replay.claim().key.clone());
        let number = count_dead_letters(&mut self.worker, &schema, &key).await?;
        if number == 0 {
            return Ok(());
        }
        let (version, name) = (self.declaration.version, &self.live.name);
        (self.listener.note)(&match self.beside {
            Beside::Next | Beside::Archived(_) => format!(
                "{number} events were set aside for version {version}: once it is live, `espctl dead-letters list {name}` shows them"
            ),
            Beside::DryRun | Beside::Verification | Beside::Part => {
                format!("{number} events cannot be handled, or wait behind such ones, so they are left out")
            }
        });
        Ok(())
    }

    /// Notes when the version beside had the rows that it has now.
    async fn note_complete(&mut self) -> Result<(), sqlx::Error> {
        let position = self.replay.position();
        if self.complete.position != Some(position) {
            self.complete = Complete::now(&mut self.worker, position).await?;
        }
        Ok(())
    }

    async fn follow(&mut self) -> Result<(), OperatorError> {
        loop {
            let target = self.operator.find_position(&mut self.worker, &self.live).await?;
            if self.pace.is_due(Instant::now()) {
                let rests_because = self.rests_because();
                let progress = self.write(Phase::Replaying, target, rests_because.as_deref()).await?;
                if progress.is_measured {
                    (self.listener.progress)(progress);
                }
            }
            if self.replay.position() >= target {
                return Ok(());
            }
            self.wait_for_room().await?;
            self.replay.await_retry().await;
            let (begun, from, fraction) = (Instant::now(), self.replay.position(), self.fraction());
            self.advance(target, fraction).await?;
            let rest = self.throttle.rest(fraction * self.effort.share, target, begun, Instant::now());
            if !rest.is_zero() && !is_nearly_done(begun.elapsed(), (from, self.replay.position()), target) {
                tokio::time::sleep(rest).await;
            }
        }
    }

    /// Handles a batch, which is smaller where it takes a fraction of its share only.
    async fn advance(&mut self, target: Position, fraction: f64) -> Result<(), OperatorError> {
        let seen = self.watched().cloned();
        let _working = seen.as_ref().map(|seen| seen.begin_batch());
        let advanced = self.replay.advance(&mut self.worker, target, fraction).await;
        advanced.map_err(|error| self.failed(error))
    }

    /// Writes down what is done now besides handling events, where others see it.
    async fn enter(&mut self, phase: Phase) -> Result<(), OperatorError> {
        self.pause_probe();
        let target = self.operator.find_position(&mut self.worker, &self.live).await?;
        self.write(phase, target, None).await.map(drop)
    }

    async fn write(
        &mut self,
        phase: Phase,
        target: Position,
        rests_because: Option<&str>,
    ) -> Result<Progress, OperatorError> {
        let at = (self.replay.position(), self.replay.handled);
        self.write_at(phase, at, target, rests_because).await
    }

    /// As [`Self::write`], where whoever handles events is at this position, and has handled so many.
    async fn write_at(
        &mut self,
        phase: Phase,
        (position, handled): (Position, i64),
        target: Position,
        rests_because: Option<&str>,
    ) -> Result<Progress, OperatorError> {
        let progress = self.pace.measure(Instant::now(), position, target, handled);
        // Former versions that go live again have little to do.
        if !matches!(self.beside, Beside::Archived(_)) {
            let written = Written {
                beside: self.beside,
                processor: &self.live.name,
                version: self.declaration.version,
                phase,
                progress,
                building_in: &self.building_in,
                builder: self.operator.name,
                rests_because,
            };
            let trackers = self.operator.trackers();
            write_progress(&mut *self.worker, (trackers.schema(), trackers.table()), &written).await?;
        }
        Ok(progress)
    }

    /// Locks the serving version's tracker for the rest of a transaction, and has the version beside reach its position.
    async fn hold_live(&mut self, hold: &mut PgConnection) -> Result<(), OperatorError> {
        sqlx::raw_sql("-- limit_waits\nset local lock_timeout = '5s'").execute(&mut *hold).await?;
        let Some(position) = self.operator.trackers().lock(hold, &self.live).await? else {
            return Err(OperatorError::Rebuild(format!("{} serves another version now", self.live.name)));
        };
        require_asynchronous(hold, self.operator.trackers().table(), &self.live).await?;
        let reached = self.replay.reach_at_once(&mut self.worker, position).await;
        reached.map_err(|error| self.failed(error))?;
        // Whoever sets the tracker back meanwhile would have the events in between handled once more on the rows that were built.
        if self.replay.position() > position && !matches!(self.beside, Beside::Archived(_)) {
            return Err(OperatorError::Rebuild(format!(
                "{} was set back to {position} meanwhile: no version goes live before it is at {} again",
                self.live.name,
                self.replay.position()
            )));
        }
        Ok(())
    }

    /// Removes a version that was built to be looked at only.
    pub(crate) async fn remove(mut self) -> Result<(), OperatorError> {
        let (operator, name) = (self.operator, self.live.name.clone());
        operator.remove_version(&mut self.worker, &name, self.beside, self.declaration.version).await?;
        self.end().await
    }

    /// Lets go of the lock of the session.
    pub(crate) async fn end(mut self) -> Result<(), OperatorError> {
        Ok(unlock_session(&mut self.worker, &self.live.name).await?)
    }

    /// The version that serves, and the one beside it.
    pub(crate) fn versions(&self) -> (i32, i32) {
        (self.live.version, self.declaration.version)
    }

    /// Records what has happened, where there is a row to record it in. Returns the state that follows.
    async fn note(&mut self, finding: Finding) -> Result<Option<State>, OperatorError> {
        if self.beside != Beside::Next {
            return Ok(None);
        }
        let rebuilds = self.rebuilds();
        let Some(row) = rebuilds.find(&mut *self.worker, &self.live.name).await? else { return Ok(None) };
        let followed = row.state().after(finding);
        if let Some(state) = followed
            && rebuilds.note(&mut *self.worker, &self.live.name, (row.state(), state)).await?
        {
            return Ok(Some(state));
        }
        let row = rebuilds.find(&mut *self.worker, &self.live.name).await?;
        Err(OperatorError::Rebuild(format!(
            "somebody else works on the rebuild of {} as well: the version {}",
            self.live.name,
            row.map_or("is gone".to_owned(), |row| row.state().to_string())
        )))
    }

    /// Refuses what may not follow in the state that the rebuild is in.
    async fn require(&mut self, finding: Finding) -> Result<(), OperatorError> {
        // What became of a version that was built later says nothing of one that has served before.
        if matches!(self.beside, Beside::Archived(_)) {
            return Ok(());
        }
        let rebuilds = self.rebuilds();
        let row = rebuilds.find(&mut *self.worker, &self.live.name).await?;
        match row {
            Some(row) if row.state().after(finding).is_none() => Err(OperatorError::Rebuild(format!(
                "the new version of {} {}, so it cannot go live",
                self.live.name,
                row.state()
            ))),
            _ => Ok(()),
        }
    }

    fn rebuilds(&self) -> Rebuilds {
        Rebuilds::new(self.operator.trackers().schema())
    }

    fn failed(&self, error: ReplayError) -> OperatorError {
        let (name, version) = (&self.live.name, self.declaration.version);
        match error {
            ReplayError::Failed(mut failure) => {
                let said =
                    failure.stderr.as_ref().map(|line| format!(", and wrote to standard error: {line}"));
                let said = said.unwrap_or_default();
                let is_kept = matches!(self.beside, Beside::Archived(_));
                let remedy = if failure.is_unreadable {
                    "correct the upcast that reads the event; one whose stored JSON `jsonb` refuses can only be set aside, by `on_failure` \
                     or as a dead letter of the version that serves"
                        .to_owned()
                } else if is_kept && matches!(self.declaration.handling, Handling::Sql(_)) {
                    // The file has other handlers by now.
                    failure.place = None;
                    format!(
                        "the handlers of version {version} are those that it had, in the database, and cannot be corrected: declare \
                         them, corrected, under a higher version instead"
                    )
                } else {
                    "correct the handler".to_owned()
                };
                OperatorError::Rebuild(format!(
                    "version {version} of {name} fails at {failure}{said}. Version {} serves as before; {remedy}",
                    self.live.version
                ))
            }
            ReplayError::Diverged => self.describe_other_store(None),
            other => failed(other),
        }
    }
}

/// Whether what is left takes no longer than a rest that anybody would notice, where a batch between two positions has taken so long. It
/// is not rested before the end: more events would come meanwhile, again and again.
fn is_nearly_done(took: Duration, (from, position): (Position, Position), target: Position) -> bool {
    const SHORT: Duration = Duration::from_millis(500);
    let (moved, left) = (position.get() - from.get(), target.get() - position.get());
    left <= 0 || moved > 0 && took.mul_f64(left as f64 / moved as f64) <= SHORT
}

fn blocked(error: crate::processing::processor::ProcessorError) -> OperatorError {
    match error {
        crate::processing::processor::ProcessorError::Database(error) => OperatorError::Database(error),
        other => OperatorError::Blocked(other.to_string()),
    }
}

/// Refuses to take the place of a version whose rows are written by the appends themselves: its position says nothing of them.
async fn require_asynchronous(
    connection: &mut PgConnection,
    trackers: &str,
    live: &ProcessorKey,
) -> Result<(), OperatorError> {
    let statement = format!(
        "-- is_synchronous\nselect synchronous is not null from {trackers} where {}",
        live.is_tracker()
    );
    let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
    let is_synchronous: Option<bool> = query.fetch_optional(connection).await?;
    match is_synchronous {
        Some(true) => Err(refuse_synchronous(&live.name)),
        _ => Ok(()),
    }
}

fn failed(error: ReplayError) -> OperatorError {
    match error {
        ReplayError::Database(error) => OperatorError::Database(error),
        other => OperatorError::Rebuild(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_does_not_rest_before_an_end_that_is_near() {
        let near = |milliseconds, from: i64, position: i64, target: i64| {
            is_nearly_done(Duration::from_millis(milliseconds), (from.into(), position.into()), target.into())
        };
        assert!(near(20, 100, 110, 120) && near(5_000, 100, 120, 120));
        assert!(near(500, 100, 110, 120) == near(500, 100, 120, 140) && near(500, 100, 110, 120));
        assert!(!near(600, 100, 110, 120), "another batch takes longer than half a second");
        assert!(!near(20, 100, 110, 1_000_000));
        assert!(!near(0, 100, 100, 120), "nothing is known of the speed");
    }
}
