//! What a decision may know beside state and command.

use std::sync::atomic::{AtomicU32, Ordering};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::command_id::CommandId;
use crate::event::{AggregateId, Version};

/// What a decision knows beside state and command: which aggregate decides, the time, and new ids.
#[derive(Debug)]
pub struct Context {
    aggregate_id: AggregateId,
    version: Version,
    now: DateTime<Utc>,
    command_id: CommandId,
    ids: AtomicU32,
}

impl Context {
    pub(crate) fn new(
        aggregate_id: AggregateId,
        version: Version,
        now: DateTime<Utc>,
        command_id: CommandId,
    ) -> Self {
        Self { aggregate_id, version, now, command_id, ids: AtomicU32::new(0) }
    }

    /// The same, where so many ids of the command were asked for before: each decision of a unit of work gets others.
    pub(super) fn after_ids(self, asked: u32) -> Self {
        Self { ids: AtomicU32::new(asked), ..self }
    }

    /// How many ids of the command were asked for.
    pub(super) fn ids_asked(&self) -> u32 {
        self.ids.load(Ordering::Relaxed)
    }

    /// The aggregate that decides.
    pub fn aggregate_id(&self) -> &AggregateId {
        &self.aggregate_id
    }

    /// The version that the state is folded up to; 0 if nothing has happened to the aggregate yet.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Whether anything has happened to the aggregate before.
    pub fn exists(&self) -> bool {
        self.version > Version::NONE
    }

    /// The time, as the clock of the repository tells it.
    pub fn now(&self) -> DateTime<Utc> {
        self.now
    }

    /// A new id. The n-th of a command is the same whenever the command is tried again or repeated.
    pub fn new_id(&self) -> Uuid {
        self.command_id.new_id(self.ids.fetch_add(1, Ordering::Relaxed))
    }
}
