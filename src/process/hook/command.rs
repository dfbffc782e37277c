//! Runs a hook's command: the facts on its standard input and in its environment, a process group, a time limit.

use std::io;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Child;
use tokio::time::timeout;

use crate::process::exit_code::describe_foreign_end;
use crate::process::spawner::spawn_group;
use crate::process::systemd::VARIABLES;

/// Bytes of each output stream that are kept.
const OUTPUT_BYTES_MAX: u64 = 4096;

/// How long the rest of a hook's output is waited for.
const OUTPUT_GRACE: Duration = Duration::from_secs(1);

/// A command that is run as a hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HookCommand {
    /// The program and its arguments.
    pub(crate) command: Vec<String>,
    /// The longest time that it may take before it is killed.
    pub(crate) timeout: Duration,
}

/// How a hook has ended.
#[derive(Debug)]
pub(crate) struct HookEnd {
    /// The exit code or signal; `None`: it was killed because its time was up.
    pub(crate) status: Option<ExitStatus>,
    /// The beginning of what it has printed.
    pub(crate) output: String,
}

impl HookEnd {
    /// Why the hook has not done its work; `None`: it has.
    pub(crate) fn failure(&self, limit: Duration) -> Option<String> {
        let why = match self.status {
            Some(status) if status.success() => return None,
            Some(status) => describe_foreign_end(status),
            None => format!("killed, because it took longer than {limit:?}"),
        };
        Some(if self.output.is_empty() { why } else { format!("{why}: {}", self.output) })
    }
}

impl HookCommand {
    /// Runs the command and waits for its end. `facts` is one line of JSON for its standard input.
    ///
    /// # Errors
    /// The command is empty or cannot be run.
    pub(crate) async fn run(
        &self,
        environment: Vec<(&'static str, String)>,
        facts: String,
    ) -> io::Result<HookEnd> {
        let (program, arguments) =
            self.command.split_first().ok_or_else(|| io::Error::other("no program is named"))?;
        let mut command = Command::new(program);
        command.args(arguments);
        command.envs(environment);
        run(command, facts, self.timeout).await
    }
}

async fn run(command: Command, facts: String, limit: Duration) -> io::Result<HookEnd> {
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
    Ok(HookEnd { status: status?, output: format!("{printed}{complained}").trim_end().to_owned() })
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
        // The signal was sent; a busy machine takes a moment to deliver it.
        let goes_on = || {
            let stat = std::fs::read_to_string(format!("/proc/{started}/stat")).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        let end = async {
            while goes_on() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), end).await.expect("the child is killed, too");
    }
}
