//! A worker: the process that the runners of one or more processors live in.
//!
//! One connection is the watcher's, which follows the store for all runners. Few runners have a connection each; many share
//! some, and a steward does in one statement what all of them need. Standard input is a lifeline: the supervisor writes one line, the [`Assignment`], and keeps the pipe open
//! for as long as it lives.

mod assignment;
mod mark_keeper;
mod reporting;
mod runners;
mod schema_guard;
mod start_hook;
mod task;

use std::io::BufRead as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use crate::handlers::native::Registry;
use crate::postgres::query_text::show_literals;
use crate::process::exit_code::ExitCode;
use crate::process::orphans::adopt_orphans;
use crate::process::signal;
use crate::{shutdown, telemetry};

pub use assignment::{Assignment, WorkerSettings};
pub(crate) use runners::Crew;

/// How long a worker may continue after its supervisor has died.
const ORPHAN_GRACE: Duration = Duration::from_millis(500);

/// Runs the worker of this name as the child of a supervisor: the first line on standard input is the assignment.
///
/// # Errors
/// The line is no assignment; otherwise as for [`run`].
pub(crate) fn run_supervised(name: &str, registry: Arc<Registry>) -> anyhow::Result<()> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("could not read the assignment")?;
    let assignment: Assignment = serde_json::from_str(&line).context("the assignment is not understood")?;
    run(name, assignment, registry, true)
}

/// Runs the worker of this name in this process until it is asked to stop. `registry` has the processors written in Rust; a
/// `supervised` worker reports on standard output and ends with its supervisor.
///
/// # Errors
/// The hook `on_worker_start` or the watcher has failed, a newer espd has declared the tables to be not for this program, or none of
/// the processors can be run as it is declared.
pub(crate) fn run(
    name: &str,
    assignment: Assignment,
    registry: Arc<Registry>,
    supervised: bool,
) -> anyhow::Result<()> {
    telemetry::start(&assignment.settings.log);
    show_literals(assignment.settings.log.query_literals);
    std::panic::set_hook(Box::new(telemetry::log_panic));
    // One thread is enough: the database does the work.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(start_hook::run(name, &assignment.settings, &registry))?;
    runtime.block_on(async {
        let (handle, stop) = shutdown::channel();
        let requests = signal::requests().context("could not listen for signals")?;
        if supervised {
            adopt_orphans();
            end_with_supervisor();
        }
        tokio::spawn(signal::stop_on_request(requests, handle, ExitCode::Interrupted as i32));
        runners::run(assignment, registry, supervised, stop).await
    })
}

/// Ends this process soon after the lifeline closes, whatever the process is doing.
fn end_with_supervisor() {
    std::thread::spawn(|| {
        // The supervisor writes nothing more, so this returns when the supervisor is gone.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM);
        std::thread::sleep(ORPHAN_GRACE);
        std::process::exit(ExitCode::Interrupted as i32);
    });
}
