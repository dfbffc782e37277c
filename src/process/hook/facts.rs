//! What hooks are told: the same facts as JSON for commands, and as values for closures.

mod failure;

use serde::Serialize;

pub use failure::{DivergenceFacts, FailureFacts, ProcessorFailure, SetAsideEvents, StoreDivergence};

/// The worker that a hook is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WorkerFacts {
    /// The worker's name: that of its processor, `all-tasks`, or `group:NAME`.
    pub worker: String,
    /// The names of the processors that live in the worker.
    pub processors: Vec<String>,
    /// What each of them is, in the same order: `projector` or `reactor`.
    pub kinds: Vec<String>,
    /// The version of each of them, in the same order.
    pub versions: Vec<i32>,
    /// The worker's process id; `None` if it could not be started.
    pub pid: Option<i32>,
}

/// How a worker has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WorkerEnd {
    /// The worker that has ended.
    #[serde(flatten)]
    pub worker: WorkerFacts,
    /// The exit code or signal, in words: `signal SIGKILL`.
    pub end: Option<String>,
    /// Whether the worker was asked to end.
    pub expected: bool,
    /// How often the worker was started.
    pub starts: u32,
    /// What the worker does now: `waiting` (for its next start), `crash_looping`, `stopped`.
    pub state: String,
}

impl WorkerFacts {
    /// The environment variables of a hook's command.
    pub(crate) fn environment(&self, hook: &str) -> Vec<(&'static str, String)> {
        let versions: Vec<String> = self.versions.iter().map(i32::to_string).collect();
        vec![
            ("ESPD_HOOK", hook.to_owned()),
            ("ESPD_WORKER", self.worker.clone()),
            ("ESPD_PROCESSORS", self.processors.join(",")),
            ("ESPD_KIND", self.kinds.join(",")),
            ("ESPD_VERSION", versions.join(",")),
            ("ESPD_PID", self.pid.map_or_else(String::new, |pid| pid.to_string())),
        ]
    }
}

/// The facts as a hook's command reads them: one line of JSON.
pub(crate) fn told(hook: &str, facts: &impl Serialize) -> String {
    #[derive(Serialize)]
    struct Told<'t, F> {
        hook: &'t str,
        #[serde(flatten)]
        facts: &'t F,
    }
    // Facts are structures of plain values, which JSON can always express.
    let line = serde_json::to_string(&Told { hook, facts }).unwrap_or_default();
    line + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_told_the_hook_and_the_facts_in_one_line() {
        let worker = WorkerFacts {
            worker: "group:lists".into(),
            processors: vec!["todos".into(), "mails".into()],
            kinds: vec!["projector".into(), "reactor".into()],
            versions: vec![2, 1],
            pid: Some(7),
        };
        assert_eq!(
            told("on_worker_start", &worker),
            "{\"hook\":\"on_worker_start\",\"worker\":\"group:lists\",\"processors\":[\"todos\",\"mails\"],\
             \"kinds\":[\"projector\",\"reactor\"],\"versions\":[2,1],\"pid\":7}\n"
        );
        let environment = worker.environment("on_worker_start");
        let read = |name| environment.iter().find(|(known, _)| *known == name).unwrap().1.as_str();
        assert_eq!(
            (read("ESPD_KIND"), read("ESPD_VERSION"), read("ESPD_PID")),
            ("projector,reactor", "2,1", "7")
        );
    }
}
