//! File descriptors: a program that has too few of them is told so before something in it panics.

use std::fs::File;
use std::io;

/// How many are needed for a runtime, signals and the first connections.
const NEEDED: usize = 32;

/// Fails if the process may not open as many files as it needs to begin with.
///
/// # Errors
/// What to raise.
pub(crate) fn require() -> io::Result<()> {
    let opened: io::Result<Vec<File>> = (0..NEEDED).map(|_| File::open("/dev/null")).collect();
    opened.map(drop).map_err(|error| {
        let message = format!(
            "{error}: espd needs {NEEDED} file descriptors to begin with, and more for each worker; raise `ulimit -n`, or \
             LimitNOFILE= of the systemd unit"
        );
        io::Error::new(error.kind(), message)
    })
}
