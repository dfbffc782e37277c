//! Sets of event types: what one aggregate, or one reader, knows as one Rust enum.

use super::{AggregateId, Event, NewEvent, PersonalFields};

/// Several types of events as one Rust type: an enum with one variant for each, whose content is an
/// [`EventType`](super::EventType).
///
/// [`event_set!`](crate::event_set!) declares one.
pub trait EventSet: Sized {
    /// The names of the types in the store, those that they had before included.
    fn names() -> Vec<&'static str>;

    /// Reads an event. Returns `None` if it is of no type of the set.
    ///
    /// # Errors
    /// The event is of a type of the set, but its body is not of the shape of that type.
    fn read(event: &Event) -> Result<Option<Self>, serde_json::Error>;

    /// The types that have personal fields, by the name under which they are written. Unless it is said, there are none.
    fn personal() -> Vec<(&'static str, &'static [PersonalFields])> {
        Vec::new()
    }

    /// The event of an aggregate, to be appended. [`NewEvent::of`] makes it.
    ///
    /// # Errors
    /// The body cannot be written as JSON, or not be read again.
    fn to_new(&self, aggregate_id: AggregateId) -> Result<NewEvent, serde_json::Error>;
}

/// Declares an enum of event types, an [`EventSet`](crate::event::EventSet).
///
/// A variant with fields in braces declares the event type as well: a struct of that name, which is an
/// [`EventType`](crate::event::EventType), with the visibility of the enum. A variant with a type in parentheses takes one
/// that exists. The crate that calls the macro needs `serde` with its feature `derive`.
///
/// ```
/// use espd::event::{Event, EventSet, EventType};
///
/// espd::event_set! {
///     /// What happens to a book.
///     pub enum BookEvent {
///         /// Somebody has taken it home.
///         BookLent { to: String } = "book.lent" was ["BookTaken"],
///         /// It is back.
///         BookReturned {},
///         /// Declared elsewhere.
///         BookLost(BookLost),
///     }
/// }
///
/// # #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
/// # pub struct BookLost {}
/// # espd::event_type!(BookLost);
/// # #[allow(dead_code)]
/// # fn read(event: &Event) -> Result<(), serde_json::Error> {
/// match BookEvent::read(event)? {
///     Some(BookEvent::BookLent(lent)) => println!("{} has it", lent.to),
///     Some(other) => println!("{other:?}"),
///     None => println!("{} is no event of a book", event.event_type),
/// }
/// # Ok(()) }
/// assert_eq!(BookLent::NAME, "book.lent");
/// assert_eq!(BookEvent::names(), ["book.lent", "BookTaken", "BookReturned", "BookLost"]);
/// let event: BookEvent = BookLent { to: "Ada".into() }.into();
/// ```
///
/// Behind the names, `personal` marks fields that are about a person, as [`event_type!`](crate::event_type!) does:
///
/// ```
/// use espd::event::EventSet;
///
/// espd::event_set! {
///     pub enum ReaderEvent {
///         ReaderJoined { reader: String, name: String } = "reader.joined" personal ["/name"] of "/reader",
///         ReaderLeft {},
///     }
/// }
/// assert_eq!(ReaderEvent::personal()[0].0, "reader.joined");
/// ```
///
/// No two types of a set share a name, also not one that a type had before: the event would be read as the first of them.
///
/// ```compile_fail
/// espd::event_set! { pub enum BookEvent { BookLent {} = "lent", BookTaken {} = "taken" was ["lent"] } }
/// ```
///
/// Enum and structs are `Debug`, `Clone` and `PartialEq`; attributes are passed on: those of a variant with fields to its struct.
#[macro_export]
macro_rules! event_set {
    (
        @each [$($head:tt)*] [$($done:tt)*]
        $(#[$meta:meta])* $variant:ident { $($(#[$of_field:meta])* $field:ident : $type:ty),* $(,)? }
        $(= $name:literal)? $(was [$($was:literal),* $(,)?])?
        $(personal [$($personal:literal),* $(,)?] of $subject:literal)* $(, $($rest:tt)*)?
    ) => {
        $crate::event_set!(
            @struct [$($head)*] $(#[$meta])* $variant { $($(#[$of_field])* $field: $type),* }
        );
        $crate::event_type!(
            $variant $(, name = $name)? $(, was = [$($was),*])? $(, personal = [$($personal),*] of $subject)*
        );
        $crate::event_set!(@each [$($head)*] [$($done)* { $variant($variant) }] $($($rest)*)?);
    };
    (
        @each [$($head:tt)*] [$($done:tt)*]
        $(#[$meta:meta])* $variant:ident($type:ty) $(, $($rest:tt)*)?
    ) => {
        $crate::event_set!(@each [$($head)*] [$($done)* { $(#[$meta])* $variant($type) }] $($($rest)*)?);
    };
    (
        @struct [{ $($outer:tt)* } $visibility:vis $set:ident]
        $(#[$meta:meta])* $variant:ident { $($(#[$of_field:meta])* $field:ident : $type:ty),* }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, ::serde::Serialize, ::serde::Deserialize)]
        #[allow(missing_docs)]
        $visibility struct $variant { $($(#[$of_field])* $visibility $field: $type),* }
    };
    (
        @each [{ $($outer:tt)* } $visibility:vis $set:ident]
        [$({ $(#[$meta:meta])* $variant:ident($type:ty) })*]
    ) => {
        $($outer)*
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs, clippy::enum_variant_names)]
        $visibility enum $set { $($(#[$meta])* $variant($type)),* }

        $(impl ::core::convert::From<$type> for $set {
            fn from(event: $type) -> Self {
                Self::$variant(event)
            }
        })*

        const _: () = $crate::event::naming::distinct(&[$((
            <$type as $crate::event::EventType>::NAME,
            <$type as $crate::event::EventType>::WAS,
        )),*]);

        impl $crate::event::EventSet for $set {
            fn names() -> ::std::vec::Vec<&'static str> {
                let mut names = ::std::vec::Vec::new();
                $(
                    names.push(<$type as $crate::event::EventType>::NAME);
                    names.extend_from_slice(<$type as $crate::event::EventType>::WAS);
                )*
                names
            }

            fn personal()
            -> ::std::vec::Vec<(&'static str, &'static [$crate::event::PersonalFields])> {
                let mut types: ::std::vec::Vec<(&'static str, &'static [$crate::event::PersonalFields])> = ::std::vec![$((
                    <$type as $crate::event::EventType>::NAME,
                    <$type as $crate::event::EventType>::PERSONAL,
                )),*];
                types.retain(|(_, personal)| !personal.is_empty());
                types
            }

            fn read(
                event: &$crate::event::Event,
            ) -> ::core::result::Result<::core::option::Option<Self>, $crate::event::JsonError> {
                $(if let ::core::option::Option::Some(body) = event.read::<$type>()? {
                    return ::core::result::Result::Ok(::core::option::Option::Some(Self::$variant(body)));
                })*
                ::core::result::Result::Ok(::core::option::Option::None)
            }

            fn to_new(
                &self,
                aggregate_id: $crate::event::AggregateId,
            ) -> ::core::result::Result<$crate::event::NewEvent, $crate::event::JsonError> {
                match self {
                    $(Self::$variant(body) => $crate::event::NewEvent::of(aggregate_id, body),)*
                }
            }
        }
    };
    ($(#[$meta:meta])* $visibility:vis enum $set:ident { $($variants:tt)* }) => {
        $crate::event_set!(@each [{ $(#[$meta])* } $visibility $set] [] $($variants)*);
    };
}

/// The events, each turned into the enum that is wanted: `events![BookLent { to }, BookReturned {}]`.
///
/// ```
/// # espd::event_set! { pub enum BookEvent { BookLent { to: String }, BookReturned {} } }
/// let events: Vec<BookEvent> = espd::events![BookLent { to: "Ada".into() }, BookReturned {}];
/// ```
#[macro_export]
macro_rules! events {
    ($($event:expr),* $(,)?) => { ::std::vec![$(::core::convert::Into::into($event)),*] };
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::event::EventType;

    #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Lost {}
    crate::event_type!(Lost);

    crate::event_set! {
        /// Documented.
        enum Mixed {
            /// With fields.
            Lent { to: String, #[serde(default)] days: u32 } = "book.lent" was ["Taken", "Given"],
            /// Existing.
            Lost(Lost),
            Returned {},
            Joined { reader: String, name: String, friend: String, her: String } was ["Came"]
                personal ["/name"] of "/reader" personal ["/her"] of "/friend",
        }
    }

    #[test]
    fn personal_fields_are_those_of_the_types() {
        let fields = |fields: &'static [&'static str], subject| PersonalFields { fields, subject };
        let personal = [fields(&["/name"], "/reader"), fields(&["/her"], "/friend")];
        assert_eq!(Mixed::personal(), [("Joined", &personal[..])]);
        assert_eq!(Joined::WAS, ["Came"]);
    }

    #[test]
    fn a_set_writes_and_reads_its_events() {
        assert_eq!(Mixed::names(), ["book.lent", "Taken", "Given", "Lost", "Returned", "Joined", "Came"]);
        let events: Vec<Mixed> = crate::events![Lent { to: "Ada".into(), days: 3 }, Lost {}, Returned {}];
        let names = events.iter().map(|event| event.to_new(Uuid::from_u128(7).into()).unwrap().event_type);
        assert_eq!(names.collect::<Vec<_>>(), [Lent::NAME, "Lost", "Returned"]);
    }

    #[test]
    fn an_event_is_read_under_its_old_name_and_a_stranger_is_none() {
        let stored = |event_type: &str, body: &str| Event {
            id: 1.into(),
            uuid: Uuid::from_u128(1),
            aggregate_id: Uuid::from_u128(7).into(),
            event_type: event_type.into(),
            version: 1.into(),
            body: serde_json::from_str(body).unwrap(),
            metadata: serde_json::from_str("{}").unwrap(),
            correlation_id: None,
            causation_id: None,
            created_at: chrono::Utc::now().into(),
        };
        let lent = Mixed::read(&stored("Given", r#"{"to": "Ada"}"#)).unwrap();
        assert_eq!(lent, Some(Mixed::Lent(Lent { to: "Ada".into(), days: 0 })));
        assert_eq!(Mixed::read(&stored("Other", "{}")).unwrap(), None);
        assert!(Mixed::read(&stored("book.lent", "{}")).is_err());
    }
}
