//! What a runner is about: the phases of its life, and what it knows in them.

use std::time::{Duration, Instant};

use crate::event::Position;
use crate::process::report::Condition;
use crate::processing::declaration::BatchLimits;
use crate::processing::runner::bisection::Bisection;
use crate::processing::runner::growth::Growth;
use crate::processing::tracker::{Claim, LeaseStatus};

/// What the runner is about.
#[derive(Debug)]
pub(super) enum Phase {
    /// It has no claim.
    Unclaimed(Waiting),
    /// It handles events.
    Following(Following),
    /// It waits for an operator to resume the processor.
    Paused(Following),
    /// It waits until it is time to try again what has failed: what the tracker has the attempts of.
    Retrying(Following, Instant),
    /// It waits until it is time to look whether what the handlers lack beside the database is there again. An event that has failed
    /// before has nothing to do with it.
    Lacking(Following, Instant),
    /// It waits for an operator to fix what it cannot.
    Failed(Following),
    /// It waits until the version that is built beside the serving one is live, which ends its claim.
    Awaiting(Following),
    /// It waits for an operator to decide what follows from a store that is not the one that it followed.
    Diverged(Following),
}

/// What a runner has done so far while it waits for a claim.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Waiting {
    /// Whether it was logged that another owner is waited for.
    pub(super) announced: bool,
    /// Whether it was logged that a newer version is live.
    pub(super) superseded: bool,
    /// Whether it was logged that a frozen owner cannot be removed.
    pub(super) complained: bool,
    /// How often in a row the tracker was found locked although its lease has ended.
    pub(super) looks: u32,
    /// The last id drawn when a processor that begins now was met first. It begins there once that is settled.
    pub(super) now: Option<Position>,
}

impl Waiting {
    /// Whether another daemon is known to own the processor.
    pub(super) fn stands_by(self) -> bool {
        self.announced || self.superseded
    }
}

/// What the runner knows under one claim.
#[derive(Debug)]
pub(super) struct Following {
    pub(super) claim: Claim,
    /// How far the processor has looked. Greater than the position only if the processor runs ahead.
    seen: Position,
    /// When the processor tries an event again while others go on.
    pub(super) due: Option<Instant>,
    /// Whether the processor wants to be called again although there is no new event.
    pub(super) under_way: bool,
    /// Whether an operator wants dead letters handled again.
    pub(super) dead_letters_requested: bool,
    /// Whether the last batch has looked at all the ids that it was allowed to look at, and there are more.
    pub(super) sparse: bool,
    /// How much larger than usual a batch may be.
    pub(super) growth: Growth,
    /// Events per batch: fewer while a batch fails without naming an event, until the event is found.
    pub(super) bisection: Bisection,
}

impl Default for Phase {
    fn default() -> Self {
        Self::Unclaimed(Waiting::default())
    }
}

impl Phase {
    /// The claim, if there is one.
    pub(super) fn claim(&self) -> Option<&Claim> {
        match self {
            Self::Unclaimed(_) => None,
            Self::Following(following)
            | Self::Paused(following)
            | Self::Retrying(following, _)
            | Self::Lacking(following, _)
            | Self::Failed(following)
            | Self::Awaiting(following)
            | Self::Diverged(following) => Some(&following.claim),
        }
    }

    /// What is known under the claim, if there is one.
    pub(super) fn following_mut(&mut self) -> Option<&mut Following> {
        match self {
            Self::Unclaimed(_) => None,
            Self::Following(following)
            | Self::Paused(following)
            | Self::Retrying(following, _)
            | Self::Lacking(following, _)
            | Self::Failed(following)
            | Self::Awaiting(following)
            | Self::Diverged(following) => Some(following),
        }
    }

    /// Changes to another phase under the same claim. A runner without a claim stays without.
    pub(super) fn enter(&mut self, phase: impl FnOnce(Following) -> Self) {
        *self = match std::mem::take(self) {
            Self::Unclaimed(waiting) => Self::Unclaimed(waiting),
            Self::Following(following)
            | Self::Paused(following)
            | Self::Retrying(following, _)
            | Self::Lacking(following, _)
            | Self::Failed(following)
            | Self::Awaiting(following)
            | Self::Diverged(following) => phase(following),
        };
    }

    /// The phase after a renewal of the lease, which has told what operators have done.
    pub(super) fn after_renewal(self, lease_status: &LeaseStatus, now: Instant) -> Self {
        match self {
            Self::Following(following) | Self::Retrying(following, _) | Self::Lacking(following, _)
                if lease_status.paused =>
            {
                Self::Paused(following)
            }
            Self::Paused(following) if !lease_status.paused => Self::Following(following),
            Self::Retrying(following, until) if lease_status.retry_now || until <= now => {
                Self::Following(following)
            }
            Self::Lacking(following, until) if until <= now => Self::Following(following),
            unchanged => unchanged,
        }
    }

    /// The condition that the supervisor is told.
    pub(super) fn condition(&self) -> Condition {
        match self {
            Self::Unclaimed(waiting) if waiting.stands_by() => Condition::StandingBy,
            Self::Unclaimed(_) => Condition::Starting,
            Self::Following(following) if following.due.is_some() => Condition::Retrying,
            Self::Following(_) => Condition::Following,
            Self::Paused(_) => Condition::Paused,
            Self::Retrying(..) => Condition::Retrying,
            Self::Lacking(..) => Condition::Waiting,
            Self::Failed(_) => Condition::Failed,
            Self::Awaiting(_) => Condition::Waiting,
            Self::Diverged(_) => Condition::Diverged,
        }
    }
}

impl Following {
    /// The most events that the next batch may have. While an event is looked for, batches do not grow.
    pub(super) fn size(&self, limits: &BatchLimits) -> i64 {
        if self.bisection.size() < limits.size { self.bisection.size() } else { self.growth.size(limits) }
    }

    /// What is known at the beginning of a claim: nothing but the claim.
    pub(super) fn new(claim: Claim, batch_size: i64) -> Self {
        Self {
            seen: claim.position,
            claim,
            due: None,
            under_way: false,
            dead_letters_requested: false,
            sparse: false,
            growth: Growth::default(),
            bisection: Bisection::new(batch_size),
        }
    }

    /// How far the processor has looked: at its position at least.
    pub(super) fn seen(&self) -> Position {
        self.seen.max(self.claim.position)
    }

    /// Moves the position, and how far the processor has looked. Returns how many ids have been passed.
    pub(super) fn advance(&mut self, position: Position, seen: Position) -> i64 {
        let passed = self.seen().distance_to(seen);
        (self.claim.position, self.seen) = (position, seen);
        passed
    }

    /// Time until the processor tries an event again while others go on; [`Duration::MAX`] if it does not.
    pub(super) fn until_due(&self) -> Duration {
        self.due.map_or(Duration::MAX, |due| due.saturating_duration_since(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn following() -> Following {
        Following::new(Claim::example(5), 100)
    }

    #[test]
    fn operators_and_time_change_the_phase_at_a_renewal() {
        let now = Instant::now();
        let later = now + Duration::from_secs(9);
        let lease_status = |paused, retry_now| LeaseStatus {
            position: 5.into(),
            paused,
            retry_now,
            dead_letters_requested: false,
        };
        let cases: [(Phase, LeaseStatus, Condition); 14] = [
            (Phase::Following(following()), lease_status(false, false), Condition::Following),
            (Phase::Following(following()), lease_status(true, false), Condition::Paused),
            (Phase::Retrying(following(), later), lease_status(false, false), Condition::Retrying),
            (Phase::Retrying(following(), later), lease_status(true, true), Condition::Paused),
            (Phase::Retrying(following(), later), lease_status(false, true), Condition::Following),
            (Phase::Retrying(following(), now), lease_status(false, false), Condition::Following),
            (Phase::Lacking(following(), later), lease_status(false, true), Condition::Waiting),
            (Phase::Lacking(following(), now), lease_status(false, false), Condition::Following),
            (Phase::Lacking(following(), later), lease_status(true, false), Condition::Paused),
            (Phase::Paused(following()), lease_status(false, false), Condition::Following),
            (Phase::Paused(following()), lease_status(true, false), Condition::Paused),
            (Phase::Failed(following()), lease_status(true, true), Condition::Failed),
            (Phase::Awaiting(following()), lease_status(true, true), Condition::Waiting),
            (Phase::Diverged(following()), lease_status(true, true), Condition::Diverged),
        ];
        for (phase, lease_status, expected) in cases {
            let words = format!("{phase:?} {lease_status:?}");
            assert_eq!(phase.after_renewal(&lease_status, now).condition(), expected, "{words}");
        }
    }

    #[test]
    fn the_position_carries_along_how_far_was_looked() {
        let mut following = following();
        assert_eq!(following.advance(7.into(), 20.into()), 15);
        assert_eq!((following.claim.position, following.seen()), (7.into(), 20.into()));
        following.claim.position = 30.into();
        assert_eq!(following.seen(), 30);
    }
}
