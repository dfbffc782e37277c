//! Commands that reactors give to aggregates: with the position or not at all, once, and never again in a replay.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use espd::Config;
use espd::prelude::*;
use espd::testing::{TestDatabase, database};
use serde::{Deserialize, Serialize};
use sqlx::AssertSqlSafe;

use crate::support::facts::reaches;

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

#[derive(Debug)]
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

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct OrderPaid {
    left: u32,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct OrderRefused {
    balance: u32,
}

espd::event_type!(Ordered);
espd::event_type!(OrderPaid);
espd::event_type!(OrderRefused);

/// Pays orders, and fails after that as often as it is told to.
struct Payer {
    failures: Arc<AtomicU32>,
    repeated: Arc<AtomicU32>,
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
            Ok(paid) => {
                self.repeated.fetch_add(paid.is_repeated.into(), Ordering::Relaxed);
                context.emit(&event.aggregate_id, &OrderPaid { left: paid.state.balance })?;
            }
            Err(TooLittle(balance)) => context.emit(&event.aggregate_id, &OrderRefused { balance })?,
        }
        match self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) {
            Ok(_) => Err("it fails this time".into()),
            Err(_) => Ok(()),
        }
    }
}

/// The program, and how often it was told that a command had been carried out before.
fn paying(failures: u32) -> (Program, Arc<AtomicU32>) {
    let registration = Registration::reactor("payer")
        .handles::<Ordered>()
        .executes::<Account>()
        .emits::<OrderPaid>()
        .emits::<OrderRefused>()
        .start(Start::Beginning)
        .retry_delays(std::time::Duration::from_secs(3_600), std::time::Duration::from_secs(3_600));
    let (failures, repeated) = (Arc::new(AtomicU32::new(failures)), Arc::new(AtomicU32::new(0)));
    let seen = repeated.clone();
    let make = move || Payer { failures: failures.clone(), repeated: seen.clone() };
    (Program::new().reactor(registration, make), repeated)
}

async fn order(db: &TestDatabase, account: Uuid, amounts: &[u32]) {
    let order = |amount: &u32| NewEvent::of(Uuid::new_v4(), &Ordered { account, amount: *amount }).unwrap();
    db.given(amounts.iter().map(order)).await.unwrap();
}

async fn account_with(db: &TestDatabase, amount: u32) -> Uuid {
    let account = Uuid::new_v4();
    db.given([NewEvent::of(account, &MoneyAdded { amount }).unwrap()]).await.unwrap();
    account
}

/// Has failing events tried again.
async fn retry(db: &TestDatabase) {
    db.rows::<(bool,)>("select true from espd.retry_processor('me', 'payer', 1, 0)").await.unwrap();
}

#[tokio::test]
async fn a_command_commits_with_the_position_and_not_with_a_failure() {
    let db = database().await.unwrap();
    let account = account_with(&db, 100).await;
    order(&db, account, &[60, 60]).await;
    let (program, repeated) = paying(1);
    let running = db.start(program).await.unwrap();
    let failure = running.caught_up().await.unwrap_err().to_string();
    assert!(failure.contains("it fails this time"), "{failure}");
    assert_eq!(db.all_events().await.unwrap().len(), 3);
    running.stop().await.unwrap();

    let running = db.start(paying(0).0).await.unwrap();
    retry(&db).await;
    reaches(db.pool(), "payer", 3).await;
    running.caught_up().await.unwrap();
    assert_eq!(db.events::<MoneyDrawn>(account).await.unwrap(), [MoneyDrawn { amount: 60 }]);
    assert_eq!(db.all::<OrderPaid>().await.unwrap(), [OrderPaid { left: 40 }]);
    assert_eq!(db.all::<OrderRefused>().await.unwrap(), [OrderRefused { balance: 40 }]);
    assert_eq!(repeated.load(Ordering::Relaxed), 0);
    let all = db.all_events().await.unwrap();
    let drawn = all.iter().find(|event| event.event_type == MoneyDrawn::NAME).unwrap();
    assert_eq!((drawn.causation_id, drawn.correlation_id), (Some(all[1].uuid), Some(all[1].uuid)));
    assert!(drawn.metadata.get().contains("\"reactor\": \"payer\""), "{}", drawn.metadata);
}

#[tokio::test]
async fn a_decision_is_made_anew_when_others_are_faster() {
    let db = database().await.unwrap();
    let account = account_with(&db, 0).await;
    let running = db.start(paying(0).0).await.unwrap();
    let adding = (0..3).map(|_| {
        let (repository, id) = (db.repository(), Id::<Account>::new(account));
        tokio::spawn(async move {
            for _ in 0..20 {
                let add = |_: &Account, _: &Context| Ok::<_, ()>(espd::events![MoneyAdded { amount: 1 }]);
                repository.clone().conflict_retries(100).decide(&id, add).await.unwrap();
            }
        })
    });
    let adding: Vec<_> = adding.collect();
    for _ in 0..20 {
        order(&db, account, &[1]).await;
    }
    for one in adding {
        one.await.unwrap();
    }
    running.caught_up().await.unwrap();
    let (paid, refused) = (db.all::<OrderPaid>().await.unwrap(), db.all::<OrderRefused>().await.unwrap());
    assert_eq!(paid.len() + refused.len(), 20);
    let left = db.repository().load(&Id::<Account>::new(account)).await.unwrap();
    assert_eq!(left.state.balance as usize, 60 - paid.len());
}

#[tokio::test]
async fn a_replay_carries_out_no_command() {
    for repeat_effects in [false, true] {
        let db = database().await.unwrap();
        let account = account_with(&db, 100).await;
        order(&db, account, &[60, 30]).await;
        let (program, repeated) = paying(0);
        let running = db.start(program).await.unwrap();
        running.caught_up().await.unwrap();
        let before = db.all_events().await.unwrap().len();
        let reset = format!(
            "select espd.reset_processor('me', 'payer', 1, 0, 0, {repeat_effects}, null, null, null, null)"
        );
        sqlx::query(AssertSqlSafe(reset)).execute(db.pool()).await.unwrap();
        running.caught_up().await.unwrap();
        assert_eq!(repeated.load(Ordering::Relaxed), 2, "{repeat_effects}");
        assert_eq!(db.all_events().await.unwrap().len(), before, "{repeat_effects}");
    }
}

#[tokio::test]
async fn a_command_in_another_database_is_recognised_when_it_is_repeated() {
    let db = database().await.unwrap();
    let projections = database().await.unwrap();
    let mut config = db.config().clone();
    config.projections.url = Config::for_database(projections.url()).unwrap().event_store.url;
    let account = account_with(&db, 100).await;
    order(&db, account, &[60]).await;
    let running = db.start_with(paying(1).0, &config).await.unwrap();
    running.caught_up().await.unwrap_err();
    assert_eq!(db.events::<MoneyDrawn>(account).await.unwrap().len(), 1);
    running.stop().await.unwrap();

    let (program, repeated) = paying(0);
    let running = db.start_with(program, &config).await.unwrap();
    retry(&projections).await;
    reaches(projections.pool(), "payer", 2).await;
    running.caught_up().await.unwrap();
    assert_eq!(repeated.load(Ordering::Relaxed), 1);
    assert_eq!(db.events::<MoneyDrawn>(account).await.unwrap(), [MoneyDrawn { amount: 60 }]);
    assert_eq!(db.all::<OrderPaid>().await.unwrap(), [OrderPaid { left: 40 }]);
}
