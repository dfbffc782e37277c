//! Events that earlier versions of the application have written.

use espd::native::EventType;
use espd::store::Upcast;
use serde::Deserialize;
use serde_json::Value;

use crate::events::{Fields, TodoAdded};

/// What the first version of the application wrote in the place of `TodoAdded`.
#[derive(Deserialize)]
struct TodoCreated {
    name: String,
}

/// Has events of the first version read as those of today, by everything in this program.
pub(crate) fn from_first_version() -> Upcast {
    Upcast::of(["TodoCreated"]).as_type(TodoAdded::NAME).body(|old: TodoCreated| {
        let title = Value::String(old.name);
        Ok::<_, String>(TodoAdded(Fields::from_iter([("title".to_owned(), title)])))
    })
}
