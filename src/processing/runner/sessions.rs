//! The sessions that the runners of a worker share: connections follow what is busy, not what is declared.
//!
//! A runner takes a session when it has something to do, and gives it back when it waits. It gets the one that it had last, if
//! that is free; another one is first cleared of what a handler may have left in it. A claim names the session that works
//! for it, because a standby ends that session if its owner is frozen inside a transaction.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, PgConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::postgres::quote::quote_literal;
use crate::processing::heartbeat;
use crate::processing::runner::RunnerContext;
use crate::processing::runner::session::{PREPARE_SESSION, connect, in_time, transaction_timeout};

/// How many sessions the runners of a worker share.
pub(crate) const SHARED_SESSIONS: usize = 4;

/// How long a turn counts while others wait, because a batch that waits for a lock must not keep all others waiting. Who has a lease to
/// renew waits no longer than this, and opens a session of its own then.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a runner may keep a session that others wait for.
const TURN: Duration = Duration::from_millis(100);

/// The sessions of one worker.
#[derive(Debug)]
pub(crate) struct Sessions {
    /// Those that nobody uses, the one that was used last at the end.
    idle: Mutex<Vec<Session>>,
    turns: Arc<Semaphore>,
    /// The turns that have been given, the oldest first, as long as somebody has them.
    given: Mutex<Vec<Weak<Turn>>>,
}

/// The right to one of the sessions that there should be.
#[derive(Debug)]
struct Turn {
    begun: Instant,
    /// Taken away, others get their turn although this one has not ended.
    permit: Mutex<Option<OwnedSemaphorePermit>>,
}

/// One session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) connection: PgConnection,
    /// Tells the sessions of this process apart.
    pub(super) id: u64,
    /// How long a transaction may last on it.
    pub(super) transaction_timeout: Option<Duration>,
    /// The processor that has used it last.
    user: String,
    /// Whether it keeps what is set in it: none of a pooler does.
    pub(super) keeps_settings: bool,
    taken: Instant,
    turn: Option<Arc<Turn>>,
}

impl Session {
    /// Opens a session that nobody else uses.
    pub(super) async fn open(context: &RunnerContext, name: &str) -> Result<Self, sqlx::Error> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let (mut connection, keeps_settings) = connect(context, name).await?;
        let transaction_timeout = transaction_timeout(&mut connection).await?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let user = name.to_owned();
        Ok(Self {
            connection,
            id,
            transaction_timeout,
            user,
            keeps_settings,
            taken: Instant::now(),
            turn: None,
        })
    }

    /// Clears the session of what the processor before may have left in it.
    async fn hand_over(mut self, name: &str) -> Result<Self, sqlx::Error> {
        if self.user == name {
            return Ok(self);
        }
        if self.keeps_settings {
            let statement = format!(
                "-- hand_over_session
                 reset all; discard temp; select pg_advisory_unlock_all(); {PREPARE_SESSION};
                 select set_config('application_name', {}, false)",
                quote_literal(&format!("espd: {name}"))
            );
            in_time(sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut self.connection)).await?;
        }
        name.clone_into(&mut self.user);
        Ok(self)
    }
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            idle: Mutex::default(),
            turns: Arc::new(Semaphore::new(SHARED_SESSIONS)),
            given: Mutex::default(),
        }
    }
}

impl Sessions {
    /// Takes a session for a processor, when it is its turn. `has_claim`: it has a lease to renew.
    pub(super) async fn take(
        &self,
        context: &RunnerContext,
        name: &str,
        has_claim: bool,
    ) -> Result<Session, sqlx::Error> {
        let turn = self.wait_for_turn(has_claim).await;
        let found = match self.find_idle(name) {
            Some(idle) => idle.hand_over(name).await.ok(),
            None => None,
        };
        let mut session = match found {
            Some(session) => session,
            // There is none, or it has ended while nobody used it.
            None => Session::open(context, name).await?,
        };
        (session.taken, session.turn) = (Instant::now(), turn);
        Ok(session)
    }

    /// `None`: it has waited for long, and has a claim. When a worker starts, all its processors wait for their first turn, and each
    /// session that is opened plans all its statements anew.
    async fn wait_for_turn(&self, has_claim: bool) -> Option<Arc<Turn>> {
        let mut acquiring = pin!(Arc::clone(&self.turns).acquire_owned());
        loop {
            heartbeat::expect_within(PATIENCE * 2);
            match tokio::time::timeout(PATIENCE, acquiring.as_mut()).await {
                Ok(permit) => return permit.ok().map(|permit| self.begin_turn(permit)),
                Err(_) if has_claim => return None,
                Err(_) => self.end_long_turns(),
            }
        }
    }

    fn begin_turn(&self, permit: OwnedSemaphorePermit) -> Arc<Turn> {
        let turn = Arc::new(Turn { begun: Instant::now(), permit: Mutex::new(Some(permit)) });
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.retain(|turn| turn.strong_count() > 0);
        given.push(Arc::downgrade(&turn));
        turn
    }

    /// Gives the turns of those that keep them for long to others.
    fn end_long_turns(&self) {
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        for turn in given.iter().filter_map(Weak::upgrade).filter(|turn| turn.begun.elapsed() >= PATIENCE) {
            turn.permit.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }

    /// The session that this processor had last; or, where there are as many as there should be, the one that was used the
    /// longest ago.
    fn find_idle(&self, name: &str) -> Option<Session> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let own = idle.iter().position(|session| session.user == name);
        let busy = SHARED_SESSIONS - self.turns.available_permits().min(SHARED_SESSIONS);
        // The turn of who asks counts as busy already.
        let may_open = own.is_none() && idle.len() + busy <= SHARED_SESSIONS;
        match own {
            Some(place) => Some(idle.remove(place)),
            None if may_open || idle.is_empty() => None,
            None => Some(idle.remove(0)),
        }
    }

    /// Whether a session should be given to others now.
    pub(super) fn is_turn_over(&self, session: &Session) -> bool {
        session.taken.elapsed() >= TURN && self.turns.available_permits() == 0
    }

    /// Takes a session back. Those that are too many are closed.
    pub(super) fn give_back(&self, mut session: Session) {
        session.turn = None;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(session);
        if idle.len() > SHARED_SESSIONS {
            idle.remove(0);
        }
    }

    /// Lets go of the sessions that nobody uses, without a word to the server.
    pub(super) fn forget(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Closes the sessions that nobody uses.
    pub(crate) async fn close(&self) {
        let idle = std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner));
        for session in idle {
            let _ = in_time(sqlx::Connection::close(session.connection)).await;
        }
    }
}
