//! The relay moves pending emissions into the event store when they are due.
//!
//! Each worker that runs reactors has one relay, on a connection of its own. The relay locks the rows that it moves, and the
//! uuid of an event is fixed, so each event is emitted once, however many daemons there are. An emission that the event store
//! refuses is put off by itself. A reactor that is retrying does not hold back what it has decided to emit; one that an
//! operator has paused does; and of those with a key one that repeats its effects after a reset, one that has stopped, and one that has
//! not handled yet what was in the store when the relay began: after an outage, or a restore of the trackers alone, the event that
//! cancels an emission may be among that.

mod moving;
mod refusal;

use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use self::moving::{DueEmission, Tally};
use super::pending::{is_behind, is_held};
use crate::event::Position;
use crate::postgres::connector::Connector;
use crate::postgres::deadline::in_time;
use crate::postgres::literal::simple;
use crate::postgres::notify::{EVENTS, notify};
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::postgres::server_mark::{self, ServerMark};
use crate::postgres::sqlstate::{describe, shorten};
use crate::processing::processor::Events;
use crate::processing::tracker::Trackers;
use crate::retry::{Retry, RetryPolicy};
use crate::shutdown::Shutdown;

/// Time between two looks at the table while nothing is known to be due. A known emission is moved when it is due.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long to wait while another relay is moving emissions.
const OTHERS_TURN: Duration = Duration::from_millis(100);

/// Most emissions that are moved in one transaction.
const BATCH_SIZE: i64 = 100;

/// How long a transaction may take.
const BATCH_TIME: Duration = Duration::from_secs(60);

/// Moves what the reactors of one worker have emitted for a later time, or for a store in another database.
pub(crate) struct Relay {
    /// The database that has the trackers and the table `emissions`.
    pub(crate) database: Connector,
    /// The mark that has to be on the server of the emissions; `None`: there is nothing to compare.
    pub(crate) mark: Option<watch::Receiver<Option<ServerMark>>>,
    /// The schema of espd's own tables.
    pub(crate) schema: String,
    /// The names of the reactors whose emissions are moved.
    pub(crate) reactors: Vec<String>,
    /// The event store.
    pub(crate) events: Events,
    /// Wakes the relay when a reactor may have emitted something.
    pub(crate) wake_relay: Arc<Notify>,
    /// The channel that subscriptions of the store listen on.
    pub(crate) channel: String,
}

/// What the relay has found in the table.
enum Looked {
    /// More emissions may be due.
    Moved,
    /// Nothing is due before this time has passed.
    Idle(Duration),
}

impl Relay {
    /// Moves emissions until the stop is requested, and waits for the end of outages.
    pub(crate) async fn run(self, mut stop: Shutdown) {
        let mut outages = Retry::new(RetryPolicy::infrastructure());
        while !stop.is_requested() {
            let Some(Err(error)) = stop.run_until_requested(Box::pin(self.serve(&mut outages))).await else {
                return;
            };
            if let Events::Elsewhere(store) = &self.events {
                store.end_idle_sessions();
            }
            let delay = outages.failed(());
            self.log_outage(&error, outages.attempts(), delay);
            stop.run_until_requested(tokio::time::sleep(delay)).await;
        }
    }

    /// Says once that emissions have to wait; the following attempts are for those who look closer.
    fn log_outage(&self, error: &sqlx::Error, attempts: u32, delay: Duration) {
        let (error, retry_in_ms) = (describe(error), delay.as_millis() as u64);
        let reactors = self.reactors.join(", ");
        if attempts == 1 {
            warn!(
                reactors,
                error, retry_in_ms, "emissions wait: they cannot be moved into the event store now"
            );
        } else {
            debug!(reactors, error, retry_in_ms, attempts, "emissions still wait");
        }
    }

    /// Moves emissions over one connection until the connection fails.
    async fn serve(&self, outages: &mut Retry<()>) -> Result<(), sqlx::Error> {
        let mut connection =
            in_time(BATCH_TIME, self.database.named("espd: relay").connect()).await?.connection;
        let behind = in_time(BATCH_TIME, self.find_head(&mut connection)).await?;
        loop {
            let looked = in_time(BATCH_TIME, Box::pin(self.move_due(&mut connection, behind))).await?;
            if outages.attempts() > 0 && self.may_write(&mut connection).await? {
                info!(reactors = self.reactors.join(", "), "emissions are moved again");
                outages.succeeded();
            }
            if let Looked::Idle(time) = looked {
                let _ = timeout(time.min(INTERVAL), self.wake_relay.notified()).await;
            }
        }
    }

    /// Whether the event store lets anybody write: where nothing is due, nothing else has shown that an outage is over.
    async fn may_write(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let statement =
            "-- may_write\nselect current_setting('transaction_read_only') = 'off' as may_write".to_owned();
        let looking = async {
            match &self.events {
                Events::SameDatabase(_) => simple(statement).fetch_one(connection).await,
                Events::Elsewhere(store) => simple(statement).fetch_one(store.pool()).await,
            }
        };
        in_time(BATCH_TIME, looking).await?.try_get("may_write")
    }

    /// Moves some of the emissions that are due, in order for each reactor.
    async fn move_due(&self, connection: &mut PgConnection, behind: Position) -> Result<Looked, sqlx::Error> {
        let mark = self.mark.as_ref().and_then(|mark| *mark.borrow());
        let mut transaction = connection.begin_with(server_mark::begin(mark)).await?;
        if !self.take_turn(&mut transaction).await? {
            transaction.rollback().await?;
            return Ok(Looked::Idle(OTHERS_TURN));
        }
        let due = self.lock_due(&mut transaction, behind).await?;
        if due.is_empty() {
            let idle = self.time_until_due(&mut transaction, behind).await?;
            transaction.rollback().await?;
            return Ok(Looked::Idle(idle));
        }
        match self.move_locked(&mut transaction, &due).await {
            Ok(tally) => {
                transaction.commit().await?;
                self.report(connection, &tally).await;
                Ok(Looked::Moved)
            }
            Err(outage) => {
                transaction.rollback().await?;
                self.record_outage(connection, &due, &shorten(&describe(&outage))).await?;
                Err(outage)
            }
        }
    }

    /// Says what was done, to subscriptions and to the log.
    async fn report(&self, connection: &mut PgConnection, tally: &Tally) {
        let Tally { moved, refused, first_refused } = tally;
        if let (Events::SameDatabase(_), 1..) = (&self.events, *moved) {
            // Without the notification, watchers find the events when they look next. A store in another database notifies its
            // subscriptions itself.
            let _ = notify(connection, &self.channel, EVENTS).await;
        }
        debug!(events = moved, refused, "moved emissions into the event store");
        if let Some((reactor, id, refusal)) = first_refused {
            warn!(
                reactor,
                emission = id,
                refused,
                sqlstate = refusal.sqlstate,
                error = refusal.message,
                "the event store refuses emissions: they are put off"
            );
        }
    }

    /// Takes the lock that lets one relay work at a time, so that what a reactor emits keeps its order. The server ends the
    /// session of a relay that is frozen under the lock, and a statement that takes so long that the others would wait.
    async fn take_turn(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let statement = format!(
            "-- take_turn
             set local idle_in_transaction_session_timeout = '60s'; set local lock_timeout = '5s';
             set local statement_timeout = '10s';
             select pg_try_advisory_xact_lock(hashtextextended({}, 0)) as ours",
            quote_literal(&format!("espd: emissions of {}", self.schema))
        );
        simple(statement).fetch_one(connection).await?.try_get("ours")
    }

    /// The last id of the store.
    async fn find_head(&self, connection: &mut PgConnection) -> Result<Position, sqlx::Error> {
        let statement = format!("-- find_head\nselect {}", self.events.layout().order.head_expression());
        match &self.events {
            Events::SameDatabase(_) => simple(statement).fetch_one(connection).await?.try_get(0),
            Events::Elsewhere(store) => {
                simple(statement).fetch_one(&mut *store.pool().acquire().await?).await?.try_get(0)
            }
        }
    }

    async fn lock_due(
        &self,
        connection: &mut PgConnection,
        behind: Position,
    ) -> Result<Vec<DueEmission>, sqlx::Error> {
        let statement = format!(
            "-- lock_due_emissions
             select id, reactor, uuid, aggregate_id, type as event_type, body::text, metadata::text, correlation_id,
                    causation_id, attempts
             from {}.emissions as e where {} and coalesce(next_try_at, due_at) <= clock_timestamp()
             order by coalesce(next_try_at, due_at), id limit {BATCH_SIZE} for update of e skip locked",
            quote_identifier(&self.schema),
            self.is_ours(behind)
        );
        sqlx::query_as(AssertSqlSafe(statement)).persistent(false).fetch_all(connection).await
    }

    async fn time_until_due(
        &self,
        connection: &mut PgConnection,
        behind: Position,
    ) -> Result<Duration, sqlx::Error> {
        let statement = format!(
            "-- find_next_emission
             select extract(epoch from least(min(coalesce(next_try_at, due_at)), clock_timestamp() + interval '1 day')
                      - clock_timestamp())::float8 as seconds
             from {}.emissions as e where {}",
            quote_identifier(&self.schema),
            self.is_ours(behind)
        );
        let row = simple(statement).fetch_one(connection).await?;
        let seconds: Option<f64> = row.try_get("seconds")?;
        // Another relay has locked an emission that is due and could not be read.
        let shortest = Duration::from_millis(5);
        let left = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).ok());
        Ok(left.unwrap_or(INTERVAL).max(shortest))
    }

    fn trackers(&self) -> Trackers {
        Trackers::named(&self.schema, self.events.layout().names())
    }

    /// Whether an emission `e` is one that this relay moves: of one of its reactors, and not held. Those with a key wait until their
    /// reactor is no longer `behind` this position.
    fn is_ours(&self, behind: Position) -> String {
        let names: Vec<String> = self.reactors.iter().map(|name| quote_literal(name)).collect();
        let trackers = self.trackers();
        format!(
            "e.reactor in ({}) and not {} and not {}",
            names.join(", "),
            is_held(trackers.table()),
            is_behind(trackers.table(), behind)
        )
    }
}
