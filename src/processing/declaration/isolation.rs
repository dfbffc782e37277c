//! Isolation decides which processors share a worker.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Decides which processors share a worker with a processor.
///
/// Processors of one worker share a process, its memory limit and the watcher's connection. A processor does not end because
/// another one fails or panics; all of them end when the process is killed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// The processor has a worker of its own; written `"process"`.
    #[default]
    Process,
    /// The processor shares a worker with all others of this isolation; written `"task"`.
    Task,
    /// The processor shares a worker with the others of this group; written `"group:NAME"`.
    Group(String),
}

impl Isolation {
    /// Returns the name of the worker that runs a processor of this isolation. Names of shared workers contain a character that
    /// no processor's name may have, so no two workers have the same name.
    pub fn worker_of(&self, processor: &str) -> String {
        match self {
            Self::Process => processor.to_owned(),
            Self::Task => "all-tasks".to_owned(),
            Self::Group(_) => self.to_string(),
        }
    }
}

/// As the configuration has it.
impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process => f.write_str("process"),
            Self::Task => f.write_str("task"),
            Self::Group(name) => write!(f, "group:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::name::is_name;

    #[test]
    fn no_shared_worker_has_the_name_of_a_processor() {
        for shared in [Isolation::Task, Isolation::Group("billing".into())] {
            assert!(!is_name(&shared.worker_of("orders")), "{shared}");
        }
        assert_eq!(Isolation::Process.worker_of("orders"), "orders");
    }
}
