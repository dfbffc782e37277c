//! A worker: the process that one or more processors live in.
//!
//! The watcher's connection looks after the store, for all of them; each runner has one of its own and does
//! the work. Standard input is a lifeline: the supervisor writes one line, the assignment, and keeps the pipe
//! open for as long as it lives.

mod assignment;
mod reporting;
mod runners;
mod task;

use std::io::BufRead as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use crate::handlers::native::Registry;
use crate::process::exit_code::ExitCode;
use crate::process::signal;
use crate::{shutdown, telemetry};

pub use assignment::{Assignment, WorkerSettings};

/// How long a worker may still take after its supervisor has died.
const ORPHAN_GRACE: Duration = Duration::from_millis(500);

/// Runs as the child of a supervisor: the assignment comes first on standard input.
pub fn run_supervised(registry: Arc<Registry>) -> anyhow::Result<()> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("could not read the assignment")?;
    let assignment: Assignment = serde_json::from_str(&line).context("the assignment is not understood")?;
    run(assignment, registry, true)
}

/// Runs one worker in this process until it is asked to stop.
pub fn run(assignment: Assignment, registry: Arc<Registry>, supervised: bool) -> anyhow::Result<()> {
    telemetry::start(&assignment.settings.log);
    std::panic::set_hook(Box::new(telemetry::log_panic));
    // One thread is enough: the work is done by the database.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (handle, stop) = shutdown::channel();
        let requests = signal::requests().context("could not listen for signals")?;
        if supervised {
            end_with_supervisor();
        }
        tokio::spawn(signal::stop_on_request(requests, handle, ExitCode::Interrupted as i32));
        runners::work(assignment, registry, supervised, stop).await
    })
}

/// Ends this process soon after the lifeline closes, whatever it is doing.
fn end_with_supervisor() {
    std::thread::spawn(|| {
        // Nothing more is ever written: this returns when the supervisor is gone.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM);
        std::thread::sleep(ORPHAN_GRACE);
        std::process::exit(ExitCode::Interrupted as i32);
    });
}
