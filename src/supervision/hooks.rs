//! Hooks: commands of the operator's that run when a worker ends or a processor fails.
//!
//! A hook gets the facts as one line of JSON on standard input. It has a process group and a time limit. Only a few hooks
//! run at once; further ones are left out. What a hook prints goes to the log, up to a bound. Nothing that a hook does or
//! fails to do has a consequence.

use std::io;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Child;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::process::exit_code::describe_foreign_end;
use crate::process::spawner::spawn_group;
use crate::process::systemd::VARIABLES;

/// Hooks that may run at the same time.
const AT_ONCE_MAX: u32 = 4;

/// Bytes of each output stream that are logged.
const OUTPUT_BYTES_MAX: u64 = 4096;

/// How long the rest of a hook's output is waited for.
const OUTPUT_GRACE: Duration = Duration::from_secs(1);

/// The section `[hooks]`: what to run when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookSettings {
    /// A program and its arguments, run when a worker has ended; empty: none.
    pub on_worker_end: Vec<String>,
    /// A program and its arguments, run when a processor begins to retry or to wait for an operator; empty: none.
    pub on_failure: Vec<String>,
    /// A program and its arguments, run when a processor has set events aside; empty: none.
    pub on_dead_letter: Vec<String>,
    /// The longest time that a hook may take before it is killed.
    pub timeout: Duration,
}

impl Default for HookSettings {
    /// No hooks, and 10 s for each.
    fn default() -> Self {
        Self {
            on_worker_end: Vec::new(),
            on_failure: Vec::new(),
            on_dead_letter: Vec::new(),
            timeout: Duration::from_secs(10),
        }
    }
}

/// Runs hooks.
#[derive(Debug)]
pub(super) struct Hooks {
    pub(super) settings: HookSettings,
    /// One permit for each hook that may run.
    free: Arc<Semaphore>,
}

impl Hooks {
    pub(super) fn new(settings: HookSettings) -> Self {
        Self { settings, free: Arc::new(Semaphore::new(AT_ONCE_MAX as usize)) }
    }

    pub(super) fn worker_ended(&self, facts: Value) {
        self.start("on_worker_end", &self.settings.on_worker_end, facts);
    }

    pub(super) fn processor_failed(&self, facts: Value) {
        self.start("on_failure", &self.settings.on_failure, facts);
    }

    pub(super) fn event_set_aside(&self, facts: Value) {
        self.start("on_dead_letter", &self.settings.on_dead_letter, facts);
    }

    /// Waits until all running hooks have ended; each has its time limit.
    pub(super) async fn finish(&self) {
        // An error would mean that the semaphore is closed, which never happens.
        let _ = self.free.acquire_many(AT_ONCE_MAX).await;
    }

    fn start(&self, hook: &'static str, command: &[String], facts: Value) {
        let Some((program, arguments)) = command.split_first() else { return };
        let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() else {
            warn!(hook, running = AT_ONCE_MAX, "a hook is left out: too many are running");
            return;
        };
        let mut command = Command::new(program);
        command.args(arguments);
        let limit = self.settings.timeout;
        tokio::spawn(async move {
            log(hook, limit, run(command, format!("{facts}\n"), limit).await);
            drop(permit);
        });
    }
}

fn log(hook: &str, limit: Duration, outcome: io::Result<Ended>) {
    match outcome {
        Ok(Ended { status: Some(status), output }) if status.success() => info!(hook, output, "hook done"),
        Ok(Ended { status: Some(status), output }) => {
            warn!(hook, status = describe_foreign_end(status), output, "a hook has failed");
        }
        Ok(Ended { status: None, output }) => {
            let limit_ms = limit.as_millis() as u64;
            warn!(hook, limit_ms, output, "a hook takes too long, killed it");
        }
        Err(error) => warn!(hook, %error, "could not run a hook"),
    }
}

/// How a hook has ended; without a status it was killed.
struct Ended {
    status: Option<ExitStatus>,
    output: String,
}

async fn run(command: Command, facts: String, limit: Duration) -> io::Result<Ended> {
    let mut process = spawn(command)?;
    let pid = process.id().map(|id| Pid::from_raw(id.cast_signed()));
    let (stdin, stdout, stderr) = (process.stdin.take(), process.stdout.take(), process.stderr.take());
    let feeding = async {
        if let Some(mut stdin) = stdin {
            // An error means that the hook does not read its facts, which it need not.
            let _ = stdin.write_all(facts.as_bytes()).await;
        }
    };
    let ending = async {
        let ended = timeout(limit, process.wait()).await;
        // What the hook has started ends now as well.
        if let Some(pid) = pid {
            let _ = killpg(pid, Signal::SIGKILL);
        }
        match ended {
            Ok(status) => status.map(Some),
            Err(_elapsed) => process.wait().await.map(|_| None),
        }
    };
    let reading = timeout(limit + OUTPUT_GRACE, async { tokio::join!(read(stdout), read(stderr)) });
    let feeding = timeout(limit, feeding);
    let (status, read, _) = tokio::join!(ending, reading, feeding);
    let (printed, complained) = read.unwrap_or_default();
    Ok(Ended { status: status?, output: format!("{printed}{complained}").trim_end().to_owned() })
}

fn spawn(mut command: Command) -> io::Result<Child> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in VARIABLES {
        command.env_remove(name);
    }
    spawn_group(command)
}

/// Returns the beginning of a stream, as text. The rest is read and forgotten.
async fn read(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let mut beginning = Vec::new();
    if (&mut stream).take(OUTPUT_BYTES_MAX).read_to_end(&mut beginning).await.is_ok() {
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&beginning).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn a_hook_reads_the_facts_and_its_output_is_bounded() {
        let limit = Duration::from_secs(10);
        let ended = run(shell("cat; echo no >&2; exit 3"), "{\"a\":1}\n".into(), limit).await.unwrap();
        assert_eq!((ended.status.unwrap().code(), ended.output.as_str()), (Some(3), "{\"a\":1}\nno"));
        let ended = run(shell("yes | head -c 1000000"), String::new(), limit).await.unwrap();
        assert!(ended.status.unwrap().success());
        assert!(ended.output.len() as u64 <= OUTPUT_BYTES_MAX);
        assert!(run(Command::new("/no/such/hook"), String::new(), limit).await.is_err());
    }

    #[tokio::test]
    async fn a_hook_that_takes_too_long_ends_with_all_that_it_started() {
        let limit = Duration::from_millis(200);
        let ended = run(shell("sleep 600 & echo $!; wait"), String::new(), limit).await.unwrap();
        assert!(ended.status.is_none());
        let started = Pid::from_raw(ended.output.parse().unwrap());
        let stat = std::fs::read_to_string(format!("/proc/{started}/stat")).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
    }
}
