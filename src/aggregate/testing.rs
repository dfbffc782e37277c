//! Tests of decisions: given what has happened, when a command comes, then this happens. No database, nothing async.
//!
//! ```
//! use espd::aggregate::testing::given;
//! # use espd::prelude::*;
//! # espd::event_set! { pub enum BookEvent { BookLent { to: String }, BookReturned {} } }
//! # #[derive(Debug, Clone, Default, PartialEq)] struct Book { lent_to: Option<String> }
//! # impl Aggregate for Book {
//! #     type Event = BookEvent;
//! #     fn evolve(&mut self, event: &BookEvent) {
//! #         self.lent_to = match event { BookEvent::BookLent(lent) => Some(lent.to.clone()), BookEvent::BookReturned(_) => None };
//! #     }
//! # }
//! # struct LendBook { to: String }
//! # #[derive(Debug, PartialEq)] struct IsLent;
//! # impl Decide<LendBook> for Book {
//! #     type Refusal = IsLent;
//! #     fn decide(&self, lend: &LendBook, _: &Context) -> Result<Vec<BookEvent>, IsLent> {
//! #         if self.lent_to.is_some() { return Err(IsLent) }
//! #         Ok(espd::events![BookLent { to: lend.to.clone() }])
//! #     }
//! # }
//!
//! given::<Book>(espd::events![BookLent { to: "Ada".into() }, BookReturned {}])
//!     .when(&LendBook { to: "Bob".into() })
//!     .then(espd::events![BookLent { to: "Bob".into() }])
//!     .when(&LendBook { to: "Eve".into() })
//!     .then_refused(&IsLent);
//! ```

mod stream;

use std::fmt::Debug;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::command_id::CommandId;
pub use stream::{Stream, stream};

use super::{Aggregate, Context, Decide};
use crate::event::{AggregateId, Event, EventSet, NewEvent, Position, Version};
use crate::store::check_json;

/// What has happened to an aggregate before the test.
///
/// # Panics
/// An event cannot be stored.
#[track_caller]
pub fn given<A: Aggregate>(events: impl IntoIterator<Item = A::Event>) -> Given<A> {
    let given = Given {
        state: A::default(),
        version: Version::NONE,
        aggregate_id: Uuid::nil().into(),
        now: DateTime::UNIX_EPOCH,
        command_id: Uuid::nil(),
        ids_asked: 0,
    };
    given.and(events)
}

/// An aggregate in a test. Its id and that of the commands are nil, and its time is 1970, unless said otherwise.
#[derive(Debug, Clone)]
pub struct Given<A> {
    state: A,
    version: Version,
    aggregate_id: AggregateId,
    now: DateTime<Utc>,
    command_id: Uuid,
    /// How many new ids decisions have asked for.
    ids_asked: u32,
}

impl<A: Aggregate> Given<A> {
    /// What has happened besides. The aggregate gets to see what would be read from a store.
    ///
    /// # Panics
    /// An event cannot be stored.
    #[must_use]
    #[track_caller]
    pub fn and(mut self, events: impl IntoIterator<Item = A::Event>) -> Self {
        for event in events {
            self.state.evolve(&read_again(&event, to_new(&event)));
            self.version = self.version.next();
        }
        self
    }

    /// The id of the aggregate.
    #[must_use]
    pub fn named(self, id: impl Into<AggregateId>) -> Self {
        Self { aggregate_id: id.into(), ..self }
    }

    /// The time of the commands that follow.
    #[must_use]
    pub fn at(self, now: DateTime<Utc>) -> Self {
        Self { now, ..self }
    }

    /// The id of the commands that follow, which new ids are made of.
    #[must_use]
    pub fn command_id(self, id: Uuid) -> Self {
        Self { command_id: id, ids_asked: 0, ..self }
    }

    /// The state. Chained after [`Outcome::then`], it is that after the events.
    pub fn state(&self) -> &A {
        &self.state
    }

    /// The aggregate decides about a command.
    pub fn when<C>(self, command: &C) -> Outcome<A, A::Refusal>
    where
        A: Decide<C>,
    {
        self.when_deciding(|state, context| state.decide(command, context))
    }

    /// A closure decides.
    pub fn when_deciding<R>(
        self,
        decision: impl FnOnce(&A, &Context) -> Result<Vec<A::Event>, R>,
    ) -> Outcome<A, R> {
        let command_id = CommandId::new(self.command_id);
        let context = Context::new(self.aggregate_id.clone(), self.version, self.now, command_id);
        let context = context.after_ids(self.ids_asked);
        let decided = decision(&self.state, &context);
        Outcome { given: Self { ids_asked: context.ids_asked(), ..self }, decided }
    }
}

/// What an aggregate has decided in a test.
#[derive(Debug)]
#[must_use = "say what is expected"]
pub struct Outcome<A: Aggregate, R> {
    given: Given<A>,
    decided: Result<Vec<A::Event>, R>,
}

impl<A: Aggregate, R: Debug> Outcome<A, R>
where
    A::Event: Debug + PartialEq,
{
    /// Expects these events, in this order.
    ///
    /// # Panics
    /// There are others; the message shows which differ. Or one of them cannot be stored, or not whole.
    #[track_caller]
    pub fn then(self, expected: impl IntoIterator<Item = A::Event>) -> Given<A> {
        let expected: Vec<A::Event> = expected.into_iter().collect();
        match self.decided {
            Ok(events) if events == expected => {
                require_kept(&events);
                self.given.and(events)
            }
            Ok(events) => panic!("other events than expected:\n{}", difference(&expected, &events)),
            Err(refusal) => panic!("refused: {refusal:?}\nexpected:\n{}", difference(&expected, &[])),
        }
    }

    /// Expects that nothing happens.
    ///
    /// # Panics
    /// Something does, or the command is refused.
    #[track_caller]
    pub fn then_nothing(self) -> Given<A> {
        self.then([])
    }

    /// Expects this refusal.
    ///
    /// # Panics
    /// The command is refused for another reason, or not at all.
    #[track_caller]
    pub fn then_refused(self, expected: &R) -> Given<A>
    where
        R: PartialEq,
    {
        let mut other = None;
        let given = self.then_refused_as(|refusal| {
            if refusal != expected {
                other = Some(format!("{refusal:?}"));
            }
        });
        // In the closure, the line of the test would not be known.
        if let Some(other) = other {
            panic!("refused for another reason: {other}\nexpected: {expected:?}");
        }
        given
    }

    /// Expects a refusal, and hands it over to be looked at.
    ///
    /// # Panics
    /// The command is not refused.
    #[track_caller]
    pub fn then_refused_as(self, look: impl FnOnce(&R)) -> Given<A> {
        match self.decided {
            Err(refusal) => look(&refusal),
            Ok(events) => panic!("not refused, but:\n{}", difference(&[], &events)),
        }
        self.given
    }

    /// Expects that the command is not refused, and hands over the state after its events.
    ///
    /// # Panics
    /// The command is refused.
    #[track_caller]
    pub fn then_state(self, look: impl FnOnce(&A)) -> Given<A> {
        match self.decided {
            Ok(events) => {
                require_kept(&events);
                let given = self.given.and(events);
                look(&given.state);
                given
            }
            Err(refusal) => panic!("refused: {refusal:?}"),
        }
    }

    /// What was decided, to be looked at by other means.
    ///
    /// # Errors
    /// The refusal.
    pub fn into_result(self) -> Result<Vec<A::Event>, R> {
        self.decided
    }
}

/// The event as a store would get it.
#[track_caller]
fn to_new<E: EventSet>(event: &E) -> NewEvent {
    // No closures: a panic in one is not at the line of the caller.
    let new = match event.to_new(Uuid::nil().into()) {
        Ok(new) => new,
        Err(error) => panic!("an event cannot be stored: {error}"),
    };
    if let Err(error) = check_json(&new) {
        panic!("{} cannot be stored: {error}", new.event_type);
    }
    new
}

/// The event as a store would have it read.
#[track_caller]
fn read_again<E: EventSet + Clone>(event: &E, stored: NewEvent) -> E {
    let NewEvent { uuid, aggregate_id, event_type, body, metadata, correlation_id, causation_id, .. } =
        stored;
    let (id, version, created_at) = (Position::new(1), Version::FIRST, DateTime::<Utc>::UNIX_EPOCH.into());
    let stored = Event {
        id,
        uuid,
        aggregate_id,
        event_type,
        version,
        body,
        metadata,
        correlation_id,
        causation_id,
        created_at,
    };
    match E::read(&stored) {
        Ok(read) => read.unwrap_or_else(|| event.clone()),
        Err(error) => panic!("{} cannot be read again: {error}", stored.event_type),
    }
}

/// Refuses events that have something which is not stored. One that is written otherwise when it was read, as a number with
/// many digits may be, is meant to be that.
#[track_caller]
fn require_kept<E: EventSet + Clone + Debug + PartialEq>(events: &[E]) {
    for event in events {
        let stored = to_new(event);
        let read = read_again(event, stored.clone());
        assert!(
            read == *event || to_new(&read).body.get() != stored.body.get(),
            "an event is another one when it is read again:\n{}",
            difference(std::slice::from_ref(event), std::slice::from_ref(&read))
        );
    }
}

/// The two lists side by side, one line for each event: `-` what was expected and is not there, `+` what is there instead.
pub(crate) fn difference<E: Debug + PartialEq>(expected: &[E], actual: &[E]) -> String {
    let mut lines = Vec::new();
    for place in 0..expected.len().max(actual.len()) {
        let (wanted, found) = (expected.get(place), actual.get(place));
        let number = place + 1;
        if wanted == found {
            lines.extend(found.map(|event| format!("  {number} {event:?}")));
            continue;
        }
        lines.extend(wanted.map(|event| format!("- {number} {event:?}")));
        lines.extend(found.map(|event| format!("+ {number} {event:?}")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, Location};
    use std::sync::Once;

    use super::*;

    #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Noted {
        text: String,
        #[serde(skip)]
        draft: u8,
        share: f64,
        by_bytes: std::collections::BTreeMap<Vec<u8>, u8>,
    }
    crate::event_type!(Noted);
    crate::event_set! { enum NoteEvent { Noted(Noted) } }

    #[derive(Debug, Clone, Default)]
    struct Notes(Vec<f64>);

    impl Aggregate for Notes {
        type Event = NoteEvent;

        fn evolve(&mut self, NoteEvent::Noted(noted): &NoteEvent) {
            self.0.push(noted.share);
        }
    }

    fn noted() -> Noted {
        Noted { text: "a".to_owned(), draft: 0, share: 1.0 / 3.0, by_bytes: [].into() }
    }

    fn decide(noted: Noted) -> Given<Notes> {
        let events = || vec![NoteEvent::Noted(noted.clone())];
        given::<Notes>([]).when_deciding(|_, _| Ok::<_, ()>(events())).then(events())
    }

    #[test]
    fn what_can_be_stored_passes() {
        assert_eq!(decide(noted()).state().0.len(), 1);
    }

    #[test]
    #[should_panic(expected = "an event cannot be stored: key must be a string")]
    fn an_event_that_cannot_be_written_is_told() {
        drop(decide(Noted { by_bytes: [(vec![1], 1)].into(), ..noted() }));
    }

    #[test]
    #[should_panic(
        expected = "an event is another one when it is read again:\n- 1 Noted(Noted { text: \"a\", draft: 7"
    )]
    fn an_event_that_is_not_stored_whole_is_told() {
        drop(decide(Noted { draft: 7, ..noted() }));
    }

    #[test]
    #[should_panic(
        expected = "Noted cannot be stored: the store cannot keep it: it contains a NUL character"
    )]
    fn an_event_with_a_text_that_no_store_keeps_is_told() {
        drop(given::<Notes>([NoteEvent::Noted(Noted { text: "\0".to_owned(), ..noted() })]));
    }

    /// The line at which it panics.
    fn line_of(panicking: impl FnOnce()) -> u32 {
        thread_local! { static LINE: Cell<u32> = const { Cell::new(0) } }
        static NOTES: Once = Once::new();
        NOTES.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                LINE.set(panic.location().filter(|at| at.file() == file!()).map_or(0, Location::line));
                before(panic);
            }));
        });
        std::panic::catch_unwind(AssertUnwindSafe(panicking)).unwrap_err();
        LINE.get()
    }

    #[test]
    fn whatever_fails_is_at_the_line_of_the_test() {
        let refused = || given::<Notes>([]).when_deciding(|_, _| Err::<Vec<NoteEvent>, _>(1));
        let lines = [
            (line_of(|| drop(refused().then_refused(&2))), line!()),
            (line_of(|| drop(refused().then([]))), line!()),
            (line_of(|| drop(decide_anew(Noted { draft: 7, ..noted() }).then_state(|_| ()))), line!()),
            (line_of(|| drop(given::<Notes>([unwritten()]))), line!()),
            (line_of(|| drop(decide_anew(noted()).then_refused(&()))), line!()),
        ];
        for (panicked, expected) in lines {
            assert_eq!(panicked, expected);
        }
    }

    fn unwritten() -> NoteEvent {
        NoteEvent::Noted(Noted { text: "\0".to_owned(), ..noted() })
    }

    fn decide_anew(noted: Noted) -> Outcome<Notes, ()> {
        given::<Notes>([]).when_deciding(move |_, _| Ok(vec![NoteEvent::Noted(noted.clone())]))
    }

    #[test]
    fn a_difference_shows_what_is_missing_and_what_is_there_instead() {
        assert_eq!(difference(&[1, 2, 3], &[1, 4]), "  1 1\n- 2 2\n+ 2 4\n- 3 3");
        assert_eq!(difference(&[], &[7]), "+ 1 7");
    }
}
