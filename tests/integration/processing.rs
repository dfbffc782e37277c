//! The engine on a real database: trackers, runners, owners, failures, dead letters, emissions.

mod dead_letters;
mod divergence;
mod emissions;
mod error_policy;
mod handler_changes;
mod ownership;
mod pooler;
mod read_your_writes;
mod relay;
pub mod runner;
mod stale_sessions;
mod together;
mod tracker;
mod upgrade;
