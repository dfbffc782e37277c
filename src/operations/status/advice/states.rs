//! What is wrong with a processor according to its state, and what to do about it.

use chrono::{DateTime, TimeDelta, Utc};

use super::super::format::thousands;
use super::super::{ProcessorState, ProcessorStatus, WorkerStatus};
use super::{Advice, Surroundings, Topic, count, emissions, holders};
use crate::operations::databases::usable::Unusable;
use crate::postgres::sqlstate::{INSUFFICIENT_PRIVILEGE, LOCK_NOT_AVAILABLE};
use crate::processing::failure::Failure;

pub(super) fn of_state(status: &ProcessorStatus, surroundings: Surroundings<'_>) -> Option<Advice> {
    match status.state {
        ProcessorState::Diverged => of_divergence(status),
        ProcessorState::Paused => Some(of_pause(status)),
        ProcessorState::Failed => Some(of_failure(status)),
        ProcessorState::Retrying => Some(of_retries(status, surroundings)),
        ProcessorState::Waiting => {
            of_locked_again(status, surroundings.now).or_else(|| of_outage(status, surroundings))
        }
        ProcessorState::Standby | ProcessorState::Stopped => {
            of_unusable_database(status, surroundings).or_else(|| of_nobody(status, surroundings))
        }
        ProcessorState::Running | ProcessorState::CatchingUp => of_standing(status, surroundings.now),
        ProcessorState::Live => None,
    }
}

/// For how long a position may stay where it is before somebody has to look: a batch of slow handlers takes a while.
const STANDING: TimeDelta = TimeDelta::minutes(5);

/// A processor that does not move though nothing fails.
fn of_standing(status: &ProcessorStatus, now: DateTime<Utc>) -> Option<Advice> {
    let since = status.standing_since.filter(|since| now - *since > STANDING)?;
    let name = &status.name;
    let problem = format!("{name} has events to handle and does not move, though nothing fails.");
    let pid = status.worker.as_ref().and_then(|worker| worker.pid);
    let restart = pid.map_or_else(
        || "start the daemon again".to_owned(),
        |pid| format!("end its worker on the daemon's machine (`kill {pid}`), which is then started again"),
    );
    let remedy = format!(
        "A batch may take that long: `pg_stat_activity` shows the statement that runs, the log of the daemon what a program or \
         receiver does, and a smaller `batch_size` shows progress earlier. Otherwise {restart}: nothing is lost."
    );
    Some(Advice::new(Topic::StandingStill, problem, Some(since), remedy).shared(
        status,
        "have events to handle and do not move, though nothing fails.".to_owned(),
        "`espctl status NAME` says what to look at for each.",
    ))
}

fn of_divergence(status: &ProcessorStatus) -> Option<Advice> {
    let (name, found) = (&status.name, status.diverged.as_ref()?);
    let problem = format!("{}{}", found.describe(name), emissions::held_by_stop(status));
    let advice = Advice::new(Topic::Diverged, problem, found.at, found.remedy(name));
    let predicate = match found.kind.is_of_triggers() {
        true => format!(
            "are synchronous, and their triggers may have missed events behind event {}.",
            found.last_common
        ),
        false => format!(
            "have stopped because the event store is not the one that they have followed (last id {}, last common event {}).",
            found.head, found.last_common
        ),
    };
    let remedy = "`espctl status NAME` says what was found and what to do about each: `espctl reset NAME` rebuilds it from \
                  the store as it is.";
    Some(advice.shared(status, predicate, remedy))
}

fn of_pause(status: &ProcessorStatus) -> Advice {
    let name = &status.name;
    let by = status.paused_by.as_deref().unwrap_or("an unknown operator");
    let mut problem = format!("{name} was paused by {by}.");
    if let Some(error) = &status.last_error {
        problem.push_str(&format!(" It could not handle {error}."));
    }
    problem.push_str(&emissions::held(status));
    Advice::new(Topic::Paused, problem, status.paused_at, format!("Run `espctl resume {name}`.")).shared(
        status,
        format!("were paused by {by}."),
        "Run `espctl resume NAME`, with one or more names.",
    )
}

fn of_failure(status: &ProcessorStatus) -> Advice {
    let name = &status.name;
    let error = status.last_error.as_ref();
    let cause = error.map_or_else(|| "for an unknown reason".to_owned(), ToString::to_string);
    let tried = match status.attempts {
        0 => ".".to_owned(),
        attempts if status.goes_on_beside => {
            format!(
                " after {}. Later events of other aggregates may be handled.",
                count(attempts.into(), "attempt")
            )
        }
        attempts => format!(" after {}. {}", count(attempts.into(), "attempt"), order(status)),
    };
    let problem = format!("{name} stopped: {cause}{tried}{}", last_words(error));
    let remedy = format!("Fix this, then run `espctl retry {name}`.{}", of_other_owner(status));
    let advice = Advice::new(Topic::Failed, problem, error.and_then(|error| error.at), remedy);
    let predicate = format!("stopped: {}.", error.map_or_else(|| cause.clone(), without_place));
    advice.shared(status, predicate, "Fix this, then run `espctl retry --all`.")
}

/// That another daemon could go on, where only what the owner declares is wrong, behind another sentence.
fn of_other_owner(status: &ProcessorStatus) -> String {
    match &status.owner {
        Some(owner) if !status.standbys.is_empty() => format!(
            " If it is what {owner} declares that is wrong, and not what {standbys} does, which stands by: stop {owner}, then run that.",
            standbys = status.standbys.join(", ")
        ),
        _ => String::new(),
    }
}

/// What an event that fails means for the others.
fn order(status: &ProcessorStatus) -> String {
    match status.failing_events {
        _ if !status.goes_on_beside => "Events before this one are handled; later ones wait.".to_owned(),
        2.. => format!(
            "{} events fail, of which it is the first. Behind each, later ones of the same aggregate wait; all others go on.",
            thousands(status.failing_events)
        ),
        _ => "Later events of the same aggregate wait; all others go on.".to_owned(),
    }
}

/// How an operator sets the event aside. Of several, the command names the one that is shown: another one may be the first by then.
fn setting_aside(status: &ProcessorStatus) -> String {
    let name = &status.name;
    let event = status.last_error.as_ref().and_then(Failure::event_id).filter(|_| status.goes_on_beside);
    let named = event.map_or_else(String::new, |id| format!(" --event {id}"));
    format!("`espctl dead-letters park {name}{named}` (or `skip`) sets the event aside.")
}

fn of_retries(status: &ProcessorStatus, Surroundings { now, .. }: Surroundings<'_>) -> Advice {
    let name = &status.name;
    let error = status.last_error.as_ref();
    let cause = error.map_or_else(|| "an event".to_owned(), ToString::to_string);
    let (attempts, order) = (count(status.attempts.into(), "attempt"), order(status));
    let problem = format!("{name} cannot handle {cause} after {attempts}. {order}{}", last_words(error));
    let is_unreadable = error.is_some_and(|error| error.is_unreadable);
    let retry = if is_unreadable {
        format!(
            "No handler has seen it. Fix the upcast that reads it and run `espctl reload`, or the data that it needs and run `espctl \
             retry {name}`: either tries the event at once. Where no upcast does, `jsonb` refuses its stored JSON, and it can only be \
             set aside."
        )
    } else if status.goes_on_beside {
        format!(
            "Fix the receiver, or what it needs: `espctl retry {name}` then tries at once what has failed."
        )
    } else {
        format!(
            "Fix the handler and run `espctl reload`, or the data that it needs and run `espctl retry {name}`: either tries the event \
             at once."
        )
    };
    let remedy = format!("{retry} {}", setting_aside(status));
    let advice = Advice::new(Topic::Retrying, problem, error.and_then(|error| error.at), remedy);
    let predicate = format!("cannot handle {}. {order}", error.map_or_else(|| cause.clone(), without_place));
    let advice = advice.trying_again_at(status.next_retry_at.filter(|at| *at > now));
    if is_unreadable {
        let remedy = "No handler has seen it. Fix the upcast that reads it and run `espctl reload`; where none does, `jsonb` refuses its \
                      stored JSON, and it can only be set aside.";
        return advice.shared(status, predicate, remedy);
    }
    advice.shared(
        status,
        predicate,
        "Fix the handlers and run `espctl reload`, or the data that they need and run `espctl retry --all`: either tries the event \
         at once, but for webhooks only the second does.",
    )
}

/// The failure without the place of the statement, which differs where several processors fail at one event.
fn without_place(failure: &Failure) -> String {
    Failure { place: None, ..failure.clone() }.to_string()
}

/// What a program wrote last to its standard error of what was wrong.
fn last_words(error: Option<&Failure>) -> String {
    let line = error.and_then(|error| error.stderr.as_ref());
    line.map_or_else(String::new, |line| format!(" The program's last words on standard error: {line}"))
}

/// Nobody can own the processor, because nobody can write that he does.
fn of_unusable_database(
    status: &ProcessorStatus,
    Surroundings { unusable, .. }: Surroundings<'_>,
) -> Option<Advice> {
    let Unusable { problem, remedy, .. } = unusable?;
    let topic = if status.state == ProcessorState::Standby { Topic::Standby } else { Topic::Stopped };
    let told = format!("No daemon can run {}: {problem}.", status.name);
    let remedy = format!("Correct this: {remedy}. Daemons that run then go on by themselves.");
    let advice = Advice::new(topic, told, status.updated_at, remedy.clone());
    Some(advice.shared(status, format!("can be run by no daemon: {problem}."), &remedy))
}

/// A processor that nobody owns.
fn of_nobody(status: &ProcessorStatus, surroundings: Surroundings<'_>) -> Option<Advice> {
    match status.state {
        ProcessorState::Standby => Some(of_takeover(status)),
        _ => of_missing_owner(status, surroundings),
    }
}

fn of_takeover(status: &ProcessorStatus) -> Advice {
    let (name, standbys) = (&status.name, status.standbys.join(", "));
    Advice::new(
        Topic::Standby,
        format!("No daemon owns {name}; about to take it over: {standbys}."),
        status.updated_at,
        format!("Wait a few seconds.{}", of_held_tracker(status)),
    )
    .shared(
        status,
        format!("have no owner; about to take them over: {standbys}."),
        "Wait a few seconds.",
    )
}

/// Why no daemon runs the processor; `None` where the advice about its worker knows better.
fn of_missing_owner(status: &ProcessorStatus, surroundings: Surroundings<'_>) -> Option<Advice> {
    let name = &status.name;
    let no_longer_wanted = of_retirement(status, surroundings);
    if status.holder_pid.is_none() && status.worker.is_none() && !surroundings.daemons.is_empty() {
        return Some(of_other_configuration(status, surroundings.daemons, &no_longer_wanted));
    }
    let problem = if status.holder_pid.is_some() {
        format!("The owner of {name} gives no sign of life.")
    } else if status.worker.as_ref().is_some_and(WorkerStatus::is_down) {
        return None;
    } else if let Some(worker) = status.worker.as_ref().filter(|worker| worker.is_alive()) {
        // A daemon leaves a newer version alone than the one that it declares, which is told of it.
        let is_older = surroundings.declared_version.is_some_and(|declared| declared < status.version);
        return (!is_older).then(|| of_idle_worker(status, worker, surroundings));
    } else if let Some(worker) = surroundings.vanished.iter().find(|worker| worker.processor == *name) {
        return Some(of_vanished_daemon(status, worker));
    } else if status.updated_at.is_none() {
        format!("No daemon runs {name}, and none ever has.")
    } else {
        format!("No daemon runs {name}.")
    };
    let remedy = format!(
        "Start `espd run` with a configuration that declares it.{no_longer_wanted}{}",
        of_held_tracker(status)
    );
    let advice = Advice::new(Topic::Stopped, problem, status.updated_at, remedy);
    Some(if status.holder_pid.is_some() {
        advice
    } else {
        let predicate = "are run by no daemon.".to_owned();
        advice.shared(status, predicate, "Start `espd run` with a configuration that declares them.")
    })
}

/// How long a daemon that is well takes at most to record its workers again.
const RECORDED_WITHIN: TimeDelta = TimeDelta::seconds(15);

/// A worker was there when its daemon has recorded it last, and has not taken the processor up.
fn of_idle_worker(
    status: &ProcessorStatus,
    worker: &WorkerStatus,
    Surroundings { now, live_since, .. }: Surroundings<'_>,
) -> Advice {
    let (name, owner, since) = (&status.name, &worker.owner, worker.recorded_at);
    if now - since > RECORDED_WITHIN {
        return of_vanished_daemon(status, worker);
    }
    if let Some(live_since) = live_since {
        return of_superseded(status, owner, live_since);
    }
    let pid = worker.pid.map_or_else(String::new, |pid| format!(" (process {pid})"));
    let problem = format!(
        "The worker {} of {owner}{pid} does not have {name}, though it ran when its daemon looked last, {} s ago.",
        worker.worker,
        (now - since).num_seconds().max(0)
    );
    let remedy = format!(
        "Wait a few seconds: it has just started, has ended just now, or has too little processor time. Otherwise the log of the \
         daemon says what keeps it (`journalctl -u espd`), as that it declares another version than {}; a process that is frozen is \
         ended by its daemon, or by `kill -9`, and is then started again.",
        status.version
    );
    let predicate = format!("are with none of the workers of {owner}, though these ran when it looked last.");
    let shared = "Wait a few seconds. Otherwise the log of the daemon says what keeps its workers (`journalctl -u espd`).";
    Advice::new(Topic::Stopped, problem, status.updated_at, remedy).shared(status, predicate, shared)
}

/// The daemon of the processor has not ended in order, and records nothing any more.
fn of_vanished_daemon(status: &ProcessorStatus, worker: &WorkerStatus) -> Advice {
    let (name, owner) = (&status.name, &worker.owner);
    let problem = format!("The daemon {owner}, which ran {name}, gives no sign of life any more.");
    let remedy = "If it has ended, start it again, or wait until another daemon takes over. Otherwise it is frozen, or does not reach \
                  the database, or gets no session there: its log and its `/readyz` say so.";
    let predicate = format!("were run by {owner}, which gives no sign of life any more.");
    Advice::new(Topic::Stopped, problem, Some(worker.recorded_at), remedy.to_owned())
        .shared(status, predicate, remedy)
}

/// A version has taken the place of the one that the daemon of the worker seems to declare.
fn of_superseded(status: &ProcessorStatus, owner: &str, live_since: DateTime<Utc>) -> Advice {
    let ProcessorStatus { name, version, .. } = status;
    let problem = format!(
        "{owner} does not run {name}: version {version} has gone live, and whoever still declares an older one leaves it alone."
    );
    let remedy = format!(
        "Run `espctl reload`: the daemon reads its configuration again, which has to declare version {version}. If that is what it \
         declares already, wait a few seconds; otherwise its log says what keeps it (`journalctl -u espd`)."
    );
    Advice::new(Topic::Stopped, problem, Some(live_since), remedy)
}

/// What removes a processor that is not declared any more, behind another sentence.
fn of_retirement(status: &ProcessorStatus, surroundings: Surroundings<'_>) -> String {
    let name = &status.name;
    if surroundings.is_declared || status.updated_at.is_none() {
        return String::new();
    }
    format!(
        " If no file does, it is no longer wanted: its tracker and its tables are all that is left of it, and `espctl drop {name}` \
         removes them."
    )
}

/// A daemon of this store runs, and does not know the processor.
fn of_other_configuration(status: &ProcessorStatus, daemons: &[String], no_longer_wanted: &str) -> Advice {
    let (name, daemons) = (&status.name, daemons.join(", "));
    let problem = format!("No daemon runs {name}: it is not in the running configuration of {daemons}.");
    let remedy = format!(
        "If a file declares {name}, run `espctl reload`: the daemon reads its configuration again.{no_longer_wanted}"
    );
    Advice::new(Topic::Stopped, problem, status.updated_at, remedy).shared(
        status,
        format!("are not in the running configuration of {daemons}."),
        if no_longer_wanted.is_empty() {
            "If files declare them, run `espctl reload`: the daemon reads its configuration again."
        } else {
            "If files declare them, run `espctl reload`: the daemon reads its configuration again. `espctl drop NAME` removes one \
             that is no longer wanted."
        },
    )
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

/// What to fix if the role lacks a right, or a policy would hide rows from it.
const RIGHTS: &str = "the rights of espd's role (`espctl doctor` names what is missing, or belongs to another role; where row \
                      security would hide rows, disable it on the table or give the role bypassrls)";

/// A lock that is waited for now: with nothing else in the way, or once more after `lock_timeout`.
fn of_locked_again(status: &ProcessorStatus, now: DateTime<Utc>) -> Option<Advice> {
    let advice = holders::of_lock(status, now)?;
    match &status.outage {
        None => Some(advice),
        Some(outage) if outage.sqlstate.as_deref() == Some(LOCK_NOT_AVAILABLE) => {
            let since = advice.since.map_or(outage.since, |since| since.min(outage.since));
            Some(Advice { since: Some(since), ..advice })
        }
        Some(_) => None,
    }
}

fn of_outage(status: &ProcessorStatus, Surroundings { now, .. }: Surroundings<'_>) -> Option<Advice> {
    // What is no failure is told with the version that is waited for.
    let outage = status.outage.as_ref().filter(|outage| outage.version.is_none())?;
    let name = &status.name;
    let code = outage.sqlstate.as_ref().map_or_else(String::new, |code| format!(" [{code}]"));
    let problem = format!(
        "{name} waits: {}{code} after {}. No event is to blame and none is lost.",
        outage.message,
        count(outage.tries.into(), "attempt"),
    );
    let what = match outage.sqlstate.as_deref() {
        Some(INSUFFICIENT_PRIVILEGE) => RIGHTS,
        Some(_) => "the database",
        None => "this",
    };
    let remedy = format!("Fix {what}; they then continue by themselves.");
    let own = format!("Fix {what}; {name} then continues by itself. `espctl retry {name}` tries again now.");
    let advice = Advice::new(Topic::Outage, problem, Some(outage.since), own);
    let predicate = format!("wait: {}{code}. No event is to blame and none is lost.", outage.message);
    let next_try_at = Some(outage.next_try_at).filter(|at| *at > now);
    Some(advice.trying_again_at(next_try_at).shared(status, predicate, &remedy))
}
