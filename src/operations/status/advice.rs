//! What is wrong with a processor, since when, and what to do about it.
//!
//! `espctl status` prints it; `--json` and the admin API carry it as data.

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use super::format::{format_duration, thousands};
use super::{HeldBy, ProcessorState, ProcessorStatus, WorkerStatus};

/// One thing that needs attention. The field names are an interface: `espctl status --json` prints them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Advice {
    /// What it is about: a stable word for programs.
    pub topic: Topic,
    /// What is wrong, in one or two sentences.
    pub problem: String,
    /// When it began; for an event that is retried, when it failed last. `None`: not recorded.
    pub since: Option<DateTime<Utc>>,
    /// When espd tries again by itself. `None`: it does not, or at an unknown time.
    pub next_try_at: Option<DateTime<Utc>>,
    /// What to do.
    pub remedy: String,
}

/// What advice is about, the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Topic {
    /// The processor has stopped until an operator acts.
    Failed,
    /// An event fails again and again.
    Retrying,
    /// The infrastructure fails; no event is to blame.
    Outage,
    /// No daemon runs the processor.
    Stopped,
    /// No daemon owns the processor, and another one is about to take it over.
    Standby,
    /// An operator has paused the processor.
    Paused,
    /// Events were set aside.
    DeadLetters,
    /// The worker process of the processor has ended and is not running again yet.
    WorkerDown,
    /// Open transactions hold the settled horizon back. This concerns all processors alike.
    HorizonHeldBack,
}

impl Advice {
    /// Advice about something that espd does not try again by itself.
    fn new(topic: Topic, problem: String, since: Option<DateTime<Utc>>, remedy: String) -> Self {
        Self { topic, problem, since, next_try_at: None, remedy }
    }

    fn trying_again_at(self, next_try_at: Option<DateTime<Utc>>) -> Self {
        Self { next_try_at, ..self }
    }
}

/// Everything about this processor that needs attention as of `now`, the most urgent first; empty if all is well.
pub(super) fn advise(status: &ProcessorStatus, now: DateTime<Utc>) -> Vec<Advice> {
    let parts = [
        of_state(status),
        of_dead_letters(status),
        of_worker(status),
        of_horizon(&status.held_by, status, now),
    ];
    let mut advice: Vec<Advice> = parts.into_iter().flatten().collect();
    advice.sort_by_key(|advice| advice.topic);
    advice
}

fn of_state(status: &ProcessorStatus) -> Option<Advice> {
    match status.state {
        ProcessorState::Paused => Some(of_pause(status)),
        ProcessorState::Failed => Some(of_failure(status)),
        ProcessorState::Retrying => Some(of_retries(status)),
        ProcessorState::Standby => Some(of_takeover(status)),
        ProcessorState::Stopped => of_missing_owner(status),
        ProcessorState::Running | ProcessorState::CatchingUp | ProcessorState::Live => of_outage(status),
    }
}

fn of_pause(status: &ProcessorStatus) -> Advice {
    let name = &status.name;
    let by = status.paused_by.as_deref().unwrap_or("an unknown operator");
    let mut problem = format!("{name} was paused by {by}.");
    if let Some(error) = &status.last_error {
        problem.push_str(&format!(" It could not handle {error}."));
    }
    Advice::new(Topic::Paused, problem, status.paused_at, format!("Run `espctl resume {name}`."))
}

fn of_failure(status: &ProcessorStatus) -> Advice {
    let name = &status.name;
    let error = status.last_error.as_ref();
    let cause = error.map_or_else(|| "for an unknown reason".to_owned(), ToString::to_string);
    let tried = match status.attempts {
        0 => ".".to_owned(),
        attempts => format!(" after {}. {ORDER}", count(attempts.into(), "attempt")),
    };
    Advice::new(
        Topic::Failed,
        format!("{name} stopped: {cause}{tried}"),
        error.and_then(|error| error.at),
        format!("Fix this, then run `espctl retry {name}`."),
    )
}

/// What an event that fails means for the others.
const ORDER: &str = "Events before this one are handled; later ones wait.";

fn of_retries(status: &ProcessorStatus) -> Advice {
    let name = &status.name;
    let error = status.last_error.as_ref();
    let cause = error.map_or_else(|| "an event".to_owned(), ToString::to_string);
    let attempts = count(status.attempts.into(), "attempt");
    Advice::new(
        Topic::Retrying,
        format!("{name} cannot handle {cause} after {attempts}. {ORDER}"),
        error.and_then(|error| error.at),
        format!(
            "Fix the handler and reload the daemon (SIGHUP) or restart it, or correct the data that the handler needs. \
             `espctl retry {name}` tries again now."
        ),
    )
    .trying_again_at(status.next_retry_at)
}

fn of_takeover(status: &ProcessorStatus) -> Advice {
    let (name, standbys) = (&status.name, status.standbys.join(", "));
    Advice::new(
        Topic::Standby,
        format!("No daemon owns {name}; about to take it over: {standbys}."),
        status.updated_at,
        format!("Wait a few seconds.{}", of_held_tracker(status)),
    )
}

/// Why no daemon runs the processor; `None` where [`of_worker`] knows better.
fn of_missing_owner(status: &ProcessorStatus) -> Option<Advice> {
    let name = &status.name;
    let problem = if status.holder_pid.is_some() {
        format!("The owner of {name} gives no sign of life.")
    } else if status.worker.as_ref().is_some_and(WorkerStatus::is_down) {
        return None;
    } else if status.updated_at.is_none() {
        format!("No daemon runs {name}, and none ever has.")
    } else {
        format!("No daemon runs {name}.")
    };
    let remedy =
        format!("Start `espd run` with a configuration that declares it.{}", of_held_tracker(status));
    Some(Advice::new(Topic::Stopped, problem, status.updated_at, remedy))
}

/// What to do where the database session of a frozen owner keeps the tracker from others.
fn of_held_tracker(status: &ProcessorStatus) -> String {
    status.holder_pid.map_or_else(String::new, |pid| {
        format!(
            " Database process {pid} still holds the tracker for the last owner: a daemon that has the right to ends it, \
             and so does `select pg_terminate_backend({pid})`."
        )
    })
}

fn of_outage(status: &ProcessorStatus) -> Option<Advice> {
    let (name, outage) = (&status.name, status.outage.as_ref()?);
    let code = outage.sqlstate.as_ref().map_or_else(String::new, |code| format!(" [{code}]"));
    let problem = format!(
        "The database keeps {name} from continuing: {}{code} after {}. No event is to blame and none is lost.",
        outage.message,
        count(outage.tries.into(), "attempt"),
    );
    let remedy =
        format!("Fix the database; {name} then continues by itself. `espctl retry {name}` tries again now.");
    let advice = Advice::new(Topic::Outage, problem, Some(outage.since), remedy);
    Some(advice.trying_again_at(Some(outage.next_try_at)))
}

/// The events that the processor has not handled and does not try by itself.
fn of_dead_letters(status: &ProcessorStatus) -> Option<Advice> {
    let (name, oldest) = (&status.name, status.oldest_dead_letter_at?);
    let became = if status.dead_letters == 1 {
        "was set aside as a dead letter"
    } else {
        "were set aside as dead letters"
    };
    let problem = format!("{} of {name} {became}.", count(status.dead_letters, "event"));
    let remedy = format!(
        "`espctl dead-letters list {name}` shows them. Fix the handler, reload the daemon, then run `espctl dead-letters \
         retry {name} --all`; `espctl dead-letters discard {name} EVENT` removes what no one needs."
    );
    Some(Advice::new(Topic::DeadLetters, problem, Some(oldest), remedy))
}

/// Why the worker process of the processor is not alive.
fn of_worker(status: &ProcessorStatus) -> Option<Advice> {
    let worker = status.worker.as_ref().filter(|worker| worker.is_down())?;
    let ends = if worker.state == "crash_looping" { "keeps ending" } else { "has ended" };
    let problem = format!(
        "The worker {} of {} {ends}: {} after {}.",
        worker.worker,
        worker.owner,
        worker.last_end.as_deref().unwrap_or("unknown"),
        count(worker.starts, "start"),
    );
    let remedy = "Read the daemon's log (`journalctl -u espd`); `espctl check` and `espctl doctor` find what is wrong with \
                  declarations and databases."
        .to_owned();
    let advice = Advice::new(Topic::WorkerDown, problem, worker.last_end_at, remedy);
    Some(advice.trying_again_at(worker.next_start_at))
}

/// Who holds the settled horizon back, if anyone does.
fn of_horizon(held_by: &[HeldBy], status: &ProcessorStatus, now: DateTime<Utc>) -> Option<Advice> {
    let oldest = held_by.iter().map(|holder| holder.seconds.unwrap_or(0.0)).reduce(f64::max)?;
    let describe = |what: fn(&HeldBy) -> String| held_by.iter().map(what).collect::<Vec<_>>().join("; ");
    let problem = format!(
        "The settled horizon is held back at {} (head {}): later events wait for open transactions that may still add \
         earlier ones. {}",
        thousands(status.horizon),
        thousands(status.head),
        describe(describe_holder),
    );
    let since = now - TimeDelta::milliseconds((oldest * 1_000.0) as i64);
    let remedy = format!("Let these end, or end them: {}.", describe(end_holder));
    Some(Advice::new(Topic::HorizonHeldBack, problem, Some(since), remedy))
}

fn describe_holder(holder: &HeldBy) -> String {
    let word = |word: &Option<String>| word.clone().unwrap_or_else(|| "?".to_owned());
    let age = holder.seconds.map_or_else(|| "an unknown time".to_owned(), format_duration);
    let user = word(&holder.user);
    if let Some(name) = &holder.prepared {
        return format!("Prepared transaction '{name}' of {user}, {age} old");
    }
    format!(
        "Process {} ({}, user {user}), {}, open for {age}: {}",
        show_pid(holder),
        word(&holder.application_name),
        word(&holder.state),
        word(&holder.query)
    )
}

/// The statement that ends a transaction.
fn end_holder(holder: &HeldBy) -> String {
    match &holder.prepared {
        Some(name) => format!("`rollback prepared '{name}'` ends it"),
        None => format!("`select pg_terminate_backend({0})` ends process {0}", show_pid(holder)),
    }
}

fn show_pid(holder: &HeldBy) -> String {
    holder.pid.map_or_else(|| "?".to_owned(), |pid| pid.to_string())
}

/// `1 attempt`, `12,345 attempts`.
fn count(number: i64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", thousands(number))
}

#[cfg(test)]
mod tests {
    use super::super::examples::live;
    use super::*;

    fn topics(status: &ProcessorStatus) -> Vec<Topic> {
        advise(status, Utc::now()).into_iter().map(|advice| advice.topic).collect()
    }

    #[test]
    fn each_state_has_its_advice_and_a_live_processor_has_none() {
        for (state, expected) in [
            (ProcessorState::Live, None),
            (ProcessorState::CatchingUp, None),
            (ProcessorState::Paused, Some(Topic::Paused)),
            (ProcessorState::Failed, Some(Topic::Failed)),
            (ProcessorState::Retrying, Some(Topic::Retrying)),
            (ProcessorState::Standby, Some(Topic::Standby)),
            (ProcessorState::Stopped, Some(Topic::Stopped)),
        ] {
            let status = ProcessorStatus { state, ..live("notes") };
            assert_eq!(topics(&status), Vec::from_iter(expected), "{state:?}");
        }
    }

    #[test]
    fn a_worker_that_is_down_explains_why_no_daemon_runs_the_processor() {
        let worker = WorkerStatus {
            processor: "notes".into(),
            worker: "notes".into(),
            owner: "web-1:4711".into(),
            pid: None,
            state: "crash_looping".into(),
            starts: 1,
            last_end: Some("signal SIGKILL".into()),
            last_end_at: Some(Utc::now()),
            next_start_at: Some(Utc::now()),
        };
        let status =
            ProcessorStatus { state: ProcessorState::Stopped, worker: Some(worker), ..live("notes") };
        let advice = advise(&status, Utc::now());
        assert_eq!(advice[0].topic, Topic::WorkerDown);
        assert_eq!(
            advice[0].problem,
            "The worker notes of web-1:4711 keeps ending: signal SIGKILL after 1 start."
        );
        assert!(advice[0].next_try_at.is_some() && advice.len() == 1, "{advice:?}");
    }

    #[test]
    fn the_most_urgent_advice_comes_first() {
        let holder = HeldBy {
            pid: Some(7),
            user: Some("import".into()),
            application_name: None,
            state: None,
            query: None,
            seconds: Some(60.0),
            prepared: None,
        };
        let status = ProcessorStatus {
            state: ProcessorState::Failed,
            dead_letters: 2,
            oldest_dead_letter_at: Some(Utc::now()),
            held_by: vec![holder],
            ..live("notes")
        };
        assert_eq!(topics(&status), [Topic::Failed, Topic::DeadLetters, Topic::HorizonHeldBack]);
        let now = Utc::now();
        let advice = advise(&status, now);
        assert_eq!(advice[1].problem, "2 events of notes were set aside as dead letters.");
        assert_eq!(advice[2].since, Some(now - TimeDelta::seconds(60)));
        assert!(advice[2].remedy.contains("`select pg_terminate_backend(7)` ends process 7"), "{advice:?}");
    }
}
