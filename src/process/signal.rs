//! The operating system's signals as a stream of typed requests. The only file that names `signal-hook`.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::sync::mpsc;

use crate::shutdown::ShutdownHandle;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// SIGTERM or SIGINT: stop. A second one: stop at once.
    Stop,
    /// SIGHUP: read the configuration again.
    Reload,
}

/// Requests that have arrived and were not read yet. A few are enough: more would say nothing new.
const QUEUE_LENGTH: usize = 16;

/// Signals that follow each other faster than this are one request: `timeout` and some init systems signal a process and
/// then its group. No one presses Ctrl-C twice in this time.
const ONE_REQUEST: Duration = Duration::from_millis(200);

/// Listens for requests to stop. From now on these signals no longer end the process by themselves.
///
/// # Errors
/// The signals or the thread that waits for them cannot be had.
pub fn requests() -> io::Result<mpsc::Receiver<Request>> {
    listen(&[SIGTERM, SIGINT])
}

/// Listens for requests to stop and for requests to read the configuration again.
///
/// # Errors
/// As for [`requests`].
pub(crate) fn requests_and_reloads() -> io::Result<mpsc::Receiver<Request>> {
    listen(&[SIGTERM, SIGINT, SIGHUP])
}

fn listen(signals: &[i32]) -> io::Result<mpsc::Receiver<Request>> {
    let mut signals = Signals::new(signals)?;
    let (sender, receiver) = mpsc::channel(QUEUE_LENGTH);
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let mut last_stop: Option<Instant> = None;
        for signal in signals.forever() {
            // A full queue already says what this signal would say.
            if signal == SIGHUP {
                let _ = sender.try_send(Request::Reload);
                continue;
            }
            if last_stop.is_none_or(|last| last.elapsed() > ONE_REQUEST) {
                let _ = sender.try_send(Request::Stop);
            }
            last_stop = Some(Instant::now());
        }
    })?;
    Ok(receiver)
}

/// Requests the stop at the first signal; ends the process at the second.
pub(crate) async fn stop_on_request(
    mut requests: mpsc::Receiver<Request>,
    stop: ShutdownHandle,
    exit_code: i32,
) {
    if requests.recv().await.is_some() {
        stop.request();
    }
    if requests.recv().await.is_some() {
        tracing::warn!("second signal: ending at once");
        std::process::exit(exit_code);
    }
    // All senders are gone, so no request will come. Returning would drop `stop`, which is a request.
    std::future::pending::<()>().await;
}
