//! A worker's process: started by executing ourselves again, stopped through its process group.

use std::fmt;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::mpsc;

use super::listener::listen;
use crate::process::report::Report;
use crate::process::service_manager::VARIABLES;
use crate::process::spawner::{die_with_owner, on_spawning_thread};

/// What to start as a worker.
#[derive(Clone, PartialEq, Eq)]
pub struct Program {
    /// Unique name.
    pub name: String,
    /// The processors that live in it.
    pub processors: Vec<String>,
    /// The first line on the child's standard input.
    pub settings: String,
}

/// The settings hold passwords.
impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A running child.
#[derive(Debug)]
pub(crate) struct Child {
    process: tokio::process::Child,
    pid: Pid,
    /// The child ends when this closes, which the kernel does for us however we end.
    lifeline: ChildStdin,
    /// Where the child reports.
    output: ChildStdout,
}

impl Child {
    /// Starts the program.
    pub(crate) fn start(program: &Program) -> io::Result<Self> {
        let mut process = spawn(program)?;
        let pid = process.id().ok_or_else(|| io::Error::other("the child ended at once"))?;
        let (stdin, stdout) = (process.stdin.take(), process.stdout.take());
        let (lifeline, output) = stdin.zip(stdout).ok_or_else(|| io::Error::other("no pipe to the child"))?;
        Ok(Self { process, pid: Pid::from_raw(pid.cast_signed()), lifeline, output })
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Hands the child its settings, passes on what it reports, and waits for its end, whether or not it ever
    /// reads the settings.
    pub(crate) async fn attend(
        self,
        settings: String,
        reports: mpsc::Sender<(Pid, Report)>,
    ) -> io::Result<ExitStatus> {
        let Self { mut process, pid, mut lifeline, output } = self;
        let handing_over = async {
            // A child that is dead already is noticed by waiting for it.
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
        .arg0(title(program))
        .args(["worker", "--supervised", &program.name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // A group of its own: the terminal's Ctrl-C is for the supervisor, which stops its workers in order.
        .process_group(0);
    // What the service manager has said to us is not for our children.
    for name in VARIABLES {
        command.env_remove(name);
    }
    die_with_owner(&mut command, Signal::SIGKILL);
    let runtime = tokio::runtime::Handle::current();
    on_spawning_thread(move || {
        let _entered = runtime.enter();
        tokio::process::Command::from(command).spawn()
    })
}

/// What process lists show.
fn title(program: &Program) -> String {
    const LENGTH_MAX: usize = 200;
    let Program { name, processors, .. } = program;
    let mut title = match processors.as_slice() {
        [only] if only == name => format!("espd: worker {name}"),
        several => format!("espd: worker {name}: {}", several.join(", ")),
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
