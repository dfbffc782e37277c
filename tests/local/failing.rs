//! What follows from a failure.

use espd::native::OnFailure;
use espd::prelude::*;
use espd::testing::{LocalError, LocalProgram};

use crate::scenario::{
    Notes, OnEvent, OnTitle, ReminderSent, TestStore, TodoAdded, noting, on_each_store, title,
};

on_each_store! {
    an_error_comes_back_with_its_event_and_the_others_go_on
    the_event_of_an_error_that_names_none_is_found
    an_event_is_set_aside_as_the_policy_says
    a_conflict_of_an_emission_is_a_failure_of_its_event
    an_emission_that_is_not_declared_is_a_failure_of_its_event
    a_panic_is_a_failure_of_its_event
    a_panic_around_the_handler_is_a_failure_of_its_processor
}

/// A projector that notes titles and fails at `bad` ones.
fn choosy(program: LocalProgram, registration: Registration, notes: &Notes) -> LocalProgram {
    let notes = notes.clone();
    program.projector(registration.handles::<TodoAdded>(), move || {
        let notes = notes.clone();
        OnTitle(move |title: &str| {
            notes.add(title);
            if title == "bad" { Err("no such thing".into()) } else { Ok(()) }
        })
    })
}

/// The processor, the position of the event and the reason of a failure.
fn failed(error: LocalError) -> (String, i64, String) {
    match error {
        LocalError::Failed { processor, event, reason } => (processor, event.unwrap().id.get(), reason),
        other => panic!("{other:?}"),
    }
}

async fn an_error_comes_back_with_its_event_and_the_others_go_on(store: TestStore) {
    let (notes, others) = (Notes::default(), Notes::default());
    let program = choosy(LocalProgram::new(), Registration::projector("choosy"), &notes);
    let mut processors = store.start(noting(program, "zealous", &others)).await;
    store.add(&["good", "bad", "better"]).await;

    let error = processors.drain().await.unwrap_err();
    assert_eq!(error.to_string(), "choosy: event 2 (TodoAdded): no such thing");
    assert_eq!(failed(error), ("choosy".into(), 2, "no such thing".into()));
    // It was handed all, and then those before it again, to another instance.
    assert_eq!(notes.take(), ["good", "bad", "good"]);
    assert_eq!(others.take().len(), 3);
    assert_eq!(processors.position("choosy").await.unwrap(), Some(1.into()));

    assert_eq!(failed(processors.drain().await.unwrap_err()).1, 2);
    assert_eq!(notes.take(), ["bad"]);
}

async fn the_event_of_an_error_that_names_none_is_found(store: TestStore) {
    struct Nameless;

    #[async_trait]
    impl Projector for Nameless {
        async fn project(
            &mut self,
            events: &[Delivery],
            _: &mut ProjectorContext<'_>,
        ) -> Result<(), HandlerError> {
            if events.iter().any(|event| title(event) == "bad") { Err("somewhere".into()) } else { Ok(()) }
        }
    }

    let program = LocalProgram::new().projector(Registration::projector("nameless"), || Nameless);
    let mut processors = store.start(program).await;
    store.add(&["1", "2", "3", "4", "bad", "6", "7"]).await;
    assert_eq!(failed(processors.drain().await.unwrap_err()), ("nameless".into(), 5, "somewhere".into()));
    assert_eq!(processors.position("nameless").await.unwrap(), Some(4.into()));
}

async fn an_event_is_set_aside_as_the_policy_says(store: TestStore) {
    let (parking, skipping) = (Notes::default(), Notes::default());
    let registered = |name, then| Registration::projector(name).max_attempts(2).on_failure(then);
    let program = choosy(LocalProgram::new(), registered("parking", OnFailure::Park), &parking);
    let program = choosy(program, registered("skipping", OnFailure::Skip), &skipping);
    let mut processors = store.start(program).await;
    let aggregate = Uuid::new_v4();
    store.add_to(aggregate, &["bad", "behind it"]).await;
    store.add(&["of another"]).await;

    let drained = processors.drain().await.unwrap();
    let set_aside: Vec<(&str, i64, &str)> = drained
        .set_aside
        .iter()
        .map(|one| (one.processor.as_str(), one.event_id.get(), one.reason.as_str()))
        .collect();
    assert_eq!(
        set_aside,
        [
            ("parking", 1, "no such thing"),
            ("skipping", 1, "no such thing"),
            ("parking", 2, "it waits behind a dead letter of its aggregate"),
        ]
    );
    assert_eq!(parking.take(), ["bad", "bad", "of another"]);
    assert_eq!(skipping.take(), ["bad", "bad", "behind it", "of another"]);
    store.add_to(aggregate, &["and later"]).await;
    processors.drain().await.unwrap();
    assert_eq!((parking.take(), skipping.take()), (vec![], vec!["and later".to_owned()]));
}

/// A reactor that expects the aggregate of a reminder to be at version 1.
fn expecting(program: LocalProgram) -> LocalProgram {
    let registration = Registration::reactor("expecting").handles::<TodoAdded>().emits::<ReminderSent>();
    program.reactor(registration, || {
        OnEvent(|event: &Delivery, context: &mut ReactorContext<'_>| {
            let reminder = ReminderSent { title: title(event) };
            context.emit_expecting(&event.aggregate_id, 1.into(), &reminder)
        })
    })
}

async fn a_conflict_of_an_emission_is_a_failure_of_its_event(store: TestStore) {
    let mut processors = store.start(expecting(LocalProgram::new())).await;
    store.add(&["first"]).await;
    store.add_to(Uuid::new_v4(), &["second", "third"]).await;
    let (_, event, reason) = failed(processors.drain().await.unwrap_err());
    assert_eq!(event, 2);
    assert!(reason.contains("is at version 2, not at the expected version 1"), "{reason}");
    let emitted: Vec<String> =
        store.all().await[3..].iter().map(|event| event.body.get().to_owned()).collect();
    assert_eq!(emitted, [r#"{"title": "first"}"#], "what belongs to earlier events is stored");
    assert_eq!(processors.position("expecting").await.unwrap(), Some(1.into()));
}

async fn an_emission_that_is_not_declared_is_a_failure_of_its_event(store: TestStore) {
    let program = LocalProgram::new().reactor(Registration::reactor("hasty").handles::<TodoAdded>(), || {
        OnEvent(|event: &Delivery, context: &mut ReactorContext<'_>| {
            context.emit(&event.aggregate_id, &ReminderSent { title: title(event) })
        })
    });
    let mut processors = store.start(program).await;
    store.add(&["milk"]).await;
    let (_, event, reason) = failed(processors.drain().await.unwrap_err());
    assert!(event == 1 && reason.contains("which it does not declare"), "{reason}");
    assert_eq!(store.all().await.len(), 1);
}

async fn a_panic_is_a_failure_of_its_event(store: TestStore) {
    let program = LocalProgram::new()
        .reactor(Registration::reactor("fragile").handles::<TodoAdded>(), || {
            OnEvent(|_: &Delivery, _: &mut ReactorContext<'_>| panic!("not today"))
        });
    let mut processors = store.start(program).await;
    store.add(&["milk"]).await;
    let (_, event, reason) = failed(processors.drain().await.unwrap_err());
    assert_eq!((event, reason.as_str()), (1, "the handler has panicked: not today"));
}

/// What panics where it is dropped, or written, unless that is what is going on already.
#[derive(Debug)]
struct Bad;

impl Drop for Bad {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "it is dropped");
    }
}

impl std::fmt::Display for Bad {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("it is written")
    }
}

impl std::error::Error for Bad {}

async fn a_panic_around_the_handler_is_a_failure_of_its_processor(store: TestStore) {
    let registration = |name: &str| Registration::reactor(name).handles::<TodoAdded>();
    let program = LocalProgram::new()
        .reactor(registration("error"), || {
            OnEvent(|_: &Delivery, _: &mut ReactorContext<'_>| Err(Box::new(Bad).into()))
        })
        .reactor(registration("made"), || -> OnEvent<fn(&Delivery, &mut ReactorContext<'_>) -> _> {
            panic!("it is made")
        })
        .reactor(registration("payload"), || {
            OnEvent(|_: &Delivery, _: &mut ReactorContext<'_>| std::panic::panic_any(Bad))
        });
    let (drop_at_first, notes) = (std::sync::atomic::AtomicBool::new(true), Notes::default());
    let program = program.projector(registration_of_dropped(), move || Dropped {
        bad: drop_at_first.swap(false, std::sync::atomic::Ordering::Relaxed).then(|| Bad),
    });
    let mut processors = store.start(noting(program, "zealous", &notes)).await;
    store.add(&["milk"]).await;
    for _ in 0..2 {
        let LocalError::Failed { processor, reason, .. } = processors.drain().await.unwrap_err() else {
            panic!("another error")
        };
        assert!(["dropped", "error", "made", "payload"].contains(&processor.as_str()), "{processor}");
        assert!(reason.starts_with("the handler has panicked: "), "{reason}");
    }
    assert_eq!(notes.take(), ["zealous milk"]);
    assert_eq!(processors.position("dropped").await.unwrap(), Some(1.into()));
}

fn registration_of_dropped() -> Registration {
    Registration::projector("dropped").handles::<TodoAdded>()
}

/// Fails once, so that it is dropped.
struct Dropped {
    bad: Option<Bad>,
}

#[async_trait]
impl Projector for Dropped {
    async fn project(&mut self, _: &[Delivery], _: &mut ProjectorContext<'_>) -> Result<(), HandlerError> {
        if self.bad.is_some() { Err("bad".into()) } else { Ok(()) }
    }
}
