//! What a runner does about what went wrong: one pure function from the error, and what was tried, to a decision.
//!
//! `Runner::act` in `failures` carries the decisions out.

use std::time::Duration;

use crate::event::Position;
use crate::postgres::sqlstate::{describe, is_infrastructure_error};
use crate::processing::failure::Failure;
use crate::processing::processor::ProcessorError;
use crate::retry::{NextStep, Retry};

/// What the runner tried when the error came up.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Attempt<'r> {
    /// To create tables and functions under a new claim.
    Prepare,
    /// To handle a batch.
    Batch {
        /// The most events that the batch may have had.
        size: i64,
        /// The failures so far.
        retry: &'r Retry<Option<Position>>,
    },
    /// To handle the event of this dead letter again.
    DeadLetter(Position),
}

/// What to do next.
#[derive(Debug)]
pub(crate) enum Decision {
    /// Claim the processor again, because the claim is no longer valid.
    Reclaim,
    /// Connect again, because the database could not do it now.
    Reconnect(sqlx::Error),
    /// Try again on a new session at once, because the old one may be to blame. No event is counted as failed.
    RenewSession(Failure),
    /// Wait for something that the handlers need beside the database, for at least `at_least`. No event is counted as
    /// failed.
    WaitFor { message: String, at_least: Option<Duration> },
    /// Handle smaller batches, until the failing event is alone in one.
    Bisect(Failure),
    /// Try again after a delay that grows with each failure of the same event.
    Retry(Failure),
    /// Set the event aside, because its attempts are used up. `blocks`: the later events of its aggregate wait behind it.
    SetAside { failure: Failure, blocks: bool },
    /// Stop at the event until an operator acts, because its attempts are used up.
    Stop(Failure),
    /// Stop until an operator decides what follows from a store that is not the one that was followed.
    Diverge,
    /// Stop until an operator acts, because no further attempt can succeed before that.
    Block { message: String },
    /// Wait until the declared version is live, which ends the claim. Nothing has failed.
    AwaitVersion { serves: i32, declared: i32 },
    /// Leave the dead letter where it is, because its event has failed again.
    KeepDeadLetter { event_id: Position, failure: Failure },
}

/// What to do about a failure that the session may be to blame for: `None` if it counts as any other. `is_renewed`: the
/// session was opened because of such a failure, and nothing has been handled on it yet.
pub(crate) fn doubt_session(failure: Option<Failure>, is_renewed: bool) -> Option<Decision> {
    failure.filter(|failure| failure.is_of_session() && !is_renewed).map(Decision::RenewSession)
}

/// What to do about an error.
pub(crate) fn decide(error: ProcessorError, attempt: Attempt<'_>) -> Decision {
    use ProcessorError::{
        AwaitsVersion, Blocked, ClaimLost, Database, Diverged, NotReturned, OtherHandlers, StaleSession,
        Unattributed, Unavailable,
    };
    match (error, attempt) {
        (StaleSession(failure), _) => Decision::RenewSession(*failure),
        // A claim compares the handlers with those that have handled events.
        (ClaimLost | OtherHandlers, _) => Decision::Reclaim,
        (Diverged, _) => Decision::Diverge,
        (AwaitsVersion { serves, declared }, _) => Decision::AwaitVersion { serves, declared },
        // An operator has noticed it before this process: the next claim says so.
        (Database(error), _) if is_of_diverged_tracker(&error) => Decision::Reclaim,
        (Unavailable { message, wait }, _) => Decision::WaitFor { message, at_least: wait },
        (Database(error), _) if is_infrastructure_error(&error) => Decision::Reconnect(error),

        (Blocked(message), Attempt::Prepare | Attempt::Batch { .. }) => Decision::Block { message },
        // The database refuses what the processor is made of: trying again would only hide it.
        (Database(error), Attempt::Prepare) => Decision::Block { message: describe(&error) },
        (Unattributed(failure) | NotReturned(failure), Attempt::Prepare) => {
            Decision::Block { message: failure.message }
        }

        (Unattributed(failure) | NotReturned(failure), Attempt::Batch { size, .. })
            if size > 1 && !failure.is_unreadable =>
        {
            Decision::Bisect(*failure)
        }
        (Unattributed(failure) | NotReturned(failure), Attempt::Batch { retry, .. }) => {
            decide_failure(*failure, retry)
        }
        (Database(error), Attempt::Batch { retry, .. }) => {
            decide_failure(Failure::of_database(&error), retry)
        }

        (error, Attempt::DeadLetter(event_id)) => {
            let failure = match error {
                Unattributed(failure) | NotReturned(failure) => *failure,
                Database(error) => Failure::of_database(&error),
                Blocked(message) => Failure::of_processor(message),
                other => Failure::of_processor(other.to_string()),
            };
            Decision::KeepDeadLetter { event_id, failure }
        }
    }
}

/// Whether `lock_tracker` has refused the tracker because its store is not the one that was followed.
fn is_of_diverged_tracker(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|answer| answer.code()).is_some_and(|code| code == "57ES1")
}

/// What to do about an event that could not be handled. `retry` has not counted the failure yet.
pub(crate) fn decide_failure(failure: Failure, retry: &Retry<Option<Position>>) -> Decision {
    let attempts = retry.attempts_with(&failure.event_id());
    match retry.policy().decide(attempts) {
        NextStep::Stop => Decision::Stop(failure),
        NextStep::SetAside { blocks } if failure.event.is_some() => Decision::SetAside { failure, blocks },
        // Where no event is known, none can be set aside.
        NextStep::SetAside { .. } | NextStep::TryAgain => Decision::Retry(failure),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::processing::failure::FailedEvent;
    use crate::retry::{OnFailure, RetryPolicy};

    fn at_event(id: i64) -> Failure {
        let event = FailedEvent {
            id: id.into(),
            uuid: Uuid::nil(),
            event_type: "A".to_owned(),
            aggregate_id: Uuid::nil().into(),
        };
        Failure::of_processor("no").attribute(event)
    }

    /// Two attempts, of which one has failed at event 7.
    fn retry(on_failure: OnFailure) -> Retry<Option<Position>> {
        let mut retry =
            Retry::new(RetryPolicy { max_attempts: Some(2), on_failure, ..RetryPolicy::default() });
        retry.failed(Some(7.into()));
        retry
    }

    fn in_words(decision: &Decision) -> String {
        match decision {
            Decision::Reclaim => "reclaim".to_owned(),
            Decision::Reconnect(_) => "reconnect".to_owned(),
            Decision::RenewSession(failure) => format!("renew the session, {failure}"),
            Decision::WaitFor { message, at_least } => format!("wait for {message}, {at_least:?}"),
            Decision::Bisect(failure) => format!("bisect, {failure}"),
            Decision::Retry(failure) => format!("retry, {failure}"),
            Decision::SetAside { failure, blocks } => format!("set aside, {failure}, {blocks}"),
            Decision::Stop(failure) => format!("stop, {failure}"),
            Decision::Diverge => "diverge".to_owned(),
            Decision::AwaitVersion { serves, declared } => format!("await {declared} beside {serves}"),
            Decision::Block { message } => format!("block, {message}"),
            Decision::KeepDeadLetter { event_id, failure } => format!("keep {event_id}, {failure}"),
        }
    }

    #[test]
    fn each_error_leads_to_one_decision() {
        type Error = fn() -> ProcessorError;
        let lost: Error = || ProcessorError::ClaimLost;
        let others: Error = || ProcessorError::OtherHandlers;
        let diverged: Error = || ProcessorError::Diverged;
        let blocked: Error = || ProcessorError::Blocked("x".into());
        let awaits: Error = || ProcessorError::AwaitsVersion { serves: 1, declared: 2 };
        let unattributed: Error = || ProcessorError::Unattributed(Box::new(Failure::of_processor("no")));
        let at_7: Error = || ProcessorError::Unattributed(Box::new(at_event(7)));
        let away: Error =
            || ProcessorError::Unavailable { message: "x".into(), wait: Some(Duration::from_secs(9)) };
        let late: Error = || ProcessorError::NotReturned(Box::new(Failure::of_processor("no")));
        let gone: Error = || sqlx::Error::PoolTimedOut.into();

        let policy = retry(OnFailure::Stop);
        let batch = |size| Attempt::Batch { size, retry: &policy };
        let cases = [
            (lost, Attempt::Prepare, "reclaim"),
            (lost, batch(9), "reclaim"),
            (lost, Attempt::DeadLetter(3.into()), "reclaim"),
            (others, batch(9), "reclaim"),
            (others, Attempt::DeadLetter(3.into()), "reclaim"),
            (diverged, Attempt::Prepare, "diverge"),
            (diverged, batch(9), "diverge"),
            (diverged, Attempt::DeadLetter(3.into()), "diverge"),
            (awaits, Attempt::Prepare, "await 2 beside 1"),
            (gone, Attempt::Prepare, "reconnect"),
            (gone, batch(9), "reconnect"),
            (gone, Attempt::DeadLetter(3.into()), "reconnect"),
            (away, Attempt::Prepare, "wait for x, Some(9s)"),
            (away, batch(9), "wait for x, Some(9s)"),
            (away, Attempt::DeadLetter(3.into()), "wait for x, Some(9s)"),
            (blocked, Attempt::Prepare, "block, x"),
            (blocked, batch(9), "block, x"),
            (blocked, Attempt::DeadLetter(3.into()), "keep 3, x"),
            (unattributed, Attempt::Prepare, "block, no"),
            (unattributed, batch(9), "bisect, no"),
            // No event is known, so it is another thing that fails, for the first time.
            (unattributed, batch(1), "retry, no"),
            (unattributed, Attempt::DeadLetter(3.into()), "keep 3, no"),
            (at_7, batch(9), "bisect, event 7 (A): no"),
            (at_7, batch(1), "stop, event 7 (A): no"),
            (at_7, Attempt::DeadLetter(7.into()), "keep 7, event 7 (A): no"),
            (late, batch(9), "bisect, no"),
            (late, Attempt::DeadLetter(7.into()), "keep 7, no"),
        ];
        for (error, attempt, expected) in cases {
            assert_eq!(in_words(&decide(error(), attempt)), expected, "{:?}, {attempt:?}", error());
        }
    }

    #[test]
    fn the_policy_decides_about_an_event_whose_attempts_are_used_up() {
        for (on_failure, expected) in [
            (OnFailure::Retry, "retry, event 7 (A): no"),
            (OnFailure::Stop, "stop, event 7 (A): no"),
            (OnFailure::Park, "set aside, event 7 (A): no, true"),
            (OnFailure::Skip, "set aside, event 7 (A): no, false"),
        ] {
            let retry = retry(on_failure);
            assert_eq!(in_words(&decide_failure(at_event(7), &retry)), expected);
            // Another event begins with its first attempt.
            assert_eq!(in_words(&decide_failure(at_event(8), &retry)), "retry, event 8 (A): no");
        }
    }

    #[test]
    fn what_no_event_is_known_of_is_not_set_aside() {
        let mut retry = retry(OnFailure::Park);
        retry.failed(None);
        assert_eq!(in_words(&decide_failure(Failure::of_processor("no"), &retry)), "retry, no");
    }

    #[test]
    fn a_failure_that_a_session_may_be_to_blame_for_counts_on_a_new_session_only() {
        let failing = |sqlstate: &str| Failure { sqlstate: Some(sqlstate.to_owned()), ..at_event(7) };
        for sqlstate in ["42804", "0A000", "26000", "42P05", "08P01"] {
            let decision = doubt_session(Some(failing(sqlstate)), false).map(|decision| in_words(&decision));
            assert_eq!(decision, Some(format!("renew the session, event 7 (A): no [{sqlstate}]")));
            assert!(doubt_session(Some(failing(sqlstate)), true).is_none());
        }
        assert!(doubt_session(Some(failing("22P02")), false).is_none());
        assert!(doubt_session(None, false).is_none());
    }
}
