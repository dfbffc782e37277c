//! Why an aggregate could not be loaded, or a command not be carried out.

use thiserror::Error;
use uuid::Uuid;

use crate::event::{AggregateId, Event, Position, Version};
use crate::store::{AppendError, ReadError};

/// Why an aggregate could not be loaded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The store could not be read. [`ReadError::is_transient`] says whether trying again may help.
    #[error(transparent)]
    Unavailable(#[from] ReadError),
    /// An event of the stream is of a type that the aggregate does not know ([`UnknownEvents`](super::UnknownEvents)).
    #[error(
        "event {position} of aggregate {aggregate_id} is of the type {event_type}, which the aggregate does not know"
    )]
    UnknownType {
        /// Whose stream it is.
        aggregate_id: AggregateId,
        /// Which event.
        position: Position,
        /// Its type.
        event_type: String,
    },
    /// The body of an event is not of the shape of its type.
    #[error("event {position} of aggregate {aggregate_id} cannot be read as {event_type}: {source}")]
    Unreadable {
        /// Whose stream it is.
        aggregate_id: AggregateId,
        /// Which event.
        position: Position,
        /// Its type.
        event_type: String,
        /// What is wrong with the body.
        source: serde_json::Error,
    },
}

/// Why a command has changed nothing, by what its sender can do about it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExecuteError<R> {
    /// The rules do not allow it.
    #[error("the command is refused: {0:?}")]
    Refused(R),
    /// The aggregate is at another version than was expected: by the sender, or by the decision each time that it was tried.
    #[error("aggregate {aggregate_id} is at version {actual}, not at the expected version {expected}")]
    Conflict {
        /// The aggregate.
        aggregate_id: AggregateId,
        /// The version that was expected.
        expected: Version,
        /// The version that it has.
        actual: Version,
        /// What has happened since the expected version: the first 100 events.
        since: Vec<Event>,
        /// Whether the sender named the version, so that the same command cannot succeed any more.
        is_final: bool,
    },
    /// The id of the command belongs to another command: one of another aggregate, or one that led to events that cannot be
    /// read as those of this one.
    #[error(
        "the command id {command_id} belongs to a command that was carried out on aggregate {aggregate_id}: use a new id"
    )]
    CommandIdReused {
        /// The id.
        command_id: Uuid,
        /// The aggregate that the other command was for.
        aggregate_id: AggregateId,
    },
    /// The aggregate could not be loaded.
    #[error(transparent)]
    Load(LoadError),
    /// The store cannot keep what was decided, or could not be reached. Repeating the command with the same id is safe.
    #[error(transparent)]
    Append(AppendError),
    /// An event, or the metadata, cannot be written as JSON, or an event could not be read again.
    #[error("what was decided cannot be written as JSON: {0}")]
    Unwritable(serde_json::Error),
}

impl<R> ExecuteError<R> {
    /// Whether the same command, with the same id, may well succeed when it is repeated as it is.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Append(AppendError::ConditionFailed { .. }) | Self::Conflict { is_final: false, .. }
        ) || match self {
            Self::Load(LoadError::Unavailable(error)) => error.is_transient(),
            Self::Append(error) => error.is_transient(),
            _ => false,
        }
    }
}

impl<R> ExecuteError<R> {
    /// Whether the reason may be that the very same command was carried out by another caller a moment ago.
    pub(super) fn may_be_repetition(&self) -> bool {
        matches!(
            self,
            Self::Refused(_)
                | Self::Conflict { .. }
                | Self::Append(AppendError::UuidReused { .. } | AppendError::KeyTaken { .. })
        )
    }
}

impl<R> From<LoadError> for ExecuteError<R> {
    fn from(error: LoadError) -> Self {
        Self::Load(error)
    }
}

impl<R> From<ReadError> for ExecuteError<R> {
    fn from(error: ReadError) -> Self {
        Self::Load(error.into())
    }
}

/// Why no snapshot was written that was asked for.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The aggregate could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The state cannot be written as JSON, or could not be read again.
    #[error("the state cannot be written as JSON: {0}")]
    Unwritable(serde_json::Error),
    /// The snapshot could not be kept.
    #[error("the snapshot cannot be kept: {0}")]
    NotKept(ReadError),
}

/// Why nothing of a unit of work was stored.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CommitError {
    /// One of the aggregates has changed since it was loaded, or the store cannot keep an event, or could not be reached.
    #[error(transparent)]
    Append(#[from] AppendError),
}
