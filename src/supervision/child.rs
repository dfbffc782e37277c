//! A worker's process: started by executing ourselves again, stopped through its process group.

use std::fmt;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::mpsc;

use super::listener::listen;
use crate::process::report::Report;
use crate::process::spawner::spawn_group;
use crate::process::systemd::VARIABLES;

/// What a worker runs.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct WorkerProgram {
    /// The worker's name; no two workers have the same.
    pub name: String,
    /// The names of the processors that live in the worker.
    pub processors: Vec<String>,
    /// What each of them is, in the same order: `projector` or `reactor`.
    pub kinds: Vec<String>,
    /// The version of each of them, in the same order.
    pub versions: Vec<i32>,
    /// The assignment: the first line on the worker's standard input. The supervisor does not read it.
    pub settings: String,
}

/// Leaves out the settings, which hold passwords.
impl fmt::Debug for WorkerProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerProgram").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A running worker process.
#[derive(Debug)]
pub(super) struct Child {
    process: tokio::process::Child,
    pid: Pid,
    /// The worker's standard input. The worker ends when this closes, which the kernel does however we end.
    lifeline: ChildStdin,
    /// The worker's standard output, where it reports.
    output: ChildStdout,
}

impl Child {
    /// Starts the program.
    pub(super) fn start(program: &WorkerProgram) -> io::Result<Self> {
        let mut process = spawn(program)?;
        let pid = process.id().ok_or_else(|| io::Error::other("the child ended at once"))?;
        let (stdin, stdout) = (process.stdin.take(), process.stdout.take());
        let (lifeline, output) = stdin.zip(stdout).ok_or_else(|| io::Error::other("no pipe to the child"))?;
        Ok(Self { process, pid: Pid::from_raw(pid.cast_signed()), lifeline, output })
    }

    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Hands the worker its settings, passes on its reports, and waits for its end, whether or not the worker ever reads
    /// the settings.
    pub(super) async fn attend(
        self,
        settings: String,
        reports: mpsc::Sender<(Pid, Report)>,
    ) -> io::Result<ExitStatus> {
        let Self { mut process, pid, mut lifeline, output } = self;
        let handing_over = async {
            // An error means that the worker is dead, which waiting for it tells as well.
            let _ = lifeline.write_all(format!("{settings}\n").as_bytes()).await;
            let _ = lifeline.flush().await;
            std::future::pending::<()>().await;
        };
        let listening = async {
            listen(pid, output, reports).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            status = process.wait() => status,
            () = listening => Err(io::Error::other("listening never ends")),
            () = handing_over => Err(io::Error::other("handing over never ends")),
        }
    }
}

/// Sends a signal to a worker and all that it has started. If no process of the group is left, there is nothing to do.
pub(super) fn signal_group(pid: Pid, signal: Signal) {
    match killpg(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => tracing::warn!(worker.pid = pid.as_raw(), %error, "could not signal a worker"),
    }
}

fn spawn(program: &WorkerProgram) -> io::Result<tokio::process::Child> {
    let mut command = Command::new(own_executable()?);
    command
        .arg0(title(program))
        .args(["worker", "--supervised", &program.name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    // What systemd has said to us is not for our children.
    for name in VARIABLES {
        command.env_remove(name);
    }
    // In a group of its own, the worker does not get the terminal's Ctrl-C: we stop it in order.
    spawn_group(command)
}

/// What the titles of all workers begin with.
const TITLE: &str = "espd: worker ";

/// Whether a process that was called like this is a worker.
pub(crate) fn is_worker_title(called: &Path) -> bool {
    called.to_string_lossy().starts_with(TITLE)
}

/// The worker's name in process lists.
fn title(program: &WorkerProgram) -> String {
    const LENGTH_MAX: usize = 200;
    let WorkerProgram { name, processors, .. } = program;
    let mut title = match processors.as_slice() {
        [only] if only == name => format!("{TITLE}{name}"),
        several => format!("{TITLE}{name}: {}", several.join(", ")),
    };
    if title.len() > LENGTH_MAX {
        // All names are ASCII.
        title.truncate(LENGTH_MAX);
        title.push_str(", …");
    }
    title
}

/// The very program that runs now, also after its file was replaced by an upgrade.
fn own_executable() -> io::Result<PathBuf> {
    if cfg!(target_os = "linux") { Ok(PathBuf::from("/proc/self/exe")) } else { std::env::current_exe() }
}
