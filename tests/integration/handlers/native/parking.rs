//! Workflows whose events are set aside: who waits behind them, what comes late, and which records are left.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use espd::native::{OnFailure, by_correlation};
use espd::prelude::*;
use espd::testing::{TestDatabase, TestRunning, database};
use serde::{Deserialize, Serialize};
use sqlx::AssertSqlSafe;

use crate::support::facts::{eventually, reaches};
use crate::support::program::Installation;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Placed {}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Packed {}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct PackingOverdue {}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Outcome {
    what: String,
}

espd::event_type!(Placed);
espd::event_type!(Packed);
espd::event_type!(PackingOverdue);
espd::event_type!(Outcome);

/// What the handler does wrong now.
#[derive(Clone, Default)]
struct World {
    placing_fails: Arc<AtomicBool>,
    packing_fails: Arc<AtomicBool>,
    steps: Arc<Mutex<u32>>,
}

struct Packing(World);

#[derive(Default, Serialize, Deserialize)]
struct Nothing {}

#[async_trait]
impl Workflow for Packing {
    type State = Nothing;

    fn instance(&self, event: &Event) -> Option<String> {
        by_correlation(event)
    }

    fn begins(&self, event: &Event) -> bool {
        event.event_type == "Placed"
    }

    async fn handle(
        &mut self,
        event: &Delivery,
        _state: &mut Nothing,
        context: &mut WorkflowContext<'_, '_>,
    ) -> Result<(), HandlerError> {
        let steps = Arc::clone(&self.0.steps);
        let count = async move |_key| {
            *steps.lock().unwrap() += 1;
            Ok(())
        };
        if event.read::<Placed>()?.is_some() {
            if self.0.placing_fails.load(Ordering::SeqCst) {
                return Err("no place".into());
            }
            context.time_out_after(Duration::from_secs(86_400), &PackingOverdue {})?;
        } else if event.read::<Packed>()?.is_some() {
            context.step("ship", count).await?;
            if self.0.packing_fails.load(Ordering::SeqCst) {
                return Err("no parcel service".into());
            }
            context.emit(&event.aggregate_id, &Outcome { what: "shipped".into() })?;
            context.end();
        } else {
            context.emit(Uuid::nil(), &Outcome { what: "cancelled".into() })?;
            context.end();
        }
        Ok(())
    }
}

async fn start<'d>(db: &'d TestDatabase, world: &World, then: OnFailure) -> TestRunning<'d> {
    let registration = Registration::workflow("packing")
        .handles::<Placed>()
        .handles::<Packed>()
        .times_out::<PackingOverdue>()
        .emits::<Outcome>()
        .start(Start::Beginning)
        .max_attempts(1)
        .on_failure(then);
    let world = world.clone();
    db.start(Program::new().workflow(registration, move || Packing(world.clone()))).await.unwrap()
}

/// An event of the conversation of `order`, of an aggregate of its own.
async fn happen<E: EventType + Serialize>(db: &TestDatabase, order: Uuid, body: &E) -> i64 {
    let event = NewEvent { correlation_id: Some(order), ..NewEvent::of(Uuid::new_v4(), body).unwrap() };
    db.given([event]).await.unwrap();
    db.rows::<(i64,)>("select max(id) from espd.events").await.unwrap()[0].0
}

async fn execute(db: &TestDatabase, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(db.pool()).await.unwrap();
}

/// Has the time-out that is awaited come, and waits until the workflow is beyond it.
async fn time_out(db: &TestDatabase) {
    let before = db.all::<PackingOverdue>().await.unwrap().len();
    execute(db, "update espd.emissions set due_at = clock_timestamp()").await;
    eventually("the time-out", async || {
        (db.all::<PackingOverdue>().await.unwrap().len() > before).then_some(())
    })
    .await;
    let last =
        db.rows::<(i64,)>("select max(id) from espd.events where type = 'PackingOverdue'").await.unwrap();
    reaches(db.pool(), "packing", last[0].0).await;
}

async fn outcomes(db: &TestDatabase) -> Vec<String> {
    db.all::<Outcome>().await.unwrap().into_iter().map(|outcome| outcome.what).collect()
}

/// The dead letters: type, reason, and whether the instance is that of the order.
async fn set_aside(db: &TestDatabase, order: Uuid) -> Vec<(String, String, bool)> {
    db.rows(&format!(
        "select event_type, reason, coalesce(instance = '{order}', false) from espd.dead_letters order by event_id"
    ))
    .await
    .unwrap()
}

fn retried(db: &TestDatabase) -> impl Future<Output = crate::support::program::Outcome> {
    let installation = Installation::new(db.url(), "");
    async move {
        installation.espctl(&["dead-letters", "retry", "packing", "--all", "--yes", "--wait", "2m"]).await
    }
}

#[tokio::test]
async fn a_parked_event_holds_its_instance_the_time_outs_too() {
    let db = database().await.unwrap();
    let (order, world) = (Uuid::new_v4(), World::default());
    world.packing_fails.store(true, Ordering::SeqCst);
    let running = start(&db, &world, OnFailure::Park).await;
    happen(&db, order, &Placed {}).await;
    let packed = happen(&db, order, &Packed {}).await;
    reaches(db.pool(), "packing", packed).await;
    time_out(&db).await;
    let parked = |event_type: &str, reason: &str| (event_type.to_owned(), reason.to_owned(), true);
    let expected = [parked("Packed", "failed"), parked("PackingOverdue", "waiting")];
    assert_eq!(set_aside(&db, order).await, expected);
    // Another instance goes on.
    let other = Uuid::new_v4();
    let placed = happen(&db, other, &Placed {}).await;
    reaches(db.pool(), "packing", placed).await;
    assert_eq!(set_aside(&db, order).await, expected);
    let shown = Installation::new(db.url(), "")
        .espctl(&["dead-letters", "show", "packing", &packed.to_string(), "--json"])
        .await
        .json();
    assert_eq!((&shown["waiting"], &shown["instance"]), (&1.into(), &order.to_string().into()), "{shown}");

    world.packing_fails.store(false, Ordering::SeqCst);
    let said = retried(&db).await.printed();
    assert!(said.contains("2 dead letters of packing handled"), "{said}");
    assert_eq!(outcomes(&db).await, ["shipped"]);
    assert_eq!(*world.steps.lock().unwrap(), 1);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_retry_of_an_event_whose_instance_has_ended_says_so() {
    let db = database().await.unwrap();
    let (order, world) = (Uuid::new_v4(), World::default());
    world.packing_fails.store(true, Ordering::SeqCst);
    let running = start(&db, &world, OnFailure::Skip).await;
    happen(&db, order, &Placed {}).await;
    let packed = happen(&db, order, &Packed {}).await;
    reaches(db.pool(), "packing", packed).await;
    time_out(&db).await;
    eventually("the outcome", async || (outcomes(&db).await == ["cancelled"]).then_some(())).await;
    world.packing_fails.store(false, Ordering::SeqCst);
    let said = retried(&db).await.complained(1);
    assert!(said.contains("1 failed again") && said.contains("has ended with event"), "{said}");
    assert!(said.contains("(PackingOverdue), so the event is passed over"), "{said}");

    // What its steps have recorded goes with it.
    let recorded = async || db.rows::<(i64,)>("select count(*) from espd.workflow_steps").await.unwrap()[0].0;
    assert_eq!(recorded().await, 1);
    let discard = ["dead-letters", "discard", "packing", "--all", "--yes"];
    Installation::new(db.url(), "").espctl(&discard).await.printed();
    assert_eq!(recorded().await, 0);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_time_out_that_came_before_its_event_was_retried_comes_anew() {
    for then in [OnFailure::Park, OnFailure::Skip] {
        let db = database().await.unwrap();
        let (order, world) = (Uuid::new_v4(), World::default());
        let running = start(&db, &world, then).await;
        let placed = happen(&db, order, &Placed {}).await;
        reaches(db.pool(), "packing", placed).await;
        time_out(&db).await;
        eventually("the outcome", async || (outcomes(&db).await == ["cancelled"]).then_some(())).await;

        world.placing_fails.store(true, Ordering::SeqCst);
        let last = db.rows::<(i64,)>("select max(id) from espd.events").await.unwrap()[0].0;
        execute(&db, "select espd.reset_processor('me', 'packing', 1, 0, 0, true, null, null, null, null)")
            .await;
        eventually("a dead letter", async || (!set_aside(&db, order).await.is_empty()).then_some(())).await;
        reaches(db.pool(), "packing", last - 1).await;
        world.placing_fails.store(false, Ordering::SeqCst);
        retried(&db).await.printed();
        if then == OnFailure::Skip {
            time_out(&db).await;
        }
        let ended = "select count(*) from espd.workflow_instances where ended_at is not null";
        eventually("the end of the instance", async || {
            (db.rows::<(i64,)>(ended).await.unwrap()[0].0 == 1).then_some(())
        })
        .await;
        running.stop().await.unwrap();
    }
}

/// Does a step during which another owner handles the event.
struct Overtaken(sqlx::PgPool);

#[async_trait]
impl Workflow for Overtaken {
    type State = Nothing;

    fn instance(&self, event: &Event) -> Option<String> {
        by_correlation(event)
    }

    async fn handle(
        &mut self,
        _event: &Delivery,
        _state: &mut Nothing,
        context: &mut WorkflowContext<'_, '_>,
    ) -> Result<(), HandlerError> {
        let pool = self.0.clone();
        let overtake = async move |_key| {
            let ended = "select pg_terminate_backend(backend_pid) from espd.trackers where name = 'packing'";
            sqlx::query(ended).execute(&pool).await?;
            let handled = "update espd.trackers set position = 1, epoch = epoch + 1 where name = 'packing'";
            sqlx::query(handled).execute(&pool).await?;
            Ok(())
        };
        Ok(context.step("ship", overtake).await?)
    }
}

#[tokio::test]
async fn a_step_of_an_event_that_another_owner_has_handled_leaves_no_record() {
    let db = database().await.unwrap();
    let pool = db.pool().clone();
    let registration =
        Registration::workflow("packing").handles::<Placed>().handles::<Packed>().start(Start::Beginning);
    happen(&db, Uuid::new_v4(), &Placed {}).await;
    let program = Program::new().workflow(registration, move || Overtaken(pool.clone()));
    let running = db.start(program).await.unwrap();
    reaches(db.pool(), "packing", 1).await;
    running.caught_up().await.unwrap();
    assert_eq!(db.rows::<(i64,)>("select count(*) from espd.workflow_steps").await.unwrap(), [(0,)]);
    running.stop().await.unwrap();
}
