//! A workflow, and the tests of it and of what is around it: in memory, and on a private PostgreSQL.
//! `docs/workflows.md` and `docs/testing.md` explain it.
//!
//! `cargo run --example orders` runs the tests.

use std::time::Duration;

use espd::native::by_aggregate;
use espd::prelude::*;
use espd::testing::{self, TestFailure, database};
use serde::{Deserialize, Serialize};

espd::event_set! {
    /// What happens to an account.
    pub enum AccountEvent {
        MoneyAdded { amount: u32 },
        MoneyDrawn { amount: u32 },
    }
}

#[derive(Debug, Clone, Default)]
struct Account {
    balance: i64,
}

impl Aggregate for Account {
    type Event = AccountEvent;

    fn evolve(&mut self, event: &AccountEvent) {
        match event {
            AccountEvent::MoneyAdded(added) => self.balance += i64::from(added.amount),
            AccountEvent::MoneyDrawn(drawn) => self.balance -= i64::from(drawn.amount),
        }
    }
}

struct DrawMoney {
    amount: u32,
}

/// There is no more than that.
#[derive(Debug, PartialEq)]
struct TooLittle(i64);

impl Decide<DrawMoney> for Account {
    type Refusal = TooLittle;

    fn decide(&self, draw: &DrawMoney, _: &Context) -> Result<Vec<AccountEvent>, TooLittle> {
        if i64::from(draw.amount) > self.balance {
            return Err(TooLittle(self.balance));
        }
        Ok(espd::events![MoneyDrawn { amount: draw.amount }])
    }
}

espd::event_set! {
    /// What happens to an order.
    pub enum OrderEvent {
        Ordered { account: Uuid, amount: u32 },
        OrderPaid { ticket: String },
        OrderRefused { balance: i64 },
        OrderDelivered {},
        OrderLate {},
    }
}

espd::event_set! {
    /// What the workflow waits for.
    pub enum ShippingTimeout {
        DeliveryOverdue {},
    }
}

/// A parcel service, which recognises a request by its key.
async fn ask_parcel_service(key: Uuid) -> Result<String, HandlerError> {
    Ok(format!("ticket {}", &key.to_string()[..4]))
}

/// Has an order paid and sent, and says so when it takes too long.
struct Shipping;

/// What it remembers of an order.
#[derive(Default, Serialize, Deserialize)]
struct Shipment {
    ticket: Option<String>,
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
        if let Some(Ordered { account, amount }) = event.read()? {
            let account = Id::<Account>::new(account);
            if let Err(TooLittle(balance)) = context.execute(&account, &DrawMoney { amount }).await? {
                context.emit(&event.aggregate_id, &OrderRefused { balance })?;
                context.end();
                return Ok(());
            }
            let ticket = context.step("parcel", ask_parcel_service).await?;
            shipment.ticket = Some(ticket.clone());
            context.emit(&event.aggregate_id, &OrderPaid { ticket })?;
            context.time_out_after(Duration::from_secs(3 * 86_400), &DeliveryOverdue {})?;
        } else if event.read::<DeliveryOverdue>()?.is_some() {
            let order: AggregateId = context.instance().parse()?;
            context.emit(order, &OrderLate {})?;
        } else if event.read::<OrderDelivered>()?.is_some() {
            context.end();
        }
        Ok(())
    }
}

fn shipping() -> Registration {
    Registration::workflow("shipping")
        .handles::<Ordered>()
        .handles::<OrderDelivered>()
        .times_out::<DeliveryOverdue>()
        .executes::<Account>()
        .emits::<OrderPaid>()
        .emits::<OrderRefused>()
        .emits::<OrderLate>()
}

/// Lists what was sold.
struct Sales;

#[async_trait]
impl Projector for Sales {
    async fn project(
        &mut self,
        events: &[Delivery],
        context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        for event in events {
            let Some(ordered) = event.read::<Ordered>()? else { continue };
            sqlx::query("insert into sales (order_id, amount) values ($1, $2)")
                .bind(event.aggregate_id.as_uuid())
                .bind(i64::from(ordered.amount))
                .execute(context.connection())
                .await
                .map_err(|error| event.failed(error))?;
        }
        Ok(())
    }
}

/// The program of `main`.
fn program() -> Program {
    let sales = Registration::projector("sales")
        .handles::<Ordered>()
        .table("sales", "order_id uuid primary key, amount bigint not null");
    Program::new().projector(sales, || Sales).workflow(shipping(), || Shipping)
}

/// One event, without a database: what does the workflow do about it?
async fn an_order_is_paid_from_the_account() -> Result<(), Box<dyn std::error::Error>> {
    let (account, order) = (Uuid::new_v4(), Uuid::new_v4());
    let ordered = NewEvent::of(order, &Ordered { account, amount: 60 })?;

    let reaction = testing::workflow(shipping(), || Shipping)
        .given_of::<AccountEvent>(account, espd::events![MoneyAdded { amount: 100 }])
        .when(ordered.clone())
        .await?
        .then_commanded([MoneyDrawn { amount: 60 }]);
    assert_eq!(reaction.emitted().next().map(|event| event.event_type.as_str()), Some("OrderPaid"));
    assert_eq!(reaction.later()[0].event_type, "DeliveryOverdue");

    testing::workflow(shipping(), || Shipping)
        .given_of::<AccountEvent>(account, espd::events![MoneyAdded { amount: 50 }])
        .when(ordered)
        .await?
        .then_commanded([] as [MoneyDrawn; 0])
        .then_emitted([OrderRefused { balance: 50 }]);
    Ok(())
}

/// Several processors together, without a database, by a clock of their own.
async fn an_order_that_is_not_delivered_is_late() -> Result<(), Box<dyn std::error::Error>> {
    let store = MemoryEventStore::new();
    let mut processors = program().locally().only(["shipping"]).start(&store).await?;
    let (account, order) = (Uuid::new_v4(), Uuid::new_v4());
    store.append(&[NewEvent::of(account, &MoneyAdded { amount: 100 })?]).await?;
    store.append(&[NewEvent::of(order, &Ordered { account, amount: 60 })?]).await?;

    processors.drain().await?;
    let drained = processors.advance(Duration::from_secs(4 * 86_400)).await?;
    assert!(drained.later.is_empty());
    let last = store.read_after(drained.position.previous(), None, None, 1).await?;
    assert_eq!(last[0].event_type, "OrderLate");
    Ok(())
}

/// Everything as it is in production, on a private PostgreSQL.
async fn orders_are_sold_and_late_ones_are_told() -> Result<(), TestFailure> {
    let db = database().await?;
    let running = db.start(program()).await?;
    let (account, order) = (Uuid::new_v4(), Uuid::new_v4());
    db.given_of::<AccountEvent>(account, espd::events![MoneyAdded { amount: 100 }]).await?;
    db.given_of::<OrderEvent>(order, espd::events![Ordered { account, amount: 60 }]).await?;

    running.caught_up().await?;
    assert_eq!(db.rows::<(Uuid, i64)>("select order_id, amount from sales").await?, [(order, 60)]);
    assert_eq!(db.events::<MoneyDrawn>(account).await?, [MoneyDrawn { amount: 60 }]);
    assert_eq!(db.events::<OrderLate>(order).await?, []);

    running.advance(Duration::from_secs(4 * 86_400)).await?;
    assert_eq!(db.events::<OrderLate>(order).await?, [OrderLate {}]);
    running.stop().await
}

/// A projector that cannot handle an event says which, and why.
async fn a_wrong_order_is_named() -> Result<(), TestFailure> {
    let db = database().await?;
    let running = db.start(program()).await?;
    let (account, order) = (Uuid::new_v4(), Uuid::new_v4());
    let ordered = Ordered { account, amount: 1 };
    db.given_of::<OrderEvent>(order, espd::events![ordered.clone(), ordered]).await?;

    let failure = running.caught_up().await.expect_err("it cannot go on").to_string();
    assert!(failure.contains("sales does not go on: event 2 (Ordered)"), "{failure}");
    assert!(failure.contains("duplicate key"), "{failure}");
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    an_order_is_paid_from_the_account().await?;
    an_order_that_is_not_delivered_is_late().await?;
    orders_are_sold_and_late_ones_are_told().await?;
    a_wrong_order_is_named().await?;
    println!("four tests have passed");
    Ok(())
}
