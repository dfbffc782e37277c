//! One reactor, one event, and what it does about it.

use espd::native::Effect;
use espd::prelude::*;
use espd::testing::{self, LocalError};
use serde::{Deserialize, Serialize};

use crate::scenario::TodoAdded;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Praised {
    title: String,
    seen: usize,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Mail {
    about: String,
}

espd::event_type!(Praised);

/// Praises what was added, remembers how much it has seen, and writes a mail.
#[derive(Default)]
struct Praising {
    seen: usize,
}

#[async_trait]
impl Reactor for Praising {
    async fn react(
        &mut self,
        event: &Delivery,
        context: &mut ReactorContext<'_>,
    ) -> Result<(), HandlerError> {
        let Some(TodoAdded { title }) = event.read()? else { return Ok(()) };
        if title == "nothing" {
            return Ok(());
        }
        if title == "wrong" {
            return Err("that is wrong".into());
        }
        self.seen += 1;
        context.after_commit(&Mail { about: title.clone() })?;
        context.emit(&event.aggregate_id, &Praised { title, seen: self.seen })
    }

    async fn after_commit(&mut self, _: &Effect) -> Result<(), HandlerError> {
        Err("a test has sent a mail".into())
    }
}

fn praising() -> testing::ReactorUnderTest {
    let registration = Registration::reactor("praising").handles::<TodoAdded>().emits::<Praised>();
    testing::reactor(registration.after_commit(), Praising::default)
}

fn added(title: &str) -> NewEvent {
    NewEvent::of(Uuid::new_v4(), &TodoAdded { title: title.into() }).unwrap()
}

#[tokio::test]
async fn a_reaction_is_what_one_event_leads_to() {
    let reaction = praising().given([added("a"), added("b")]).when(added("milk")).await.unwrap();
    reaction
        .then_emitted([Praised { title: "milk".into(), seen: 3 }])
        .then_effects([Mail { about: "milk".into() }]);
    praising().when(added("nothing")).await.unwrap().then_nothing();
}

#[tokio::test]
#[should_panic(
    expected = "other than expected:\n- 1 Praised { title: \"tea\", seen: 1 }\n+ 1 Praised { title: \"milk\", seen: 1 }"
)]
async fn another_reaction_than_expected_is_shown_beside_it() {
    let reaction = praising().when(added("milk")).await.unwrap();
    reaction.then_emitted([Praised { title: "tea".into(), seen: 1 }]);
}

#[tokio::test]
async fn the_error_of_a_reactor_names_the_event() {
    let failed = praising().when(added("wrong")).await.unwrap_err();
    assert!(matches!(failed, LocalError::Failed { .. }));
    assert_eq!(failed.to_string(), "praising: event 1 (TodoAdded): that is wrong");
}

/// Praises its own praise, and reminds at a time that is always the same.
struct Vain;

#[async_trait]
impl Reactor for Vain {
    async fn react(
        &mut self,
        event: &Delivery,
        context: &mut ReactorContext<'_>,
    ) -> Result<(), HandlerError> {
        let later = chrono::DateTime::<chrono::Utc>::MAX_UTC;
        context.emit_at(
            later,
            Some("later"),
            &event.aggregate_id,
            &Praised { title: "later".into(), seen: 0 },
        )?;
        context.after_commit(&Mail { about: event.event_type.clone() })?;
        context.emit(&event.aggregate_id, &Praised { title: "once".into(), seen: 1 })
    }

    async fn after_commit(&mut self, _: &Effect) -> Result<(), HandlerError> {
        Ok(())
    }
}

#[tokio::test]
async fn a_reactor_is_shown_one_event_and_not_what_it_emits() {
    let vain = Registration::reactor("vain").handles::<TodoAdded>().emits::<Praised>().after_commit();
    let both = vain.clone().handles::<Praised>();
    let reaction = testing::reactor(both, || Vain).when(added("milk")).await.unwrap();
    assert_eq!(reaction.later().len(), 1);
    reaction
        .then_emitted([Praised { title: "once".into(), seen: 1 }])
        .then_effects([Mail { about: "TodoAdded".into() }]);
    // The same again, in the place of what was emitted for later before.
    let aggregate = Uuid::new_v4();
    let todo = || NewEvent::of(aggregate, &TodoAdded { title: "milk".into() }).unwrap();
    let reaction = testing::reactor(vain, || Vain).given([todo()]).when(todo()).await.unwrap();
    assert_eq!(reaction.later().len(), 1);
}

#[tokio::test]
async fn the_event_that_was_given_is_no_other_that_is_shown() {
    let event = added("milk");
    let unfit = praising().given([event.clone()]).when(event).await.unwrap_err();
    assert!(
        matches!(&unfit, LocalError::Unfit { .. }) && unfit.to_string().contains("make another"),
        "{unfit}"
    );
}
