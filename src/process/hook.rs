//! Hooks: what an operator's commands and a program's closures are told, and how a command runs.

mod closures;
#[cfg(feature = "daemon")]
mod command;
mod facts;

pub(crate) use closures::HookClosures;
#[cfg(feature = "daemon")]
pub(crate) use closures::Infallible;
#[cfg(feature = "daemon")]
pub(crate) use command::{HookCommand, HookEnd};
pub(crate) use facts::told;
pub use facts::{
    DivergenceFacts, FailureFacts, ProcessorFailure, SetAsideEvents, StoreDivergence, WorkerEnd, WorkerFacts,
};
