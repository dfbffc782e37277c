//! The events of the to-do application: a Rust type for each, tied to its name in the store.

use espd::native::EventType;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The fields of a todo: `title`, `description`, `due_date`, `stakeholder_email`. An amendment has only those that change;
/// a null in it removes a value.
pub(crate) type Fields = Map<String, Value>;

/// A todo was added, with these fields.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct TodoAdded(pub(crate) Fields);

impl EventType for TodoAdded {
    const NAME: &'static str = "TodoAdded";
}

/// These fields of a todo were changed.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct TodoAmended(pub(crate) Fields);

impl EventType for TodoAmended {
    const NAME: &'static str = "TodoAmended";
}

/// A todo was done, on the day that the user gave.
#[derive(Serialize, Deserialize)]
pub(crate) struct TodoCompleted {
    pub(crate) completed_on: Option<String>,
}

impl EventType for TodoCompleted {
    const NAME: &'static str = "TodoCompleted";
}

/// A todo was given up.
#[derive(Serialize, Deserialize)]
pub(crate) struct TodoAbandoned {}

impl EventType for TodoAbandoned {
    const NAME: &'static str = "TodoAbandoned";
}
