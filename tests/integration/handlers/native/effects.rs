//! What handlers in Rust do once their batch is committed: at least once, in order, not for what was rolled back, not in a
//! replay.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use espd::Program;
use espd::internals::processor::Processor;
use espd::internals::retry::{OnFailure, RetryPolicy};
use espd::internals::runner::RunnerContext;
use espd::native::{
    Delivery, Effect, HandlerError, Projector, ProjectorContext, Reactor, ReactorContext, Registration, Start,
};
use sqlx::PgPool;

use super::{A, make};
use crate::processing::runner::{Life, settings};
use crate::support::facts::{PATIENCE, append, eventually, position, reaches};
use crate::support::{self, Database};

/// What was done after commits: `n` of the event, and the attempt; and what is to go wrong.
#[derive(Clone, Default)]
struct Outside {
    done: Arc<Mutex<Vec<(i64, i32)>>>,
    /// The `n` at which an effect fails; 0: none.
    fails_at: Arc<AtomicI64>,
    /// The `n` at which an effect is done, and then hangs; 0: none.
    hangs_at: Arc<AtomicI64>,
}

impl Outside {
    fn done(&self) -> Vec<(i64, i32)> {
        self.done.lock().unwrap().clone()
    }

    async fn act(&self, effect: &Effect) -> Result<(), HandlerError> {
        let n = effect.read::<i64>()?;
        assert_eq!((effect.event_id.get(), effect.event_type.as_str()), (n, "A"));
        if self.fails_at.load(Ordering::Relaxed) == n {
            return Err("the receiver is away".into());
        }
        self.done.lock().unwrap().push((n, effect.attempt));
        if self.hangs_at.load(Ordering::Relaxed) == n {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

/// The `n` of an event about which something is to be done that no text of a database can have.
const NUL: i64 = 1_000_000;

/// A reactor that writes a row for each event, and acts after the commit.
struct Acting(Outside);

#[async_trait]
impl Reactor for Acting {
    async fn react(
        &mut self,
        event: &Delivery,
        context: &mut ReactorContext<'_>,
    ) -> Result<(), HandlerError> {
        let a: A = event.read()?.ok_or("it handles nothing else")?;
        if a.n == NUL {
            context.after_commit(&"a\0b")?;
        }
        context.after_commit(&event.id.get())?;
        let note = sqlx::query("insert into acted (event_id) values ($1)").bind(event.id);
        note.execute(context.connection().await?).await?;
        if a.n < 0 { Err("n is negative".into()) } else { Ok(()) }
    }

    async fn after_commit(&mut self, effect: &Effect) -> Result<(), HandlerError> {
        self.0.act(effect).await
    }
}

fn acting(outside: &Outside) -> Box<dyn Processor> {
    let registration = Registration::reactor("acting")
        .handles::<A>()
        .start(Start::Beginning)
        .table("acted", "event_id bigint");
    let outside = outside.clone();
    let program = Program::new().reactor(registration.after_commit(), move || Acting(outside.clone()));
    make(&program, "acting")
}

async fn pending(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from espd.effects").fetch_one(pool).await.unwrap()
}

/// Waits until everything up to event `n` is done.
async fn does(db: &Database, outside: &Outside, n: i64) {
    eventually("everything is done", async || {
        let last = outside.done().last().is_some_and(|(last, _)| *last == n);
        (last && pending(&db.pool).await == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn effects_are_carried_out_in_order_after_the_commit_and_not_again_in_a_replay() {
    let (db, outside) = (support::database().await, Outside::default());
    let life = Life::begin_with(&db, acting(&outside), settings(&db));
    let last = append(&db.pool, 250).await;
    does(&db, &outside, last).await;
    let expected: Vec<_> = (1..=last).map(|n| (n, 1)).collect();
    assert_eq!(outside.done(), expected);

    let back =
        "update espd.trackers set position = 0, silent_until = position, epoch = epoch + 1, owner = null,
                lease_until = null, witness_at = null, witness_id = null, witness_uuid = null";
    sqlx::query(back).execute(&db.pool).await.unwrap();
    eventually("the replay", async || {
        let rows: i64 = sqlx::query_scalar("select count(*) from acted").fetch_one(&db.pool).await.unwrap();
        (rows == 500).then_some(())
    })
    .await;
    let next = append(&db.pool, 1).await;
    does(&db, &outside, next).await;
    assert_eq!(outside.done().len(), 251);
    life.end().await;
}

#[tokio::test]
async fn after_a_crash_what_was_not_confirmed_is_carried_out_again_and_nothing_is_left_out() {
    let (db, outside) = (support::database().await, Outside::default());
    append(&db.pool, 10).await;
    outside.hangs_at.store(4, Ordering::Relaxed);
    let life = Life::begin_with(&db, acting(&outside), settings(&db));
    eventually("the fourth effect", async || (outside.done().len() == 4).then_some(())).await;
    // The batch is committed, and six effects are still to come.
    assert_eq!((position(&db.pool, "acting").await, pending(&db.pool).await), (10, 7));
    life.crash().await;
    outside.hangs_at.store(0, Ordering::Relaxed);
    let life = Life::begin_with(&db, acting(&outside), settings(&db));
    does(&db, &outside, 10).await;
    let mut expected: Vec<_> = (1..=10).map(|n| (n, 1)).collect();
    expected.insert(4, (4, 2));
    assert_eq!(outside.done(), expected);
    life.end().await;
}

#[tokio::test]
async fn an_effect_that_fails_holds_the_processor_up_until_it_succeeds_and_its_event_stays_handled() {
    let (db, outside) = (support::database().await, Outside::default());
    append(&db.pool, 3).await;
    outside.fails_at.store(2, Ordering::Relaxed);
    // An event would be skipped.
    let retry = RetryPolicy { max_attempts: Some(2), on_failure: OnFailure::Skip, ..settings(&db).retry };
    let life = Life::begin_with(&db, acting(&outside), RunnerContext { retry, ..settings(&db) });
    let failing = "select last_error->>'message' from espd.trackers where attempts > 3";
    let said = eventually("attempts", async || {
        sqlx::query_scalar::<_, Option<String>>(failing).fetch_optional(&db.pool).await.unwrap().flatten()
    })
    .await;
    assert_eq!(said, "after the commit of event 2 (A): the receiver is away");
    append(&db.pool, 1).await;
    let dead: i64 =
        sqlx::query_scalar("select count(*) from espd.dead_letters").fetch_one(&db.pool).await.unwrap();
    assert_eq!((dead, position(&db.pool, "acting").await, outside.done().len()), (0, 3, 1));
    outside.fails_at.store(0, Ordering::Relaxed);
    does(&db, &outside, 4).await;
    let done = outside.done();
    assert_eq!(done.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(done[1].1 > 3, "{done:?}");
    life.end().await;
}

#[tokio::test]
async fn an_event_that_is_not_handled_has_no_effects() {
    let (db, outside) = (support::database().await, Outside::default());
    append(&db.pool, 5).await;
    // What the handler says about it, and what no text of a database can have.
    for (n, id) in [(-1, 3), (NUL, 4)] {
        let change = "update espd.events set body = jsonb_build_object('n', $1) where id = $2";
        sqlx::query(change).bind(n).bind(id).execute(&db.pool).await.unwrap();
    }
    let retry = RetryPolicy { max_attempts: Some(2), on_failure: OnFailure::Skip, ..settings(&db).retry };
    let life = Life::begin_with(&db, acting(&outside), RunnerContext { retry, ..settings(&db) });
    does(&db, &outside, 5).await;
    assert_eq!(outside.done(), [(1, 1), (2, 1), (5, 1)]);
    let told: Vec<String> =
        sqlx::query_scalar("select failure ->> 'message' from espd.dead_letters order by event_id")
            .fetch_all(&db.pool)
            .await
            .unwrap();
    assert!(told[1].contains("after the commit contains a NUL character"), "{told:?}");
    life.end().await;
}

/// A projector that fails at one event by its name, and acts after the commit where it may.
struct Listing(Outside);

#[async_trait]
impl Projector for Listing {
    async fn project(
        &mut self,
        events: &[Delivery],
        context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        for event in events {
            context.after_commit(event, &event.id.get()).map_err(|error| event.failed(error))?;
            if event.read::<A>()?.is_some_and(|a| a.n < 0) {
                return Err(event.failed("n is negative"));
            }
        }
        Ok(())
    }

    async fn after_commit(&mut self, effect: &Effect) -> Result<(), HandlerError> {
        self.0.act(effect).await
    }
}

#[tokio::test]
async fn a_projector_acts_after_the_commit_too_if_its_registration_says_so() {
    let retry = RetryPolicy { max_attempts: Some(1), on_failure: OnFailure::Skip, ..RetryPolicy::default() };
    for allowed in [true, false] {
        let (db, outside) = (support::database().await, Outside::default());
        append(&db.pool, 5).await;
        sqlx::query("update espd.events set body = '{\"n\": -1}' where id = 3")
            .execute(&db.pool)
            .await
            .unwrap();
        let registration = Registration::projector("listing").handles::<A>();
        let registration = if allowed { registration.after_commit() } else { registration };
        let listing = outside.clone();
        let program = Program::new().projector(registration, move || Listing(listing.clone()));
        let context = RunnerContext { retry, ..settings(&db) };
        let life = Life::begin_with(&db, make(&program, "listing"), context);
        reaches(&db.pool, "listing", 5).await;
        if allowed {
            does(&db, &outside, 5).await;
            assert_eq!(outside.done(), [(1, 1), (2, 1), (4, 1), (5, 1)]);
        } else {
            let said: String = sqlx::query_scalar("select min(failure->>'message') from espd.dead_letters")
                .fetch_one(&db.pool)
                .await
                .unwrap();
            assert!(said.contains("add `.after_commit()`"), "{said}");
        }
        life.end().await;
    }
}

#[tokio::test]
async fn what_is_done_after_commits_is_waited_for_until_nothing_is_left() {
    let (db, outside) = (support::database().await, Outside::default());
    outside.fails_at.store(2, Ordering::Relaxed);
    let registration = Registration::reactor("acting")
        .handles::<A>()
        .start(Start::Beginning)
        .table("acted", "event_id bigint")
        .after_commit();
    let acting = outside.clone();
    let program = Program::new().reactor(registration, move || Acting(acting.clone()));
    append(&db.pool, 2).await;
    let running = program.start(&espd::Config::for_database(&db.url).unwrap()).await.unwrap();
    let failed = running.idle(PATIENCE).await.unwrap_err().to_string();
    assert!(failed.contains("after the commit of event 2 (A): the receiver is away"), "{failed}");
    assert_eq!(position(&db.pool, "acting").await, 2, "its event is handled");
    outside.fails_at.store(0, Ordering::Relaxed);
    eventually("nothing is left", async || running.idle(PATIENCE).await.ok()).await;
    assert_eq!((outside.done().len(), pending(&db.pool).await), (2, 0));
    running.stop().await.unwrap();
}
