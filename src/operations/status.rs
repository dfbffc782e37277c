//! How far every processor is, whether it runs, and if not, why and what to do.

mod advice;
pub(crate) mod format;
pub(crate) mod table;
mod worker;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::event::Position;
use crate::processing::declaration::ProcessorDeclaration;
use crate::processing::failure::Failure;
use crate::processing::tracker::{Outage, ProcessorKey, TrackerRow, Trackers};
use crate::store::horizon::Holder;
use crate::store::horizon::Horizon;
use crate::store::layout::Layout;

pub(crate) use advice::Advice;
pub(crate) use worker::WorkerStatus;

/// What a processor is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProcessorState {
    /// Claimed by a worker that has not finished a batch yet.
    Running,
    /// AggregateQueue the settled horizon, and handling events.
    CatchingUp,
    /// At the settled horizon.
    Live,
    /// Paused by an operator.
    Paused,
    /// Trying a failing event again and again.
    Retrying,
    /// Stopped until an operator acts.
    Failed,
    /// No worker owns it, but a daemon stands by to take it over.
    Standby,
    /// No worker owns it.
    Stopped,
}

impl ProcessorState {
    /// Every state.
    pub(crate) const ALL: [Self; 8] = [
        Self::Running,
        Self::CatchingUp,
        Self::Live,
        Self::Paused,
        Self::Retrying,
        Self::Failed,
        Self::Standby,
        Self::Stopped,
    ];

    /// The state in one word, as people and programs see it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::CatchingUp => "catching_up",
            Self::Live => "live",
            Self::Paused => "paused",
            Self::Retrying => "retrying",
            Self::Failed => "failed",
            Self::Standby => "standby",
            Self::Stopped => "stopped",
        }
    }
}

/// The status of one processor. The field names are an interface: `espctl status --json` prints them.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ProcessorStatus {
    /// Name of the processor.
    pub name: String,
    /// `projector` or `reactor`.
    pub kind: String,
    /// Partition of the processor; 0 unless it is partitioned.
    pub partition: i32,
    /// Version of the processor's tables.
    pub version: i32,
    /// What the processor is doing.
    pub state: ProcessorState,
    /// Every event at or below it has been handled.
    pub position: Position,
    /// The last event id that the store has drawn.
    pub head: Position,
    /// No event can appear at or below it any more.
    pub horizon: Position,
    /// Ids between position and head; holes and events of other types included.
    pub lag_events: i64,
    /// Age of the oldest event beyond the position, in seconds; 0 when there is none.
    pub lag_seconds: f64,
    /// Ids passed per second lately, events of other types included; 0 when idle.
    pub rate: f32,
    /// Events handled since the last reset.
    pub handled: i64,
    /// How often the processor has been claimed or reset.
    pub epoch: i64,
    /// Host and process id of the daemon that owns the processor.
    pub owner: Option<String>,
    /// Host and process id of the daemons that stand by to take the processor over.
    pub standbys: Vec<String>,
    /// The backend of the last owner, which still holds the tracker though the lease has ended.
    pub holder_pid: Option<i32>,
    /// How often in a row the event of `last_error` has failed.
    pub attempts: i32,
    /// The failing infrastructure that stops it; no event is to blame.
    pub outage: Option<Outage>,
    /// The failure that stops it.
    pub last_error: Option<Failure>,
    /// When the failing event will be tried again.
    pub next_retry_at: Option<DateTime<Utc>>,
    /// When an operator paused the processor.
    pub paused_at: Option<DateTime<Utc>>,
    /// Who paused the processor.
    pub paused_by: Option<String>,
    /// How many events are set aside for the processor; `espctl dead-letters list` shows them.
    pub dead_letters: i64,
    /// When the oldest of these events was set aside.
    pub oldest_dead_letter_at: Option<DateTime<Utc>>,
    /// How many events a reactor has emitted that are not in the event store yet: due later, or on their way.
    pub pending_emissions: i64,
    /// When the next of these events is due.
    pub next_emission_at: Option<DateTime<Utc>>,
    /// When the processor's tracker last changed; `None`: it has never run.
    pub updated_at: Option<DateTime<Utc>>,
    /// The process that the processor runs in; `None` where no daemon has recorded one.
    pub worker: Option<WorkerStatus>,
    /// The transactions that hold the settled horizon back; empty if none does.
    pub held_by: Vec<HeldBy>,
    /// What needs attention, and what to do about it, the most urgent first; empty if all is well.
    pub advice: Vec<Advice>,
}

impl ProcessorStatus {
    /// What identifies the processor's tracker.
    pub(crate) fn key(&self) -> ProcessorKey {
        ProcessorKey { name: self.name.clone(), version: self.version, partition: self.partition }
    }

    /// The name that people see: without version and partition, unless another one of `all` has the same name.
    pub(crate) fn shown_name(&self, all: &[Self]) -> String {
        let same = all.iter().filter(|other| other.name == self.name).count();
        if same > 1 { self.key().to_string() } else { self.name.clone() }
    }
}

/// A transaction that holds the settled horizon back.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct HeldBy {
    /// Process id of its session; `None` for a prepared transaction.
    pub pid: Option<i32>,
    /// Role of the session, or owner of the prepared transaction.
    pub user: Option<String>,
    /// The session's `application_name`.
    pub application_name: Option<String>,
    /// What the session is doing.
    pub state: Option<String>,
    /// The session's current or last statement, cut short.
    pub query: Option<String>,
    /// How long the transaction has been open, in seconds.
    pub seconds: Option<f64>,
    /// Name of a prepared transaction.
    pub prepared: Option<String>,
}

impl HeldBy {
    fn of(holder: &Holder) -> Self {
        let Holder { pid, user, application_name, state, query, age, prepared, .. } = holder.clone();
        Self {
            pid,
            user,
            application_name,
            state,
            query,
            seconds: age.map(|age| age.as_secs_f64()),
            prepared,
        }
    }
}

/// The status of all processors that have run, and of those that are declared and have not run yet.
pub(crate) async fn collect(
    events: &mut PgConnection,
    projections: &mut PgConnection,
    layout: &Layout,
    horizon: &Horizon,
    declared: &[ProcessorDeclaration],
    name: Option<&str>,
) -> Result<Vec<ProcessorStatus>, sqlx::Error> {
    let rows = Trackers::new(layout.schema()).list(&mut *projections, name).await?;
    let workers = worker::list(projections, layout).await?;
    let mut statuses = Vec::new();
    for row in rows {
        let lag_seconds = lag_seconds(events, layout, row.position).await?;
        statuses.push(of_row(row, horizon, lag_seconds));
    }
    for declaration in declared {
        let wanted = name.is_none_or(|name| name == declaration.name);
        if wanted && !statuses.iter().any(|status| status.name == declaration.name) {
            let lag_seconds = lag_seconds(events, layout, Position::START).await?;
            statuses.push(never_run(declaration, horizon, lag_seconds));
        }
    }
    let now = Utc::now();
    for status in &mut statuses {
        status.worker = worker::of(&workers, &status.name, status.owner.as_deref());
        status.advice = advice::advise(status, now);
    }
    statuses.sort_by(|a, b| (&a.name, a.partition).cmp(&(&b.name, b.partition)));
    Ok(statuses)
}

/// Age of the oldest event beyond `position` that is visible now, in seconds by the server's clock.
async fn lag_seconds(
    connection: &mut PgConnection,
    layout: &Layout,
    position: Position,
) -> Result<f64, sqlx::Error> {
    let statement = format!(
        "-- age_oldest_unhandled_event
         select case when isfinite(created_at)
                then greatest(0, extract(epoch from clock_timestamp() - created_at)) else 0 end::float8
         from {} as e where id > $1 order by id limit 1",
        layout.source()
    );
    let age: Option<f64> =
        sqlx::query_scalar(AssertSqlSafe(statement)).bind(position).fetch_optional(connection).await?;
    Ok(age.unwrap_or(0.0))
}

fn of_row(row: TrackerRow, horizon: &Horizon, lag_seconds: f64) -> ProcessorStatus {
    let state = state_of(&row, horizon, lag_seconds);
    let fresh = Utc::now().signed_duration_since(row.updated_at) < chrono::TimeDelta::seconds(5);
    ProcessorStatus {
        state,
        head: horizon.head,
        horizon: horizon.settled,
        lag_events: row.position.distance_to(horizon.head).max(0),
        lag_seconds,
        rate: if fresh { row.rate } else { 0.0 },
        owner: row.owner_label.filter(|_| row.owned),
        standbys: row.standbys,
        holder_pid: row.holder_pid,
        outage: row.outage.map(|outage| outage.0),
        last_error: row.last_error.map(|error| error.0),
        dead_letters: row.dead_letters,
        oldest_dead_letter_at: row.oldest_dead_letter_at,
        pending_emissions: row.pending_emissions,
        next_emission_at: row.next_emission_at,
        updated_at: Some(row.updated_at),
        worker: None,
        held_by: horizon.held_by.iter().map(HeldBy::of).collect(),
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

/// A processor whose last batch has caught up is live while it leaves no event unhandled for longer than this.
const LIVE_LAG_SECONDS_MAX: f64 = 5.0;

/// Chooses one state where several apply: an operator's pause outranks a failure, a failure outranks a missing owner.
fn state_of(row: &TrackerRow, horizon: &Horizon, lag_seconds: f64) -> ProcessorState {
    if row.paused_at.is_some() {
        ProcessorState::Paused
    } else if row.failed_at.is_some() {
        ProcessorState::Failed
    } else if !row.owned && !row.standbys.is_empty() {
        ProcessorState::Standby
    } else if !row.owned {
        ProcessorState::Stopped
    } else if row.attempts > 0 {
        ProcessorState::Retrying
    } else if row.position >= horizon.settled || (row.caught_up && lag_seconds < LIVE_LAG_SECONDS_MAX) {
        ProcessorState::Live
    } else if row.handled == 0 && row.position == 0 {
        ProcessorState::Running
    } else {
        ProcessorState::CatchingUp
    }
}

fn never_run(declaration: &ProcessorDeclaration, horizon: &Horizon, lag_seconds: f64) -> ProcessorStatus {
    ProcessorStatus {
        name: declaration.name.clone(),
        kind: declaration.kind().as_str().to_owned(),
        partition: 0,
        version: declaration.version,
        state: ProcessorState::Stopped,
        position: Position::START,
        head: horizon.head,
        horizon: horizon.settled,
        lag_events: horizon.head.get(),
        lag_seconds,
        rate: 0.0,
        handled: 0,
        epoch: 0,
        owner: None,
        standbys: Vec::new(),
        holder_pid: None,
        outage: None,
        attempts: 0,
        last_error: None,
        next_retry_at: None,
        paused_at: None,
        paused_by: None,
        dead_letters: 0,
        oldest_dead_letter_at: None,
        pending_emissions: 0,
        next_emission_at: None,
        updated_at: None,
        worker: None,
        held_by: horizon.held_by.iter().map(HeldBy::of).collect(),
        advice: Vec::new(),
    }
}

#[cfg(test)]
pub(super) mod examples {
    use super::{ProcessorState, ProcessorStatus};
    use crate::event::Position;

    /// The status of a processor that all is well with.
    pub(crate) fn live(name: &str) -> ProcessorStatus {
        ProcessorStatus {
            name: name.to_owned(),
            kind: "projector".to_owned(),
            partition: 0,
            version: 1,
            state: ProcessorState::Live,
            position: Position::START,
            head: Position::START,
            horizon: Position::START,
            lag_events: 0,
            lag_seconds: 0.0,
            rate: 0.0,
            handled: 0,
            epoch: 1,
            owner: Some("web-1:4711".to_owned()),
            standbys: Vec::new(),
            holder_pid: None,
            outage: None,
            attempts: 0,
            last_error: None,
            next_retry_at: None,
            paused_at: None,
            paused_by: None,
            dead_letters: 0,
            oldest_dead_letter_at: None,
            pending_emissions: 0,
            next_emission_at: None,
            updated_at: None,
            worker: None,
            held_by: Vec::new(),
            advice: Vec::new(),
        }
    }
}
