//! Commands of reactors, and workflows.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use espd::native::by_aggregate;
use espd::prelude::*;
use espd::testing::{LocalError, LocalProgram};
use serde::{Deserialize, Serialize};

use crate::scenario::{TestStore, on_each_store};

on_each_store! {
    a_command_of_a_reactor_is_carried_out_once_and_a_refusal_is_a_value
    a_command_needs_a_registration_and_emits_only_what_is_declared
    a_command_that_came_before_a_failure_is_not_carried_out_again
    a_workflow_waits_and_times_out_unless_it_goes_on
    a_workflow_that_fails_goes_on_after_the_last_step
    an_instance_that_has_ended_takes_nothing_in
    what_a_workflow_could_not_read_again_is_not_recorded
}

espd::event_set! {
    pub enum AccountEvent {
        MoneyAdded { amount: u32 },
        MoneyDrawn { amount: u32 },
    }
}

#[derive(Debug, Clone, Default)]
struct Account {
    balance: u32,
}

impl Aggregate for Account {
    type Event = AccountEvent;

    fn evolve(&mut self, event: &AccountEvent) {
        match event {
            AccountEvent::MoneyAdded(added) => self.balance += added.amount,
            AccountEvent::MoneyDrawn(drawn) => self.balance -= drawn.amount,
        }
    }
}

struct DrawMoney(u32);

#[derive(Debug, PartialEq)]
struct TooLittle(u32);

impl Decide<DrawMoney> for Account {
    type Refusal = TooLittle;

    fn decide(&self, draw: &DrawMoney, _: &Context) -> Result<Vec<AccountEvent>, TooLittle> {
        match self.balance.checked_sub(draw.0) {
            Some(_) => Ok(espd::events![MoneyDrawn { amount: draw.0 }]),
            None => Err(TooLittle(self.balance)),
        }
    }
}

/// Something was ordered, to be paid from an account.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Ordered {
    account: Uuid,
    amount: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct OrderPaid {
    left: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct OrderRefused {
    balance: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct Delivered {}

#[derive(Debug, Serialize, Deserialize)]
struct DeliveryOverdue {
    amount: u32,
}

espd::event_type!(Ordered);
espd::event_type!(OrderPaid);
espd::event_type!(OrderRefused);
espd::event_type!(Delivered);
espd::event_type!(DeliveryOverdue);

/// Pays orders, and fails as often as it is told to after that.
struct Payer {
    failures: Arc<AtomicU32>,
}

#[async_trait]
impl Reactor for Payer {
    async fn react(
        &mut self,
        event: &Delivery,
        context: &mut ReactorContext<'_>,
    ) -> Result<(), HandlerError> {
        let Some(ordered) = event.read::<Ordered>()? else { return Ok(()) };
        let account = Id::<Account>::new(ordered.account);
        match context.execute(&account, &DrawMoney(ordered.amount)).await? {
            Ok(paid) => context.emit(&event.aggregate_id, &OrderPaid { left: paid.state.balance })?,
            Err(TooLittle(balance)) => context.emit(&event.aggregate_id, &OrderRefused { balance })?,
        }
        match self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) {
            Ok(_) => Err("it fails this time".into()),
            Err(_) => Ok(()),
        }
    }
}

fn payer() -> Registration {
    let payer = Registration::reactor("payer").handles::<Ordered>().start(Start::Beginning);
    payer.emits::<OrderPaid>().emits::<OrderRefused>()
}

fn paying(registration: Registration, failures: u32) -> LocalProgram {
    let failures = Arc::new(AtomicU32::new(failures));
    LocalProgram::new().reactor(registration, move || Payer { failures: failures.clone() })
}

async fn given(store: &TestStore, orders: &[u32]) -> Uuid {
    let account = Uuid::new_v4();
    let added = NewEvent::of(account, &MoneyAdded { amount: 100 }).unwrap();
    let order = |amount: &u32| NewEvent::of(Uuid::new_v4(), &Ordered { account, amount: *amount }).unwrap();
    store
        .events
        .append(&std::iter::once(added).chain(orders.iter().map(order)).collect::<Vec<_>>())
        .await
        .unwrap();
    account
}

async fn kinds(store: &TestStore) -> Vec<String> {
    store.all().await.into_iter().map(|event| event.event_type).collect()
}

async fn a_command_of_a_reactor_is_carried_out_once_and_a_refusal_is_a_value(store: TestStore) {
    let account = given(&store, &[60, 60, 40]).await;
    let mut processors = store.start(paying(payer().executes::<Account>(), 0)).await;
    processors.drain().await.unwrap();
    processors.drain().await.unwrap();
    let all = store.all().await;
    let led: Vec<&str> = all[4..].iter().map(|event| event.event_type.as_str()).collect();
    assert_eq!(led, ["MoneyDrawn", "OrderPaid", "OrderRefused", "MoneyDrawn", "OrderPaid"]);
    let drawn = &all[4];
    assert_eq!(drawn.aggregate_id, account);
    assert_eq!((drawn.causation_id, drawn.correlation_id), (Some(all[1].uuid), Some(all[1].uuid)));
    assert!(drawn.metadata.get().contains("\"reactor\": \"payer\""), "{}", drawn.metadata);
    assert_eq!(all[8].read::<OrderPaid>().unwrap().unwrap().left, 0);
}

async fn a_command_needs_a_registration_and_emits_only_what_is_declared(store: TestStore) {
    given(&store, &[1]).await;
    let failed = store.start(paying(payer(), 0)).await.drain().await.unwrap_err();
    assert!(failed.to_string().contains("add `.executes::<…>()`"), "{failed}");
    assert_eq!(kinds(&store).await.len(), 2);
}

async fn a_command_that_came_before_a_failure_is_not_carried_out_again(store: TestStore) {
    given(&store, &[60]).await;
    let mut processors = store.start(paying(payer().executes::<Account>(), 2)).await;
    for _ in 0..2 {
        assert!(matches!(processors.drain().await, Err(LocalError::Failed { .. })));
    }
    processors.drain().await.unwrap();
    assert_eq!(kinds(&store).await, ["MoneyAdded", "Ordered", "MoneyDrawn", "OrderPaid"]);
    assert_eq!(store.all().await[3].read::<OrderPaid>().unwrap().unwrap().left, 40);
}

/// Waits for the delivery of what was ordered.
struct Shipping {
    failures: Arc<AtomicU32>,
    done: Arc<Mutex<Vec<(&'static str, Uuid)>>>,
}

#[derive(Default, Serialize, Deserialize)]
struct Shipment {
    amount: u32,
    ticket: u32,
}

#[async_trait]
impl Workflow for Shipping {
    type State = Shipment;

    fn instance(&self, event: &Event) -> Option<String> {
        by_aggregate(event)
    }

    fn begins(&self, event: &Event) -> bool {
        event.event_type == Ordered::NAME
    }

    async fn handle(
        &mut self,
        event: &Delivery,
        shipment: &mut Shipment,
        context: &mut WorkflowContext<'_, '_>,
    ) -> Result<(), HandlerError> {
        if let Some(ordered) = event.read::<Ordered>()? {
            let done = self.done.clone();
            let note = async move |step, key, result: u32| {
                done.lock().unwrap().push((step, key));
                Ok(result)
            };
            shipment.ticket = context.step("ticket", |key| note("ticket", key, 7)).await?;
            if self.failures.load(Ordering::Relaxed) > 0 {
                self.failures.fetch_sub(1, Ordering::Relaxed);
                return Err("no parcel service".into());
            }
            shipment.amount = context.step("parcel", |key| note("parcel", key, ordered.amount)).await?;
            context
                .time_out_after(Duration::from_secs(86_400), &DeliveryOverdue { amount: ordered.amount })?;
        }
        if event.read::<Delivered>()?.is_some() {
            context.cancel_timeout::<DeliveryOverdue>();
            context.emit(&event.aggregate_id, &OrderPaid { left: shipment.amount + shipment.ticket })?;
            context.end();
        }
        if let Some(overdue) = event.read::<DeliveryOverdue>()? {
            context.emit(Uuid::nil(), &OrderRefused { balance: overdue.amount })?;
        }
        Ok(())
    }
}

type Done = Arc<Mutex<Vec<(&'static str, Uuid)>>>;

fn shipping(failures: u32) -> (LocalProgram, Done) {
    let registration = Registration::workflow("shipping").handles::<Ordered>().handles::<Delivered>();
    let registration =
        registration.times_out::<DeliveryOverdue>().emits::<OrderPaid>().emits::<OrderRefused>();
    let (done, failures) = (Done::default(), Arc::new(AtomicU32::new(failures)));
    let made = done.clone();
    let make = move || Shipping { failures: failures.clone(), done: made.clone() };
    (LocalProgram::new().workflow(registration.start(Start::Beginning), make), done)
}

async fn order(store: &TestStore) -> Uuid {
    let order = Uuid::new_v4();
    let ordered = Ordered { account: Uuid::nil(), amount: 5 };
    store.events.append(&[NewEvent::of(order, &ordered).unwrap()]).await.unwrap();
    order
}

async fn deliver(store: &TestStore, order: Uuid) {
    store.events.append(&[NewEvent::of(order, &Delivered {}).unwrap()]).await.unwrap();
}

const TWO_DAYS: Duration = Duration::from_secs(2 * 86_400);

async fn a_workflow_waits_and_times_out_unless_it_goes_on(store: TestStore) {
    let (slow, quick) = (order(&store).await, order(&store).await);
    let mut processors = store.start(shipping(0).0).await;
    let drained = processors.drain().await.unwrap();
    assert_eq!(drained.later.len(), 2);
    deliver(&store, quick).await;
    assert_eq!(processors.drain().await.unwrap().later.len(), 1);
    processors.advance(TWO_DAYS).await.unwrap();
    deliver(&store, slow).await;
    processors.drain().await.unwrap();
    let wanted = [
        "Ordered",
        "Ordered",
        "Delivered",
        "OrderPaid",
        "DeliveryOverdue",
        "OrderRefused",
        "Delivered",
        "OrderPaid",
    ];
    assert_eq!(kinds(&store).await, wanted);
    assert_eq!(store.all().await[3].read::<OrderPaid>().unwrap().unwrap().left, 12);
}

async fn a_workflow_that_fails_goes_on_after_the_last_step(store: TestStore) {
    let order = order(&store).await;
    let (program, done) = shipping(2);
    let mut processors = store.start(program).await;
    for _ in 0..2 {
        let failed = processors.drain().await.unwrap_err();
        assert!(failed.to_string().contains("no parcel service"), "{failed}");
    }
    processors.drain().await.unwrap();
    deliver(&store, order).await;
    processors.drain().await.unwrap();
    let done = done.lock().unwrap().clone();
    assert_eq!(done.iter().map(|(step, _)| *step).collect::<Vec<_>>(), ["ticket", "parcel"]);
    assert_ne!(done[0].1, done[1].1);
    assert_eq!(kinds(&store).await, ["Ordered", "Delivered", "OrderPaid"]);
}

async fn an_instance_that_has_ended_takes_nothing_in(store: TestStore) {
    let order = order(&store).await;
    let mut processors = store.start(shipping(0).0).await;
    deliver(&store, order).await;
    deliver(&store, order).await;
    deliver(&store, Uuid::new_v4()).await;
    let drained = processors.drain().await.unwrap();
    assert!(drained.later.is_empty());
    assert_eq!(kinds(&store).await, ["Ordered", "Delivered", "Delivered", "Delivered", "OrderPaid"]);
}

/// Measures something: the first time, it gets no number.
struct Measuring {
    /// Which of its parts is wrong the first time: no number (the step, the state, what is emitted), or a text with a NUL.
    wrong: Arc<Mutex<&'static str>>,
}

#[derive(Default, Serialize, Deserialize)]
struct Measured {
    value: f64,
    #[serde(default)]
    unit: String,
}
espd::event_type!(Measured);

#[async_trait]
impl Workflow for Measuring {
    type State = Measured;

    fn instance(&self, event: &Event) -> Option<String> {
        by_aggregate(event)
    }

    async fn handle(
        &mut self,
        event: &Delivery,
        state: &mut Measured,
        context: &mut WorkflowContext<'_, '_>,
    ) -> Result<(), HandlerError> {
        let wrong = *self.wrong.lock().unwrap();
        let value = |part| if part == wrong { f64::NAN } else { 1.5 };
        let unit = |part| if part == wrong { "m\0" } else { "m" }.to_owned();
        let name = if wrong == "name with NUL" { "pack\0" } else { "pack" };
        context.step("measure", async |_| Ok((value("step"), unit("step with NUL")))).await?;
        context.step(name, async |_| Ok(())).await?;
        *state = Measured { value: value("state"), unit: unit("state with NUL") };
        context.emit(&event.aggregate_id, &Measured { value: value("event"), unit: unit("") })
    }
}

async fn what_a_workflow_could_not_read_again_is_not_recorded(store: TestStore) {
    order(&store).await;
    let wrong = Arc::new(Mutex::new("step"));
    let registration = Registration::workflow("measuring").handles::<Ordered>().emits::<Measured>();
    let made = wrong.clone();
    let make = move || Measuring { wrong: made.clone() };
    let program = LocalProgram::new().workflow(registration.start(Start::Beginning), make);
    let mut processors = store.start(program).await;
    for (next, said) in [
        ("step with NUL", "the result of step measure is not recorded: it could not be read again"),
        ("name with NUL", "the result of step measure is not recorded: it contains a NUL character"),
        ("state", "the name of a step contains a NUL character"),
        ("state with NUL", "is not kept: it could not be read again"),
        ("event", "is not kept: it contains a NUL character"),
        ("nothing", "it could not be read again"),
    ] {
        let failed = processors.drain().await.unwrap_err().to_string();
        assert!(failed.contains(said), "{failed}");
        *wrong.lock().unwrap() = next;
    }
    // Nothing is stuck once the author has repaired it.
    processors.drain().await.unwrap();
    assert_eq!(kinds(&store).await, ["Ordered", "Measured"]);
}
