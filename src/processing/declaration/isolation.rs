//! Whom a processor shares a worker with.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whom a processor shares a worker with.
///
/// Those who share a worker share a process, the memory limit and the watcher's connection. None of them
/// ends because another one fails or panics; all of them end when the process is killed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Nobody, written `"process"`.
    #[default]
    Process,
    /// All others of this kind, written `"task"`.
    Task,
    /// The others of this group, written `"group:NAME"`.
    Group(String),
}

impl Isolation {
    /// The name of the worker that a processor of this isolation lives in. Only `Process` gives what could
    /// be the name of a processor, so no two workers have the same.
    pub fn worker_of(&self, processor: &str) -> String {
        match self {
            Self::Process => processor.to_owned(),
            Self::Task => "all-tasks".to_owned(),
            Self::Group(_) => self.to_string(),
        }
    }
}

/// As it is written.
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
    fn no_shared_worker_is_called_like_a_processor() {
        for shared in [Isolation::Task, Isolation::Group("billing".into())] {
            assert!(!is_name(&shared.worker_of("orders")), "{shared}");
        }
        assert_eq!(Isolation::Process.worker_of("orders"), "orders");
    }
}
