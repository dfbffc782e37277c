//! Reads the reports that a worker writes to its standard output.

use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::ChildStdout;
use tokio::sync::mpsc;

use crate::process::report::Report;

/// The longest line, in bytes; a longer one is not understood.
const LINE_BYTES_MAX: u64 = 4096;

/// Passes on the worker's reports until its output ends or the supervisor is gone.
pub(super) async fn listen(pid: Pid, output: ChildStdout, reports: mpsc::Sender<(Pid, Report)>) {
    let mut output = BufReader::with_capacity(LINE_BYTES_MAX as usize, output);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut output).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let Ok(report) = serde_json::from_slice::<Report>(&line) else {
            tracing::debug!(worker.pid = pid.as_raw(), "a worker has written a line that is no report");
            continue;
        };
        if reports.send((pid, report)).await.is_err() {
            return;
        }
    }
}
