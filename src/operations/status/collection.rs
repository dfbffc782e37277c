//! Collecting the statuses: what the trackers, the store and the daemons' rows say, put together.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgConnection;

use super::advice::{Surroundings, advise};
use super::lag::Lag;
use super::lock_wait::{self, LockWait};
use super::worker::{self, WorkerStatus};
use super::{HeldBy, ProcessorState, ProcessorStatus, rebuild, verification};
use crate::event::Position;
use crate::operations::databases::usable::find_restriction;
use crate::postgres::sqlstate::is_missing_right;
use crate::processing::declaration::{ProcessorDeclaration, Unsuitable};
use crate::processing::divergence::Divergence;
use crate::processing::history::find_divergence;
use crate::processing::rebuild::list_left_out;
use crate::processing::tracker::{TrackerRow, Trackers};
use crate::store::horizon::Horizon;
use crate::store::layout::Layout;
use crate::store::upcast::Upcast;

/// What the configuration declares that the question comes with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Declared<'d> {
    pub(crate) processors: &'d [ProcessorDeclaration],
    /// How old events are read as new ones.
    pub(crate) upcasts: &'d [Upcast],
    /// Whether daemons with this configuration build raised versions.
    pub(crate) daemons_build: bool,
}

impl<'d> Declared<'d> {
    fn find(self, name: &str) -> Option<&'d ProcessorDeclaration> {
        self.processors.iter().find(|declaration| declaration.name == name)
    }
}

/// The status of all processors that have run, and of those that are declared and have not run yet. The `rows` of the
/// trackers were read just before the `horizon`, so no position in them is beyond its head unless the store went back.
pub(crate) async fn collect(
    events: &mut PgConnection,
    projections: &mut PgConnection,
    layout: &Layout,
    rows: Vec<TrackerRow>,
    horizon: &Horizon,
    declared: Declared<'_>,
    name: Option<&str>,
) -> Result<Vec<ProcessorStatus>, sqlx::Error> {
    let horizon = &with_what_is_handled(horizon, &rows);
    let (mut statuses, trackers) = (Vec::new(), Trackers::of(layout));
    let mut lock_waits = lock_wait::list(projections).await?;
    let mut locked_trackers = lock_wait::list_of_trackers(projections, &trackers).await?;
    for row in rows {
        let lag = Lag::read(&mut *events, layout, row.position, horizon.head).await?;
        let (waited_for, locked) = (lock_waits.remove(&row.name), locked_trackers.remove(&row.name));
        // What keeps the last owner's session from giving the tracker up is told of as that.
        let locked = locked.filter(|_| row.holder_pid.is_none());
        let lock_wait = if row.owned { waited_for } else { locked };
        // No daemon need have noticed yet.
        let diverged = match find_divergence(&trackers, &row, &mut *events, &mut *projections, layout).await {
            Err(error) if is_missing_right(&error) => row.diverged.clone().map(|recorded| recorded.0),
            found => found?,
        };
        statuses.push(of_row(row, horizon, lag, lock_wait, diverged));
    }
    for declaration in declared.processors {
        let wanted = name.is_none_or(|name| name == declaration.name);
        if wanted && !statuses.iter().any(|status| status.name == declaration.name) {
            let lag = Lag::read(&mut *events, layout, Position::START, horizon.head).await?;
            statuses.push(never_run(declaration, horizon, lag));
        }
    }
    let (workers, vanished): (Vec<_>, Vec<_>) =
        worker::list(projections, layout).await?.into_iter().partition(|worker| worker.is_present);
    complete(projections, layout, &workers, &mut statuses, declared).await?;
    advise_all(projections, layout, (&workers, &vanished), &mut statuses, declared).await?;
    statuses.sort_by(|a, b| (&a.name, a.partition).cmp(&(&b.name, b.partition)));
    Ok(statuses)
}

/// Adds what stands in other rows than those of the trackers.
async fn complete(
    projections: &mut PgConnection,
    layout: &Layout,
    workers: &[WorkerStatus],
    statuses: &mut [ProcessorStatus],
    declared: Declared<'_>,
) -> Result<(), sqlx::Error> {
    let mut builds: BTreeMap<_, _> = rebuild::list(projections, layout).await?.into_iter().collect();
    let mut verifications = verification::list(projections, layout).await?;
    let mut unverified = verification::list_not_verified(projections, layout).await?;
    let mut reset_waits = lock_wait::list_of_resets(projections, layout).await?;
    for status in statuses {
        status.reset_wait = reset_waits.remove(&status.name);
        status.rebuild = builds.remove(&status.name);
        if let Some((build, declaration)) = status.rebuild.as_mut().zip(declared.find(&status.name)) {
            build.compare_to(declaration, declared.upcasts);
        }
        let verified = verifications.remove(&status.name);
        status.verification = verified.filter(|verified| verified.version == status.version);
        status.unverified = unverified.remove(&status.name);
        status.worker = worker::of(workers, &status.name, status.owner.as_deref());
        if is_without_process(status) {
            status.state = ProcessorState::Stopped;
        }
    }
    Ok(())
}

/// Says of each what needs attention.
async fn advise_all(
    projections: &mut PgConnection,
    layout: &Layout,
    (workers, vanished): (&[WorkerStatus], &[WorkerStatus]),
    statuses: &mut [ProcessorStatus],
    declared: Declared<'_>,
) -> Result<(), sqlx::Error> {
    let daemons = daemons_of(workers);
    let restriction = find_restriction(&mut *projections).await?;
    let unusable = restriction.filter(|found| found.concerns_all).map(|found| found.unusable);
    let refused = worker::list_refused(projections, layout).await?;
    let is_raised = |declaration: &&ProcessorDeclaration| {
        statuses.iter().any(|status| status.name == declaration.name && status.version < declaration.version)
    };
    let raised: Vec<_> = declared.processors.iter().filter(is_raised).collect();
    let left_out = list_left_out(projections, (layout, declared.upcasts), &raised).await?;
    let gone_live = rebuild::list_gone_live(projections, layout).await?;
    let former = Trackers::of(layout).list_former(&mut *projections, None).await?;
    let now = Utc::now();
    for status in statuses {
        let declaration = declared.find(&status.name);
        let surroundings = Surroundings {
            now,
            daemons: &daemons,
            vanished,
            unusable: unusable.as_ref(),
            refused: &refused,
            is_declared: declaration.is_some(),
            declared_version: declaration.map(|declaration| declaration.version),
            live_since: gone_live
                .get(&status.name)
                .filter(|(version, _)| *version == status.version)
                .map(|(_, since)| *since),
            former: &former,
            daemons_build: declared.daemons_build,
            left_out: left_out.get(&status.name).copied(),
            unsuitable: declaration
                .and_then(|declared| Unsuitable::find_deployed(declared, status.synchronous.is_some())),
            is_not_yet_synchronous: status.synchronous.is_none()
                && declaration.is_some_and(|declared| declared.synchronous.is_some()),
        };
        status.advice = advise(status, surroundings);
    }
    Ok(())
}

/// The horizon, where one look may have seen little of what is settled: what a batch has handled was settled before. A position that an
/// operator has chosen tells nothing.
fn with_what_is_handled(horizon: &Horizon, rows: &[TrackerRow]) -> Horizon {
    let is_of_store = |row: &&TrackerRow| {
        horizon.unmet.is_none() && row.caught_up && row.diverged.is_none() && row.position <= horizon.head
    };
    let handled = rows.iter().filter(is_of_store).map(|row| row.position).max();
    let settled = handled.map_or(horizon.settled, |handled| handled.max(horizon.settled));
    let held_by = if settled < horizon.head { horizon.held_by.clone() } else { Vec::new() };
    Horizon { settled, held_by, ..horizon.clone() }
}

/// Whether the worker process has ended since the tracker was written last: its lease outlives it by seconds, and nothing moves.
fn is_without_process(status: &ProcessorStatus) -> bool {
    let seems_well =
        matches!(status.state, ProcessorState::Running | ProcessorState::CatchingUp | ProcessorState::Live);
    let ended_at =
        status.worker.as_ref().filter(|worker| worker.is_down()).and_then(|worker| worker.last_end_at);
    seems_well
        && ended_at.is_some_and(|ended_at| status.updated_at.is_some_and(|updated_at| updated_at < ended_at))
}

/// The daemons that have workers, each once.
fn daemons_of(workers: &[WorkerStatus]) -> Vec<String> {
    let daemons: BTreeSet<&String> = workers.iter().map(|worker| &worker.owner).collect();
    daemons.into_iter().cloned().collect()
}

fn of_row(
    row: TrackerRow,
    horizon: &Horizon,
    lag: Lag,
    lock_wait: Option<LockWait>,
    diverged: Option<Divergence>,
) -> ProcessorStatus {
    let state = match diverged {
        Some(_) => ProcessorState::Diverged,
        None => state_of(&row, horizon, lag.seconds, lock_wait.is_some()),
    };
    let has_stopped = matches!(state, ProcessorState::Diverged | ProcessorState::Failed);
    let overdue_since = if has_stopped { row.keyless_overdue_since } else { row.emissions_overdue_since };
    ProcessorStatus {
        state,
        head: horizon.head,
        horizon: horizon.settled,
        lag_events: lag.events,
        lag_seconds: lag.seconds,
        standing_since: standing_since(&row, horizon, lag.seconds).filter(|_| state.has_to_move()),
        synchronous: row.synchronous,
        rate: if row.owned { row.rate } else { 0.0 },
        owner: row.owner_label.filter(|_| row.owned),
        standbys: row.standbys,
        holder_pid: row.holder_pid,
        // What kept the last owner from continuing may be over; who holds the tracker is what does so now.
        outage: row.outage.filter(|_| row.owned || lock_wait.is_none()).map(|outage| outage.0),
        lock_wait,
        reset_wait: None,
        diverged,
        handler_change: row.handler_change.map(|change| change.0),
        failing_events: row.failing_beyond.max(i64::from(row.attempts > 0)),
        goes_on_beside: row.failing_beyond > 0,
        // Otherwise it is only noted that an event is at hand.
        last_error: row
            .last_error
            .filter(|_| row.attempts > 0 || row.failed_at.is_some())
            .map(|error| error.0),
        dead_letters: row.dead_letters,
        oldest_dead_letter_at: row.oldest_dead_letter_at,
        pending_emissions: row.pending_emissions,
        next_emission_at: row.next_emission_at,
        refused_emissions: row.refused_emissions,
        emissions_overdue_since: overdue_since,
        // The error of an outage stays where nothing is moved because it is held.
        emission_error: row.emission_error.filter(|_| row.refused_emissions > 0 || overdue_since.is_some()),
        updated_at: Some(row.updated_at),
        worker: None,
        held_by: horizon.held_by.iter().map(HeldBy::of).collect(),
        rebuild: None,
        verification: None,
        unverified: None,
        advice: Vec::new(),
        name: row.name,
        kind: row.kind,
        partition: row.partition,
        version: row.version,
        position: row.position,
        handled: row.handled,
        epoch: row.epoch,
        attempts: row.attempts,
        next_retry_at: row.next_retry_at,
        paused_at: row.paused_at,
        paused_by: row.paused_by,
    }
}

/// Since when the position stays where it is though there are settled events beyond it, the oldest of them of `lag_seconds`.
fn standing_since(row: &TrackerRow, horizon: &Horizon, lag_seconds: f64) -> Option<DateTime<Utc>> {
    let there_since = Utc::now() - TimeDelta::milliseconds((lag_seconds * 1_000.0) as i64);
    (row.position < horizon.settled).then(|| row.standing_since.max(there_since))
}

/// A processor whose last batch has caught up is live while it leaves no event unhandled for longer than this.
const LIVE_LAG_SECONDS_MAX: f64 = 5.0;

/// Chooses one state of a processor whose store is the one that it follows, where several apply: an operator's pause outranks
/// a failure, a failure outranks a missing owner, and what keeps an owner from trying at all outranks what fails when it
/// tries.
fn state_of(row: &TrackerRow, horizon: &Horizon, lag_seconds: f64, is_locked: bool) -> ProcessorState {
    if row.paused_at.is_some() {
        ProcessorState::Paused
    } else if row.failed_at.is_some() {
        ProcessorState::Failed
    } else if !row.owned && !row.standbys.is_empty() {
        if is_locked { ProcessorState::Waiting } else { ProcessorState::Standby }
    } else if !row.owned {
        ProcessorState::Stopped
    } else if row.outage.is_some() || is_locked {
        ProcessorState::Waiting
    } else if row.attempts > 0 {
        ProcessorState::Retrying
    } else if is_live(row, horizon, lag_seconds) {
        ProcessorState::Live
    } else if row.handled == 0 && row.position == 0 {
        ProcessorState::Running
    } else {
        ProcessorState::CatchingUp
    }
}

/// Whether a processor has nothing to do, or does it as it comes. Where a writer was there before, one look at the horizon
/// may know little of what is settled. So who is beyond that counts only if its last batch had reached what a watcher knew.
fn is_live(row: &TrackerRow, horizon: &Horizon, lag_seconds: f64) -> bool {
    let is_at_horizon = row.position >= horizon.settled;
    row.position >= horizon.head || (row.caught_up && (is_at_horizon || lag_seconds < LIVE_LAG_SECONDS_MAX))
}

fn never_run(declaration: &ProcessorDeclaration, horizon: &Horizon, lag: Lag) -> ProcessorStatus {
    ProcessorStatus {
        version: declaration.version,
        head: horizon.head,
        horizon: horizon.settled,
        lag_events: lag.events,
        lag_seconds: lag.seconds,
        held_by: horizon.held_by.iter().map(HeldBy::of).collect(),
        ..ProcessorStatus::without_tracker(&declaration.name, declaration.kind().as_str())
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::super::examples::live;
    use super::*;

    #[test]
    fn a_processor_whose_process_has_ended_after_its_last_sign_of_life_is_not_live() {
        let now = Utc::now();
        let worker = |state: &str, ended_seconds_ago: i64| WorkerStatus {
            processor: "notes".into(),
            worker: "notes".into(),
            owner: "web-1:4711".into(),
            pid: None,
            state: state.into(),
            starts: 1,
            last_end: Some("signal SIGKILL".into()),
            last_end_at: Some(now - TimeDelta::seconds(ended_seconds_ago)),
            next_start_at: None,
            recorded_at: Utc::now(),
            is_present: true,
        };
        let status = |state: ProcessorState, worker: WorkerStatus| ProcessorStatus {
            state,
            worker: Some(worker),
            updated_at: Some(now - TimeDelta::seconds(3)),
            ..live("notes")
        };
        let is_gone = |state, worker| is_without_process(&status(state, worker));
        assert!(is_gone(ProcessorState::Live, worker("crash_looping", 1)));
        assert!(is_gone(ProcessorState::CatchingUp, worker("waiting", 1)));
        assert!(!is_gone(ProcessorState::Live, worker("running", 1)), "it runs again");
        assert!(!is_gone(ProcessorState::Live, worker("waiting", 9)), "it has written since");
        assert!(!is_gone(ProcessorState::Retrying, worker("waiting", 1)), "which says more");
    }
}
