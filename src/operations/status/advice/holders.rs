//! Which transactions others wait for, and how to end them.

use chrono::{DateTime, TimeDelta, Utc};

use super::super::format::{format_duration, thousands};
use super::super::{HeldBy, LockWait, ProcessorStatus};
use super::{Advice, Surroundings, Topic};
use crate::operations::databases::usable::Unusable;

/// A transaction that has been open for less, in seconds, is one of many that append: others follow it, and nobody has to end one.
const OPEN_MIN: f64 = 1.0;

/// A session of espd's own that has been at work for longer, in seconds, is one to look at as at any other.
const OWN_MAX: f64 = 600.0;

/// Who holds the settled horizon back for long, if anyone does.
pub(super) fn of_horizon(
    status: &ProcessorStatus,
    Surroundings { now, unusable, .. }: Surroundings<'_>,
) -> Option<Advice> {
    let held_by = &status.held_by;
    let oldest = held_by.iter().map(|holder| holder.seconds.unwrap_or(0.0)).reduce(f64::max)?;
    if oldest < OPEN_MIN && held_by.iter().all(|holder| holder.seconds.is_some() && holder.prepared.is_none())
    {
        return None;
    }
    let problem = format!(
        "The settled horizon is held back at {} (head {}): later events wait for open transactions that may still add \
         earlier ones. {}",
        thousands(status.horizon),
        thousands(status.head),
        join(held_by, describe_holder),
    );
    let since = now - TimeDelta::milliseconds((oldest * 1_000.0) as i64);
    // They cannot end then.
    let remedy = match unusable {
        Some(Unusable { remedy, problem, .. }) => format!("Correct this first: {problem}. {remedy}."),
        None => describe_end_of(held_by),
    };
    Some(Advice::new(Topic::HorizonHeldBack, problem, Some(since), remedy))
}

/// What to do about those who hold the horizon back. espd's own sessions end with their batch, and those that began after one of
/// them may only wait for it.
fn describe_end_of(held_by: &[HeldBy]) -> String {
    let (own, others): (Vec<&HeldBy>, Vec<&HeldBy>) = held_by.iter().partition(|holder| is_own(holder));
    let Some(oldest) = own.iter().filter_map(|holder| holder.seconds).reduce(f64::max) else {
        return format!("Let these end, or end them: {}.", join(held_by, end_holder));
    };
    let of_own = "espd's own session ends by itself, with its batch. One that lasts is that of a handler that gives commands or emits, and \
                  then waits for something outside: others wait for it, so let it do that first, or shorten what it waits for.";
    let may_wait = |holder: &&&HeldBy| {
        holder.prepared.is_none() && holder.seconds.is_some_and(|seconds| seconds <= oldest)
    };
    match others.iter().filter(|holder| !may_wait(holder)).map(|holder| end_holder(holder)).reduce(joined) {
        Some(ends) => format!("{of_own} Let the others end, or end them: {ends}."),
        None => of_own.to_owned(),
    }
}

fn joined(one: String, other: String) -> String {
    format!("{one}; {other}")
}

/// Whether a session is one of espd's, at work for no longer than its handlers may take.
fn is_own(holder: &HeldBy) -> bool {
    let is_named = holder.application_name.as_ref().is_some_and(|name| name.starts_with("espd: "));
    is_named && holder.seconds.is_some_and(|seconds| seconds < OWN_MAX)
}

/// Who holds the lock that keeps the processor waiting, if one does.
pub(super) fn of_lock(status: &ProcessorStatus, now: DateTime<Utc>) -> Option<Advice> {
    let (name, wait) = (&status.name, status.lock_wait.as_ref()?);
    let problem = format!(
        "{name} waits for a lock{}. No event is to blame and none is lost. {}.",
        on_relation(wait),
        without_stop(&join(&wait.held_by, describe_holder)),
    );
    let since = now - TimeDelta::milliseconds((wait.seconds * 1_000.0) as i64);
    let remedy = format!("{}.", end_wait(wait));
    let predicate = format!("wait for locks. {}.", without_stop(&join(&wait.held_by, describe_holder)));
    Some(Advice::new(Topic::Locked, problem, Some(since), remedy.clone()).shared(status, predicate, &remedy))
}

/// Who keeps a reset of the processor waiting, if there is a reset and somebody does.
pub(super) fn of_reset(status: &ProcessorStatus) -> Option<Advice> {
    let wait = status.reset_wait.as_ref()?;
    let problem = format!(
        "A reset of {}, or a version that goes live, waits for a lock{}. Until then everything goes on as before.",
        status.name,
        describe_wait(wait)
    );
    Some(Advice::new(Topic::Locked, problem, None, format!("{}.", end_wait(wait))))
}

/// A text that a full stop follows: a statement may end in one.
fn without_stop(text: &str) -> &str {
    text.trim_end_matches('.')
}

/// What a lock is on, and who holds it, as the end of a sentence that says who waits for it, without its full stop.
pub(crate) fn describe_wait(wait: &LockWait) -> String {
    format!("{}. {}", on_relation(wait), without_stop(&join(&wait.held_by, describe_holder)))
}

/// What to do about those who hold a lock, without a full stop.
pub(crate) fn end_wait(wait: &LockWait) -> String {
    format!("Let this end, or end it: {}", join(&wait.held_by, end_holder))
}

fn on_relation(wait: &LockWait) -> String {
    wait.relation.as_ref().map_or_else(String::new, |relation| format!(" on {relation}"))
}

fn join(holders: &[HeldBy], what: fn(&HeldBy) -> String) -> String {
    holders.iter().map(what).collect::<Vec<_>>().join("; ")
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

#[cfg(test)]
mod tests {
    use super::super::super::examples::live;
    use super::*;

    fn holder(pid: i32, application_name: &str, seconds: f64) -> HeldBy {
        HeldBy {
            pid: Some(pid),
            user: None,
            application_name: Some(application_name.to_owned()),
            state: None,
            query: None,
            seconds: Some(seconds),
            prepared: None,
        }
    }

    #[test]
    fn a_holder_and_what_to_do_about_it_are_two_sentences() {
        let held_by = vec![HeldBy { prepared: Some("nightly".to_owned()), ..holder(0, "", 62.0) }];
        let wait = LockWait { relation: None, seconds: 1.0, held_by };
        let status = ProcessorStatus { lock_wait: Some(wait), ..live("orders") };
        let advice = of_lock(&status, Utc::now()).unwrap();
        assert!(advice.problem.ends_with("1m 2s old."), "{}", advice.problem);
        assert!(
            advice.remedy.starts_with("Let this end, or end it: `rollback prepared"),
            "{}",
            advice.remedy
        );
    }

    #[test]
    fn nobody_is_told_to_end_a_healthy_session_of_espd_or_one_that_waits_for_it() {
        let (own, waits, older) =
            (holder(1, "espd: fulfil", 1.5), holder(2, "", 1.4), holder(3, "psql", 9.0));
        let alone = describe_end_of(&[own.clone(), waits.clone()]);
        assert!(alone.contains("ends by itself") && !alone.contains("pg_terminate_backend"), "{alone}");
        let both = describe_end_of(&[own, waits.clone(), older]);
        assert!(both.contains("pg_terminate_backend(3)") && !both.contains("backend(2)"), "{both}");
        assert!(describe_end_of(&[waits]).contains("pg_terminate_backend(2)"));
        assert!(describe_end_of(&[holder(1, "espd: fulfil", 700.0)]).contains("pg_terminate_backend(1)"));
    }
}
