//! A version is built by several workers at once, each with its share of the aggregates, where it does not matter in which order the events of different aggregates are handled.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use sqlx::Postgres;
use sqlx::pool::PoolConnection;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::probe::Watched;
use super::{Beside, OperatorError, Phase, Rebuilding, SESSION, failed};
use crate::event::Position;
use crate::processing::rebuild::{
    Replay, ReplayError, Share, Throttle, create_shares, find_obstacle_to_division, join_shares, list_shares,
};

/// The fewest ids up to the target that are worth dividing.
const LEAST: i64 = 10_000;

/// How often is looked how far the workers are.
const INTERVAL: Duration = Duration::from_millis(500);

/// Connections of a build that are not those of workers.
const OTHER_CONNECTIONS: u32 = 5;

/// One of those who build.
struct Worker {
    replay: Replay,
    connection: PoolConnection<Postgres>,
    throttle: Throttle,
    seen: Arc<Seen>,
}

/// How far a worker is, for who writes it down.
#[derive(Default)]
struct Seen {
    position: AtomicI64,
    handled: AtomicI64,
}

/// What all workers do.
#[derive(Clone)]
struct Round {
    /// Up to here.
    target: Position,
    /// The share of the time that each works while events are appended.
    share: f64,
    /// Where the serving version is, as it was seen last.
    live: Arc<AtomicI64>,
    /// Whether there is no room for more.
    is_held: Arc<AtomicBool>,
    /// Whom each batch is told; `None`: nobody measures.
    watched: Option<Arc<Watched>>,
}

impl Worker {
    /// Handles the events of its share up to the target.
    async fn work(mut self, round: Round) -> (Self, Result<(), ReplayError>) {
        while self.replay.position() < round.target {
            if round.is_held.load(Ordering::Relaxed) {
                sleep(INTERVAL).await;
                continue;
            }
            self.replay.await_retry().await;
            let begun = Instant::now();
            let fraction = round.watched.as_ref().map_or(1.0, |seen| seen.fraction());
            if let Err(error) = self.advance(&round, fraction).await {
                return (self, Err(error));
            }
            self.seen.position.store(self.replay.position().get(), Ordering::Relaxed);
            self.seen.handled.store(self.replay.handled, Ordering::Relaxed);
            let live = round.live.load(Ordering::Relaxed).into();
            let rest = self.throttle.rest(fraction * round.share, live, begun, Instant::now());
            if !rest.is_zero() {
                sleep(rest).await;
            }
        }
        (self, Ok(()))
    }

    async fn advance(&mut self, round: &Round, fraction: f64) -> Result<(), ReplayError> {
        let _working = round.watched.as_ref().map(|seen| seen.begin_batch());
        self.replay.advance(&mut self.connection, round.target, fraction).await
    }
}

impl Rebuilding<'_> {
    /// Has several workers handle most of what there is, where that is allowed, or where a run before has begun to.
    ///
    /// # Errors
    /// As for [`Self::catch_up`]. How far each worker is stays for the next try.
    pub(super) async fn follow_in_shares(&mut self) -> Result<(), OperatorError> {
        if matches!(self.beside, Beside::Archived(_)) {
            return Ok(());
        }
        let (trackers, claim) = (self.replay.trackers().clone(), self.replay.claim().clone());
        let found = list_shares(&mut self.worker, &trackers, &claim.key).await?;
        let mut number = i32::try_from(found.len()).unwrap_or(i32::MAX);
        if number == 0 {
            number = self.choose_number().await?;
            if number < 2 {
                return Ok(());
            }
            create_shares(&mut self.worker, &trackers, &claim, number).await.map_err(failed)?;
        }
        (self.listener.note)(&format!(
            "{number} workers handle events at once, each those of its share of the aggregates"
        ));
        let mut workers = self.begin_workers(number).await?;
        loop {
            let live = self.operator.find_position(&mut self.worker, &self.live).await?;
            // Whoever has set the serving version back since finds all of them at one position as well.
            let farthest = workers.iter().map(|worker| worker.replay.position()).max();
            let target = farthest.map_or(live, |farthest| farthest.max(live));
            workers = self.run_round(workers, target).await?;
            let live = self.operator.find_position(&mut self.worker, &self.live).await?;
            if target.distance_to(live) < LEAST {
                break;
            }
        }
        let position = join_shares(&mut self.worker, &trackers, &claim).await.map_err(failed)?;
        let sum = |count: fn(&Replay) -> i64| workers.iter().map(|worker| count(&worker.replay)).sum();
        self.replay.take_over(position, sum(|replay| replay.handled), sum(|replay| replay.set_aside));
        Ok(())
    }

    /// How many workers may build a version from the beginning.
    async fn choose_number(&mut self) -> Result<i32, OperatorError> {
        let target = self.operator.find_position(&mut self.worker, &self.live).await?;
        let is_from_the_beginning =
            self.replay.position() == self.start && self.start.distance_to(target) >= LEAST;
        let is_here = !self.operator.databases.elsewhere;
        let wanted = i32::try_from(self.effort.workers).unwrap_or(1);
        if wanted < 2 || self.part.is_some() || !is_here || !is_from_the_beginning {
            return Ok(1);
        }
        if let Some(reason) = self.find_obstacle().await? {
            (self.listener.note)(&format!(
                "one worker handles all events, because the order of events of different aggregates may matter: {reason}"
            ));
            return Ok(1);
        }
        let most = self.operator.databases.projections.options().get_max_connections();
        let most = i32::try_from(most.saturating_sub(OTHER_CONNECTIONS)).unwrap_or(i32::MAX);
        Ok(wanted.min(most))
    }

    async fn find_obstacle(&mut self) -> Result<Option<String>, OperatorError> {
        let name = self.beside.name(&self.live.name);
        let columns =
            self.operator.find_aggregate_columns_of(&mut self.worker, &self.declaration, &name).await?;
        match columns {
            Err(reason) => Ok(Some(reason)),
            Ok(columns) => {
                Ok(find_obstacle_to_division(&mut self.worker, &self.building_in, &columns).await?)
            }
        }
    }

    async fn begin_workers(&self, number: i32) -> Result<Vec<Worker>, OperatorError> {
        let mut workers = Vec::new();
        for share in Share::all(number) {
            let mut connection = self.operator.databases.projections.acquire().await?;
            // A batch that is broken off goes on with its session, not with the next one who gets it.
            connection.close_on_drop();
            sqlx::raw_sql(SESSION).execute(&mut *connection).await?;
            let processor =
                self.operator.beside_share(&mut connection, &self.declaration, self.beside, share);
            let replay = Replay::begin_share(processor.await?, &mut connection, share.number).await;
            let replay = replay.map_err(failed)?.beside(&self.live);
            let seen = Arc::new(Seen::default());
            seen.position.store(replay.position().get(), Ordering::Relaxed);
            workers.push(Worker { replay, connection, throttle: Throttle::default(), seen });
        }
        Ok(workers)
    }

    /// Has all workers reach a position. The first one that fails ends the others with it.
    async fn run_round(
        &mut self,
        workers: Vec<Worker>,
        target: Position,
    ) -> Result<Vec<Worker>, OperatorError> {
        let live = Arc::new(AtomicI64::new(target.get()));
        self.wait_for_room().await?;
        let is_held = Arc::new(AtomicBool::new(false));
        let round = Round {
            is_held: Arc::clone(&is_held),
            target,
            // Together they take no more than one would.
            share: self.effort.share / workers.len().max(1) as f64,
            live: Arc::clone(&live),
            watched: self.watched().cloned(),
        };
        let seen: Vec<Arc<Seen>> = workers.iter().map(|worker| Arc::clone(&worker.seen)).collect();
        let mut working = JoinSet::new();
        for worker in workers {
            working.spawn(worker.work(round.clone()));
        }
        let mut ready = Vec::new();
        loop {
            tokio::select! {
                ended = working.join_next() => match ended {
                    None => return Ok(ready),
                    Some(Ok((worker, Ok(())))) => ready.push(worker),
                    Some(Ok((_, Err(error)))) => return Err(self.failed(error)),
                    Some(Err(error)) => return Err(OperatorError::Rebuild(format!("a worker has ended: {error}"))),
                },
                () = sleep(INTERVAL) => {
                    let now = self.operator.find_position(&mut self.worker, &self.live).await?;
                    live.store(now.get(), Ordering::Relaxed);
                    let no_room = self.find_no_room().await?;
                    is_held.store(no_room.is_some(), Ordering::Relaxed);
                    self.write_seen(&seen, now, no_room).await?;
                }
            }
        }
    }

    async fn write_seen(
        &mut self,
        seen: &[Arc<Seen>],
        live: Position,
        no_room: Option<String>,
    ) -> Result<(), OperatorError> {
        let now = Instant::now();
        // Each worker rests by itself; this says why.
        self.throttle.rest(self.effort.share, live, now, now);
        if !self.pace.is_due(now) {
            return Ok(());
        }
        let position = seen.iter().map(|one| one.position.load(Ordering::Relaxed)).min().unwrap_or(0);
        let handled = seen.iter().map(|one| one.handled.load(Ordering::Relaxed)).sum();
        let rests_because = no_room.or_else(|| self.rests_because());
        let at = (Position::from(position), handled);
        let progress = self.write_at(Phase::Replaying, at, live, rests_because.as_deref()).await?;
        if progress.is_measured {
            (self.listener.progress)(progress);
        }
        Ok(())
    }
}
