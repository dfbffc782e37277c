//! A worker's process: started by executing ourselves again, stopped through its process group.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt as _;
use tokio::process::ChildStdin;

use crate::spawner::{die_with_owner, on_spawning_thread};

/// What to start as a worker.
#[derive(Debug, Clone)]
pub struct Program {
    /// Unique name; part of the title that process lists show.
    pub name: String,
    /// The first line on the child's standard input.
    pub settings: String,
}

/// A running child.
#[derive(Debug)]
pub(crate) struct Child {
    process: tokio::process::Child,
    pid: Pid,
    /// The child ends when this closes, which the kernel does for us however we end.
    _lifeline: ChildStdin,
}

impl Child {
    /// Starts the program and hands it its settings.
    pub(crate) async fn start(program: &Program) -> io::Result<Self> {
        let mut process = spawn(program)?;
        let pid = process.id().ok_or_else(|| io::Error::other("the child ended at once"))?;
        let mut lifeline = process.stdin.take().ok_or_else(|| io::Error::other("no pipe to the child"))?;
        // A child that is dead already is noticed by waiting for it.
        let _ = lifeline.write_all(format!("{}\n", program.settings).as_bytes()).await;
        let _ = lifeline.flush().await;
        Ok(Self { process, pid: Pid::from_raw(pid.cast_signed()), _lifeline: lifeline })
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for the end of the process.
    pub(crate) async fn wait(mut self) -> io::Result<ExitStatus> {
        self.process.wait().await
    }
}

/// Sends a signal to a child and all that it started. A group that is gone has had it already.
pub(crate) fn signal_group(pid: Pid, signal: Signal) {
    match killpg(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => tracing::warn!(worker.pid = pid.as_raw(), %error, "could not signal a worker"),
    }
}

fn spawn(program: &Program) -> io::Result<tokio::process::Child> {
    let mut command = Command::new(own_executable()?);
    command
        .arg0(format!("espd: worker {}", program.name))
        .args(["worker", "--supervised", &program.name])
        .stdin(Stdio::piped())
        // A group of its own: the terminal's Ctrl-C is for the supervisor, which stops its workers in order.
        .process_group(0);
    die_with_owner(&mut command, Signal::SIGKILL);
    let runtime = tokio::runtime::Handle::current();
    on_spawning_thread(move || {
        let _entered = runtime.enter();
        tokio::process::Command::from(command).spawn()
    })
}

/// The very program that runs now, also after its file was replaced by an upgrade.
fn own_executable() -> io::Result<PathBuf> {
    if cfg!(target_os = "linux") { Ok(PathBuf::from("/proc/self/exe")) } else { std::env::current_exe() }
}
