//! How far every processor is, whether it runs, and if not, why and what to do.

mod advice;
mod collection;
pub(crate) mod format;
pub(crate) mod groups;
mod lag;
mod lock_wait;
mod rebuild;
pub(crate) mod table;
mod verification;
mod worker;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::event::{Position, StoredTime};
use crate::processing::divergence::Divergence;
use crate::processing::failure::Failure;
use crate::processing::tracker::{HandlerChange, Outage, ProcessorKey};
use crate::store::horizon::Holder;

pub(crate) use advice::{Advice, Topic, describe_wait, end_wait};
pub(crate) use collection::{Declared, collect};
pub(crate) use lock_wait::{LockWait, find_own_wait, find_reset_wait};
pub(crate) use rebuild::{FALLS_BEHIND, RebuildStatus, list as list_builds};
pub(crate) use verification::{UnverifiedStatus, VerificationStatus};
pub(crate) use worker::WorkerStatus;

/// What a processor is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProcessorState {
    /// Claimed by a worker that has not finished a batch yet.
    Running,
    /// Behind the settled horizon, and handling events.
    CatchingUp,
    /// At the settled horizon.
    Live,
    /// Paused by an operator.
    Paused,
    /// Trying a failing event again and again.
    Retrying,
    /// Waiting for something that is not there, such as a lock or a server with room; no event is to blame.
    Waiting,
    /// Stopped until an operator acts.
    Failed,
    /// Stopped until an operator decides, because the event store is not the one that it has followed.
    Diverged,
    /// No worker owns it, but a daemon stands by to take it over.
    Standby,
    /// No worker owns it.
    Stopped,
}

impl ProcessorState {
    /// Every state.
    pub(crate) const ALL: [Self; 10] = [
        Self::Running,
        Self::CatchingUp,
        Self::Live,
        Self::Paused,
        Self::Retrying,
        Self::Waiting,
        Self::Failed,
        Self::Diverged,
        Self::Standby,
        Self::Stopped,
    ];

    /// How much attention the state needs: the lower, the more.
    pub(crate) fn trouble(self) -> u8 {
        match self {
            Self::Diverged => 0,
            Self::Failed => 1,
            Self::Retrying => 2,
            Self::Waiting => 3,
            Self::Stopped => 4,
            Self::Standby => 5,
            Self::Paused => 6,
            Self::CatchingUp => 7,
            Self::Running => 8,
            Self::Live => 9,
        }
    }

    /// Whether the position of a processor in this state has to move while there are events to handle.
    fn has_to_move(self) -> bool {
        matches!(self, Self::CatchingUp | Self::Running)
    }

    /// The state in one word, as people and programs see it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::CatchingUp => "catching_up",
            Self::Live => "live",
            Self::Paused => "paused",
            Self::Retrying => "retrying",
            Self::Waiting => "waiting",
            Self::Failed => "failed",
            Self::Diverged => "diverged",
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
    /// Events between position and head, of other types included: ids where these are few, otherwise counted or estimated.
    pub lag_events: i64,
    /// Age of the oldest of the next hundred events beyond the position, in seconds; 0 when there is none.
    pub lag_seconds: f64,
    /// Ids passed per second in the last seconds, events of other types included; 0 when nothing moves.
    pub rate: f32,
    /// In which order events are handled inside the transactions that append them; `None`: they are handled in batches.
    pub synchronous: Option<String>,
    /// Since when the position is where it is, while there are events to handle and nothing fails; `None` in other states.
    pub standing_since: Option<DateTime<Utc>>,
    /// Events handled since the tables were made; a reset that only moves the position counts on.
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
    /// The lock that keeps it waiting, and who holds it.
    pub lock_wait: Option<LockWait>,
    /// The lock that a reset of it waits for, and who holds it; `None`: no reset waits.
    pub reset_wait: Option<LockWait>,
    /// How the event store differs from the one that the processor has followed; `None`: it is the same.
    pub diverged: Option<Divergence>,
    /// When an owner last came with other handlers; `None`: never since the tables were made.
    pub handler_change: Option<HandlerChange>,
    /// The failure that stops it; of several events that fail, that of the first.
    pub last_error: Option<Failure>,
    /// How many events fail and are tried again, or stop it. Of a webhook there may be several: events of other aggregates go on.
    pub failing_events: i64,
    /// Whether events of other aggregates than that of one that fails go on.
    #[serde(skip)]
    pub goes_on_beside: bool,
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
    pub next_emission_at: Option<StoredTime>,
    /// How many of these events the event store has refused; `espctl emissions list` shows them.
    pub refused_emissions: i64,
    /// Since when the oldest of them that is due, and was not refused, waits; `None`: none does.
    pub emissions_overdue_since: Option<DateTime<Utc>>,
    /// Why the last of them was refused, or what they wait for.
    pub emission_error: Option<String>,
    /// When the processor's tracker last changed; `None`: it has never run.
    pub updated_at: Option<DateTime<Utc>>,
    /// The process that the processor runs in; `None` where no daemon has recorded one.
    pub worker: Option<WorkerStatus>,
    /// The transactions that hold the settled horizon back; empty if none does.
    pub held_by: Vec<HeldBy>,
    /// The version that is built beside this one to go live; `None`: none is.
    pub rebuild: Option<RebuildStatus>,
    /// What was found while its tables are verified slice by slice; `None`: they are not.
    pub verification: Option<VerificationStatus>,
    /// Why they are not, though `[verify]` is declared; `None`: they are, or nobody has tried lately.
    pub unverified: Option<UnverifiedStatus>,
    /// What needs attention, and what to do about it, the most urgent first; empty if all is well.
    pub advice: Vec<Advice>,
}

impl ProcessorStatus {
    /// The status of a processor that has never run, in an empty store.
    fn without_tracker(name: &str, kind: &str) -> Self {
        Self {
            name: name.to_owned(),
            kind: kind.to_owned(),
            partition: 0,
            version: 1,
            state: ProcessorState::Stopped,
            position: Position::START,
            head: Position::START,
            horizon: Position::START,
            lag_events: 0,
            lag_seconds: 0.0,
            rate: 0.0,
            synchronous: None,
            standing_since: None,
            handled: 0,
            epoch: 0,
            owner: None,
            standbys: Vec::new(),
            holder_pid: None,
            outage: None,
            lock_wait: None,
            reset_wait: None,
            diverged: None,
            handler_change: None,
            attempts: 0,
            last_error: None,
            failing_events: 0,
            goes_on_beside: false,
            next_retry_at: None,
            paused_at: None,
            paused_by: None,
            dead_letters: 0,
            oldest_dead_letter_at: None,
            pending_emissions: 0,
            next_emission_at: None,
            refused_emissions: 0,
            emissions_overdue_since: None,
            emission_error: None,
            updated_at: None,
            worker: None,
            held_by: Vec::new(),
            rebuild: None,
            verification: None,
            unverified: None,
            advice: Vec::new(),
        }
    }

    /// What identifies the processor's tracker.
    pub(crate) fn key(&self) -> ProcessorKey {
        ProcessorKey { name: self.name.clone(), version: self.version, partition: self.partition }
    }

    /// For how long an outage or a lock has kept the processor waiting as of `now`, in seconds; 0 if none does.
    pub(crate) fn waiting_seconds(&self, now: DateTime<Utc>) -> f64 {
        // Who waits for a version is in no outage.
        let outage = self.outage.as_ref().filter(|outage| outage.version.is_none());
        let outage = outage.map(|outage| (now - outage.since).as_seconds_f64().max(0.0));
        let waiting = outage.or(self.lock_wait.as_ref().map(|wait| wait.seconds));
        waiting.filter(|_| self.state == ProcessorState::Waiting).unwrap_or(0.0)
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

#[cfg(test)]
pub(super) mod examples {
    use super::{ProcessorState, ProcessorStatus};

    /// The status of a processor that all is well with.
    pub(crate) fn live(name: &str) -> ProcessorStatus {
        ProcessorStatus {
            state: ProcessorState::Live,
            epoch: 1,
            owner: Some("web-1:4711".to_owned()),
            ..ProcessorStatus::without_tracker(name, "projector")
        }
    }
}
