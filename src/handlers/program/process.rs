//! The process of a program: reading and writing its pipes, its memory, and its end.
//!
//! Reading and writing always happen together, so that espd and a program can never block each other with full pipes.
//! Ending the process ends everything that it has started in its process group, and what has left that as far as it is
//! found. So does the end of this process: see [`crate::process::group_guard`] and [`crate::process::orphans`].

mod launch;
#[cfg(test)]
mod tests;
mod unwritten;

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until, timeout};

use super::lines::{LineError, Lines};
use super::stderr::{self, StderrTail};
use crate::process::exit_code::describe_foreign_end;
use crate::process::group_guard::GroupGuard;
use crate::process::memory::resident_bytes_of_group;
use crate::process::orphans::descendants;
use crate::processing::declaration::ProgramDeclaration;
use unwritten::Unwritten;

/// How long espd waits for the rest of the output of a process that has ended. Another process may hold the pipes open.
const REST_GRACE: Duration = Duration::from_millis(500);

/// What a pipe to or from a program holds, in bytes: the answers to about a thousand events.
const PIPE_BYTES: i32 = 256 << 10;

/// Time between two checks of the memory of a process that is expected to answer.
const MEMORY_INTERVAL: Duration = Duration::from_millis(200);

/// A running program. Dropping it kills its process group.
#[derive(Debug)]
pub(super) struct ProgramProcess {
    child: Child,
    /// `None` once the group has been killed.
    group: Option<Pid>,
    /// Kills the group if this process ends before.
    guard: Option<GroupGuard>,
    input: Option<ChildStdin>,
    output: Lines<ChildStdout>,
    /// Bytes that the program has not read yet.
    unwritten: Unwritten,
    stderr_tail: StderrTail,
    stderr_forwarding: JoinHandle<()>,
    memory_max: Option<u64>,
    memory_checked_at: Instant,
}

/// Why no further line can be read from a program.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProcessError {
    #[error("ended with {}", describe_foreign_end(*.0))]
    Ended(ExitStatus),
    #[error("closed its standard output")]
    Closed,
    #[error("gave no answer within {} s (command_timeout)", .0.as_secs_f32())]
    Silent(Duration),
    #[error("had {used} bytes of memory in use, more than the {max} of command_memory_max")]
    TooLarge { used: u64, max: u64 },
    #[error(transparent)]
    Line(#[from] LineError),
}

impl ProgramProcess {
    /// Starts the program, and logs what it writes to standard error.
    pub(super) fn start(processor: &str, declaration: &ProgramDeclaration) -> io::Result<Self> {
        let mut child = launch::launch(declaration)?;
        let group = child.id().map(|id| Pid::from_raw(id.cast_signed()));
        let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let guard = group.map(GroupGuard::start).transpose();
        let guard = guard.inspect_err(|_| {
            // Unguarded it might outlive us.
            let _ = group.map(|group| killpg(group, Signal::SIGKILL));
        })?;
        let no_pipe = || io::Error::other("no pipe to the program");
        let (output, errors) = output.zip(errors).ok_or_else(no_pipe)?;
        widen(input.as_ref().map(|input| input.as_fd()));
        widen(Some(output.as_fd()));
        let stderr_tail = StderrTail::default();
        let stderr_forwarding = tokio::spawn(stderr::forward(
            processor.to_owned(),
            declaration.hidden(),
            errors,
            stderr_tail.clone(),
        ));
        Ok(Self {
            child,
            group,
            guard,
            input,
            output: Lines::new(output),
            unwritten: Unwritten::default(),
            stderr_tail,
            stderr_forwarding,
            memory_max: declaration.memory_max,
            memory_checked_at: Instant::now(),
        })
    }

    pub(super) fn pid(&self) -> Option<i32> {
        self.group.map(Pid::as_raw)
    }

    /// The exit status, if the process has ended.
    pub(super) fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Queues a line. [`Self::read_line`] writes it while it waits for the program's next line.
    pub(super) fn send(&mut self, line: Vec<u8>) {
        self.unwritten.push(line);
    }

    /// Writes what was sent while nobody waits for an answer. Never returns, and may be given up at any time.
    pub(super) async fn keep_writing(&mut self) -> Infallible {
        while !self.unwritten.is_empty() {
            let written = write(&mut self.input, self.unwritten.bytes()).await;
            self.unwritten.note(written);
        }
        std::future::pending().await
    }

    /// Whether the program has not read everything that was sent.
    pub(super) fn has_unread_input(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// Reads the next line, and writes what was sent meanwhile. The line has to arrive within `answer_timeout` of `since`.
    pub(super) async fn read_line(
        &mut self,
        since: Instant,
        answer_timeout: Duration,
    ) -> Result<&str, ProcessError> {
        let deadline = since + answer_timeout;
        // A program that writes without end always has a line ready, and none of them may be an answer.
        if Instant::now() >= deadline {
            return Err(ProcessError::Silent(answer_timeout));
        }
        loop {
            self.check_memory()?;
            let memory_check = if self.memory_max.is_some() { MEMORY_INTERVAL } else { Duration::MAX };
            tokio::select! {
                biased;
                advanced = self.output.advance() => match advanced? {
                    true => break,
                    false => return Err(self.why_output_closed().await),
                },
                written = write(&mut self.input, self.unwritten.bytes()), if !self.unwritten.is_empty() => {
                    self.unwritten.note(written);
                }
                // Processes that the program has started may keep its output open. What it has written comes first.
                status = self.child.wait() => return self.read_rest(status).await,
                () = sleep_until(deadline.into()) => return Err(ProcessError::Silent(answer_timeout)),
                () = sleep(memory_check) => {}
            }
        }
        Ok(self.output.line())
    }

    /// Reads the next line that the program wrote before it ended.
    async fn read_rest(&mut self, status: io::Result<ExitStatus>) -> Result<&str, ProcessError> {
        self.kill_group();
        let advanced = timeout(REST_GRACE, self.output.advance()).await;
        match (advanced, status) {
            (Ok(Ok(true)), _) => Ok(self.output.line()),
            (Ok(Err(error)), _) => Err(error.into()),
            (_, Ok(status)) => Err(ProcessError::Ended(status)),
            (_, Err(error)) => Err(ProcessError::Line(LineError::Io(error))),
        }
    }

    /// Finds out why the output is closed. Usually the process is about to end.
    async fn why_output_closed(&mut self) -> ProcessError {
        match timeout(REST_GRACE, self.child.wait()).await {
            Ok(Ok(status)) => ProcessError::Ended(status),
            _ => ProcessError::Closed,
        }
    }

    fn check_memory(&mut self) -> Result<(), ProcessError> {
        let (Some(max), Some(group)) = (self.memory_max, self.group) else { return Ok(()) };
        if self.memory_checked_at.elapsed() < MEMORY_INTERVAL {
            return Ok(());
        }
        self.memory_checked_at = Instant::now();
        let used = resident_bytes_of_group(group);
        if used > max { Err(ProcessError::TooLarge { used, max }) } else { Ok(()) }
    }

    /// Closes the program's standard input, which asks it to end, and kills it after `grace`. What it still writes is
    /// read and dropped. Returns the last lines of standard error.
    pub(super) async fn stop(mut self, grace: Duration) -> Option<String> {
        self.input = None;
        let draining = async {
            while let Ok(true) = self.output.advance().await {}
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = timeout(grace, self.child.wait()) => {}
            () = draining => {}
        }
        self.kill().await
    }

    /// Kills the process group at once. Returns the last lines of standard error.
    pub(super) async fn kill(mut self) -> Option<String> {
        self.kill_group();
        let _ = self.child.wait().await;
        // The last lines are on their way, unless a process that has left the group holds the pipe open.
        let _ = timeout(REST_GRACE, &mut self.stderr_forwarding).await;
        self.stderr_tail.read()
    }

    /// Signals the group, once: later its number may belong to another group.
    fn kill_group(&mut self) {
        let Some(group) = self.group.take() else { return };
        // What has left the group is still found below the program, unless its parent has ended.
        let family = descendants(group);
        // This fails only if the group has ended already.
        let _ = killpg(group, Signal::SIGKILL);
        for pid in family {
            let _ = kill(pid, Signal::SIGKILL);
        }
        if let Some(guard) = self.guard.take() {
            guard.dismiss();
        }
    }
}

impl Drop for ProgramProcess {
    fn drop(&mut self) {
        self.kill_group();
        self.stderr_forwarding.abort();
    }
}

/// Has a pipe hold more than usual, so that the program goes on while espd waits for the database. A system that refuses that
/// only makes both slower.
fn widen(pipe: Option<BorrowedFd<'_>>) {
    if let Some(pipe) = pipe {
        let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
    }
}

async fn write(input: &mut Option<ChildStdin>, bytes: &[u8]) -> io::Result<usize> {
    match input {
        Some(input) => input.write(bytes).await,
        None => Err(io::ErrorKind::BrokenPipe.into()),
    }
}
