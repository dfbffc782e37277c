//! What a command is.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use validator::Validate;

use super::{CommandError, Secret, repetition};
use crate::aggregate::{Aggregate, Decide, Id};

/// What somebody wants an aggregate to do. It is data: it is read from JSON or from a form, and its rules are checked, before the
/// aggregate decides about it.
///
/// The rules are those of the crate `validator`, by `#[derive(Validate)]`; a command without rules derives it as well. What the rules
/// cannot know, because it depends on what has happened, is for [`Decide`].
pub trait Command: DeserializeOwned + Serialize + Validate + Send + Sync + 'static {
    /// What it is called by those who send it, and in the table of commands. It stays when the type is renamed.
    const NAME: &'static str;

    /// What decides about it.
    type Aggregate: Aggregate + Decide<Self, Refusal: Refusal>;

    /// Which aggregate decides.
    fn aggregate_id(&self) -> Id<Self::Aggregate>;

    /// The secrets that the decision asks for the hashes of ([`Secret::hashed`]), if there are any. They are hashed before, on a thread where it is
    /// no matter that this takes a while.
    fn secrets(&self) -> Vec<Secret> {
        Vec::new()
    }

    /// Whether this is the command that was recorded under its id, so that it is answered as that one was; otherwise the id belongs to
    /// another command. `recorded` is read from the record, in which every secret is `[secret]`: secrets are never compared.
    ///
    /// Unless it is said here, all fields have to be the same as JSON. Say it where reading a command fills in what nobody has sent, the
    /// time for example, or where the order of a list means nothing, as in a `HashSet`.
    fn repeats(&self, recorded: &Self) -> bool {
        repetition::have_same_fields(self, recorded)
    }
}

/// Why the rules of an aggregate do not allow a command, in a form that a client can be told.
///
/// [`refusal!`](crate::refusal!) implements it for a type that `serde` can write.
pub trait Refusal: fmt::Debug + Send + Sync + 'static {
    /// What it is, for programs: `lent_to_another`.
    fn code(&self) -> Cow<'static, str>;

    /// What belongs to the code.
    fn params(&self) -> Map<String, Value> {
        Map::new()
    }

    /// What it is, for people: the code with spaces, unless it is said.
    fn message(&self) -> String {
        self.code().replace('_', " ")
    }

    /// The HTTP status that fits: 422 unless it is said; 404 fits where nothing has happened to the aggregate yet.
    fn status(&self) -> u16 {
        422
    }
}

impl Refusal for Infallible {
    fn code(&self) -> Cow<'static, str> {
        match *self {}
    }
}

/// Implements [`Refusal`](crate::commands::Refusal) for an enum that is `Serialize`, as `serde` writes it without attributes: the code is the variant's name,
/// in lower case with underscores, and the parameters are its fields. If a closure is given, it says the message.
///
/// ```
/// use espd::commands::Refusal;
///
/// #[derive(Debug, serde::Serialize)]
/// enum BookRefusal {
///     LentToAnother { to: String },
///     IsLost,
/// }
/// espd::refusal!(BookRefusal);
///
/// let refused = BookRefusal::LentToAnother { to: "Ada".into() };
/// assert_eq!((refused.code(), refused.message()), ("lent_to_another".into(), "lent to another".into()));
/// assert_eq!(refused.params()["to"], "Ada");
/// assert_eq!(BookRefusal::IsLost.code(), "is_lost");
/// ```
///
/// With messages and statuses: `espd::refusal!(BookRefusal, message = |refused| refused.to_string(), status = |_| 409)`.
#[macro_export]
macro_rules! refusal {
    ($type:ty $(, message = $message:expr)? $(, status = $status:expr)? $(,)?) => {
        impl $crate::commands::Refusal for $type {
            fn code(&self) -> ::std::borrow::Cow<'static, str> {
                $crate::commands::refusal_parts(self).0.into()
            }

            fn params(&self) -> $crate::commands::Params {
                $crate::commands::refusal_parts(self).1
            }

            $(fn message(&self) -> ::std::string::String {
                let message: fn(&$type) -> ::std::string::String = $message;
                message(self)
            })?

            $(fn status(&self) -> u16 {
                let status: fn(&$type) -> u16 = $status;
                status(self)
            })?
        }
    };
}

/// Code and parameters of a refusal, from what `serde` writes.
#[doc(hidden)]
pub fn refusal_parts(refusal: &impl Serialize) -> (String, Map<String, Value>) {
    match serde_json::to_value(refusal) {
        Ok(Value::String(name)) => (snake_case(&name), Map::new()),
        Ok(Value::Object(fields)) if fields.len() == 1 => fields.into_iter().next().map_or_else(
            || ("refused".to_owned(), Map::new()),
            |(name, content)| (snake_case(&name), named(content)),
        ),
        Ok(Value::Object(fields)) => ("refused".to_owned(), fields),
        _ => ("refused".to_owned(), Map::new()),
    }
}

/// The fields of a variant: their names, or `value`, or `0`, `1` and so on.
fn named(content: Value) -> Map<String, Value> {
    match content {
        Value::Object(fields) => fields,
        Value::Array(values) => {
            values.into_iter().enumerate().map(|(n, value)| (n.to_string(), value)).collect()
        }
        value => Map::from_iter([("value".to_owned(), value)]),
    }
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for character in name.chars() {
        if character.is_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.extend(character.to_lowercase());
    }
    snake
}

/// What a refusal tells a client.
pub(super) fn told(refusal: &impl Refusal) -> CommandError {
    let (code, params) = (refusal.code().into_owned(), refusal.params());
    CommandError { path: String::new(), code, params, message: refusal.message() }
}
