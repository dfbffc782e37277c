//! What a supervisor has to do.

use super::child::WorkerProgram;
use super::hooks::HookSettings;
use super::lifecycle::Policy;

/// Which workers to supervise, and how.
#[derive(Debug, Clone, Default)]
pub(crate) struct SupervisionPlan {
    /// The workers; no two have the same name.
    pub programs: Vec<WorkerProgram>,
    /// When workers are restarted and when they are killed.
    pub policy: Policy,
    /// The memory that a worker may use, in bytes; `None` for no limit.
    pub memory_max: Option<u64>,
    /// What to run when a worker ends or a processor fails.
    pub hooks: HookSettings,
    /// Whether there are no workers because nothing may be handled at present: they are still configured.
    pub is_resting: bool,
}
