//! Workers' lives: started, watched, restarted, replaced, stopped.
//!
//! The [`Supervisor`] knows names, process ids, heartbeats, exit reasons and times. It never sees an event and holds no
//! connection. What follows from what happens to a worker is decided by [`lifecycle::next`], a pure function.

mod child;
mod crash_history;
pub(crate) mod hooks;
pub(crate) mod lifecycle;
mod listener;
mod loop_heartbeat;
mod plan;
mod supervised;
mod supervisor;

pub(crate) use child::{WorkerProgram, is_worker_title};
pub(crate) use loop_heartbeat::LoopHeartbeat;
pub(crate) use plan::SupervisionPlan;
pub(crate) use supervised::{End, Snapshot};
pub(crate) use supervisor::{Ending, Supervisor, SupervisorRequest};
