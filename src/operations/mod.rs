//! What operators see and do. Nothing here prints: `espctl`, the admin endpoint and the daemon show it.

pub(crate) mod backlog;
pub(crate) mod check;
pub(crate) mod commands;
pub(crate) mod connections;
pub(crate) mod databases;
pub(crate) mod declared_events;
pub(crate) mod deletion;
pub(crate) mod doctor;
pub(crate) mod event_schema;
pub(crate) mod event_streams;
pub(crate) mod explain;
pub(crate) mod forgetting;
pub(crate) mod graph;
pub(crate) mod import_positions;
pub(crate) mod lock_watch;
pub(crate) mod metrics;
pub(crate) mod operator;
pub(crate) mod outcome;
pub(crate) mod plan;
pub(crate) mod rebuild;
pub(crate) mod snapshots;
pub(crate) mod status;
pub(crate) mod trace;
pub(crate) mod unstored_types;
pub(crate) mod waiting;
pub(crate) mod workflows;
