//! What a runner has done together with the others of its worker: renewals, and moves over events of other types. Where that does
//! not come about, the runner does it alone, on a session.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::event::Position;
use crate::postgres::connector::Connector;
use crate::postgres::literal::simple;
use crate::processing::heartbeat;
use crate::processing::processor::Events;
use crate::processing::runner::phase::{Following, Phase};
use crate::processing::runner::session::{ANSWER_TIMEOUT, in_time};
use crate::processing::runner::sessions::{Session, Sessions};
use crate::processing::runner::steward::{NEAR, Passed, Steward, StewardHandle};
use crate::processing::runner::{Action, Next, Runner};
use crate::processing::tracker::{Passing, Renewal, Renewed, Stretch, Trackers, renewal_interval};
use crate::shutdown::Shutdown;
use crate::store::layout::Layout;

/// Shortest time between two moves over events of other types near the head. Each writes the row of a tracker; with many
/// processors that would cost more than the events themselves.
const PASS_INTERVAL: Duration = Duration::from_millis(200);

/// How many times the usual ids of a batch are passed at once at most.
const TIMES_MAX: i64 = 16;

/// How long a runner that is far behind waits for others of its worker that are about to begin: they pass the same events together.
const ARRIVALS: Duration = Duration::from_millis(300);
const ARRIVALS_MAX: Duration = Duration::from_secs(2);

/// What the runners of one worker share.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    steward: StewardHandle,
    sessions: Arc<Sessions>,
}

/// How a runner moves over events of types that its processor does not handle.
#[derive(Debug)]
pub(super) struct Passes {
    /// The types that it handles; `None`: only a batch can tell.
    types: Option<Arc<[String]>>,
    /// Whether the next events are most likely of other types, as the last ones were.
    likely: bool,
    /// When the position was moved so last.
    moved: Option<Instant>,
}

impl Passes {
    pub(super) fn new(types: Option<Vec<String>>) -> Self {
        Self { types: types.map(Arc::from), likely: true, moved: None }
    }

    /// Takes note of how many events a batch has handled.
    pub(super) fn note_batch(&mut self, handled: i32) {
        self.likely = handled == 0;
    }

    /// Takes note of a move, and whether it met nothing but events of other types.
    fn note_move(&mut self, is_whole: bool) {
        (self.moved, self.likely) = (Some(Instant::now()), is_whole);
    }

    /// Time until the position may be moved again.
    fn until_next(&self) -> Duration {
        self.moved.map_or(Duration::ZERO, |moved| PASS_INTERVAL.saturating_sub(moved.elapsed()))
    }
}

impl Shared {
    /// What runners share whose trackers are in `database`, and the steward, which has to be run. `events`: the layout of the
    /// events, if they are in the same database.
    pub(crate) fn new(
        database: &Connector,
        trackers: Trackers,
        lease: Duration,
        events: Option<Layout>,
    ) -> (Self, Steward) {
        let (steward, handle) = Steward::new(database.named("espd: steward"), trackers, lease, events);
        (Self { steward: handle, sessions: Arc::default() }, steward)
    }

    /// Closes the connections that nobody uses.
    pub(crate) async fn close(&self) {
        self.sessions.close().await;
    }
}

impl Runner {
    /// Shares with the other runners of the worker what the processor allows to be shared.
    #[must_use]
    pub(crate) fn sharing(mut self, shared: &Shared) -> Self {
        self.shared = Some(shared.clone());
        self
    }

    /// Tells the others of the worker that a runner begins, if it has a claim.
    pub(super) fn note_arrival(&self) {
        if let (Some(shared), Some(_)) = (&self.shared, self.phase.claim()) {
            shared.steward.note_arrival();
        }
    }

    /// The sessions that the processor shares; `None`: it has one of its own.
    fn sessions(&self) -> Option<&Sessions> {
        let shared = self.shared.as_ref().filter(|_| self.processor.shares_session())?;
        Some(&shared.sessions)
    }

    /// The session to work on, on which the claim is recorded. `None`: the stop was requested before there was one.
    pub(super) async fn hold<'s>(
        &mut self,
        session: &'s mut Option<Session>,
        stop: Option<&mut Shutdown>,
    ) -> Result<Option<&'s mut Session>, sqlx::Error> {
        if session.is_none() {
            let taking = self.take_session();
            let taken = match stop {
                Some(stop) => stop.run_until_requested(taking).await,
                None => Some(taking.await),
            };
            let Some(taken) = taken else { return Ok(None) };
            let mut taken = taken?;
            self.cut_off.learn(taken.transaction_timeout);
            self.keeps_session = taken.keeps_settings;
            self.record_backend(&mut taken).await?;
            *session = Some(taken);
        }
        Ok(session.as_mut())
    }

    async fn take_session(&self) -> Result<Session, sqlx::Error> {
        match self.sessions() {
            Some(sessions) => sessions.take(&self.context, &self.name, self.phase.claim().is_some()).await,
            None => Session::open(&self.context, &self.name).await,
        }
    }

    /// Has the claim name this session.
    async fn record_backend(&mut self, session: &mut Session) -> Result<(), sqlx::Error> {
        let Some(claim) = self.phase.claim().filter(|_| self.recorded != Some(session.id)) else {
            return Ok(());
        };
        // If the commit is lost in a crash, the session has ended with the server.
        let statement =
            format!("set local synchronous_commit = off;\n{}", self.trackers.recording_backend(claim));
        in_time(simple(statement).execute(&mut session.connection)).await?;
        self.recorded = Some(session.id);
        Ok(())
    }

    /// Lets others have the session while this runner waits, if it is shared.
    pub(super) fn give_back(&self, session: &mut Option<Session>) {
        if let Some(sessions) = self.sessions()
            && let Some(session) = session.take()
        {
            sessions.give_back(session);
        }
    }

    /// Lets others have the session in between if they have waited for long.
    pub(super) fn end_turn(&self, session: &mut Option<Session>) {
        let is_over =
            |session: &Session| self.sessions().is_some_and(|sessions| sessions.is_turn_over(session));
        if session.as_ref().is_some_and(is_over) {
            self.give_back(session);
        }
    }

    /// Whether a runner that holds no session has something to release all the same, as one may that shares its sessions.
    pub(super) fn has_more_to_release(&self) -> bool {
        let is_known = match &self.phase {
            Phase::Unclaimed(waiting) => waiting.stands_by(),
            _ => true,
        };
        is_known && self.sessions().is_some()
    }

    /// Closes the shared sessions that nobody uses: what has ended one of them has most likely ended all.
    pub(super) fn forget_sessions(&self) {
        if let Some(sessions) = self.sessions() {
            sessions.forget();
        }
    }

    /// Does what the next step would do, if it can be done together with others and without a session. `None`: it cannot.
    pub(super) async fn act_together(&mut self, action: &Action) -> Option<Next> {
        match action {
            Action::Renew => self.renew_together().await,
            Action::HandleBatch(upto) => self.pass_over(*upto).await,
            _ => None,
        }
    }

    /// The layout of the events, if they are in the database of the tracker.
    pub(super) fn events_beside(&self) -> Option<&Layout> {
        match &self.processor.base().events {
            Events::SameDatabase(layout) => Some(layout),
            Events::Elsewhere(_) => None,
        }
    }

    /// What a renewal of the lease has to say.
    pub(super) fn renewal(&self) -> Option<Renewal> {
        let claim = self.phase.claim()?.clone();
        let is_readable = self.subscription.unmet().is_none();
        // A database that answers a renewal may still refuse the batch that is to be tried.
        let outage_over = !self.outage.is_external() && is_readable && !self.has_work();
        Some(Renewal { claim, outage_over, rate: self.rate.per_second(Instant::now()) })
    }

    async fn renew_together(&mut self) -> Option<Next> {
        let steward = self.shared.as_ref()?.steward.clone();
        if self.events_beside().is_none() || self.subscription.unmet().is_some() {
            return None;
        }
        let renewal = self.renewal()?;
        let (outage_over, asked) = (renewal.outage_over, Instant::now());
        heartbeat::expect_within(ANSWER_TIMEOUT);
        match steward.renew(renewal).await? {
            Renewed::Lost => Some(self.claim_lost()),
            Renewed::Done { lease_status, is_remembered, head } => {
                let is_followed = matches!(self.phase, Phase::Following(_));
                // The closer look comes with a renewal on a session.
                if is_followed && !is_remembered {
                    return None;
                }
                let moment = steward.last_moment(renewal_interval(self.context.lease));
                (self.renewed_at, self.leased_at) = (moment, asked);
                self.tell_head(head, asked);
                self.note_renewal(&lease_status, outage_over);
                Some(Next::Again)
            }
            Renewed::Skipped => None,
        }
    }

    /// Moves the position over events of other types, together with others that are at the same place. Near the head that
    /// is not done for each few events.
    async fn pass_over(&mut self, upto: Position) -> Option<Next> {
        let steward = self.shared.as_ref()?.steward.clone();
        let types = self.passes.types.clone().filter(|_| self.passes.likely)?;
        let Phase::Following(following) = &self.phase else { return None };
        if !self.may_pass(following) {
            return None;
        }
        let (claim, begun) = (following.claim.clone(), Instant::now());
        let (after, settled) = (claim.position, self.subscription.settled());
        let (mark, left) = (self.subscription.mark(), self.passes.until_next());
        heartbeat::expect_within(ANSWER_TIMEOUT);
        if !left.is_zero() && after.distance_to(upto) <= NEAR {
            let has_none = steward.has_none(after, upto, types).await;
            return has_none.then_some(Next::Wait(Some(upto), left));
        }
        let left = self.until_others_have_begun(&steward, after, settled);
        if !left.is_zero() {
            return Some(Next::Wait(None, left));
        }
        let span = self.context.limits.span.saturating_mul(TIMES_MAX);
        let upto = self.subscription.next_upto(after, span).unwrap_or(upto);
        let passing = Passing { claim, types: types.to_vec(), rate: self.rate.per_second(begun) };
        match steward.pass_over(passing, Stretch { after, upto, settled, mark }).await? {
            Passed::NotYet => Some(Next::Again),
            Passed::To(reached, is_whole) => {
                self.passes.note_move(is_whole);
                self.committed(reached, reached, 0, begun);
                Some(self.succeeded())
            }
        }
    }

    /// How long others of the worker are waited for that are about to pass the same events, where these are many. All who wait go on at
    /// the same moment.
    fn until_others_have_begun(
        &self,
        steward: &StewardHandle,
        after: Position,
        settled: Position,
    ) -> Duration {
        if after.distance_to(settled) <= self.context.limits.span {
            return Duration::ZERO;
        }
        let left = ARRIVALS.saturating_sub(steward.since_arrival());
        left.min(ARRIVALS_MAX.saturating_sub(self.batch_at.elapsed()))
    }

    /// Whether nothing but new events is to be looked at.
    fn may_pass(&self, following: &Following) -> bool {
        let is_searching = following.size(&self.context.limits) < self.context.limits.size;
        let is_asked = following.dead_letters_requested || following.under_way || following.due.is_some();
        !is_searching
            && !is_asked
            && following.seen() == following.claim.position
            && self.retry.attempts() == 0
            && !self.processor.has_pending_effects()
    }
}
