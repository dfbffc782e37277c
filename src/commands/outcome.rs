//! What has become of a command.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::command::{Refusal, told};
use super::{CommandError, unstorable};
use crate::aggregate::{Aggregate, CommitError, ExecuteError, Executed, Planned};
use crate::event::{AggregateId, Appended, EventSet as _, NewEvent, Position, Version};
use crate::postgres::error::chain;
use crate::store::AppendError;

/// What has become of a command. As JSON, it is what a web service answers with; [`Self::status`] is the status.
///
/// What the database says in an error is no part of the JSON: it is in [`Problem::cause`], and in the log.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// It is carried out, or was before.
    Executed(Receipt),
    /// What it would lead to: nothing is stored.
    Planned(Plan),
    /// The rules do not allow it now, or whoever sent it is not allowed to.
    Refused(Refused),
    /// It is no command that could be carried out: fields are missing, or break rules.
    Invalid {
        /// All that is wrong.
        errors: Vec<CommandError>,
    },
    /// The aggregate is at another version than was expected, or other writers were faster each time.
    Conflict {
        /// Which aggregate.
        aggregate_id: AggregateId,
        /// The version that was expected.
        expected: Version,
        /// The version that it has.
        actual: Version,
    },
    /// The id of the command belongs to another command.
    CommandIdReused {
        /// The id.
        command_id: Uuid,
    },
    /// There is no command of this name.
    UnknownCommand {
        /// The name.
        name: String,
    },
    /// The store cannot be reached. Repeating the command with the same id is safe.
    Unavailable(Problem),
    /// Something is wrong in the application or in the store, and will be wrong again.
    Failed(Problem),
}

/// What a command has led to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Receipt {
    /// The id of the command: that of its envelope, or else one that it was given.
    pub command_id: Option<Uuid>,
    /// The aggregate that decided; `None` if it was none, or several.
    pub aggregate_id: Option<AggregateId>,
    /// The version of the aggregate after the command.
    pub version: Option<Version>,
    /// The events, in order; none if there was nothing to do.
    pub events: Vec<StoredEvent>,
    /// Whether the command had been carried out before, and this is what it led to then.
    #[serde(default)]
    pub repeated: bool,
}

/// An event that a command has led to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StoredEvent {
    /// Its position in the store.
    pub id: Position,
    /// Its identity.
    pub uuid: Uuid,
    /// The version of the aggregate after it.
    pub version: Version,
    /// What has happened.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
}

/// What a command would lead to.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Plan {
    /// The version that the decision has seen.
    pub version: Version,
    /// The events, in order.
    pub events: Vec<PlannedEvent>,
}

/// An event that a command would lead to.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PlannedEvent {
    /// The aggregate.
    pub aggregate_id: AggregateId,
    /// What would happen.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The facts.
    pub body: Box<RawValue>,
}

/// Why a command is not allowed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Refused {
    /// The reason.
    pub error: CommandError,
    /// The HTTP status that fits.
    pub status: u16,
    /// Whether it is the answer that the command got before.
    #[serde(default)]
    pub repeated: bool,
}

/// Why a command could not be carried out, for a client.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Problem {
    /// What a client may know.
    pub message: String,
    /// What the log has: not for clients.
    #[serde(skip)]
    pub cause: String,
}

impl Outcome {
    /// A refusal, for middleware: `Outcome::refused(CommandError::new("not_yours", "the book is not yours"), 403)`.
    pub fn refused(error: CommandError, status: u16) -> Self {
        Self::Refused(Refused { error, status, repeated: false })
    }

    /// Errors of fields.
    pub fn invalid(errors: impl IntoIterator<Item = CommandError>) -> Self {
        Self::Invalid { errors: errors.into_iter().collect() }
    }

    /// What a unit of work has led to: what a handler of one's own answers with.
    pub fn of_commit(committed: Result<Vec<Appended>, CommitError>) -> Self {
        match committed {
            Ok(appended) => Self::Executed(Receipt {
                command_id: None,
                aggregate_id: None,
                version: None,
                events: appended.into_iter().map(|place| StoredEvent::new(place, None)).collect(),
                repeated: false,
            }),
            Err(CommitError::Append(error)) => Self::of_append_error(error),
        }
    }

    /// What a command has led to that a [`Repository`](crate::aggregate::Repository) has carried out.
    pub fn of<A: Aggregate, R: Refusal>(executed: Result<Executed<A>, ExecuteError<R>>) -> Self {
        executed.map_or_else(Self::from, |executed| Self::Executed(Receipt::of(&executed)))
    }

    /// The HTTP status that fits.
    pub fn status(&self) -> u16 {
        match self {
            Self::Executed(_) | Self::Planned(_) => 200,
            Self::Refused(refused) => refused.status,
            Self::Invalid { .. } => 400,
            Self::UnknownCommand { .. } => 404,
            Self::Conflict { .. } => 409,
            Self::CommandIdReused { .. } => 422,
            Self::Unavailable(_) => 503,
            Self::Failed(_) => 500,
        }
    }

    /// One word for logs and metrics: that of the JSON.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Executed(_) => "executed",
            Self::Planned(_) => "planned",
            Self::Refused(_) => "refused",
            Self::Invalid { .. } => "invalid",
            Self::UnknownCommand { .. } => "unknown_command",
            Self::Conflict { .. } => "conflict",
            Self::CommandIdReused { .. } => "command_id_reused",
            Self::Unavailable(_) => "unavailable",
            Self::Failed(_) => "failed",
        }
    }

    /// Whether the command has been carried out, now or before.
    pub fn is_executed(&self) -> bool {
        matches!(self, Self::Executed(_))
    }

    /// Puts the errors into other words: `words` finds the text for a code, in which `{min}` stands for the parameter `min`.
    #[must_use]
    pub fn translated(self, words: impl Fn(&CommandError) -> Option<String>) -> Self {
        let translate = |error: CommandError| match words(&error) {
            Some(text) => error.in_words(&text),
            None => error,
        };
        match self {
            Self::Invalid { errors } => Self::invalid(errors.into_iter().map(translate)),
            Self::Refused(refused) => Self::Refused(Refused { error: translate(refused.error), ..refused }),
            other => other,
        }
    }

    /// The same, said again.
    pub(super) fn repeated(self) -> Self {
        match self {
            Self::Executed(receipt) => Self::Executed(Receipt { repeated: true, ..receipt }),
            Self::Refused(refused) => Self::Refused(Refused { repeated: true, ..refused }),
            other => other,
        }
    }

    pub(super) fn unavailable(cause: &(dyn std::error::Error + 'static)) -> Self {
        let message = "the store cannot be reached; try again, with the same command id".to_owned();
        Self::Unavailable(Problem { message, cause: chain(cause) })
    }

    pub(super) fn failed(cause: &(dyn std::error::Error + 'static)) -> Self {
        let message = "the command cannot be carried out; the log of the service says why".to_owned();
        Self::Failed(Problem { message, cause: chain(cause) })
    }

    fn of_append_error(error: AppendError) -> Self {
        match error {
            AppendError::Conflict { aggregate_id, expected, actual } => {
                Self::Conflict { aggregate_id, expected, actual }
            }
            // What the client has sent cannot be stored: a text with a zero character, a body that departs from what is declared.
            AppendError::Invalid { reason, .. } => {
                Self::invalid([CommandError::new(unstorable::CODE, reason)])
            }
            AppendError::KeyTaken { key, .. } => {
                let error = CommandError::new("taken", format!("{} {} is taken", key.scope, key.key));
                Self::refused(error.with("scope", key.scope).with("key", key.key), 409)
            }
            AppendError::ConditionFailed { .. } => {
                let message = "another writer was faster; try again, with the same command id".to_owned();
                Self::Unavailable(Problem { message, cause: chain(&error) })
            }
            AppendError::Database(_) if error.is_transient() => Self::unavailable(&error),
            other @ (AppendError::Database(_) | AppendError::UuidReused { .. }) => Self::failed(&other),
        }
    }
}

impl<R: Refusal> From<ExecuteError<R>> for Outcome {
    fn from(error: ExecuteError<R>) -> Self {
        let is_transient = error.is_transient();
        match error {
            ExecuteError::Refused(refusal) => Self::refused(told(&refusal), refusal.status()),
            ExecuteError::Conflict { aggregate_id, expected, actual, .. } => {
                Self::Conflict { aggregate_id, expected, actual }
            }
            ExecuteError::CommandIdReused { command_id, .. } => Self::CommandIdReused { command_id },
            ExecuteError::Append(error) => Self::of_append_error(error),
            ExecuteError::Load(error) if is_transient => Self::unavailable(&error),
            ExecuteError::Load(error) => Self::failed(&error),
            ExecuteError::Unwritable(error) => Self::failed(&error),
        }
    }
}

impl Receipt {
    pub(super) fn of<A: Aggregate>(executed: &Executed<A>) -> Self {
        let nobody = AggregateId::from(Uuid::nil());
        let name = |event: &A::Event| event.to_new(nobody.clone()).ok().map(|new| new.event_type);
        let events = executed.events.iter().zip(&executed.appended);
        Self {
            command_id: None,
            aggregate_id: None,
            version: Some(executed.version),
            events: events.map(|(event, place)| StoredEvent::new(*place, name(event))).collect(),
            repeated: executed.is_repeated,
        }
    }
}

impl StoredEvent {
    pub(super) fn new(place: Appended, event_type: Option<String>) -> Self {
        Self { id: place.id, uuid: place.uuid, version: place.version, event_type }
    }
}

impl Plan {
    pub(super) fn of<A: Aggregate>(planned: Planned<A>) -> Self {
        let event = |new: NewEvent| PlannedEvent {
            aggregate_id: new.aggregate_id,
            event_type: new.event_type,
            body: new.body,
        };
        Self { version: planned.version, events: planned.new_events.into_iter().map(event).collect() }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refused) => write!(f, "refused: {}", refused.error),
            Self::Invalid { errors } => {
                let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
                write!(f, "invalid: {}", errors.join("; "))
            }
            Self::Conflict { aggregate_id, expected, actual } => {
                write!(f, "conflict: aggregate {aggregate_id} is at version {actual}, not at {expected}")
            }
            Self::UnknownCommand { name } => write!(f, "there is no command {name}"),
            Self::Unavailable(problem) | Self::Failed(problem) => f.write_str(&problem.message),
            other => f.write_str(other.label()),
        }
    }
}
