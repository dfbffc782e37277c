//! A build in a thread of its own: handlers in Rust may block theirs, and what the daemon has to do meanwhile goes on.

use std::io;
use std::thread;

use tokio::runtime;
use tokio::sync::oneshot;

use crate::operations::operator::OperatorError;
use crate::operations::rebuild::Built;

/// Has a thread do the work, on a runtime of its own. If nobody waits for it any more, it ends as soon as the handler lets it.
pub(super) async fn build_in_thread<F>(
    name: &str,
    work: impl FnOnce() -> F + Send + 'static,
) -> Result<Built, OperatorError>
where
    F: Future<Output = Result<Built, OperatorError>>,
{
    // Dropped with this future, which ends the other one.
    let (_wanted, unwanted) = oneshot::channel::<()>();
    let (done, built) = oneshot::channel();
    let build = move || {
        // Where nobody waits, nobody need be told.
        let _ = done.send(run(work, unwanted));
    };
    thread::Builder::new().name(format!("build {name}")).spawn(build).map_err(not_started)?;
    built
        .await
        .unwrap_or_else(|_| Err(OperatorError::Rebuild("the thread that builds it has panicked".to_owned())))
}

fn run<F>(work: impl FnOnce() -> F, unwanted: oneshot::Receiver<()>) -> Result<Built, OperatorError>
where
    F: Future<Output = Result<Built, OperatorError>>,
{
    let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(not_started)?;
    runtime.block_on(async {
        tokio::select! {
            built = work() => built,
            _ = unwanted => Ok(Built::NotWanted),
        }
    })
}

fn not_started(error: io::Error) -> OperatorError {
    OperatorError::Rebuild(format!("no thread could be started to build it: {error}"))
}
