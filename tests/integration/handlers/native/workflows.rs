//! Workflows on PostgreSQL: state with the position, steps across kills, time-outs, resets, and what operators see.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use espd::native::by_aggregate;
use espd::prelude::*;
use espd::testing::{TestDatabase, database};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::support::facts::{eventually, reaches};
use crate::support::program::Installation;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Ordered {
    amount: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Delivered {}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct DeliveryOverdue {}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Told {
    what: String,
}

espd::event_type!(Ordered);
espd::event_type!(Delivered);
espd::event_type!(DeliveryOverdue);
espd::event_type!(Told);

/// The steps that were done, with their keys, and how the second one goes.
#[derive(Clone, Default)]
struct World {
    done: Arc<Mutex<Vec<(&'static str, Uuid)>>>,
    /// The second step begins and does not end.
    hangs: bool,
    fails: bool,
}

struct Shipping(World);

#[derive(Default, Serialize, Deserialize)]
struct Shipment {
    events: u32,
    charged: u32,
}

#[async_trait]
impl Workflow for Shipping {
    type State = Shipment;

    fn instance(&self, event: &Event) -> Option<String> {
        by_aggregate(event)
    }

    async fn handle(
        &mut self,
        event: &Delivery,
        shipment: &mut Shipment,
        context: &mut WorkflowContext<'_, '_>,
    ) -> Result<(), HandlerError> {
        shipment.events += 1;
        let World { done, hangs, fails } = self.0.clone();
        if let Some(Ordered { amount }) = event.read()? {
            let noting = done.clone();
            let charge = async move |key| {
                noting.lock().unwrap().push(("charge", key));
                Ok(amount)
            };
            shipment.charged = context.step("charge", charge).await?;
            let send = async move |key| {
                done.lock().unwrap().push(("send", key));
                if hangs {
                    std::future::pending::<()>().await;
                }
                if fails { Err("no parcel service".into()) } else { Ok("sent".to_owned()) }
            };
            let what = context.step("send", send).await?;
            context.emit(&event.aggregate_id, &Told { what })?;
            context.time_out_after(Duration::from_secs(86_400), &DeliveryOverdue {})?;
        } else if event.read::<DeliveryOverdue>()?.is_some() {
            let what = format!("{} is late", context.instance());
            context.emit(Uuid::nil(), &Told { what })?;
        } else {
            context.end();
        }
        Ok(())
    }
}

fn program(world: &World) -> Program {
    let registration = Registration::workflow("shipping")
        .handles::<Ordered>()
        .handles::<Delivered>()
        .times_out::<DeliveryOverdue>()
        .emits::<Told>()
        .start(Start::Beginning)
        .retry_delays(Duration::from_secs(3_600), Duration::from_secs(3_600));
    let world = world.clone();
    Program::new().workflow(registration, move || Shipping(world.clone()))
}

async fn order(db: &TestDatabase) -> Uuid {
    let order = Uuid::new_v4();
    db.given([NewEvent::of(order, &Ordered { amount: 5 }).unwrap()]).await.unwrap();
    order
}

async fn deliver(db: &TestDatabase, order: Uuid) {
    db.given([NewEvent::of(order, &Delivered {}).unwrap()]).await.unwrap();
}

async fn listed(db: &TestDatabase, arguments: &[&str]) -> Vec<Value> {
    let installation = Installation::new(db.url(), "");
    let listed = installation.espctl(&[&["workflows", "--json"], arguments].concat()).await.json();
    listed.as_array().unwrap().clone()
}

#[tokio::test]
async fn a_workflow_that_is_killed_between_steps_goes_on_after_the_last_recorded_one() {
    let db = database().await.unwrap();
    let order = order(&db).await;
    let world = World { hangs: true, ..World::default() };
    let mut config = db.config().clone();
    config.runner.shutdown_timeout = Duration::from_millis(50);
    let killed = db.start_with(program(&world), &config).await.unwrap();
    eventually("the second step", async || (world.done.lock().unwrap().len() == 2).then_some(())).await;
    let seen = listed(&db, &["shipping"]).await;
    assert_eq!(seen[0]["instance"], order.to_string());
    assert_eq!((&seen[0]["steps"], &seen[0]["state"]), (&json!(["charge"]), &Value::Null));
    drop(killed);

    let world = World { hangs: false, ..world };
    let running = db.start(program(&world)).await.unwrap();
    eventually("the rest", async || (!db.all::<Told>().await.unwrap().is_empty()).then_some(())).await;
    running.caught_up().await.unwrap();
    let done = world.done.lock().unwrap().clone();
    assert_eq!(done.iter().map(|(step, _)| *step).collect::<Vec<_>>(), ["charge", "send", "send"]);
    assert_eq!(done[1].1, done[2].1, "the key of a step that is begun again");
    assert_ne!(done[0].1, done[1].1);
    assert_eq!(db.all::<Told>().await.unwrap(), [Told { what: "sent".into() }]);
    let seen = listed(&db, &["shipping"]).await;
    assert_eq!(seen[0]["state"], json!({ "events": 1, "charged": 5 }));
    assert_eq!(seen[0]["steps"], json!([]));
}

#[tokio::test]
async fn state_is_kept_with_the_position_and_not_with_a_failure() {
    let db = database().await.unwrap();
    let order = order(&db).await;
    let running = db.start(program(&World { fails: true, ..World::default() })).await.unwrap();
    let failure = running.caught_up().await.unwrap_err().to_string();
    assert!(failure.contains("no parcel service"), "{failure}");
    assert_eq!(db.rows::<(i64,)>("select count(*) from espd.workflow_instances").await.unwrap(), [(0,)]);
    running.stop().await.unwrap();
    let world = World::default();
    let running = db.start(program(&world)).await.unwrap();
    db.rows::<(bool,)>("select true from espd.retry_processor('me', 'shipping', 1, 0)").await.unwrap();
    reaches(db.pool(), "shipping", 1).await;
    running.caught_up().await.unwrap();
    assert_eq!(world.done.lock().unwrap().iter().map(|(step, _)| *step).collect::<Vec<_>>(), ["send"]);
    assert_eq!(db.events::<Told>(order).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_timeout_comes_unless_the_instance_has_gone_on() {
    let db = database().await.unwrap();
    let (slow, quick) = (order(&db).await, order(&db).await);
    let running = db.start(program(&World::default())).await.unwrap();
    assert_eq!(running.caught_up().await.unwrap().later.len(), 2);
    let waiting = listed(&db, &["shipping", "--instance", &slow.to_string()]).await;
    assert_eq!(waiting[0]["waits_for"][0]["type"], "DeliveryOverdue");
    assert!(waiting[0]["waits_for"][0]["due_at"].is_string());
    deliver(&db, quick).await;
    assert_eq!(running.caught_up().await.unwrap().later.len(), 1);
    running.advance(Duration::from_secs(2 * 86_400)).await.unwrap();
    let told: Vec<Told> = db.events(Uuid::nil()).await.unwrap();
    assert_eq!(told, [Told { what: format!("{slow} is late") }]);
    assert_eq!(listed(&db, &[]).await.len(), 1);
    assert_eq!(listed(&db, &["--all"]).await.len(), 2);
    let printed = Installation::new(db.url(), "").espctl(&["workflows", "--all"]).await.printed();
    assert!(printed.contains("WAITS FOR") && printed.contains("ended 2"), "{printed}");
}

#[tokio::test]
async fn a_timeout_that_has_come_after_the_instance_went_on_is_passed_over() {
    let db = database().await.unwrap();
    order(&db).await;
    let running = db.start(program(&World::default())).await.unwrap();
    running.caught_up().await.unwrap();
    // Another one, as if it were of an earlier time: the instance does not wait for it.
    let stream = "select aggregate_id, metadata::text from espd.emissions";
    let (stream, metadata): (String, String) = db.rows(stream).await.unwrap().remove(0);
    let stale = NewEvent {
        metadata: serde_json::value::RawValue::from_string(metadata).unwrap(),
        ..NewEvent::of(stream.parse::<Uuid>().unwrap(), &DeliveryOverdue {}).unwrap()
    };
    db.given([stale]).await.unwrap();
    running.caught_up().await.unwrap();
    assert_eq!(db.events::<Told>(Uuid::nil()).await.unwrap(), []);
    assert_eq!(listed(&db, &[]).await[0]["events"], 1);
}

#[tokio::test]
async fn what_comes_after_the_end_of_an_instance_is_passed_over() {
    let db = database().await.unwrap();
    let (order, world) = (order(&db).await, World::default());
    let running = db.start(program(&world)).await.unwrap();
    deliver(&db, order).await;
    running.caught_up().await.unwrap();
    db.given([NewEvent::of(order, &Ordered { amount: 7 }).unwrap()]).await.unwrap();
    running.caught_up().await.unwrap();
    assert_eq!(world.done.lock().unwrap().len(), 2, "the steps of the first order only");
    let ended = &listed(&db, &["--all"]).await[0];
    assert_eq!((&ended["events"], &ended["state"]["charged"]), (&json!(2), &json!(5)));
}

#[tokio::test]
async fn a_reset_leaves_instances_alone_unless_effects_are_repeated_and_a_drop_forgets_them() {
    let db = database().await.unwrap();
    order(&db).await;
    let world = World::default();
    let running = db.start(program(&world)).await.unwrap();
    running.caught_up().await.unwrap();
    for (repeat_effects, steps) in [(false, 2), (true, 4)] {
        let reset = format!(
            "select espd.reset_processor('me', 'shipping', 1, 0, 0, {repeat_effects}, null, null, null, null)"
        );
        sqlx::query(AssertSqlSafe(reset)).execute(db.pool()).await.unwrap();
        running.caught_up().await.unwrap();
        assert_eq!(listed(&db, &[]).await[0]["state"]["events"], 1, "{repeat_effects}");
        assert_eq!(world.done.lock().unwrap().len(), steps, "{repeat_effects}");
        assert_eq!(db.all::<Told>().await.unwrap().len(), 1, "{repeat_effects}");
    }
    running.stop().await.unwrap();
    sqlx::query("delete from espd.trackers where name = 'shipping'").execute(db.pool()).await.unwrap();
    assert_eq!(listed(&db, &["--all"]).await, [] as [Value; 0]);
}
