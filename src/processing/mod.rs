//! The engine: declarations, trackers, the runner, dead letters, emissions.

pub mod dead_letters;
pub mod declaration;
pub(crate) mod emission;
pub mod failure;
pub mod heartbeat;
pub mod processor;
pub mod progress;
pub mod runner;
pub mod tracker;
