//! Which transactions others wait for, and how to end them.

use chrono::{DateTime, TimeDelta, Utc};

use super::super::format::{format_duration, thousands};
use super::super::{HeldBy, LockWait, ProcessorStatus};
use super::{Advice, Topic};

/// A transaction that has been open for less, in seconds, is one of many that append: others follow it, and nobody has to end one.
const OPEN_MIN: f64 = 1.0;

/// Who holds the settled horizon back for long, if anyone does.
pub(super) fn of_horizon(status: &ProcessorStatus, now: DateTime<Utc>) -> Option<Advice> {
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
    let remedy = format!("Let these end, or end them: {}.", join(held_by, end_holder));
    Some(Advice::new(Topic::HorizonHeldBack, problem, Some(since), remedy))
}

/// Who holds the lock that keeps the processor waiting, if one does.
pub(super) fn of_lock(status: &ProcessorStatus, now: DateTime<Utc>) -> Option<Advice> {
    let (name, wait) = (&status.name, status.lock_wait.as_ref()?);
    let problem = format!(
        "{name} waits for a lock{}. No event is to blame and none is lost. {}",
        on_relation(wait),
        join(&wait.held_by, describe_holder),
    );
    let since = now - TimeDelta::milliseconds((wait.seconds * 1_000.0) as i64);
    let remedy = format!("{}.", end_wait(wait));
    let predicate = format!("wait for locks. {}", join(&wait.held_by, describe_holder));
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

/// What a lock is on, and who holds it, as the end of a sentence that says who waits for it.
pub(crate) fn describe_wait(wait: &LockWait) -> String {
    format!("{}. {}", on_relation(wait), join(&wait.held_by, describe_holder))
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
