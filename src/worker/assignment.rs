//! The assignment: everything that a worker needs to run its processors.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::postgres::database_url::DatabaseUrl;
use crate::postgres::sql_scope::SqlScope;
use crate::process::hook::HookCommand;
use crate::processing::declaration::ProcessorDeclaration;
use crate::processing::tracker::Owner;
use crate::store::layout::LayoutSettings;
use crate::store::upcast::Upcast;
use crate::telemetry::LogSettings;

/// What a worker has to do, and for which daemon.
///
/// The supervisor hands it to the child process as one line of JSON through a pipe, **with its passwords**. It is not
/// for showing: `Debug` hides the passwords, serialization does not.
#[derive(Debug, Serialize, Deserialize)]
pub struct Assignment {
    /// The daemon that the worker works for.
    pub owner: Owner,
    /// What to run, and where.
    pub settings: WorkerSettings,
}

/// What a worker runs, and where its databases are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerSettings {
    /// The database of the events, for listening and looking: past a pooler, if there is one.
    pub event_store_url: DatabaseUrl,
    /// The database that batches run in, which is the one of the projections.
    pub batches_url: DatabaseUrl,
    /// The way past the transaction pooler that `batches_url` leads through; `None` if there is no pooler.
    pub direct_batches_url: Option<DatabaseUrl>,
    /// The shape of the event table.
    pub layout: LayoutSettings,
    /// How old events are read as new ones.
    pub upcasts: Vec<Upcast>,
    /// The schema of espd's own tables.
    pub event_store_schema: String,
    /// The database of the projections; `None` if it is the one of the events.
    pub projections_url: Option<DatabaseUrl>,
    /// Where the projections are, and what SQL means there.
    pub scope: SqlScope,
    /// The longest time between two looks at the store while nothing happens.
    pub poll_interval_max: Duration,
    /// What is logged, and how.
    pub log: LogSettings,
    /// What the worker runs before anything else.
    pub(crate) start_hook: Option<HookCommand>,
    /// The processors themselves, at least one.
    pub processors: Vec<ProcessorDeclaration>,
}
