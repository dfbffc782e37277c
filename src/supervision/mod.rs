//! Workers' lives: started, watched, restarted, replaced, stopped.
//!
//! The [`Supervisor`] knows names, process ids, heartbeats, exit reasons and times. It never sees an event and holds no
//! connection. What follows from what happens to a worker is decided by [`lifecycle::next`], a pure function.

mod child;
mod crash_history;
pub mod hooks;
pub mod lifecycle;
mod listener;
mod loop_heartbeat;
mod plan;
mod supervised;
mod supervisor;

pub use child::WorkerProgram;
pub use crash_history::CrashHistory;
pub use loop_heartbeat::LoopHeartbeat;
pub use plan::SupervisionPlan;
pub use supervised::{End, Snapshot};
pub use supervisor::{Ending, Supervisor, SupervisorRequest};
