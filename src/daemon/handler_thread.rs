//! Work in a thread of its own that calls handlers in Rust: they may block theirs, and what the daemon has to do meanwhile goes on.

use std::io;
use std::thread;

use tokio::runtime;
use tokio::sync::oneshot;

use crate::operations::operator::OperatorError;

/// Has a thread of this name do the work, on a runtime of its own. If nobody waits for it any more, it ends as soon as the handler lets it.
pub(super) async fn work_in_thread<T, F>(
    name: String,
    work: impl FnOnce() -> F + Send + 'static,
) -> Result<T, OperatorError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, OperatorError>>,
{
    // Dropped with this future, which ends the other one.
    let (_wanted, unwanted) = oneshot::channel::<()>();
    let (done, outcome) = oneshot::channel();
    let run = move || {
        // Where nobody waits, nobody need be told.
        if let Some(outcome) = run(work, unwanted).transpose() {
            let _ = done.send(outcome);
        }
    };
    thread::Builder::new().name(name).spawn(run).map_err(not_started)?;
    outcome
        .await
        .unwrap_or_else(|_| Err(OperatorError::Rebuild("the thread that does it has panicked".to_owned())))
}

/// Does the work; `None`: nobody wants it any more.
fn run<T, F>(work: impl FnOnce() -> F, unwanted: oneshot::Receiver<()>) -> Result<Option<T>, OperatorError>
where
    F: Future<Output = Result<T, OperatorError>>,
{
    let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(not_started)?;
    runtime.block_on(async {
        tokio::select! {
            outcome = work() => outcome.map(Some),
            _ = unwanted => Ok(None),
        }
    })
}

fn not_started(error: io::Error) -> OperatorError {
    OperatorError::Rebuild(format!("no thread could be started for it: {error}"))
}
