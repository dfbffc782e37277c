//! The operating system's signals as a stream of typed requests. The only file that names `signal-hook`.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::sync::mpsc;

use crate::shutdown::ShutdownHandle;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// SIGTERM or SIGINT: stop. The second one means: at once.
    Stop,
}

/// Signals that have arrived and were not yet looked at. Nobody sends more than a few.
const QUEUE_LENGTH: usize = 16;

/// Signals that follow each other faster are one request: `timeout` and some init systems signal a process and
/// its group, nobody presses Ctrl-C twice in this time.
const ONE_REQUEST: Duration = Duration::from_millis(200);

/// Requests from now on. From here on these signals no longer end the process by themselves.
pub fn requests() -> io::Result<mpsc::Receiver<Request>> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let (sender, receiver) = mpsc::channel(QUEUE_LENGTH);
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let mut last: Option<Instant> = None;
        for _ in signals.forever() {
            if last.is_none_or(|last| last.elapsed() > ONE_REQUEST) {
                // A full queue already says what this signal would say.
                let _ = sender.try_send(Request::Stop);
            }
            last = Some(Instant::now());
        }
    })?;
    Ok(receiver)
}

/// Requests the stop at the first signal; ends the process at the second.
pub async fn stop_on_request(mut requests: mpsc::Receiver<Request>, stop: ShutdownHandle, exit_code: i32) {
    if requests.recv().await.is_some() {
        stop.request();
    }
    if requests.recv().await.is_some() {
        tracing::warn!("second signal: ending at once");
        std::process::exit(exit_code);
    }
    // Dropping `stop` would be a request; there is nobody left to make one.
    std::future::pending::<()>().await;
}
