//! The events of the application, each called once what it is called in the store.

use espd::native::EventType;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What is said of a todo: `title`, `description`, `due_date`, `stakeholder_email`. An amendment says only what changes;
/// a null in it takes a value away.
pub(crate) type Fields = Map<String, Value>;

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct TodoAdded(pub(crate) Fields);

impl EventType for TodoAdded {
    const NAME: &'static str = "TodoAdded";
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct TodoAmended(pub(crate) Fields);

impl EventType for TodoAmended {
    const NAME: &'static str = "TodoAmended";
}

#[derive(Serialize, Deserialize)]
pub(crate) struct TodoCompleted {
    pub(crate) completed_on: Option<String>,
}

impl EventType for TodoCompleted {
    const NAME: &'static str = "TodoCompleted";
}

#[derive(Serialize, Deserialize)]
pub(crate) struct TodoAbandoned {}

impl EventType for TodoAbandoned {
    const NAME: &'static str = "TodoAbandoned";
}
