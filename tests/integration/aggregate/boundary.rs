//! Decisions beyond one aggregate: seats of courses, of which a student may have two.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use espd::prelude::*;
use espd::store::Upcast;
use futures_util::future::join_all;

use crate::support;

espd::event_set! {
    /// What happens about courses and students.
    pub enum SchoolEvent {
        /// A course is offered.
        CourseOffered { course: u32, seats: u32 },
        /// A student has got a seat.
        SeatTaken { course: u32, student: u32 },
    }
}

/// What the decision about a seat needs: of one course, and of one student.
#[derive(Debug, Clone, Default, PartialEq)]
struct Enrolment {
    seats: u32,
    taken: Vec<u32>,
    seats_of: Vec<(u32, u32)>,
}

impl Aggregate for Enrolment {
    type Event = SchoolEvent;

    fn evolve(&mut self, event: &SchoolEvent) {
        match event {
            SchoolEvent::CourseOffered(offered) => self.seats = offered.seats,
            SchoolEvent::SeatTaken(taken) => {
                self.taken.push(taken.course);
                self.seats_of.push((taken.student, taken.course));
            }
        }
    }
}

#[derive(Debug, PartialEq)]
enum Refused {
    Full,
    Busy,
    Unknown,
}

fn course(course: u32) -> Tag {
    Tag::of("course", course)
}

fn student(student: u32) -> Tag {
    Tag::of("student", student)
}

fn query(one: u32, another: u32) -> TagQuery {
    TagQuery::tag(course(one)).or(TagQuery::tag(student(another)))
}

fn take_seat(
    one: u32,
    another: u32,
) -> impl Fn(&Enrolment, &BoundaryContext) -> Result<Vec<Draft<SchoolEvent>>, Refused> {
    move |state, context| {
        let is_of = |student: u32| state.seats_of.iter().filter(|(of, _)| *of == student).count();
        let taken = state.taken.iter().filter(|course| **course == one).count();
        if state.seats == 0 {
            Err(Refused::Unknown)
        } else if taken >= state.seats as usize {
            Err(Refused::Full)
        } else if is_of(another) >= 2 {
            Err(Refused::Busy)
        } else if state.seats_of.contains(&(another, one)) {
            Ok(Vec::new())
        } else {
            let taken = SeatTaken { course: one, student: another };
            Ok(vec![Draft::new(context.new_id(), taken).tagged(course(one)).tagged(student(another))])
        }
    }
}

async fn offer<S: EventStore>(repository: &Repository<S>, one: u32, seats: u32) {
    let offered = CourseOffered { course: one, seats };
    let offer = |_: &Enrolment, _: &BoundaryContext| {
        Ok::<_, Refused>(vec![Draft::new(Uuid::new_v4(), offered.clone()).tagged(course(one))])
    };
    repository.decide_within(TagQuery::tag(course(one)), offer).await.unwrap();
}

/// Two stores: in memory, and in PostgreSQL.
async fn stores() -> (MemoryEventStore, PostgresEventStore) {
    let pool = support::database().await.pool;
    (MemoryEventStore::new(), PostgresEventStore::new(pool, Layout::espd(support::SCHEMA).unwrap()))
}

async fn no_seat_is_taken_twice_on(store: impl EventStore + Clone + 'static) {
    let repository = Repository::new(store).conflict_retries(100);
    for one in 1..=3 {
        offer(&repository, one, 3).await;
    }
    // Six students, each wants a seat of each of the courses at the same time.
    let wishes = (1..=6).flat_map(|another| (1..=3).map(move |one| (one, another)));
    let attempts = wishes.map(|(one, another)| {
        let repository = repository.clone();
        tokio::spawn(async move {
            match repository.decide_within(query(one, another), take_seat(one, another)).await {
                Ok(decided) => decided.events.len(),
                Err(ExecuteError::Refused(Refused::Full | Refused::Busy)) => 0,
                Err(other) => panic!("{other:?}"),
            }
        })
    });
    let taken: usize = join_all(attempts).await.into_iter().map(Result::unwrap).sum();
    let mut all = Vec::new();
    for one in 1..=3 {
        let seats = repository.store().read_tagged(&TagQuery::tag(course(one)), None).await.unwrap();
        assert!(seats.events.len() <= 1 + 3, "three seats");
        all.push(seats.events.len() - 1);
    }
    for another in 1..=6 {
        let seats = repository.store().read_tagged(&TagQuery::tag(student(another)), None).await.unwrap();
        assert!(seats.events.len() <= 2, "two seats of a student");
    }
    assert_eq!(taken, all.iter().sum::<usize>());
    // No seat stays free that a student could have: twelve wishes that are allowed, nine seats.
    assert_eq!(taken, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_seat_is_taken_twice_and_none_is_left() {
    let (memory, postgres) = stores().await;
    no_seat_is_taken_twice_on(memory).await;
    no_seat_is_taken_twice_on(postgres).await;
}

async fn a_decision_is_repeated_by_its_command_id_on(store: impl EventStore + Clone) {
    let repository = Repository::new(store);
    offer(&repository, 1, 1).await;
    let command_id = Uuid::new_v4();
    let take = || repository.decide_within(query(1, 7), take_seat(1, 7)).command_id(command_id);
    let first = take().await.unwrap();
    assert!(!first.is_repeated);
    let again = take().await.unwrap();
    assert!(again.is_repeated);
    assert_eq!((again.appended, again.events, again.state), (first.appended, first.events, first.state));
    let full = repository.decide_within(query(1, 8), take_seat(1, 8)).await;
    assert!(matches!(full, Err(ExecuteError::Refused(Refused::Full))), "{full:?}");
    let unknown = repository.decide_within(query(9, 8), take_seat(9, 8)).dry_run().await;
    assert!(matches!(unknown, Err(ExecuteError::Refused(Refused::Unknown))), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_is_repeated_by_its_command_id() {
    let (memory, postgres) = stores().await;
    a_decision_is_repeated_by_its_command_id_on(memory).await;
    a_decision_is_repeated_by_its_command_id_on(postgres).await;
}

/// The decision is made anew with what came between, and what was read is not read again.
async fn an_overtaken_decision_is_made_anew_on(store: impl EventStore + Clone + 'static) {
    let repository = Repository::new(store);
    offer(&repository, 1, 2).await;
    let seen = Arc::new(AtomicUsize::new(0));
    let (store, rival) = (repository.store().clone(), take_seat(1, 8));
    let decision = {
        let seen = Arc::clone(&seen);
        let runtime = tokio::runtime::Handle::current();
        move |state: &Enrolment, context: &BoundaryContext| {
            // Only at the first time, another student is faster.
            if seen.fetch_add(1, Ordering::SeqCst) == 0 {
                let repository = Repository::new(store.clone());
                let other = repository.decide_within(query(1, 8), &rival);
                tokio::task::block_in_place(|| runtime.block_on(async { other.await.map(drop) }).unwrap());
            }
            take_seat(1, 7)(state, context)
        }
    };
    let decided = repository.decide_within(query(1, 7), decision).await.unwrap();
    assert_eq!(seen.load(Ordering::SeqCst), 2);
    assert_eq!(decided.state.seats_of, [(8, 1), (7, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overtaken_decision_is_made_anew() {
    let (memory, postgres) = stores().await;
    an_overtaken_decision_is_made_anew_on(memory).await;
    an_overtaken_decision_is_made_anew_on(postgres).await;
}

/// A row of the caller commits with the seat, or not at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_decision_commits_with_the_tables_of_the_caller() {
    let pool = support::database().await.pool;
    let store = PostgresEventStore::new(pool.clone(), Layout::espd(support::SCHEMA).unwrap());
    let repository = Repository::new(store);
    offer(&repository, 1, 1).await;
    sqlx::raw_sql("create table bills (student bigint)").execute(&pool).await.unwrap();
    for student in [7, 8] {
        let mut transaction = pool.begin().await.unwrap();
        let insert = sqlx::query("insert into bills values ($1)").bind(i64::from(student));
        insert.execute(&mut *transaction).await.unwrap();
        let take = repository.decide_within(query(1, student), take_seat(1, student));
        match take.append_in(&mut transaction).await {
            Ok((decided, uncommitted)) => {
                assert_eq!(decided.events.len(), 1);
                uncommitted.commit(transaction).await.unwrap();
            }
            Err(error) => assert!(matches!(error, ExecuteError::Refused(Refused::Full)), "{error:?}"),
        }
    }
    let billed: Vec<i64> = sqlx::query_scalar("select student from bills").fetch_all(&pool).await.unwrap();
    assert_eq!(billed, [7]);
}

/// An old type is read as a new one, and must be found and excluded as that.
#[tokio::test(flavor = "multi_thread")]
async fn events_of_old_types_are_found_by_the_new_name() {
    let pool = support::database().await.pool;
    let old = PostgresEventStore::new(pool.clone(), Layout::espd(support::SCHEMA).unwrap());
    let upcast = Upcast {
        events: vec!["SeatGiven".into()],
        event_type: Some("SeatTaken".into()),
        ..Upcast::default()
    };
    let layout = Layout::espd(support::SCHEMA).unwrap().with_upcasts(&[upcast]);
    let repository = Repository::new(PostgresEventStore::new(pool, layout));
    offer(&repository, 1, 1).await;
    let body = serde_json::value::to_raw_value(&serde_json::json!({"course": 1, "student": 7})).unwrap();
    let given = NewEvent::new(Uuid::new_v4(), "SeatGiven", body).tagged(course(1));
    old.append(&[given]).await.unwrap();
    let full = repository.decide_within(query(1, 8), take_seat(1, 8)).await;
    assert!(matches!(full, Err(ExecuteError::Refused(Refused::Full))), "{full:?}");
    let excluded = TagQuery::tag(course(1)).of_types(["SeatTaken"]).without_any();
    let refused = repository.store().append_if(&[], &excluded).await;
    assert!(matches!(refused, Err(AppendError::ConditionFailed { .. })), "{refused:?}");
}

/// The name as it is read decides, not the one that is stored: only some events of the old name are read as the new one.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_found_by_the_type_that_it_is_read_as() {
    let pool = support::database().await.pool;
    let upcast = Upcast::of(["SeatGiven"]).as_type("SeatTaken").when_sql("event.body ? 'student'");
    let layout = Layout::espd(support::SCHEMA).unwrap().with_upcasts(&[upcast]);
    let store = PostgresEventStore::new(pool.clone(), layout);
    let old = PostgresEventStore::new(pool, Layout::espd(support::SCHEMA).unwrap());
    for (body, tag) in [(r#"{"student": 7}"#, course(1)), ("{}", course(1)), (r#"{"student": 7}"#, course(2))]
    {
        let body = serde_json::from_str(body).unwrap();
        old.append(&[NewEvent::new(Uuid::new_v4(), "SeatGiven", body).tagged(tag)]).await.unwrap();
    }
    let found = async |query: TagQuery| {
        let read = store.read_tagged(&query, None).await.unwrap();
        read.events.iter().map(|event| (event.id.get(), event.event_type.clone())).collect::<Vec<_>>()
    };
    let of_type = |one: u32, name: &str| TagQuery::tag(course(one)).of_types([name]);
    assert_eq!(found(of_type(1, "SeatTaken")).await, [(1, "SeatTaken".into())]);
    assert_eq!(found(of_type(1, "SeatGiven")).await, [(2, "SeatGiven".into())]);
    // Type and tag are those of one alternative.
    let crossed = of_type(1, "SeatTaken").or(of_type(2, "SeatGiven"));
    assert_eq!(found(crossed).await, [(1, "SeatTaken".into())]);
}

/// Takes the seat, whether or not the student has it already.
fn take_seat_blindly(_: &Enrolment, context: &BoundaryContext) -> Result<Vec<Draft<SchoolEvent>>, Refused> {
    let taken = SeatTaken { course: 1, student: 7 };
    Ok(vec![Draft::new(context.new_id(), taken).tagged(course(1)).tagged(student(7))])
}

/// A pool that has `between` happen once, after its first read and before its second one.
fn pool_with_pause<F>(pool: &sqlx::PgPool, between: impl Fn() -> F + Send + Sync + 'static) -> sqlx::PgPool
where
    F: Future<Output = ()> + Send + 'static,
{
    let (between, is_over) = (Arc::new(between), Arc::new(AtomicUsize::new(0)));
    let options = sqlx::postgres::PgPoolOptions::new().max_connections(1);
    let options = options.before_acquire(move |_, _| {
        let (between, is_over) = (Arc::clone(&between), Arc::clone(&is_over));
        Box::pin(async move {
            if is_over.fetch_add(1, Ordering::SeqCst) == 0 {
                between().await;
            }
            Ok(true)
        })
    });
    options.connect_lazy_with((*pool.connect_options()).clone())
}

/// One command from two callers. The second one looks for what it has led to before the first one stores, and reads afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_of_two_callers_at_once_is_carried_out_once() {
    type Rule = fn(&Enrolment, &BoundaryContext) -> Result<Vec<Draft<SchoolEvent>>, Refused>;
    let carefully: Rule = |state, context| take_seat(1, 7)(state, context);
    for rule in [carefully, take_seat_blindly as Rule] {
        let pool = support::database().await.pool;
        let layout = Layout::espd(support::SCHEMA).unwrap();
        let first = Repository::new(PostgresEventStore::new(pool.clone(), layout.clone()));
        offer(&first, 1, 3).await;
        let command_id = Uuid::new_v4();
        let faster = {
            let first = first.clone();
            move || {
                let first = first.clone();
                async move {
                    let done = first.decide_within(query(1, 7), rule).command_id(command_id).await.unwrap();
                    assert!(!done.is_repeated);
                }
            }
        };
        let second = Repository::new(PostgresEventStore::new(pool_with_pause(&pool, faster), layout));
        let done = second.decide_within(query(1, 7), rule).command_id(command_id).await.unwrap();
        assert!(done.is_repeated);
        assert_eq!((done.events.len(), done.appended.len()), (1, 1));
        assert_eq!(done.state.seats_of, [(7, 1)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_carried_out_once_in_a_transaction_of_the_caller() {
    let pool = support::database().await.pool;
    let layout = Layout::espd(support::SCHEMA).unwrap();
    let repository = Repository::new(PostgresEventStore::new(pool.clone(), layout));
    offer(&repository, 1, 3).await;
    let mut transaction = pool.begin().await.unwrap();
    let command_id = Uuid::new_v4();
    let take = || repository.decide_within(query(1, 7), take_seat_blindly).command_id(command_id);
    let (first, uncommitted) = take().append_in(&mut transaction).await.unwrap();
    let (again, nothing) = take().append_in(&mut transaction).await.unwrap();
    assert!(!first.is_repeated && again.is_repeated);
    assert_eq!((again.appended, again.state.seats_of), (first.appended, first.state.seats_of));
    assert!(nothing.is_empty());
    uncommitted.commit(transaction).await.unwrap();
}

async fn a_repeated_decision_has_the_same_state_on(store: impl EventStore + Clone) {
    let repository = Repository::new(store);
    offer(&repository, 1, 3).await;
    // What is decided does not match what it is decided by.
    let offers = || TagQuery::tag(course(1)).of_types(["CourseOffered"]);
    let command_id = Uuid::new_v4();
    let take = || repository.decide_within(offers(), take_seat(1, 7)).command_id(command_id);
    let first = take().await.unwrap();
    assert_eq!(first.state.seats_of, [(7, 1)]);
    offer(&repository, 1, 9).await;
    let again = take().await.unwrap();
    assert!(again.is_repeated);
    assert_eq!(again.state, first.state);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_decision_has_the_same_state() {
    let (memory, postgres) = stores().await;
    a_repeated_decision_has_the_same_state_on(memory).await;
    a_repeated_decision_has_the_same_state_on(postgres).await;
}

/// The store is restored from a backup while a decision is made by an event that is not in it.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_restore_nothing_is_decided_by_what_is_gone() {
    let pool = support::database().await.pool;
    let store = PostgresEventStore::new(pool.clone(), Layout::espd(support::SCHEMA).unwrap());
    let repository = Repository::new(store);
    offer(&repository, 1, 3).await;
    repository.decide_within(query(1, 8), take_seat(1, 8)).await.unwrap();
    let restored = AtomicUsize::new(0);
    let decision = |state: &Enrolment, context: &BoundaryContext| {
        if restored.fetch_add(1, Ordering::SeqCst) == 0 {
            let restore = sqlx::raw_sql(
                "set session_replication_role = replica; delete from espd.events where id = 2;
                delete from espd.tag_events where event_id = 2; update espd.tag_heads set n = n - 1;
                reset session_replication_role",
            );
            let runtime = tokio::runtime::Handle::current();
            tokio::task::block_in_place(|| runtime.block_on(restore.execute(&pool))).unwrap();
        }
        take_seat(1, 7)(state, context)
    };
    let decided = repository.decide_within(query(1, 7), decision).await.unwrap();
    assert_eq!(restored.load(Ordering::SeqCst), 2);
    assert_eq!(decided.state.seats_of, [(7, 1)]);
}

async fn what_cannot_be_read_is_no_other_command_on(store: impl EventStore + Clone) {
    let command_id = Uuid::new_v4();
    let mut broken = NewEvent::new(Uuid::new_v4(), "SeatTaken", serde_json::from_str("{}").unwrap());
    broken.uuid = Uuid::new_v5(&command_id, &0_u32.to_be_bytes());
    store.append(&[broken]).await.unwrap();
    let repository = Repository::new(store);
    let again = repository.decide_within(query(1, 7), take_seat(1, 7)).command_id(command_id).await;
    assert!(matches!(again, Err(ExecuteError::Load(LoadError::Unreadable { .. }))), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_no_other_command() {
    let (memory, postgres) = stores().await;
    what_cannot_be_read_is_no_other_command_on(memory).await;
    what_cannot_be_read_is_no_other_command_on(postgres).await;
}

/// The same state, for who says that other types do not matter.
#[derive(Debug, Clone, Default, PartialEq)]
struct Tolerant(Enrolment);

impl Aggregate for Tolerant {
    type Event = SchoolEvent;

    const UNKNOWN_EVENTS: UnknownEvents = UnknownEvents::PassOver;

    fn evolve(&mut self, event: &SchoolEvent) {
        self.0.evolve(event);
    }
}

async fn an_old_program_does_not_decide_without_a_new_type_on(store: impl EventStore + Clone) {
    let closed = NewEvent::new(Uuid::new_v4(), "CourseClosed", serde_json::from_str("{}").unwrap());
    let repository = Repository::new(store);
    offer(&repository, 1, 3).await;
    repository.store().append(&[closed.tagged(course(1))]).await.unwrap();
    let refused = repository.decide_within(query(1, 7), take_seat(1, 7)).await;
    assert!(matches!(refused, Err(ExecuteError::Load(LoadError::UnknownType { .. }))), "{refused:?}");
    // Where it is said, other types do not matter.
    let known = query(1, 7).of_types(["CourseOffered", "SeatTaken"]);
    assert_eq!(repository.decide_within(known, take_seat(1, 7)).await.unwrap().events.len(), 1);
    let take = |state: &Tolerant, context: &BoundaryContext| take_seat(1, 8)(&state.0, context);
    assert_eq!(repository.decide_within(query(1, 8), take).await.unwrap().events.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_program_does_not_decide_without_a_new_type() {
    let (memory, postgres) = stores().await;
    an_old_program_does_not_decide_without_a_new_type_on(memory).await;
    an_old_program_does_not_decide_without_a_new_type_on(postgres).await;
}
