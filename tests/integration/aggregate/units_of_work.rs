//! Several aggregates in one append.

use espd::prelude::*;

use super::{Account, AddMoney, DrawMoney, MoneyAdded, TooLittle};
use crate::store::store;

#[tokio::test]
async fn aggregates_are_loaded_once_and_committed_together() {
    let (_pool, postgres) = store().await;
    let repository = Repository::new(postgres);
    let ids: Vec<Id<Account>> = (0..3).map(|_| Id::generate()).collect();
    repository.execute(&ids[0], &AddMoney(30)).await.unwrap();
    repository.execute(&ids[1], &AddMoney(1)).await.unwrap();

    let mut work = repository.unit_of_work();
    work.load_all(&ids).await.unwrap();
    // What another writer adds now is not seen by this unit: each aggregate has one instance.
    assert_eq!(work.load(&ids[0]).await.unwrap().balance, 30);
    assert_eq!(work.execute(&ids[0], &DrawMoney(20)).await.unwrap().balance, 10);
    assert_eq!(work.execute(&ids[0], &DrawMoney(10)).await.unwrap().balance, 0);
    let refused = work.execute(&ids[0], &DrawMoney(1)).await.unwrap_err();
    assert!(matches!(refused, ExecuteError::Refused(TooLittle(0))));
    work.record(&ids[2], espd::events![MoneyAdded { amount: 30 }]).await.unwrap();
    assert_eq!(work.new_events().len(), 3);
    assert_eq!(work.commit().await.unwrap().len(), 3);
    for (id, balance) in ids.iter().zip([0, 1, 30]) {
        assert_eq!(repository.load(id).await.unwrap().state.balance, balance);
    }
}

#[tokio::test]
async fn nothing_is_stored_if_one_aggregate_has_changed() {
    for commit_in_transaction in [false, true] {
        let (pool, postgres) = store().await;
        let repository = Repository::new(postgres);
        let (mine, yours) = (Id::<Account>::generate(), Id::<Account>::generate());
        let mut work = repository.unit_of_work();
        work.execute(&mine, &AddMoney(1)).await.unwrap();
        work.execute(&yours, &AddMoney(1)).await.unwrap();
        repository.execute(&yours, &AddMoney(7)).await.unwrap();
        let failed = if commit_in_transaction {
            let mut transaction = pool.begin().await.unwrap();
            work.append_in(&mut transaction).await.map(drop)
        } else {
            work.commit().await.map(drop)
        };
        let CommitError::Append(AppendError::Conflict { aggregate_id, .. }) = failed.unwrap_err() else {
            panic!("no conflict")
        };
        assert_eq!(aggregate_id, *yours.get());
        assert!(!repository.load(&mine).await.unwrap().exists());
    }
}

#[tokio::test]
async fn work_with_an_id_is_found_again() {
    let (_pool, postgres) = store().await;
    let repository = Repository::new(postgres);
    let (mine, yours, id) = (Id::<Account>::generate(), Id::<Account>::generate(), Uuid::new_v4());
    for is_repeated in [false, true] {
        let mut work = repository.unit_of_work().command_id(id);
        let stored = work.find_stored().await.unwrap();
        let types: Vec<&str> = stored.iter().map(|event| event.event_type.as_str()).collect();
        if is_repeated {
            assert_eq!(types, ["MoneyAdded", "MoneyAdded", "MoneyDrawn"]);
            continue;
        }
        assert!(stored.is_empty());
        work.execute(&mine, &AddMoney(5)).await.unwrap();
        work.execute(&yours, &AddMoney(1)).await.unwrap();
        work.execute(&mine, &DrawMoney(5)).await.unwrap();
        work.commit().await.unwrap();
    }
}

#[tokio::test]
async fn each_decision_of_a_unit_of_work_gets_ids_of_its_own() {
    #[derive(Clone, Default)]
    struct Book {
        ids: Vec<Uuid>,
    }
    espd::event_set! { pub enum BookEvent { LineAdded { id: Uuid } } }
    impl Aggregate for Book {
        type Event = BookEvent;
        fn evolve(&mut self, event: &BookEvent) {
            let BookEvent::LineAdded(added) = event;
            self.ids.push(added.id);
        }
    }
    struct AddLine;
    impl Decide<AddLine> for Book {
        type Refusal = ();
        fn decide(&self, _: &AddLine, context: &Context) -> Result<Vec<BookEvent>, ()> {
            Ok(espd::events![LineAdded { id: context.new_id() }, LineAdded { id: context.new_id() }])
        }
    }
    let repository = Repository::new(MemoryEventStore::new());
    let (mine, yours) = (Id::<Book>::generate(), Id::<Book>::generate());
    let mut work = repository.unit_of_work();
    for id in [&mine, &mine, &yours] {
        work.execute(id, &AddLine).await.unwrap();
    }
    let mut ids = work.load(&mine).await.unwrap().ids.clone();
    ids.extend(&work.load(&yours).await.unwrap().ids);
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 6);
    let again = espd::aggregate::testing::given::<Book>([]).when(&AddLine).then_state(|_| ()).when(&AddLine);
    again.then_state(|book| assert_ne!(book.ids[0], book.ids[2]));
}

#[tokio::test]
async fn what_is_said_of_a_unit_of_work_is_true_of_all_its_events_and_a_stream_may_be_two_types() {
    #[derive(Clone, Default)]
    struct Turnover(u32);
    impl Aggregate for Turnover {
        type Event = super::AccountEvent;
        fn evolve(&mut self, _: &super::AccountEvent) {
            self.0 += 1;
        }
    }
    let (_pool, postgres) = store().await;
    let repository = Repository::new(postgres);
    let (mine, id) = (Id::<Account>::generate(), Uuid::new_v4());
    let mut work = repository.unit_of_work();
    work.execute(&mine, &AddMoney(5)).await.unwrap();
    work.record(&Id::<Turnover>::new(mine.get()), espd::events![MoneyAdded { amount: 1 }]).await.unwrap();
    work.execute(&mine, &DrawMoney(5)).await.unwrap();
    let work = work.command_id(id).correlation_id(id);
    assert!(work.new_events().iter().all(|event| event.correlation_id == Some(id)));
    work.commit().await.unwrap();
    assert_eq!(repository.unit_of_work().command_id(id).find_stored().await.unwrap().len(), 3);
    assert_eq!(repository.load(&mine).await.unwrap().state.balance, 1);
}
