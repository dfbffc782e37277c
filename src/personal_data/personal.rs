//! A value that may have been forgotten.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

/// The key of what a reader gets in the place of a value that is forgotten: `{"$forgotten": SUBJECT}`.
pub(super) const FORGOTTEN: &str = "$forgotten";

/// A personal value in the body of an event, as a reader gets it: as it was, or forgotten.
///
/// ```
/// use espd::personal_data::Personal;
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct CustomerRegistered { customer_id: String, name: Personal<String> }
///
/// let known: CustomerRegistered = serde_json::from_str(r#"{ "customer_id": "c1", "name": "Ada" }"#)?;
/// assert_eq!(known.name, Personal::Known("Ada".to_owned()));
/// let forgotten: CustomerRegistered =
///     serde_json::from_str(r#"{ "customer_id": "c1", "name": { "$forgotten": "c1" } }"#)?;
/// assert_eq!(forgotten.name.known().map_or("somebody", String::as_str), "somebody");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Personal<T> {
    /// The value.
    Known(T),
    /// The subject was forgotten, and its values with it.
    Forgotten {
        /// Whose value it was.
        subject: String,
    },
}

impl<T> Personal<T> {
    /// The value; `None` if it is forgotten.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Forgotten { .. } => None,
        }
    }

    /// The value itself; `None` if it is forgotten.
    pub fn into_known(self) -> Option<T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Forgotten { .. } => None,
        }
    }
}

impl<T> From<T> for Personal<T> {
    fn from(value: T) -> Self {
        Self::Known(value)
    }
}

impl<T: Serialize> Serialize for Personal<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Known(value) => value.serialize(serializer),
            Self::Forgotten { subject } => {
                Map::from_iter([(FORGOTTEN.to_owned(), Value::from(subject.as_str()))]).serialize(serializer)
            }
        }
    }
}

impl<'de, T: serde::de::DeserializeOwned> Deserialize<'de> for Personal<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        if let Some(Value::String(subject)) =
            value.as_object().filter(|it| it.len() == 1).and_then(|it| it.get(FORGOTTEN))
        {
            return Ok(Self::Forgotten { subject: subject.clone() });
        }
        T::deserialize(value).map(Self::Known).map_err(D::Error::custom)
    }
}
