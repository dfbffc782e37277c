//! Rust types for the bodies of events, and the names that they have in the store.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::readable::to_readable_json;
use super::{AggregateId, Event, NewEvent};

/// The body of one type of event.
///
/// [`event_type!`](crate::event_type!) implements it, with a name that is made from the type's own.
///
/// Events of an older shape can be read as this type with an `[[upcast]]` in the configuration, or with the attributes of
/// serde: `#[serde(default)]`, `#[serde(alias = "…")]`.
pub trait EventType: Serialize + DeserializeOwned {
    /// The name of the event type in the store.
    const NAME: &'static str;

    /// Names that the type had before. Events that are stored under them are read as this type, and handled where it is; new
    /// ones are written under [`Self::NAME`] only.
    const WAS: &'static [&'static str] = &[];

    /// The fields that are about a person, for [`PersonalData`](crate::personal_data::PersonalData) to seal. A store whose codec does not
    /// seal them refuses the event.
    const PERSONAL: &'static [PersonalFields] = &[];

    /// Whether an event of this name is of this type.
    fn is_named(name: &str) -> bool {
        name == Self::NAME || Self::WAS.contains(&name)
    }
}

/// Fields of an event type that are about the same subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PersonalFields {
    /// JSON pointers to the fields; `*` stands for every element of an array.
    pub fields: &'static [&'static str],
    /// The JSON pointer to the id of the subject, or `aggregate_id`.
    pub subject: &'static str,
}

impl NewEvent {
    /// An event of type `E`, otherwise as [`Self::new`].
    ///
    /// # Errors
    /// The body cannot be written as JSON, or what is written cannot be read as `E` again, which would show when it is too late: a number
    /// that is none (`f64::NAN`) is written as `null`. Where `null` can be read, as of an `Option<f64>`, it is `None` from then on.
    pub fn of<E: EventType>(
        aggregate_id: impl Into<AggregateId>,
        body: &E,
    ) -> Result<Self, serde_json::Error> {
        let event = Self::new(aggregate_id, E::NAME, to_readable_json(body)?);
        Ok(Self { personal: E::PERSONAL, ..event })
    }
}

impl Event {
    /// Reads the body as `E`. Returns `None` if the event is of another type.
    ///
    /// # Errors
    /// The event is of this type, but its body is not of this shape.
    pub fn read<E: EventType>(&self) -> Result<Option<E>, serde_json::Error> {
        E::is_named(&self.event_type).then(|| serde_json::from_str(self.body.get())).transpose()
    }
}

/// Implements [`EventType`](crate::event::EventType) for a type, and says what its events are called.
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # use espd::event::EventType;
/// #[derive(Serialize, Deserialize)]
/// struct TodoAdded { title: String }
/// #[derive(Serialize, Deserialize)]
/// struct TodoCompleted {}
/// #[derive(Serialize, Deserialize)]
/// struct TodoAbandoned {}
///
/// espd::event_type!(TodoAdded, was = ["TodoCreated"]);
/// espd::event_type!(TodoCompleted, naming = underscored);
/// espd::event_type!(TodoAbandoned, name = "todo.abandoned");
///
/// assert_eq!(TodoAdded::NAME, "TodoAdded");
/// assert!(TodoAdded::is_named("TodoCreated"));
/// assert_eq!(TodoCompleted::NAME, "todo_completed");
/// ```
///
/// | | the name |
/// |---|---|
/// | nothing | that of the type: `TodoAdded` |
/// | `name = "todo.added"` | this one |
/// | `naming = path` | the path of the type: `shop::todos::TodoAdded`; it changes when the type moves |
/// | `naming = underscored` | words in lower case: `todo_added`, `http_received` |
/// | `without = "shop::"` | the same without this prefix, which it must have: with `naming = path` `todos::TodoAdded` |
/// | `was = ["TodoCreated"]` | names that the type had before: old events are read, new ones get the new name |
///
/// Behind them, `personal = ["/name"] of "/customer_id"` marks fields that are about a person, once for each subject: see
/// [`PersonalFields`](crate::event::PersonalFields).
///
/// They stand in this order.
#[macro_export]
macro_rules! event_type {
    (@text plain $type:ident) => { ::core::stringify!($type) };
    (@text underscored $type:ident) => { ::core::stringify!($type) };
    (@text path $type:ident) => { ::core::concat!(::core::module_path!(), "::", ::core::stringify!($type)) };
    (@write underscored $text:expr) => {{
        const TEXT: &str = $text;
        const BYTES: [u8; $crate::event::naming::underscored_length(TEXT)] =
            $crate::event::naming::underscored(TEXT);
        $crate::event::naming::text(&BYTES)
    }};
    (@write $naming:ident $text:expr) => { $text };
    (@name $type:ident name $name:literal) => { $name };
    (@name $type:ident) => { $crate::event_type!(@name $type naming plain without "") };
    (@name $type:ident without $prefix:literal) => {
        $crate::event_type!(@name $type naming plain without $prefix)
    };
    (@name $type:ident naming $naming:ident) => { $crate::event_type!(@name $type naming $naming without "") };
    (@name $type:ident naming $naming:ident without $prefix:literal) => {
        $crate::event_type!(@write $naming
            $crate::event::naming::without($crate::event_type!(@text $naming $type), $prefix))
    };
    (
        $type:ident $(, name = $name:literal)? $(, naming = $naming:ident)? $(, without = $prefix:literal)?
        $(, was = [$($was:literal),* $(,)?])?
        $(, personal = [$($personal:literal),* $(,)?] of $subject:literal)* $(,)?
    ) => {
        impl $crate::event::EventType for $type {
            const NAME: &'static str =
                $crate::event_type!(@name $type $(name $name)? $(naming $naming)? $(without $prefix)?);
            const WAS: &'static [&'static str] = &[$($($was),*)?];
            const PERSONAL: &'static [$crate::event::PersonalFields] =
                &[$($crate::event::PersonalFields { fields: &[$($personal),*], subject: $subject }),*];
        }
    };
}

/// What [`event_type!`](crate::event_type!) makes names with, at compile time.
#[doc(hidden)]
pub mod naming {
    /// The name without a prefix, which it must have.
    pub const fn without(name: &'static str, prefix: &str) -> &'static str {
        let (long, short) = (name.as_bytes(), prefix.as_bytes());
        let mut at = 0;
        while at < short.len() {
            assert!(at < long.len() && long[at] == short[at], "the name of the event type does not begin so");
            at += 1;
        }
        let (_, rest) = name.split_at(short.len());
        assert!(!rest.is_empty(), "nothing would be left of the name of the event type");
        rest
    }

    /// Whether a word begins at this byte, behind another one.
    const fn begins_word(name: &[u8], at: usize) -> bool {
        if at == 0 || !name[at].is_ascii_uppercase() || name[at - 1] == b'_' {
            return false;
        }
        !name[at - 1].is_ascii_uppercase() || at + 1 < name.len() && name[at + 1].is_ascii_lowercase()
    }

    /// How many bytes [`underscored`] makes.
    pub const fn underscored_length(name: &str) -> usize {
        let name = name.as_bytes();
        let (mut at, mut length) = (0, name.len());
        while at < name.len() {
            length += begins_word(name, at) as usize;
            at += 1;
        }
        length
    }

    /// The words of the name in lower case, with underscores between them.
    pub const fn underscored<const LENGTH: usize>(name: &str) -> [u8; LENGTH] {
        let name = name.as_bytes();
        let (mut bytes, mut at, mut to) = ([b'_'; LENGTH], 0, 0);
        while at < name.len() {
            to += begins_word(name, at) as usize;
            bytes[to] = name[at].to_ascii_lowercase();
            (at, to) = (at + 1, to + 1);
        }
        bytes
    }

    /// A type of a set: the name that it has, and those that it had.
    type Names<'n> = (&'n str, &'n [&'n str]);

    /// Requires that no two types of a set share a name.
    pub const fn distinct(types: &[Names<'_>]) {
        let mut one = 0;
        while one < types.len() {
            let mut two = one + 1;
            while two < types.len() {
                assert!(!share_a_name(types[one], types[two]), "two types of the event set share a name");
                two += 1;
            }
            one += 1;
        }
    }

    /// Whether two types share a name.
    const fn share_a_name(one: Names<'_>, two: Names<'_>) -> bool {
        let mut at = 0;
        while at <= one.1.len() {
            let mut other = 0;
            while other <= two.1.len() {
                if is_same(name(one, at), name(two, other)) {
                    return true;
                }
                other += 1;
            }
            at += 1;
        }
        false
    }

    const fn name<'n>((name, was): Names<'n>, at: usize) -> &'n str {
        if at == 0 { name } else { was[at - 1] }
    }

    const fn is_same(one: &str, two: &str) -> bool {
        let (one, two) = (one.as_bytes(), two.as_bytes());
        let mut at = 0;
        while at < one.len() && at < two.len() && one[at] == two[at] {
            at += 1;
        }
        one.len() == two.len() && at == one.len()
    }

    /// The bytes as text.
    pub const fn text(bytes: &'static [u8]) -> &'static str {
        match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(_) => panic!("lower case keeps UTF-8"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use uuid::Uuid;

    use super::*;

    macro_rules! named {
        ($($type:ident $name:literal ($($rest:tt)*))*) => {
            $(#[derive(Serialize, Deserialize)] struct $type {} event_type!($type $($rest)*);)*
            #[test]
            fn a_name_is_made_as_its_strategy_says() {
                $(assert_eq!($type::NAME, $name);)*
            }
        };
    }

    named! {
        Plain "Plain" ()
        Named "todo.added" (, name = "todo.added")
        OfPath "espd::event::event_type::tests::OfPath" (, naming = path)
        OfShortPath "tests::OfShortPath" (, naming = path, without = "espd::event::event_type::")
        TodoAdded "todo_added" (, naming = underscored)
        HTTPReceived2Times "http_received2_times" (, naming = underscored)
        TodoDone "done" (, naming = underscored, without = "Todo")
        TodoGone "Gone" (, without = "Todo", was = ["TodoLost"])
        Renamed "New" (, name = "New", was = ["Old", "Older"],)
    }

    #[test]
    fn types_that_share_a_name_are_found() {
        let refused =
            |types: &[(&str, &[&str])]| std::panic::catch_unwind(|| naming::distinct(types)).is_err();
        assert!(!refused(&[("a", &["b", "c"]), ("ab", &["bc", ""]), ("d", &["d"])]));
        for second in [("a", &[][..]), ("b", &[]), ("d", &["e", "a"]), ("d", &["b"])] {
            assert!(refused(&[("a", &["b"]), ("c", &[]), second]), "{second:?}");
        }
    }

    #[test]
    fn what_could_not_be_read_again_is_not_written() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Measured {
            value: f64,
            perhaps: Option<f64>,
            rest: serde_json::Value,
        }
        event_type!(Measured);
        let measured =
            |value, perhaps, rest| NewEvent::of(Uuid::from_u128(7), &Measured { value, perhaps, rest });
        let nested = |levels: usize| {
            (0..levels).fold(serde_json::Value::Null, |inner, _| serde_json::Value::Array(vec![inner]))
        };
        let written = measured(1.5, Some(f64::NAN), nested(100)).unwrap();
        assert!(written.body.get().starts_with(r#"{"value":1.5,"perhaps":null,"#), "{}", written.body);
        for refused in [measured(f64::NAN, None, nested(0)), measured(1.0, None, nested(200))] {
            let refused = refused.unwrap_err().to_string();
            assert!(refused.starts_with("it could not be read again: "), "{refused}");
        }
    }

    #[test]
    fn old_names_are_read_and_new_ones_written() {
        assert_eq!((TodoGone::WAS, Plain::WAS.len()), (&["TodoLost"][..], 0));
        let written = NewEvent::of(Uuid::from_u128(7), &Renamed {}).unwrap();
        assert_eq!((written.event_type.as_str(), written.body.get()), ("New", "{}"));
        assert!(["New", "Old", "Older"].iter().all(|name| Renamed::is_named(name)));
        assert!(!Renamed::is_named("Newer"));
    }
}
