//! The server's process, which never outlives the process that started it.
//!
//! Two things end the server when its owner dies without stopping it. On Linux the kernel sends the server a signal
//! (see [`crate::process::spawner`]). And a small shell script, the [`Janitor`], reads a pipe whose other end only the owner
//! holds: when it closes, the script stops the server (on systems without that signal) and removes the temporary folder.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::orphans::reserve;
use crate::process::spawner::{die_with_owner, on_spawning_thread};

/// Between two looks at a process that is about to end, or a server that is about to be ready.
pub(super) const POLL: Duration = Duration::from_millis(10);

/// How long a fast shutdown may take before it becomes an immediate one.
const FAST_GRACE: Duration = Duration::from_secs(20);

/// How long an immediate shutdown may take before the server is killed.
const IMMEDIATE_GRACE: Duration = Duration::from_secs(6);

/// How a server is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Rolls back what is open, writes a checkpoint, ends.
    Fast,
    /// Ends at once, as in a crash: the next start recovers from the log.
    Immediate,
}

/// A running server, a child of this process.
#[derive(Debug)]
pub(super) struct Process(Child);

impl Process {
    /// Starts `command` so that it dies with this process. A group of its own keeps a terminal's Ctrl-C from
    /// reaching the server before those who use it have stopped.
    pub(super) fn spawn(mut command: Command) -> io::Result<Self> {
        command.process_group(0);
        die_with_owner(&mut command, Signal::SIGINT);
        let child = on_spawning_thread(move || command.spawn())?;
        reserve(child.id());
        Ok(Self(child))
    }

    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }

    /// The exit status, if the server has ended.
    pub(super) fn exit_status(&mut self) -> io::Result<Option<ExitStatus>> {
        self.0.try_wait()
    }

    /// Stops the server and waits until it is gone, with growing force.
    pub(super) fn stop(&mut self, mode: StopMode) -> io::Result<()> {
        if mode == StopMode::Fast && self.signal_and_wait(Signal::SIGINT, FAST_GRACE)? {
            return Ok(());
        }
        if self.signal_and_wait(Signal::SIGQUIT, IMMEDIATE_GRACE)? {
            return Ok(());
        }
        tracing::warn!(pid = self.id(), "embedded PostgreSQL does not stop, killing it");
        self.0.kill()?;
        self.0.wait().map(drop)
    }

    /// Whether the server ended within `grace`.
    fn signal_and_wait(&mut self, signal: Signal, grace: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + grace;
        if self.exit_status()?.is_some() {
            return Ok(true);
        }
        // Not waited for yet, so the id is still the server's.
        kill(Pid::from_raw(self.id().cast_signed()), signal)?;
        while Instant::now() < deadline {
            if self.exit_status()?.is_some() {
                return Ok(true);
            }
            thread::sleep(POLL);
        }
        Ok(false)
    }
}

/// Cleans up after an owner that died: see the module's documentation.
#[derive(Debug)]
pub(super) struct Janitor {
    shell: Child,
    lifeline: ChildStdin,
}

/// Each line on standard input is the id of the server as of now; the end of input is the death of the owner.
///
/// A server that has ended removes its `postmaster.pid`; the process may be there for longer, as a zombie in a
/// container whose first process does not collect them.
const JANITOR_SCRIPT: &str = r#"
trap '' INT TERM HUP
pid=
while read -r line; do pid=$line; done
if [ -n "$pid" ]; then kill -INT "$pid"; fi
if [ -n "$1" ]; then
    tries=0
    while kill -0 "$pid" && [ -e "$1/data/postmaster.pid" ] && [ "$tries" -lt 200 ]; do
        sleep 0.05
        tries=$((tries + 1))
    done
    rm -rf -- "$1"
fi
"#;

impl Janitor {
    /// Starts a janitor that removes `temporary` when this process has died.
    pub(super) fn start(temporary: Option<&Path>) -> io::Result<Self> {
        let mut shell = Command::new("/bin/sh")
            .args(["-c", JANITOR_SCRIPT, "espd-janitor"])
            .arg(temporary.unwrap_or(Path::new("")))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        reserve(shell.id());
        let lifeline = shell.stdin.take().ok_or_else(|| io::Error::other("no pipe to the janitor"))?;
        Ok(Self { shell, lifeline })
    }

    /// Tells the janitor which server to stop.
    pub(super) fn watch(&mut self, process: &Process) -> io::Result<()> {
        writeln!(self.lifeline, "{}", process.id())
    }
}

impl Drop for Janitor {
    /// Ends the janitor: its owner has stopped the server itself, and the id may soon be another's.
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}
