//! A todo: added, amended, completed or abandoned.

use chrono::NaiveDate;
use espd::prelude::*;
use serde::{Deserialize, Deserializer, Serialize};

use crate::answer::Refusal;

espd::event_set! {
    /// What happens to a todo.
    pub enum TodoEvent {
        /// There is something to be done.
        TodoAdded(TodoAdded),
        /// It is described differently: the fields that are there have changed.
        TodoAmended(TodoAmended),
        /// It is done.
        TodoCompleted { completed_on: NaiveDate },
        /// It will not be done.
        TodoAbandoned {},
        /// Somebody was told that it is done: emitted by the reactor of `processors/notifier.toml`.
        StakeholderNotifiedOfTodoCompletion { title: String, stakeholder_email: String },
    }
}

/// There is something to be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TodoAdded {
    pub title: String,
    #[serde(flatten)]
    pub details: Details,
}
espd::event_type!(TodoAdded);

/// Some fields of a todo have changed: those that are there. A null takes a value away.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TodoAmended {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    #[serde(default, deserialize_with = "given_or_null", skip_serializing_if = "Option::is_none")]
    pub description: Option<Option<String>>,
    #[serde(default, deserialize_with = "given_or_null", skip_serializing_if = "Option::is_none")]
    pub due_date: Option<Option<NaiveDate>>,
    #[serde(default, deserialize_with = "given_or_null", skip_serializing_if = "Option::is_none")]
    pub stakeholder_email: Option<Option<String>>,
}
espd::event_type!(TodoAmended);

/// What may be said of a todo beside its title.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Details {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_date: Option<NaiveDate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stakeholder_email: Option<String>,
}

/// A field that is there: `Some(None)` if it is null. One that is left out is `None`, by `default`.
fn given_or_null<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// A todo as decisions see it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Todo {
    title: String,
    details: Details,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
enum Stage {
    #[default]
    Unknown,
    Outstanding,
    Completed,
    Abandoned,
}

impl Aggregate for Todo {
    type Event = TodoEvent;

    fn evolve(&mut self, event: &TodoEvent) {
        match event {
            TodoEvent::TodoAdded(added) => {
                self.title.clone_from(&added.title);
                self.details = added.details.clone();
                self.stage = Stage::Outstanding;
            }
            TodoEvent::TodoAmended(amended) => self.amend(amended.clone()),
            TodoEvent::TodoCompleted(_) => self.stage = Stage::Completed,
            TodoEvent::TodoAbandoned(_) => self.stage = Stage::Abandoned,
            TodoEvent::StakeholderNotifiedOfTodoCompletion(_) => {}
        }
    }
}

impl Todo {
    fn amend(&mut self, amended: TodoAmended) {
        let old = &self.details;
        let details = Details {
            description: amended.description.unwrap_or(old.description.clone()),
            due_date: amended.due_date.unwrap_or(old.due_date),
            stakeholder_email: amended.stakeholder_email.unwrap_or(old.stakeholder_email.clone()),
        };
        self.title = amended.title.unwrap_or(self.title.clone());
        self.details = details;
    }

    fn require_outstanding(&self) -> Result<(), Refusal> {
        match self.stage {
            Stage::Outstanding => Ok(()),
            Stage::Unknown => Err(Refusal::unknown("todo")),
            Stage::Completed => Err(Refusal::new("completed", "the todo is completed")),
            Stage::Abandoned => Err(Refusal::new("abandoned", "the todo is abandoned")),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddTodo {
    pub title: String,
    pub description: Option<String>,
    pub due_date: Option<NaiveDate>,
    pub stakeholder_email: Option<String>,
}

/// Changes the fields that are there. A null takes a value away.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AmendTodo {
    pub title: Option<String>,
    #[serde(default, deserialize_with = "given_or_null")]
    pub description: Option<Option<String>>,
    #[serde(default, deserialize_with = "given_or_null")]
    pub due_date: Option<Option<NaiveDate>>,
    #[serde(default, deserialize_with = "given_or_null")]
    pub stakeholder_email: Option<Option<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompleteTodo {
    /// Today, if it is left out.
    pub completed_on: Option<NaiveDate>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AbandonTodo {}

impl Decide<AddTodo> for Todo {
    type Refusal = Refusal;

    fn decide(&self, add: &AddTodo, context: &Context) -> Result<Vec<TodoEvent>, Refusal> {
        if context.exists() {
            return Err(Refusal::new("exists", "there is such a todo"));
        }
        let title = require_title(&add.title)?;
        let AddTodo { description, due_date, stakeholder_email, .. } = add;
        let details = Details {
            description: description.clone(),
            due_date: *due_date,
            stakeholder_email: stakeholder_email.clone(),
        };
        Ok(espd::events![TodoAdded { title, details }])
    }
}

impl Decide<AmendTodo> for Todo {
    type Refusal = Refusal;

    fn decide(&self, amend: &AmendTodo, _: &Context) -> Result<Vec<TodoEvent>, Refusal> {
        self.require_outstanding()?;
        let title = amend.title.as_deref().map(require_title).transpose()?;
        let AmendTodo { description, due_date, stakeholder_email, .. } = amend;
        let amended = TodoAmended {
            title,
            description: description.clone(),
            due_date: *due_date,
            stakeholder_email: stakeholder_email.clone(),
        };
        // An amendment that says what is known already is no event.
        Ok(self.if_changed(espd::events![amended]))
    }
}

impl Decide<CompleteTodo> for Todo {
    type Refusal = Refusal;

    fn decide(&self, complete: &CompleteTodo, context: &Context) -> Result<Vec<TodoEvent>, Refusal> {
        self.require_outstanding()?;
        let completed_on = complete.completed_on.unwrap_or(context.now().date_naive());
        Ok(espd::events![TodoCompleted { completed_on }])
    }
}

impl Decide<AbandonTodo> for Todo {
    type Refusal = Refusal;

    fn decide(&self, _: &AbandonTodo, _: &Context) -> Result<Vec<TodoEvent>, Refusal> {
        self.require_outstanding()?;
        Ok(espd::events![TodoAbandoned {}])
    }
}

fn require_title(title: &str) -> Result<String, Refusal> {
    match title.trim() {
        "" => Err(Refusal::new("no_title", "a todo has a title")),
        title => Ok(title.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use espd::aggregate::testing::given;

    use super::*;

    fn added() -> TodoEvent {
        TodoAdded { title: "Buy milk".into(), details: Details::default() }.into()
    }

    fn add(title: &str) -> AddTodo {
        AddTodo { title: title.into(), description: None, due_date: None, stakeholder_email: None }
    }

    #[test]
    fn a_todo_is_added_once_and_has_a_title() {
        given::<Todo>([]).when(&add(" Buy milk ")).then([added()]);
        given::<Todo>([]).when(&add("  ")).then_refused_as(|refusal| assert_eq!(refusal.code, "no_title"));
        given::<Todo>([added()])
            .when(&add("Buy milk"))
            .then_refused_as(|refusal| assert_eq!(refusal.code, "exists"));
    }

    #[test]
    fn only_what_changes_is_an_amendment() {
        let amend = |title: &str| AmendTodo { title: Some(title.into()), ..AmendTodo::default() };
        let amended = TodoAmended { title: Some("Buy oat milk".into()), ..TodoAmended::default() };
        given::<Todo>([added()]).when(&amend("Buy milk")).then_nothing();
        given::<Todo>([added()]).when(&amend("Buy oat milk")).then(espd::events![amended]);
        let no_date = AmendTodo { due_date: Some(None), ..AmendTodo::default() };
        given::<Todo>([added()]).when(&no_date).then_nothing();
    }

    #[test]
    fn what_is_done_is_done() {
        let day = NaiveDate::from_ymd_opt(1970, 1, 1).unwrap();
        given::<Todo>([added()])
            .when(&CompleteTodo::default())
            .then(espd::events![TodoCompleted { completed_on: day }])
            .when(&AbandonTodo {})
            .then_refused_as(|refusal| assert_eq!(refusal.code, "completed"));
        given::<Todo>([])
            .when(&AbandonTodo {})
            .then_refused_as(|refusal| assert_eq!(refusal.code, "unknown"));
    }
}
