//! What holds for any stream and any interleaving.

use espd::prelude::*;
use futures_util::TryStreamExt as _;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::{Account, AccountEvent, AddMoney, MoneyAdded, MoneyDrawn};
use crate::store::store;

fn any_events() -> impl Strategy<Value = Vec<AccountEvent>> {
    prop::collection::vec((any::<bool>(), 0..100_u32), 0..30).prop_map(|steps| {
        let mut balance = 0;
        let step = |(is_added, amount): (bool, u32)| {
            if is_added || amount > balance {
                balance += amount;
                MoneyAdded { amount }.into()
            } else {
                balance -= amount;
                MoneyDrawn { amount }.into()
            }
        };
        steps.into_iter().map(step).collect()
    })
}

#[tokio::test]
async fn the_fold_of_the_stream_is_the_state() {
    let (_pool, postgres) = store().await;
    let repository = Repository::new(postgres);
    let mut runner = TestRunner::default();
    for _ in 0..50 {
        let events = any_events().new_tree(&mut runner).unwrap().current();
        let id = Id::<Account>::generate();
        let decide = |_: &Account, _: &Context| Ok::<_, ()>(events.clone());
        let executed = repository.decide(&id, decide).await.unwrap();
        let folded = Account::default().after(&events);
        assert_eq!((&executed.state, executed.version.get()), (&folded, events.len() as i64));
        assert_eq!(repository.load(&id).await.unwrap().state, folded);
        let middle = events.len() / 2;
        let past = repository.load_at(&id, middle as i64).await.unwrap();
        assert_eq!(past.state, Account::default().after(&events[..middle]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_callers_on_five_aggregates_keep_versions_dense() {
    let (_pool, postgres) = store().await;
    let repository = Repository::new(postgres).conflict_retries(100);
    let ids: Vec<Id<Account>> = (0..5).map(|_| Id::generate()).collect();
    let callers = (0..8).map(|caller: usize| {
        let (repository, ids) = (repository.clone(), ids.clone());
        tokio::spawn(async move {
            for turn in 0..25 {
                let id = &ids[(caller * 7 + turn * 3) % ids.len()];
                repository.execute(id, &AddMoney(1)).await.unwrap();
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    let mut total = 0;
    for id in &ids {
        let stream = repository.store().read_aggregate(id.get().clone(), Version::FIRST, None);
        let versions: Vec<i64> = stream.map_ok(|event| event.version.get()).try_collect().await.unwrap();
        assert_eq!(versions, (1..=versions.len() as i64).collect::<Vec<_>>());
        let loaded = repository.load(id).await.unwrap();
        assert_eq!(loaded.state.balance as usize, versions.len());
        total += versions.len();
    }
    assert_eq!(total, 200);
}
