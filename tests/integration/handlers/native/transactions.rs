//! What handlers in Rust do to the transaction of their batch that they must not do, and what of it shows only at the commit:
//! the event is found, the policy decides, and nothing is lost.

use async_trait::async_trait;
use espd::Program;
use espd::internals::processor::Processor;
use espd::internals::retry::{OnFailure, RetryPolicy};
use espd::internals::runner::RunnerContext;
use espd::native::{
    Delivery, Effect, EventType, HandlerError, Projector, ProjectorContext, Reactor, ReactorContext,
    Registration, Start, Workflow, WorkflowContext,
};
use serde::{Deserialize, Serialize};
use sqlx::{Executor as _, PgConnection, PgPool};

use super::{A, dead_letters, make};
use crate::processing::runner::{Life, settings};
use crate::support::facts::{append, reaches};
use crate::support::{self, Database};

/// What a handler does at the third event.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Misdeed {
    /// Runs this, behind its row.
    Sql(&'static str),
    /// Runs this, and fails without a name.
    SqlThenFails(&'static str),
    /// Goes on after a statement of its own has failed.
    Swallows,
    /// As [`Self::Swallows`], and asks for work after the commit.
    SwallowsAndAsks,
    /// Writes a row that violates a deferred constraint.
    Deferred,
}

const ENDINGS: [&str; 6] =
    ["rollback", "rollback; begin", "commit", "commit; begin", "rollback and chain", "commit and chain"];

impl Misdeed {
    async fn write(self, event: &Delivery, connection: &mut PgConnection) -> Result<(), HandlerError> {
        let a: A = event.read()?.ok_or("it handles nothing else")?;
        let n = if a.n == 3 && self == Self::Deferred { 1 } else { a.n };
        let note = sqlx::query("insert into kept (event_id, n) values ($1, $2)").bind(event.id).bind(n);
        note.execute(&mut *connection).await?;
        if a.n != 3 {
            return Ok(());
        }
        match self {
            Self::Sql(sql) => {
                connection.execute(sqlx::raw_sql(sql)).await?;
            }
            Self::SqlThenFails(sql) => {
                connection.execute(sqlx::raw_sql(sql)).await?;
                return Err("it gives up".into());
            }
            Self::Swallows | Self::SwallowsAndAsks => {
                connection.execute(sqlx::raw_sql("select 1 / 0")).await.unwrap_err();
            }
            Self::Deferred => {}
        }
        Ok(())
    }

    fn asks(self) -> bool {
        self == Self::SwallowsAndAsks || matches!(self, Self::Sql("rollback"))
    }
}

#[async_trait]
impl Projector for Misdeed {
    async fn project(
        &mut self,
        events: &[Delivery],
        context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        for event in events {
            if self.asks() {
                context.after_commit(event, &event.id.get())?;
            }
            self.write(event, context.connection()).await?;
        }
        Ok(())
    }

    async fn after_commit(&mut self, _effect: &Effect) -> Result<(), HandlerError> {
        Ok(())
    }
}

#[async_trait]
impl Reactor for Misdeed {
    async fn react(
        &mut self,
        event: &Delivery,
        context: &mut ReactorContext<'_>,
    ) -> Result<(), HandlerError> {
        context.emit(&event.aggregate_id, &Seen { event_id: event.id.get() })?;
        if self.asks() {
            context.after_commit(&event.id.get())?;
        }
        self.write(event, context.connection().await?).await
    }

    async fn after_commit(&mut self, _effect: &Effect) -> Result<(), HandlerError> {
        Ok(())
    }
}

/// Counts the events that it has seen.
struct Counting(Misdeed);

#[async_trait]
impl Workflow for Counting {
    type State = i64;

    fn instance(&self, _event: &espd::event::Event) -> Option<String> {
        Some("all".to_owned())
    }

    async fn handle(
        &mut self,
        event: &Delivery,
        state: &mut i64,
        context: &mut WorkflowContext<'_, '_>,
    ) -> Result<(), HandlerError> {
        *state += 1;
        self.0.write(event, context.connection().await?).await
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Seen {
    event_id: i64,
}

impl EventType for Seen {
    const NAME: &'static str = "Seen";
}

fn registered(registration: Registration, misdeed: Misdeed) -> Registration {
    // A handler that has committed meets its own rows.
    let unique = if misdeed == Misdeed::Deferred { "unique deferrable initially deferred" } else { "" };
    registration.handles::<A>().table("kept", &format!("event_id bigint, n bigint {unique}"))
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Projector,
    Reactor,
    Workflow,
}

fn processor(kind: Kind, misdeed: Misdeed) -> Box<dyn Processor> {
    let program = match kind {
        Kind::Projector => {
            let registration = registered(Registration::projector("kept"), misdeed);
            Program::new().projector(registration.after_commit(), move || misdeed)
        }
        Kind::Reactor => {
            let registration = registered(Registration::reactor("kept"), misdeed).emits::<Seen>();
            let registration = registration.start(Start::Beginning).after_commit();
            Program::new().reactor(registration, move || misdeed)
        }
        Kind::Workflow => {
            let registration = registered(Registration::workflow("kept"), misdeed);
            Program::new().workflow(registration.start(Start::Beginning), move || Counting(misdeed))
        }
    };
    make(&program, "kept")
}

async fn numbers(pool: &PgPool, query: &'static str) -> Vec<i64> {
    sqlx::query_scalar(query).fetch_all(pool).await.unwrap()
}

/// Runs five events, of which the third is handled wrongly. Returns what is said of that.
async fn run(db: &Database, kind: Kind, misdeed: Misdeed) -> String {
    append(&db.pool, 5).await;
    // All events are of one instance of the workflow, which would wait behind a parked one.
    let retry = RetryPolicy { max_attempts: Some(2), on_failure: OnFailure::Skip, ..settings(db).retry };
    let life = Life::begin_with(db, processor(kind, misdeed), RunnerContext { retry, ..settings(db) });
    reaches(&db.pool, "kept", 5).await;
    life.end().await;
    let found = dead_letters(&db.pool).await;
    let ids: Vec<i64> = found.iter().map(|one| one.event_id.get()).collect();
    assert_eq!(ids, [3], "{kind:?} {misdeed:?}");
    found[0].failure.as_ref().unwrap().0.message.clone()
}

#[tokio::test]
async fn a_handler_that_ends_the_transaction_loses_no_event() {
    for kind in [Kind::Projector, Kind::Reactor, Kind::Workflow] {
        for sql in ENDINGS {
            for misdeed in [Misdeed::Sql(sql), Misdeed::SqlThenFails(sql)] {
                let db = support::database().await;
                let said = run(&db, kind, misdeed).await;
                let silent = said.contains("it gives up") && kind == Kind::Projector;
                assert!(silent || said.contains("has ended the transaction"), "{kind:?} {misdeed:?}: {said}");
                // What it has committed itself stays, so some may be there more than once.
                let mut kept = numbers(&db.pool, "select distinct n from kept order by n").await;
                kept.retain(|n| *n != 3);
                assert_eq!(kept, [1, 2, 4, 5], "{kind:?} {misdeed:?}");
                if kind == Kind::Reactor {
                    let seen =
                        "select (body->>'event_id')::bigint from espd.events where type = 'Seen' order by 1";
                    assert_eq!(numbers(&db.pool, seen).await, [1, 2, 4, 5], "{misdeed:?}");
                }
                // With it stays what espd had written for the events before it.
                if kind == Kind::Workflow && !sql.starts_with("commit") {
                    let state = "select (state#>>'{}')::bigint from espd.workflow_instances";
                    assert_eq!(numbers(&db.pool, state).await, [4], "{misdeed:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn what_can_only_be_rolled_back_is_the_failure_of_its_event() {
    for kind in [Kind::Projector, Kind::Reactor, Kind::Workflow] {
        for misdeed in [Misdeed::Swallows, Misdeed::SwallowsAndAsks, Misdeed::Deferred] {
            let db = support::database().await;
            let said = run(&db, kind, misdeed).await;
            let expected = match misdeed {
                Misdeed::Deferred => "duplicate key value",
                _ => "has gone on as if it had not",
            };
            assert!(said.contains(expected), "{kind:?} {misdeed:?}: {said}");
            let kept = numbers(&db.pool, "select n from kept order by n").await;
            assert_eq!(kept, [1, 2, 4, 5], "{kind:?} {misdeed:?}");
        }
    }
}

/// Emits something for each event; writes at the third, and emits there what it must not.
struct Refused;

#[async_trait]
impl Reactor for Refused {
    async fn react(
        &mut self,
        event: &Delivery,
        context: &mut ReactorContext<'_>,
    ) -> Result<(), HandlerError> {
        if event.id.get() == 3 {
            let note = sqlx::query("insert into kept (event_id) values (3)");
            note.execute(context.connection().await?).await?;
            return context.emit(&event.aggregate_id, &A { n: 0 });
        }
        context.emit(&event.aggregate_id, &Seen { event_id: event.id.get() })
    }
}

#[tokio::test]
async fn what_earlier_events_have_emitted_outlives_the_refusal_of_one_that_has_written() {
    let db = support::database().await;
    append(&db.pool, 5).await;
    let registration = registered(Registration::reactor("kept"), Misdeed::Swallows).emits::<Seen>();
    let registration = registration.start(Start::Beginning);
    let processor = make(&Program::new().reactor(registration, || Refused), "kept");
    let retry = RetryPolicy { max_attempts: Some(1), on_failure: OnFailure::Skip, ..settings(&db).retry };
    let life = Life::begin_with(&db, processor, RunnerContext { retry, ..settings(&db) });
    reaches(&db.pool, "kept", 5).await;
    life.end().await;
    let seen = "select (body->>'event_id')::bigint from espd.events where type = 'Seen' order by 1";
    assert_eq!(numbers(&db.pool, seen).await, [1, 2, 4, 5]);
    assert_eq!(numbers(&db.pool, "select event_id from kept").await, [0; 0]);
}
