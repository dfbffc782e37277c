//! Commands: decided on the newest state, stored once.

use std::sync::atomic::{AtomicU32, Ordering};

use chrono::{DateTime, TimeDelta, Utc};
use espd::aggregate::testing::given;
use espd::prelude::*;
use futures_util::TryStreamExt as _;

use super::{Account, AccountEvent, AddMoney, DrawMoney, MoneyAdded, MoneyDrawn, TooLittle};
use crate::store::store;

/// Runs a test on the memory store and on PostgreSQL.
macro_rules! on_both {
    ($name:ident, $check:ident) => {
        #[tokio::test]
        async fn $name() {
            $check(Repository::new(MemoryEventStore::new())).await;
            let (_pool, postgres) = store().await;
            $check(Repository::new(postgres)).await;
        }
    };
}

async fn stored<S: EventStore>(repository: &Repository<S>, id: &Id<Account>) -> Vec<Event> {
    let events = repository.store().read_aggregate(id.get().clone(), Version::FIRST, None);
    events.try_collect().await.unwrap()
}

on_both!(a_command_is_decided_stored_and_seen_by_the_next, check_commands);
async fn check_commands<S: EventStore>(repository: Repository<S>) {
    let id = Id::<Account>::generate();
    let added = repository.execute(&id, &AddMoney(30)).await.unwrap();
    assert_eq!((added.version.get(), added.state.balance, added.is_repeated), (1, 30, false));
    let drawn = repository.execute(&id, &DrawMoney(10)).await.unwrap();
    assert_eq!(drawn.events, espd::events![MoneyDrawn { amount: 10 }] as Vec<AccountEvent>);
    assert_eq!((drawn.version.get(), drawn.appended[0].version.get(), drawn.state.balance), (2, 2, 20));

    let refused = repository.execute(&id, &DrawMoney(21)).await;
    assert!(matches!(refused, Err(ExecuteError::Refused(TooLittle(20)))), "{refused:?}");
    let nothing = repository.execute(&id, &DrawMoney(0)).await.unwrap();
    assert_eq!((nothing.events.len(), nothing.version.get(), nothing.state.balance), (0, 2, 20));
    assert_eq!(stored(&repository, &id).await.len(), 2);

    let past = repository.load_at(&id, 1).await.unwrap();
    assert_eq!((past.version.get(), past.state.balance), (1, 30));
    let day = TimeDelta::days(1);
    assert_eq!(repository.load_until(&id, Utc::now() - day).await.unwrap().version.get(), 0);
    assert_eq!(repository.load_until(&id, Utc::now() + day).await.unwrap().version.get(), 2);
}

on_both!(a_repeated_command_answers_with_what_it_led_to, check_repetition);
async fn check_repetition<S: EventStore>(repository: Repository<S>) {
    let (id, command_id) = (Id::<Account>::generate(), Uuid::new_v4());
    let first = repository.execute(&id, &AddMoney(30)).command_id(command_id).await.unwrap();
    repository.execute(&id, &AddMoney(5)).await.unwrap();
    // Looked up before any expectation: a retry of what has succeeded is no conflict with itself.
    let again = repository.execute(&id, &AddMoney(30)).command_id(command_id).expecting(0).await.unwrap();
    assert_eq!((again.is_repeated, again.version.get(), again.state.balance), (true, 1, 30));
    assert_eq!((again.events, again.appended), (first.events, first.appended));
    assert_eq!(stored(&repository, &id).await.len(), 2);

    let other = Id::<Account>::generate();
    let reused = repository.execute(&other, &AddMoney(30)).command_id(command_id).await;
    assert!(matches!(reused, Err(ExecuteError::CommandIdReused { .. })), "{reused:?}");
}

on_both!(a_command_with_many_events_is_found_whole, check_many_events);
async fn check_many_events<S: EventStore>(repository: Repository<S>) {
    let (id, command_id) = (Id::<Account>::generate(), Uuid::new_v4());
    for is_repeated in [false, true] {
        let fill = |_: &Account, _: &Context| {
            Ok::<_, TooLittle>((0..40).map(|n| MoneyAdded { amount: n }.into()).collect())
        };
        let executed = repository.decide(&id, fill).command_id(command_id).await.unwrap();
        assert_eq!((executed.events.len(), executed.is_repeated), (40, is_repeated));
        assert_eq!((executed.version.get(), executed.state.balance), (40, 780));
    }
}

on_both!(an_expected_version_is_checked_and_not_tried_again, check_expectation);
async fn check_expectation<S: EventStore>(repository: Repository<S>) {
    let id = Id::<Account>::generate();
    repository.execute(&id, &AddMoney(1)).expecting(0).await.unwrap();
    repository.execute(&id, &AddMoney(2)).expecting(1).await.unwrap();
    let conflict = repository.execute(&id, &AddMoney(4)).expecting(1).await.unwrap_err();
    let ExecuteError::Conflict { expected, actual, since, .. } = &conflict else { panic!("{conflict:?}") };
    assert_eq!((expected.get(), actual.get(), since.len(), since[0].version.get()), (1, 2, 1, 2));
    assert!(!conflict.is_transient(), "the same command cannot succeed any more");
    let ahead = repository.execute(&id, &AddMoney(4)).expecting(9).await.unwrap_err();
    assert!(matches!(ahead, ExecuteError::Conflict { actual, .. } if actual.get() == 2), "{ahead:?}");
}

on_both!(a_dry_run_stores_nothing, check_dry_run);
async fn check_dry_run<S: EventStore>(repository: Repository<S>) {
    let id = Id::<Account>::generate();
    let planned = repository.execute(&id, &AddMoney(30)).dry_run().await.unwrap();
    assert_eq!((planned.events.len(), planned.state.balance, planned.version.get()), (1, 30, 0));
    assert_eq!(planned.new_events[0].event_type, "MoneyAdded");
    assert!(stored(&repository, &id).await.is_empty());
    repository.store().append(&planned.new_events).await.unwrap();
    assert_eq!(repository.load(&id).await.unwrap().state.balance, 30);
}

on_both!(events_carry_the_conversation_and_the_metadata, check_envelope);
async fn check_envelope<S: EventStore>(repository: Repository<S>) {
    let (id, command_id) = (Id::<Account>::generate(), Uuid::new_v4());
    let by = serde_json::json!({"by": "Ada"});
    let first = repository.execute(&id, &AddMoney(1)).command_id(command_id).metadata(&by).unwrap();
    first.await.unwrap();
    let event = stored(&repository, &id).await.remove(0);
    assert_eq!((event.correlation_id, event.causation_id), (Some(command_id), Some(command_id)));
    assert_eq!(event.metadata.get(), r#"{"by": "Ada"}"#);
    repository.execute(&id, &AddMoney(2)).caused_by(&event).await.unwrap();
    let next = stored(&repository, &id).await.remove(1);
    assert_eq!((next.correlation_id, next.causation_id), (Some(command_id), Some(event.uuid)));
}

/// The first decision is outdated before it is stored: another writer appends in the middle of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_is_made_anew_with_what_came_between() {
    let (_pool, postgres) = store().await;
    let repository = Repository::new(postgres);
    let (id, seen) = (Id::<Account>::generate(), std::sync::Mutex::new(Vec::new()));
    let interrupted = |account: &Account, context: &Context| {
        seen.lock().unwrap().push((account.balance, context.version().get(), context.new_id()));
        if context.version() == Version::NONE {
            let other = repository.execute(&id, &AddMoney(7));
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(other.into_future()))
                .unwrap();
        }
        Ok::<_, TooLittle>(espd::events![MoneyAdded { amount: 1 }])
    };
    let executed = repository.decide(&id, interrupted).await.unwrap();
    assert_eq!((executed.version.get(), executed.state.balance), (2, 8));
    let seen = seen.lock().unwrap().clone();
    assert_eq!((seen.len(), seen[0].0, seen[1].0, seen[1].1), (2, 0, 7, 1));
    assert_eq!(seen[0].2, seen[1].2, "a new id is the same at each attempt");
}

#[tokio::test]
async fn a_decision_that_always_comes_too_late_ends_with_the_conflict() {
    let store = MemoryEventStore::new();
    let repository = Repository::new(store.clone()).conflict_retries(2);
    let (id, calls) = (Id::<Account>::generate(), AtomicU32::new(0));
    let late = |_: &Account, context: &Context| {
        calls.fetch_add(1, Ordering::Relaxed);
        let event = NewEvent::of(context.aggregate_id(), &MoneyAdded { amount: 1 }).unwrap();
        futures_util::FutureExt::now_or_never(store.append(&[event])).unwrap().unwrap();
        Ok::<_, TooLittle>(espd::events![MoneyAdded { amount: 1 }])
    };
    let conflict = repository.decide(&id, late).await.unwrap_err();
    let ExecuteError::Conflict { expected, since, .. } = &conflict else { panic!("{conflict:?}") };
    assert_eq!((expected.get(), since.len(), calls.load(Ordering::Relaxed)), (2, 1, 3));
    assert!(conflict.is_transient());
}

#[tokio::test]
async fn the_same_command_from_two_callers_at_once_is_carried_out_once() {
    let (_pool, postgres) = store().await;
    let repository = Repository::new(postgres);
    for _ in 0..20 {
        let (id, command_id) = (Id::<Account>::generate(), Uuid::new_v4());
        let both = (0..4)
            .map(|_| async { repository.execute(&id, &AddMoney(30)).command_id(command_id).await.unwrap() });
        let executed = futures_util::future::join_all(both).await;
        assert!(executed.iter().all(|one| one.version.get() == 1 && one.state.balance == 30));
        assert_eq!(stored(&repository, &id).await.len(), 1);
        // Refused after the first of them, and a conflict for all but one: still each gets the answer of the first.
        let command_id = Uuid::new_v4();
        let all = (0..4).map(|_| async {
            repository.execute(&id, &DrawMoney(30)).command_id(command_id).expecting(1).await.unwrap()
        });
        let executed = futures_util::future::join_all(all).await;
        assert!(executed.iter().all(|one| one.version.get() == 2 && one.state.balance == 0));
    }
}

#[tokio::test]
async fn the_tables_of_the_application_commit_with_the_events() {
    let (pool, postgres) = store().await;
    sqlx::query("create table receipts (amount int)").execute(&pool).await.unwrap();
    let repository = Repository::new(postgres);
    let id = Id::<Account>::generate();
    for is_committed in [false, true] {
        let mut transaction = pool.begin().await.unwrap();
        sqlx::query("insert into receipts values (5)").execute(&mut *transaction).await.unwrap();
        let (executed, uncommitted) =
            repository.execute(&id, &AddMoney(5)).append_in(&mut transaction).await.unwrap();
        assert_eq!((executed.version.get(), executed.state.balance), (1, 5));
        if is_committed {
            uncommitted.commit(transaction).await.unwrap();
        } else {
            transaction.rollback().await.unwrap();
            uncommitted.rolled_back();
        }
        let receipts: i64 =
            sqlx::query_scalar("select count(*) from receipts").fetch_one(&pool).await.unwrap();
        assert_eq!(
            (receipts, stored(&repository, &id).await.len()),
            match is_committed {
                true => (1, 1),
                false => (0, 0),
            }
        );
    }
}

#[tokio::test]
async fn a_clock_of_ones_own_is_told_to_decisions_and_kept() {
    let time = DateTime::from_timestamp(1_000_000_000, 0).unwrap();
    let repository = Repository::new(MemoryEventStore::new()).with_clock(move || time);
    let id = Id::<Account>::generate();
    let decide = |_: &Account, context: &Context| {
        assert_eq!(context.now(), time);
        Ok::<_, TooLittle>(espd::events![MoneyAdded { amount: 1 }])
    };
    repository.decide(&id, decide).await.unwrap();
    assert!(stored(&repository, &id).await[0].created_at == time);
}

#[tokio::test]
async fn events_that_the_aggregate_does_not_know_are_refused_or_passed_over() {
    #[derive(Debug, Clone, Default)]
    struct Lenient(u32);
    impl Aggregate for Lenient {
        type Event = AccountEvent;
        const UNKNOWN_EVENTS: UnknownEvents = UnknownEvents::PassOver;
        fn evolve(&mut self, _: &AccountEvent) {
            self.0 += 1;
        }
    }
    let repository = Repository::new(MemoryEventStore::new());
    let id = Id::<Account>::generate();
    repository.execute(&id, &AddMoney(1)).await.unwrap();
    let json = |text: &str| serde_json::value::RawValue::from_string(text.to_owned()).unwrap();
    let stranger = NewEvent::new(id.get(), "AccountFrozen", json("{}"));
    repository.store().append(&[stranger]).await.unwrap();
    let refused = repository.load(&id).await.unwrap_err();
    assert!(matches!(&refused, LoadError::UnknownType { event_type, .. } if event_type == "AccountFrozen"));
    let lenient = repository.load(&Id::<Lenient>::new(id.get())).await.unwrap();
    assert_eq!((lenient.version.get(), lenient.state.0), (2, 1));

    repository.store().append(&[NewEvent::new(id.get(), "MoneyAdded", json("{}"))]).await.unwrap();
    let unreadable = repository.load(&Id::<Lenient>::new(id.get())).await.unwrap_err();
    assert!(unreadable.to_string().contains("missing field `amount`"), "{unreadable}");
}

#[test]
fn decisions_are_tested_without_a_store() {
    given::<Account>(espd::events![MoneyAdded { amount: 5 }])
        .when(&DrawMoney(3))
        .then(espd::events![MoneyDrawn { amount: 3 }])
        .when(&DrawMoney(3))
        .then_refused(&TooLittle(2))
        .when(&DrawMoney(0))
        .then_nothing()
        .when(&DrawMoney(1))
        .then_state(|account| assert_eq!(account.balance, 1));
    let wrong = std::panic::catch_unwind(|| {
        let outcome = given::<Account>([]).when(&AddMoney(3));
        outcome.then(espd::events![MoneyAdded { amount: 4 }])
    });
    let message = *wrong.unwrap_err().downcast::<String>().unwrap();
    assert!(
        message
            .contains("- 1 MoneyAdded(MoneyAdded { amount: 4 })\n+ 1 MoneyAdded(MoneyAdded { amount: 3 })")
    );
    let account = Account::default();
    assert!(account.if_changed(espd::events![MoneyAdded { amount: 1 }]).len() == 1);
}

/// A caller's transaction holds the only connection.
#[tokio::test]
async fn a_transaction_of_the_caller_needs_no_second_connection_and_sees_its_own_events() {
    let database = crate::support::database().await;
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(1).connect(&database.url).await.unwrap();
    let repository = Repository::new(PostgresEventStore::new(pool.clone(), Layout::espd("espd").unwrap()));
    let (id, command_id) = (Id::<Account>::generate(), Uuid::new_v4());
    for is_repeated in [false, true] {
        let mut transaction = pool.begin().await.unwrap();
        let add = repository.execute(&id, &AddMoney(5)).command_id(command_id);
        let (added, first) = add.append_in(&mut transaction).await.unwrap();
        assert_eq!((added.version.get(), added.is_repeated), (1, is_repeated));
        if is_repeated {
            first.commit(transaction).await.unwrap();
            break;
        }
        let (drawn, second) =
            repository.execute(&id, &DrawMoney(5)).append_in(&mut transaction).await.unwrap();
        assert_eq!((drawn.version.get(), drawn.state.balance), (2, 0));
        let conflict = repository.execute(&id, &AddMoney(5)).expecting(1).append_in(&mut transaction).await;
        assert!(matches!(conflict, Err(ExecuteError::Conflict { actual, .. }) if actual.get() == 2));
        first.and(second).commit(transaction).await.unwrap();
    }
    assert_eq!(repository.load(&id).await.unwrap().version.get(), 2);
}

/// The pool asks each time whether the connection lives, before and after. What the hook does finds the only connection free.
#[tokio::test]
async fn a_command_takes_a_connection_once() {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let database = crate::support::database().await;
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(1).before_acquire(|_, _| {
        TAKEN.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::ready(Ok(true)))
    });
    let pool = pool.connect(&database.url).await.unwrap();
    let store = PostgresEventStore::new(pool, Layout::espd("espd").unwrap()).without_notifications();
    let repository = Repository::new(store.clone());
    let id = Id::<Account>::generate();
    repository.execute(&id, &AddMoney(1)).await.unwrap();
    let before = TAKEN.load(Ordering::Relaxed);
    let added = repository.execute(&id, &AddMoney(1)).await.unwrap();
    assert_eq!((added.version.get(), TAKEN.load(Ordering::Relaxed) - before), (2, 1));

    let (told, hears) = std::sync::mpsc::channel();
    let telling = Repository::new(store.on_appended(move |events| told.send(events.len()).unwrap()));
    telling.execute(&id, &AddMoney(1)).await.unwrap();
    assert_eq!(hears.try_recv(), Ok(1));
    let conflict = repository.execute(&id, &AddMoney(5)).expecting(1).await;
    assert!(matches!(conflict, Err(ExecuteError::Conflict { actual, .. }) if actual.get() == 3));
}

#[tokio::test]
async fn a_conflict_tells_of_the_first_hundred_events_only() {
    let repository = Repository::new(MemoryEventStore::new());
    let id = Id::<Account>::generate();
    let fill = |_: &Account, _: &Context| Ok::<_, ()>(vec![MoneyAdded { amount: 1 }.into(); 300]);
    repository.decide(&id, fill).await.unwrap();
    let conflict = repository.execute(&id, &AddMoney(1)).expecting(0).await.unwrap_err();
    let ExecuteError::Conflict { actual, since, .. } = conflict else { panic!("{conflict:?}") };
    assert_eq!((actual.get(), since.len(), since[0].version.get()), (300, 100, 1));
}

#[tokio::test]
async fn a_repeated_command_whose_event_cannot_be_read_is_not_told_that_its_id_is_anothers() {
    let (pool, postgres) = store().await;
    let repository = Repository::new(postgres);
    let (id, command_id) = (Id::<Account>::generate(), Uuid::new_v4());
    repository.execute(&id, &AddMoney(5)).command_id(command_id).await.unwrap();
    sqlx::query("update espd.events set body = '{}'").execute(&pool).await.unwrap();
    let error = repository.execute(&id, &AddMoney(5)).command_id(command_id).await.unwrap_err();
    assert!(matches!(error, ExecuteError::Load(LoadError::Unreadable { .. })), "{error:?}");
}

/// A shop that is found by its town, and whose name nobody else has.
#[derive(Debug, Clone, Default)]
struct Shop;

espd::event_set! { pub enum ShopEvent { ShopOpened { name: String, town: String } } }

impl Aggregate for Shop {
    type Event = ShopEvent;

    fn tags(_: &AggregateId, event: &ShopEvent) -> Vec<espd::event::Tag> {
        let ShopEvent::ShopOpened(opened) = event;
        vec![espd::event::Tag::of("town", &opened.town)]
    }

    fn keys(_: &AggregateId, event: &ShopEvent) -> Vec<espd::event::KeyChange> {
        let ShopEvent::ShopOpened(opened) = event;
        vec![espd::event::KeyChange::Claim(espd::event::UniqueKey::new("shop", &opened.name))]
    }

    fn evolve(&mut self, _: &ShopEvent) {}
}

on_both!(the_events_of_an_aggregate_have_its_tags_and_claim_its_keys, check_tags);
async fn check_tags<S: EventStore>(repository: Repository<S>) {
    let open = |name: &str| {
        let opened: Vec<ShopEvent> = espd::events![ShopOpened { name: name.into(), town: "Bergen".into() }];
        move |_: &Shop, _: &Context| Ok::<_, ()>(opened.clone())
    };
    let owner = Id::<Shop>::generate();
    repository.decide(&owner, open("Books")).await.unwrap();
    let taken = repository.decide(&Id::generate(), open("Books")).await.unwrap_err();
    assert!(taken.to_string().contains(&owner.to_string()), "{taken}");
    let mut work = repository.unit_of_work();
    let opened = ShopOpened { name: "Bread".into(), town: "Bergen".into() };
    work.record(&Id::<Shop>::generate(), espd::events![opened]).await.unwrap();
    work.commit().await.unwrap();
    let query = espd::store::TagQuery::tag("town:Bergen");
    assert_eq!(repository.store().read_tagged(&query, None).await.unwrap().events.len(), 2);
}

espd::event_set! { enum MeterEvent { Metered { value: f64 } } }

#[derive(Debug, Clone, Default)]
struct Meter;

impl Aggregate for Meter {
    type Event = MeterEvent;

    fn evolve(&mut self, _: &MeterEvent) {}
}

on_both!(what_could_not_be_loaded_again_is_not_stored, check_readable);
async fn check_readable<S: EventStore>(repository: Repository<S>) {
    let id = Id::<Meter>::generate();
    let meter = |value| move |_: &Meter, _: &Context| Ok::<_, ()>(espd::events![Metered { value }]);
    repository.decide(&id, meter(1.5)).await.unwrap();
    for value in [f64::NAN, f64::INFINITY] {
        let refused = repository.decide(&id, meter(value)).await;
        assert!(matches!(refused, Err(ExecuteError::Unwritable(_))), "{refused:?}");
        let mut work = repository.unit_of_work();
        let refused = work.record(&id, espd::events![Metered { value }]).await;
        assert!(matches!(refused, Err(ExecuteError::Unwritable(_))), "{refused:?}");
    }
    assert_eq!(repository.load(&id).await.unwrap().version, 1);
    // Any store will do, whatever points to it.
    let shared: std::sync::Arc<dyn EventStore + '_> = std::sync::Arc::new(repository.store());
    let repository = Repository::new(shared);
    repository.decide(&id, meter(2.5)).await.unwrap();
    assert_eq!(repository.load(&id).await.unwrap().version, 2);
}
