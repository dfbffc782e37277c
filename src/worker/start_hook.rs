//! The hook `on_worker_start`: the first thing that happens in a worker, before it listens to signals, connects or reads.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::time::MissedTickBehavior;
use tracing::info;

use super::WorkerSettings;
use super::reporting::INTERVAL;
use crate::handlers::native::Registry;
use crate::process::exit_code::{Exit, ExitCode};
use crate::process::hook::{WorkerFacts, told};
use crate::process::report::{Report, ReportPipe};

const HOOK: &str = "on_worker_start";

/// Runs the command of the configuration, then the closure of the program.
///
/// # Errors
/// One of them has failed; the worker must not start.
pub(super) async fn run(name: &str, settings: &WorkerSettings, registry: &Registry) -> Result<(), Exit> {
    let facts = facts(name, settings);
    if let Some(command) = &settings.start_hook {
        let running = command.run(facts.environment(HOOK), told(HOOK, &facts));
        let ended = alive_while(running).await.map_err(|error| failed(&error.to_string()))?;
        if let Some(failure) = ended.failure(command.timeout) {
            return Err(failed(&failure));
        }
        info!(hook = HOOK, output = ended.output, "hook done");
    }
    let Some(closure) = &registry.hooks.on_worker_start else { return Ok(()) };
    match catch_unwind(AssertUnwindSafe(|| closure(&facts))) {
        Ok(outcome) => outcome.map_err(|error| failed(&error.to_string())),
        Err(_panic) => Err(failed("it has panicked")),
    }
}

fn facts(name: &str, settings: &WorkerSettings) -> WorkerFacts {
    let processors = &settings.processors;
    WorkerFacts {
        worker: name.to_owned(),
        processors: processors.iter().map(|processor| processor.name.clone()).collect(),
        kinds: processors.iter().map(|processor| processor.kind().as_str().to_owned()).collect(),
        versions: processors.iter().map(|processor| processor.version).collect(),
        pid: i32::try_from(std::process::id()).ok(),
    }
}

/// Tells the supervisor that this process is alive until `work` is done, which has a limit of its own.
async fn alive_while<T>(work: impl Future<Output = T>) -> T {
    let Some(pipe) = ReportPipe::from_standard_output() else { return work.await };
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = ticks.tick() => {
                pipe.try_send(&Report::Heartbeat { overdue_ms: 0, overdue: None });
            }
        }
    }
}

fn failed(why: &str) -> Exit {
    Exit { code: ExitCode::StartHook, message: format!("{HOOK} has failed: {why}") }
}
