//! Hooks: commands of the operator's, and closures of the program's, that run when a worker ends or a processor fails.
//!
//! A command gets the facts as one line of JSON on standard input, and has a time limit. A closure runs in a thread of its
//! own, which cannot be killed. Only a few hooks run at once; further ones are left out. Nothing that a hook does or fails to
//! do has a consequence.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::process::exit_code::describe_foreign_end;
use crate::process::hook::{
    HookClosures, HookCommand, HookEnd, Infallible, ProcessorFailure, SetAsideEvents, StoreDivergence,
    WorkerEnd, told,
};

/// Hooks that may run at the same time.
const AT_ONCE_MAX: u32 = 4;

/// The section `[hooks]`: what to run when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookSettings {
    /// A program and its arguments, run in each worker before anything else; empty: none. If it fails, the worker ends.
    pub on_worker_start: Vec<String>,
    /// A program and its arguments, run when a worker has ended; empty: none.
    pub on_worker_end: Vec<String>,
    /// A program and its arguments, run when a processor fails in another way than before; empty: none.
    pub on_failure: Vec<String>,
    /// A program and its arguments, run when a processor has set events aside; empty: none.
    pub on_dead_letter: Vec<String>,
    /// A program and its arguments, run when a processor has stopped because the store is not the one that it followed;
    /// empty: none.
    pub on_diverged: Vec<String>,
    /// The longest time that a hook may take before it is killed.
    pub timeout: Duration,
}

impl Default for HookSettings {
    /// No hooks, and 10 s for each.
    fn default() -> Self {
        Self {
            on_worker_start: Vec::new(),
            on_worker_end: Vec::new(),
            on_failure: Vec::new(),
            on_dead_letter: Vec::new(),
            on_diverged: Vec::new(),
            timeout: Duration::from_secs(10),
        }
    }
}

/// Runs hooks.
#[derive(Debug)]
pub(super) struct Hooks {
    pub(super) settings: HookSettings,
    pub(super) closures: HookClosures,
    /// One permit for each hook that may run.
    free: Arc<Semaphore>,
}

impl Hooks {
    pub(super) fn new(settings: HookSettings) -> Self {
        let free = Arc::new(Semaphore::new(AT_ONCE_MAX as usize));
        Self { settings, closures: HookClosures::default(), free }
    }

    pub(super) fn worker_ended(&self, end: WorkerEnd) {
        let environment = end.worker.environment("on_worker_end");
        self.tell(
            "on_worker_end",
            &self.settings.on_worker_end,
            &self.closures.on_worker_end,
            environment,
            end,
        );
    }

    pub(super) fn processor_failed(&self, facts: ProcessorFailure) {
        self.tell("on_failure", &self.settings.on_failure, &self.closures.on_failure, Vec::new(), facts);
    }

    pub(super) fn event_set_aside(&self, facts: SetAsideEvents) {
        let closure = &self.closures.on_dead_letter;
        self.tell("on_dead_letter", &self.settings.on_dead_letter, closure, Vec::new(), facts);
    }

    pub(super) fn store_diverged(&self, facts: StoreDivergence) {
        self.tell("on_diverged", &self.settings.on_diverged, &self.closures.on_diverged, Vec::new(), facts);
    }

    /// Runs the command of a hook and calls its closure, as far as there are any.
    fn tell<F: Serialize + Send + 'static>(
        &self,
        hook: &'static str,
        command: &[String],
        closure: &Option<Infallible<F>>,
        environment: Vec<(&'static str, String)>,
        facts: F,
    ) {
        if !command.is_empty() {
            self.start(hook, command, environment, told(hook, &facts));
        }
        if let Some(closure) = closure.clone() {
            self.call(hook, move || closure(&facts));
        }
    }

    /// Waits until all running hooks have ended; each has its time limit.
    pub(super) async fn finish(&self) {
        // An error would mean that the semaphore is closed, which never happens. A closure that hangs is not waited for.
        let _ = timeout(self.settings.timeout + GRACE, self.free.acquire_many(AT_ONCE_MAX)).await;
    }

    /// Runs the command of a hook.
    fn start(
        &self,
        hook: &'static str,
        command: &[String],
        environment: Vec<(&'static str, String)>,
        facts: String,
    ) {
        let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() else { return left_out(hook) };
        let command = HookCommand { command: command.to_vec(), timeout: self.settings.timeout };
        tokio::spawn(async move {
            log(hook, command.timeout, command.run(environment, facts).await);
            drop(permit);
        });
    }

    /// Calls a closure in a thread of its own. While it hangs, it counts as one of those that run.
    fn call(&self, hook: &'static str, closure: impl FnOnce() + Send + 'static) {
        let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() else { return left_out(hook) };
        let limit = self.settings.timeout;
        let (ending, ended) = oneshot::channel();
        std::thread::spawn(move || {
            let outcome = catch_unwind(AssertUnwindSafe(closure));
            drop(permit);
            // Nobody waits any more for a closure that has taken too long.
            let _ = ending.send(outcome.is_ok());
        });
        tokio::spawn(async move {
            match timeout(limit, ended).await {
                Ok(Ok(true)) => debug!(hook, "hook done"),
                Ok(_) => warn!(hook, "a hook has panicked"),
                Err(_elapsed) => {
                    let limit_ms = limit.as_millis() as u64;
                    warn!(hook, limit_ms, "a hook takes too long: a closure cannot be killed");
                }
            }
        });
    }
}

/// How much longer than their limit running hooks are waited for: their processes have to be killed, and their output read.
const GRACE: Duration = Duration::from_secs(2);

fn left_out(hook: &str) {
    warn!(hook, running = AT_ONCE_MAX, "a hook is left out: too many are running");
}

fn log(hook: &str, limit: Duration, outcome: io::Result<HookEnd>) {
    match outcome {
        Ok(HookEnd { status: Some(status), output }) if status.success() => info!(hook, output, "hook done"),
        Ok(HookEnd { status: Some(status), output }) => {
            warn!(hook, status = describe_foreign_end(status), output, "a hook has failed");
        }
        Ok(HookEnd { status: None, output }) => {
            let limit_ms = limit.as_millis() as u64;
            warn!(hook, limit_ms, output, "a hook takes too long, killed it");
        }
        Err(error) => warn!(hook, %error, "could not run a hook"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closure_that_hangs_delays_neither_the_others_nor_the_end() {
        let hooks =
            Hooks::new(HookSettings { timeout: Duration::from_millis(50), ..HookSettings::default() });
        let (release, held) = std::sync::mpsc::channel::<()>();
        hooks.call("hangs", move || {
            let _ = held.recv();
        });
        let (called, calls) = std::sync::mpsc::channel();
        hooks.call("panics", || panic!("no"));
        hooks.call("works", move || called.send(7).unwrap());
        assert_eq!(calls.recv_timeout(Duration::from_secs(10)), Ok(7));
        tokio::time::timeout(Duration::from_secs(10), hooks.finish()).await.unwrap();
        drop(release);
    }
}
