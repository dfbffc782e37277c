//! The steward does in one statement what each runner of a worker would do alone: it renews their leases, and moves
//! positions over events that concern none of them.
//!
//! Whoever asks waits for the answer. Those who ask at the same moment are answered together; renewals are due at the same
//! moments for all. A runner that gets no answer does alone what it wanted, and meets alone what keeps the database from
//! answering.

mod passages;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::{PgConnection, Row as _};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use crate::event::Position;
use crate::postgres::connector::Connector;
use crate::postgres::deadline::in_time;
use crate::postgres::literal::simple;
use crate::postgres::sqlstate::describe;
use crate::processing::tracker::{Passing, Renewal, Renewed, Stretch, Trackers};
use crate::store::layout::Layout;

pub(super) use passages::{NEAR, Passed};
use passages::{Passage, Passages, common};

/// How long the database may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long it may take to renew leases. A runner that gets no answer still has time to renew its lease by itself.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(1);

/// How long positions near the head are moved in one turn: leases are to be renewed in time. Those that are left come next.
const PASSING_TIME: Duration = Duration::from_millis(300);

/// How many ids are looked through at most for their types alone, and how many types are remembered.
const GLANCE_MAX: i64 = 10_000;
const TYPES_MAX: usize = 10_000;

/// Where runners ask the steward.
#[derive(Debug, Clone)]
pub(crate) struct StewardHandle {
    requests: mpsc::UnboundedSender<Request>,
    /// What the moments are counted from at which leases are renewed.
    began: Instant,
    /// When a runner has begun last, in milliseconds since then.
    arrival: Arc<AtomicU64>,
}

/// Works for all runners of a worker until no handle is left.
#[derive(Debug)]
pub(crate) struct Steward {
    database: Connector,
    trackers: Trackers,
    lease: Duration,
    /// The layout of the events, if they are in the database of the trackers.
    events: Option<Layout>,
    requests: mpsc::UnboundedReceiver<Request>,
    connection: Option<PgConnection>,
    glanced: Glanced,
    passages: Passages,
}

/// What a runner asks for. An answer that is dropped says that there is none.
#[derive(Debug)]
enum Request {
    Renew(Renewal, oneshot::Sender<Renewed>),
    PassOver(Passage),
    Glance(Glance, oneshot::Sender<bool>),
}

/// The question whether events of these types are among some ids.
#[derive(Debug)]
struct Glance {
    after: Position,
    upto: Position,
    types: Arc<[String]>,
}

/// What was seen among the ids that were looked through last. It says only what is worth trying.
#[derive(Debug, Default)]
struct Glanced {
    after: Position,
    upto: Position,
    /// The last event of each type.
    last: HashMap<String, Position>,
}

impl StewardHandle {
    /// Renews a lease; `None`: there is no answer.
    pub(super) async fn renew(&self, renewal: Renewal) -> Option<Renewed> {
        self.ask(|answer| Request::Renew(renewal, answer)).await
    }

    /// Moves a position over events of other types; `None`: it stays where it is.
    pub(super) async fn pass_over(&self, passing: Passing, stretch: Stretch) -> Option<Passed> {
        let asked = Instant::now();
        self.ask(|answer| Request::PassOver(Passage { passing, stretch, answer, asked })).await.flatten()
    }

    /// Whether most likely no event after `after` up to `upto` is of one of these types.
    pub(super) async fn has_none(&self, after: Position, upto: Position, types: Arc<[String]>) -> bool {
        if after.distance_to(upto) > GLANCE_MAX {
            return false;
        }
        let glance = Glance { after, upto, types };
        self.ask(|answer| Request::Glance(glance, answer)).await.unwrap_or(false)
    }

    /// Takes note that a runner begins.
    pub(super) fn note_arrival(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.arrival.store(now, Ordering::Relaxed);
    }

    /// How long ago a runner has begun last.
    pub(super) fn since_arrival(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.arrival.load(Ordering::Relaxed)))
    }

    /// The last moment at which leases were due, if they are renewed so often: the same one for all runners.
    pub(super) fn last_moment(&self, interval: Duration) -> Instant {
        let elapsed = self.began.elapsed();
        let into = elapsed.as_nanos() % interval.as_nanos().max(1);
        Instant::now() - Duration::from_nanos(u64::try_from(into).unwrap_or_default())
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(request(answer)).ok()?;
        answered.await.ok()
    }
}

impl Steward {
    /// A steward of the trackers in `database`, and where it is asked.
    pub(crate) fn new(
        database: Connector,
        trackers: Trackers,
        lease: Duration,
        events: Option<Layout>,
    ) -> (Self, StewardHandle) {
        let (sender, requests) = mpsc::unbounded_channel();
        let (glanced, passages) = (Glanced::default(), Passages::default());
        let steward =
            Self { database, trackers, lease, events, requests, connection: None, glanced, passages };
        (steward, StewardHandle { requests: sender, began: Instant::now(), arrival: Arc::default() })
    }

    /// Answers until no handle is left.
    pub(crate) async fn run(mut self) {
        while let Some(requests) = self.next_requests().await {
            if let Err(error) = Box::pin(self.serve(requests)).await {
                debug!(error = describe(&error), "the steward has no answer");
                self.connection = None;
                self.passages.give_up();
            }
        }
    }

    /// What has been asked since the last turn. Waits for something, unless there is something left to do. `None`: nobody is
    /// left who could ask.
    async fn next_requests(&mut self) -> Option<Vec<Request>> {
        let mut requests = Vec::new();
        if self.passages.is_empty() {
            requests.push(self.requests.recv().await?);
        }
        // What wakes one runner wakes the others, which ask in the same turn.
        tokio::task::yield_now().await;
        while let Ok(request) = self.requests.try_recv() {
            requests.push(request);
        }
        Some(requests)
    }

    async fn serve(&mut self, requests: Vec<Request>) -> Result<(), sqlx::Error> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => in_time(ANSWER_TIMEOUT, self.database.connect()).await?.connection,
        };
        let (mut renewals, mut glances) = (Vec::new(), Vec::new());
        for request in requests {
            match request {
                Request::Renew(renewal, answer) => renewals.push((renewal, answer)),
                Request::PassOver(passage) => self.passages.add(passage),
                Request::Glance(glance, answer) => glances.push((glance, answer)),
            }
        }
        self.renew(&mut connection, renewals).await?;
        self.glance(&mut connection, glances).await?;
        self.pass_near(&mut connection).await?;
        self.pass_far(&mut connection).await?;
        self.passages.put_off();
        self.connection = Some(connection);
        Ok(())
    }

    async fn renew(
        &self,
        connection: &mut PgConnection,
        wanted: Vec<(Renewal, oneshot::Sender<Renewed>)>,
    ) -> Result<(), sqlx::Error> {
        if wanted.is_empty() {
            return Ok(());
        }
        let (renewals, answers): (Vec<_>, Vec<_>) = wanted.into_iter().unzip();
        let renewing = self.trackers.renew_all(connection, &renewals, self.lease, self.events.as_ref());
        let renewed = in_time(RENEWAL_TIMEOUT, renewing).await?;
        for (answer, renewed) in answers.into_iter().zip(renewed) {
            let _ = answer.send(renewed);
        }
        Ok(())
    }

    /// Moves positions near the head, those at one place together.
    async fn pass_near(&mut self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let begun = Instant::now();
        for after in self.passages.near() {
            if begun.elapsed() >= PASSING_TIME {
                break;
            }
            let group = self.passages.take(after);
            self.pass_over(connection, group, None).await?;
        }
        Ok(())
    }

    /// Moves the positions of those who are far behind and at one place, but not beyond the next place where others wait.
    async fn pass_far(&mut self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let Some((after, most)) = self.passages.next_far() else { return Ok(()) };
        let group = self.passages.take(after);
        let begun = Instant::now();
        self.pass_over(connection, group, Some(most)).await?;
        self.passages.note(begun.elapsed());
        Ok(())
    }

    /// Moves positions from one place, but not beyond `most`.
    async fn pass_over(
        &self,
        connection: &mut PgConnection,
        group: Vec<Passage>,
        most: Option<Position>,
    ) -> Result<(), sqlx::Error> {
        let Some(layout) = &self.events else { return Ok(()) };
        let Some(mut stretch) = common(&group) else { return Ok(()) };
        stretch.upto = most.map_or(stretch.upto, |most| stretch.upto.min(most));
        let (passings, answers): (Vec<_>, Vec<_>) =
            group.into_iter().map(|Passage { passing, answer, .. }| (passing, answer)).unzip();
        let passing = self.trackers.pass_over(connection, &passings, stretch, self.lease, layout);
        let passed = in_time(ANSWER_TIMEOUT, passing).await?;
        for (answer, position) in answers.into_iter().zip(passed) {
            let _ = answer.send(position.map(|position| Passed::To(position, position >= stretch.upto)));
        }
        Ok(())
    }

    async fn glance(
        &mut self,
        connection: &mut PgConnection,
        wanted: Vec<(Glance, oneshot::Sender<bool>)>,
    ) -> Result<(), sqlx::Error> {
        let (Some(layout), Some(upto)) = (&self.events, wanted.iter().map(|(glance, _)| glance.upto).max())
        else {
            return Ok(());
        };
        let after = wanted.iter().map(|(glance, _)| glance.after).min().unwrap_or(upto);
        if let Some((after, upto)) = self.glanced.missing(after, upto) {
            let seen = in_time(ANSWER_TIMEOUT, list_types(connection, layout, after, upto)).await?;
            self.glanced.note(upto, seen);
        }
        for (glance, answer) in wanted {
            let _ = answer.send(self.glanced.has_none(&glance));
        }
        Ok(())
    }
}

impl Glanced {
    /// The ids that are to be looked through so that all after `after` up to `upto` are. What does not join is forgotten.
    fn missing(&mut self, after: Position, upto: Position) -> Option<(Position, Position)> {
        if after < self.after || after > self.upto || self.last.len() > TYPES_MAX {
            *self = Self { after, upto: after, last: HashMap::new() };
        }
        (upto > self.upto).then_some((self.upto, upto))
    }

    fn note(&mut self, upto: Position, seen: Vec<(String, Position)>) {
        self.upto = upto;
        self.last.extend(seen);
    }

    fn has_none(&self, glance: &Glance) -> bool {
        let is_known = glance.after >= self.after && glance.upto <= self.upto;
        is_known && glance.types.iter().all(|one| self.last.get(one).is_none_or(|last| *last <= glance.after))
    }
}

/// The types of events among some ids, each with its last event there.
async fn list_types(
    connection: &mut PgConnection,
    layout: &Layout,
    after: Position,
    upto: Position,
) -> Result<Vec<(String, Position)>, sqlx::Error> {
    let statement = format!(
        "-- list_types
         select e.type::text as type, max(e.id)::bigint as last from {} as e
         where e.id > {after} and e.id <= {upto} group by 1",
        layout.source()
    );
    let rows = simple(statement).fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get("type")?, row.try_get("last")?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn glance(after: i64, upto: i64, event_type: &str) -> Glance {
        Glance { after: after.into(), upto: upto.into(), types: Arc::from([event_type.to_owned()]) }
    }

    #[test]
    fn what_was_seen_is_known_only_between_the_ids_that_were_looked_through() {
        let mut glanced = Glanced::default();
        assert_eq!(glanced.missing(10.into(), 20.into()), Some((10.into(), 20.into())));
        glanced.note(20.into(), vec![("A".to_owned(), 15.into())]);
        assert_eq!(glanced.missing(12.into(), 25.into()), Some((20.into(), 25.into())));
        glanced.note(25.into(), vec![("B".to_owned(), 21.into())]);
        assert!(!glanced.has_none(&glance(10, 25, "A")) && glanced.has_none(&glance(15, 25, "A")));
        assert!(!glanced.has_none(&glance(15, 25, "B")) && glanced.has_none(&glance(15, 25, "C")));
        assert!(!glanced.has_none(&glance(9, 25, "C")) && !glanced.has_none(&glance(10, 26, "C")));
        assert_eq!(glanced.missing(9.into(), 25.into()), Some((9.into(), 25.into())), "begun anew");
        assert!(!glanced.has_none(&glance(15, 25, "C")));
    }
}
