//! The engine: declarations, trackers, the runner, dead letters, emissions.

pub(crate) mod alteration;
pub(crate) mod dead_letters;
pub(crate) mod declaration;
pub(crate) mod divergence;
pub(crate) mod effects;
pub(crate) mod emission;
pub(crate) mod failure;
pub(crate) mod heartbeat;
pub(crate) mod history;
pub(crate) mod partitions;
pub(crate) mod processor;
pub(crate) mod progress;
pub(crate) mod rebuild;
pub(crate) mod runner;
pub(crate) mod tracker;
pub(crate) mod triggers;
pub(crate) mod workflow;
