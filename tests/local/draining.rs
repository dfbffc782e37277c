//! What a drain does when nothing fails.

use std::collections::BTreeMap;
use std::time::Duration;

use espd::native::Effect;
use espd::prelude::*;
use espd::store::{BodyCodec, Upcast};
use espd::testing::LocalProgram;
use serde_json::value::{RawValue, to_raw_value};

use crate::scenario::{Notes, OnEvent, ReminderSent, TestStore, TodoAdded, noting, on_each_store, title};

on_each_store! {
    several_processors_go_on_until_none_has_anything_to_do
    a_second_drain_handles_what_is_new_only
    what_is_emitted_for_later_is_listed_and_comes_in_time
    what_follows_from_what_is_emitted_for_later_comes_at_its_own_time
    batches_are_as_large_as_is_said_and_in_order
    a_reactor_begins_with_what_comes_and_may_begin_elsewhere
    what_is_to_be_done_after_a_commit_is_done_once
    old_events_are_read_as_new_ones
    the_clock_goes_forward_to_the_end_of_time
}

const DAY: Duration = Duration::from_secs(86_400);

/// A reactor that emits a reminder for each todo, as `emit` says.
fn reminding(
    program: LocalProgram,
    emit: impl Fn(&Delivery, ReminderSent, &mut ReactorContext<'_>) -> Result<(), HandlerError>
    + Clone
    + Send
    + Sync
    + 'static,
) -> LocalProgram {
    let registration = Registration::reactor("reminders").handles::<TodoAdded>().emits::<ReminderSent>();
    program.reactor(registration, move || {
        let emit = emit.clone();
        OnEvent(move |event: &Delivery, context: &mut ReactorContext<'_>| {
            emit(event, ReminderSent { title: title(event) }, context)
        })
    })
}

async fn several_processors_go_on_until_none_has_anything_to_do(store: TestStore) {
    let notes = Notes::default();
    let program = noting(LocalProgram::new(), "titles", &notes);
    let program = noting(program, "also_titles", &notes);
    let program = reminding(program, |event, reminder, context| context.emit(&event.aggregate_id, &reminder));
    let mut processors = store.start(program).await;
    store.add(&["milk", "bread"]).await;

    let drained = processors.drain().await.unwrap();
    let handled: Vec<(&str, usize)> =
        drained.handled.iter().map(|(name, count)| (name.as_str(), *count)).collect();
    assert_eq!(handled, [("also_titles", 4), ("reminders", 2), ("titles", 4)]);
    assert_eq!((drained.position, drained.later.len(), drained.set_aside.len()), (4.into(), 0, 0));
    assert_eq!(
        notes.take(),
        [
            "also_titles milk",
            "also_titles bread",
            "titles milk",
            "titles bread",
            "titles milk",
            "titles bread",
            "also_titles milk",
            "also_titles bread"
        ]
    );
    // What was emitted is as the daemon has it.
    let all = store.all().await;
    let (source, emitted) = (&all[0], &all[2]);
    assert_eq!((emitted.event_type.as_str(), &emitted.aggregate_id), ("ReminderSent", &source.aggregate_id));
    assert_eq!((emitted.causation_id, emitted.correlation_id), (Some(source.uuid), Some(source.uuid)));
    assert!(emitted.metadata.get().contains("reminders"), "{}", emitted.metadata);
}

async fn a_second_drain_handles_what_is_new_only(store: TestStore) {
    let notes = Notes::default();
    let program = reminding(noting(LocalProgram::new(), "titles", &notes), |event, reminder, context| {
        context.emit(&event.aggregate_id, &reminder)
    });
    let mut processors = store.start(program).await;
    store.add(&["milk"]).await;
    processors.drain().await.unwrap();
    assert_eq!(notes.take().len(), 2);

    let drained = processors.drain().await.unwrap();
    assert_eq!((drained.handled, drained.position), (BTreeMap::new(), 2.into()));
    store.add(&["bread"]).await;
    processors.drain().await.unwrap();
    assert_eq!(notes.take(), ["titles bread", "titles bread"]);
    assert_eq!(processors.position("reminders").await.unwrap(), Some(4.into()));
    assert_eq!(processors.position("unknown").await.unwrap(), None);
}

async fn what_is_emitted_for_later_is_listed_and_comes_in_time(store: TestStore) {
    let program = reminding(LocalProgram::new(), |event, reminder, context| match reminder.title.as_str() {
        "forget it" => {
            context.cancel("milk");
            Ok(())
        }
        title => {
            let (days, title) = title.split_once(' ').unwrap();
            let after = DAY * days.parse::<u32>().unwrap();
            context.emit_after(after, Some(title), &event.aggregate_id, &reminder)
        }
    });
    let mut processors = store.start(program).await;
    store.add(&["3 bread", "1 milk", "2 milk", "1 eggs"]).await;

    let later = processors.drain().await.unwrap().later;
    let listed: Vec<&str> = later.iter().map(|one| one.key.as_deref().unwrap()).collect();
    assert_eq!(listed, ["eggs", "milk", "bread"], "a key is there once, and the next comes first");
    assert_eq!((later[0].reactor.as_str(), later[0].event_type.as_str()), ("reminders", "ReminderSent"));

    let before = processors.now();
    let drained = processors.advance(DAY + Duration::from_secs(60)).await.unwrap();
    assert_eq!((drained.position, drained.later.len()), (5.into(), 2));
    let eggs = store.all().await.pop().unwrap();
    assert!(eggs.body.get().contains("1 eggs") && eggs.created_at >= before + DAY / 2, "{eggs:?}");

    store.add(&["forget it"]).await;
    let drained = processors.advance(9 * DAY).await.unwrap();
    assert_eq!((drained.position, drained.later.len()), (7.into(), 0));
    assert!(store.all().await.pop().unwrap().body.get().contains("3 bread"));
}

async fn what_follows_from_what_is_emitted_for_later_comes_at_its_own_time(store: TestStore) {
    let daily = Registration::reactor("daily")
        .handles::<TodoAdded>()
        .handles::<ReminderSent>()
        .emits::<ReminderSent>();
    let program = LocalProgram::new().reactor(daily, || {
        OnEvent(|event: &Delivery, context: &mut ReactorContext<'_>| {
            context.emit_after(DAY, None, &event.aggregate_id, &ReminderSent { title: "daily".into() })
        })
    });
    let mut processors = store.start(program).await;
    store.add(&["milk"]).await;
    let drained = processors.advance(7 * DAY + DAY / 2).await.unwrap();
    assert_eq!((drained.position, drained.later.len(), drained.handled["daily"]), (8.into(), 1, 8));
}

async fn batches_are_as_large_as_is_said_and_in_order(store: TestStore) {
    struct Sizes(Notes);

    #[async_trait]
    impl Projector for Sizes {
        async fn project(
            &mut self,
            events: &[Delivery],
            context: &mut ProjectorContext<'_>,
        ) -> Result<(), HandlerError> {
            let titles: Vec<String> = events.iter().map(title).collect();
            let history = context.read_aggregate(&events[0].aggregate_id, Version::MAX).await?;
            self.0.add(format!("{} {}", titles.join("+"), history.len()));
            Ok(())
        }
    }

    let (notes, made) = (Notes::default(), Notes::default());
    let sizes = notes.clone();
    let registration = Registration::projector("sizes").handles::<TodoAdded>().batch_size(2);
    let program = LocalProgram::new().projector(registration, move || {
        made.add("made");
        Sizes(sizes.clone())
    });
    let mut processors = store.start(program).await;
    store.add(&["a", "b", "c", "d", "e"]).await;
    processors.drain().await.unwrap();
    assert_eq!(notes.take(), ["a+b 1", "c+d 1", "e 1"]);
}

async fn a_reactor_begins_with_what_comes_and_may_begin_elsewhere(store: TestStore) {
    let notes = Notes::default();
    store.add(&["before"]).await;
    let reactor = |program: LocalProgram, name: &'static str, start: Option<Start>| {
        let notes = notes.clone();
        let registration = Registration::reactor(name).handles::<TodoAdded>();
        let registration = start.map_or(registration.clone(), |start| registration.start(start));
        program.reactor(registration, move || {
            let notes = notes.clone();
            OnEvent(move |event: &Delivery, _: &mut ReactorContext<'_>| {
                notes.add(format!("{name} {}", title(event)));
                Ok(())
            })
        })
    };
    let program = reactor(LocalProgram::new(), "now", None);
    let program = reactor(program, "beginning", Some(Start::Beginning));
    let program = reactor(program, "unwanted", Some(Start::Beginning));
    let mut processors = store.start(program.only(["now", "beginning"])).await;
    store.add(&["after"]).await;
    processors.drain().await.unwrap();
    assert_eq!(notes.take(), ["beginning before", "beginning after", "now after"]);
}

async fn what_is_to_be_done_after_a_commit_is_done_once(store: TestStore) {
    struct Mails(Notes);

    #[async_trait]
    impl Reactor for Mails {
        async fn react(
            &mut self,
            event: &Delivery,
            context: &mut ReactorContext<'_>,
        ) -> Result<(), HandlerError> {
            context.after_commit(&title(event))
        }

        async fn after_commit(&mut self, effect: &Effect) -> Result<(), HandlerError> {
            self.0.add(format!("{} {}", effect.read::<String>()?, effect.attempt));
            if effect.attempt == 1 && effect.event_id == 2 { Err("no network".into()) } else { Ok(()) }
        }
    }

    let notes = Notes::default();
    let mails = notes.clone();
    let registration = Registration::reactor("mails").handles::<TodoAdded>().after_commit();
    let program = LocalProgram::new().reactor(registration, move || Mails(mails.clone()));
    let mut processors = store.start(program).await;
    store.add(&["milk", "bread"]).await;
    let error = processors.drain().await.unwrap_err().to_string();
    assert!(error.contains("mails: after the commit of event 2 (TodoAdded): no network"), "{error}");
    processors.drain().await.unwrap();
    processors.drain().await.unwrap();
    assert_eq!(notes.take(), ["milk 1", "bread 1", "bread 2"]);
}

/// Stores bodies backward.
#[derive(Debug, Clone, Copy)]
struct Reversing;

fn reversed(body: &RawValue) -> Result<Box<RawValue>, Box<dyn std::error::Error + Send + Sync>> {
    let text: String = serde_json::from_str(body.get())?;
    Ok(RawValue::from_string(text.chars().rev().collect())?)
}

impl BodyCodec for Reversing {
    fn encode(&self, event: &NewEvent) -> Result<Box<RawValue>, Box<dyn std::error::Error + Send + Sync>> {
        let text: String = event.body.get().chars().rev().collect();
        Ok(to_raw_value(&text)?)
    }

    fn decode(&self, event: &Event) -> Result<Box<RawValue>, Box<dyn std::error::Error + Send + Sync>> {
        reversed(&event.body)
    }
}

async fn old_events_are_read_as_new_ones(store: TestStore) {
    let notes = Notes::default();
    let upcast = Upcast::of(["TodoCreated"])
        .as_type("TodoAdded")
        .body(|label: String| Ok::<_, String>(TodoAdded { title: label }));
    let mut processors = store.start(noting(LocalProgram::new(), "titles", &notes).upcast(upcast)).await;
    let old = NewEvent::new(Uuid::new_v4(), "TodoCreated", to_raw_value("milk").unwrap());
    store.events.append(&[old]).await.unwrap();
    processors.drain().await.unwrap();
    assert_eq!(notes.take(), ["titles milk"]);
}

#[tokio::test]
async fn bodies_are_decoded_and_what_is_emitted_is_encoded() {
    let store = MemoryEventStore::new().with_codec(Reversing);
    let registration =
        Registration::reactor("reminders").handles::<TodoAdded>().emits::<ReminderSent>().codec(Reversing);
    let program = LocalProgram::new().reactor(registration, || {
        OnEvent(|event: &Delivery, context: &mut ReactorContext<'_>| {
            context.emit(&event.aggregate_id, &ReminderSent { title: title(event) })
        })
    });
    let mut processors = program.start(&store).await.unwrap();
    store
        .append(&[NewEvent::of(Uuid::new_v4(), &TodoAdded { title: "milk".into() }).unwrap()])
        .await
        .unwrap();
    processors.drain().await.unwrap();
    let all = store.read_after(Position::START, None, None, 9).await.unwrap();
    assert_eq!(all[1].body.get(), r#"{"title":"milk"}"#);
}

async fn the_clock_goes_forward_to_the_end_of_time(store: TestStore) {
    let program = reminding(LocalProgram::new(), |event, reminder, context| {
        context.emit_after(DAY, None, &event.aggregate_id, &reminder)
    });
    let mut processors = store.start(program).await;
    processors.advance(DAY).await.unwrap();
    let before = processors.now();
    processors.advance(Duration::MAX).await.unwrap();
    assert!(processors.now() > before + Duration::from_secs(1_000 * 365 * 86_400));
    // What would come after that never comes.
    store.add(&["milk"]).await;
    let drained = processors.advance(Duration::MAX).await.unwrap();
    assert_eq!((drained.position, drained.later.len()), (1.into(), 1));
}
