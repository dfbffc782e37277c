//! A worker's process: started with nothing of ours but its pipes, spoken to without ever waiting for it alone, ended
//! with all that it has started.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{ChildStdin, ChildStdout};
use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until, timeout};

use super::lines::{LineError, Lines};
use super::stderr::{self, LastWords};
use crate::process::exit_code::describe_foreign_end;
use crate::process::memory::resident_bytes_of_group;
use crate::process::spawner::{close_files_on_exec, die_with_owner, on_spawning_thread};
use crate::processing::declaration::ProgramDeclaration;

/// What a worker inherits of espd's environment, beside all that begins with `LC_`.
const INHERITED: [&str; 5] = ["PATH", "HOME", "LANG", "TZ", "TMPDIR"];

/// Where programs are looked for if nobody says.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// How long what a worker has written before it ended is waited for; somebody else may keep its pipes open.
const REST_GRACE: Duration = Duration::from_millis(500);

/// Between two looks at a working worker's memory.
const MEMORY_INTERVAL: Duration = Duration::from_millis(200);

/// A running worker.
#[derive(Debug)]
pub(super) struct Child {
    process: tokio::process::Child,
    /// Its process group; `None` once it is gone.
    group: Option<Pid>,
    input: Option<ChildStdin>,
    output: Lines<ChildStdout>,
    /// What it has yet to be told.
    unwritten: Vec<u8>,
    words: LastWords,
    pump: JoinHandle<()>,
    memory_max: Option<u64>,
    looked: Instant,
}

/// Why a worker says nothing more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("ended with {}", describe_foreign_end(*.0))]
    Ended(ExitStatus),
    #[error("closed its standard output")]
    Closed,
    #[error("was silent for {} s while an answer was due (command_timeout)", .0.as_secs_f32())]
    Silent(Duration),
    #[error("had {used} bytes of memory in use, more than the {max} of command_memory_max")]
    TooLarge { used: u64, max: u64 },
    #[error(transparent)]
    Line(#[from] LineError),
}

impl Child {
    /// Starts the program.
    pub(super) fn start(processor: &str, declaration: &ProgramDeclaration) -> io::Result<Self> {
        let mut process = spawn(declaration)?;
        let group = process.id().map(|id| Pid::from_raw(id.cast_signed()));
        let (input, output, errors) = (process.stdin.take(), process.stdout.take(), process.stderr.take());
        let no_pipe = || io::Error::other("no pipe to the worker");
        let (output, errors) = output.zip(errors).ok_or_else(no_pipe)?;
        let words = LastWords::default();
        let pump = tokio::spawn(stderr::pump(processor.to_owned(), errors, words.clone()));
        let memory_max = declaration.memory_max;
        let (output, unwritten, looked) = (Lines::new(output), Vec::new(), Instant::now());
        Ok(Self { process, group, input, output, unwritten, words, pump, memory_max, looked })
    }

    pub(super) fn pid(&self) -> Option<i32> {
        self.group.map(Pid::as_raw)
    }

    /// How it has ended, if it has.
    pub(super) fn end_of(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().ok().flatten()
    }

    /// Has a line written to it while it is listened to.
    pub(super) fn tell(&mut self, line: &[u8]) {
        self.unwritten.extend_from_slice(line);
    }

    /// Whether it has not taken yet what it was told.
    pub(super) fn is_behind(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// The next line that it writes, which has to come within `patience`. It is told what it has yet to be told meanwhile,
    /// so that neither waits for the other.
    pub(super) async fn hear(&mut self, since: Instant, patience: Duration) -> Result<&str, Broken> {
        let deadline = since + patience;
        // It may write without end, and nothing of it be an answer.
        if Instant::now() >= deadline {
            return Err(Broken::Silent(patience));
        }
        loop {
            self.look_at_memory()?;
            let look = if self.memory_max.is_some() { MEMORY_INTERVAL } else { Duration::MAX };
            tokio::select! {
                biased;
                advanced = self.output.advance() => match advanced? {
                    true => break,
                    false => return Err(self.why_closed().await),
                },
                written = write(&mut self.input, &self.unwritten), if !self.unwritten.is_empty() => {
                    match written {
                        Ok(length) => drop(self.unwritten.drain(..length)),
                        // It does not listen any more. What it still says, and how it ends, tells why.
                        Err(_) => self.unwritten.clear(),
                    }
                }
                // What it has started may keep its output open. What it has written comes first.
                status = self.process.wait() => return self.rest(status).await,
                () = sleep_until(deadline.into()) => return Err(Broken::Silent(patience)),
                () = sleep(look) => {}
            }
        }
        Ok(self.output.line())
    }

    /// The next line that a worker has written before it ended.
    async fn rest(&mut self, status: io::Result<ExitStatus>) -> Result<&str, Broken> {
        self.kill();
        let advanced = timeout(REST_GRACE, self.output.advance()).await;
        match (advanced, status) {
            (Ok(Ok(true)), _) => Ok(self.output.line()),
            (Ok(Err(error)), _) => Err(error.into()),
            (_, Ok(status)) => Err(Broken::Ended(status)),
            (_, Err(error)) => Err(Broken::Line(LineError::Io(error))),
        }
    }

    /// A closed output usually is a process about to end.
    async fn why_closed(&mut self) -> Broken {
        match timeout(REST_GRACE, self.process.wait()).await {
            Ok(Ok(status)) => Broken::Ended(status),
            _ => Broken::Closed,
        }
    }

    fn look_at_memory(&mut self) -> Result<(), Broken> {
        let (Some(max), Some(group)) = (self.memory_max, self.group) else { return Ok(()) };
        if self.looked.elapsed() < MEMORY_INTERVAL {
            return Ok(());
        }
        self.looked = Instant::now();
        let used = resident_bytes_of_group(group);
        if used > max { Err(Broken::TooLarge { used, max }) } else { Ok(()) }
    }

    /// Lets it end in order: its input closes, and it has this long before it is killed. What it still writes is
    /// read and forgotten.
    pub(super) async fn dismiss(mut self, grace: Duration) {
        self.input = None;
        let draining = async {
            while let Ok(true) = self.output.advance().await {}
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = timeout(grace, self.process.wait()) => {}
            () = draining => {}
        }
        self.end().await;
    }

    /// Kills it with all that it has started, and returns its last words.
    pub(super) async fn end(mut self) -> Option<String> {
        self.kill();
        let _ = self.process.wait().await;
        // Its last words are on their way, unless somebody who has left its group holds the pipe.
        let _ = timeout(REST_GRACE, &mut self.pump).await;
        self.words.read()
    }

    /// A group is signalled once: its number may be another's later.
    fn kill(&mut self) {
        if let Some(group) = self.group.take() {
            // A group that is gone has had what it needs.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        self.pump.abort();
    }
}

async fn write(input: &mut Option<ChildStdin>, bytes: &[u8]) -> io::Result<usize> {
    match input {
        Some(input) => input.write(bytes).await,
        None => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

fn spawn(declaration: &ProgramDeclaration) -> io::Result<tokio::process::Child> {
    let (program, arguments) =
        declaration.command.split_first().ok_or_else(|| io::Error::other("no program is named"))?;
    let environment = environment(declaration, std::env::vars_os());
    let folder = absolute(&declaration.folder)?;
    let file = find_program(program, &folder, environment.get(OsStr::new("PATH")))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no such program"))?;
    let mut command = std::process::Command::new(file);
    command
        .arg0(program)
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .envs(environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    die_with_owner(&mut command, Signal::SIGKILL);
    close_files_on_exec(&mut command);
    let runtime = tokio::runtime::Handle::current();
    on_spawning_thread(move || {
        let _entered = runtime.enter();
        tokio::process::Command::from(command).spawn()
    })
}

/// What a worker may know of our environment, and what is declared for it.
fn environment(
    declaration: &ProgramDeclaration,
    ours: impl Iterator<Item = (OsString, OsString)>,
) -> BTreeMap<OsString, OsString> {
    let is_inherited =
        |name: &OsStr| name.to_str().is_some_and(|name| INHERITED.contains(&name) || name.starts_with("LC_"));
    let mut environment: BTreeMap<_, _> = ours.filter(|(name, _)| is_inherited(name)).collect();
    let declared = declaration.environment.iter();
    environment.extend(declared.map(|(name, value)| (name.into(), value.expose().into())));
    environment
}

/// The folder of a declaration, which is empty where its file is named without one.
fn absolute(folder: &Path) -> io::Result<PathBuf> {
    std::path::absolute(folder.join("."))
}

/// The file of a program: one with a slash in its name is found from the folder of its declaration, any other in the
/// folders of `path`.
fn find_program(program: &str, folder: &Path, path: Option<&OsString>) -> Option<PathBuf> {
    let is_program = |file: &PathBuf| {
        file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        return Some(folder.join(program)).filter(is_program);
    }
    let path = path.map_or(OsStr::new(DEFAULT_PATH), OsString::as_os_str);
    // The child is where the declaration is, so that is where its relative folders begin.
    std::env::split_paths(path).map(|named| folder.join(named).join(program)).find(is_program)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processing::declaration::HandledEvents;

    fn declare(command: &[&str]) -> ProgramDeclaration {
        let command = command.iter().map(ToString::to_string).collect();
        ProgramDeclaration::new(HandledEvents::All, command, std::env::temp_dir())
    }

    fn shell(script: &str) -> ProgramDeclaration {
        declare(&["sh", "-c", script])
    }

    async fn hear(child: &mut Child) -> Result<String, Broken> {
        child.hear(Instant::now(), Duration::from_secs(20)).await.map(str::to_owned)
    }

    /// Waits until a process that was killed is gone.
    async fn goes(pid: &str) {
        let is_gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_gone() {
            assert!(Instant::now() < deadline, "{pid} is still there");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[test]
    fn nothing_is_inherited_but_what_everybody_needs() {
        let ours = [
            ("PATH", "/bin"),
            ("LC_ALL", "C"),
            ("DATABASE_URL", "secret"),
            ("NOTIFY_SOCKET", "@s"),
            ("TZ", "UTC"),
        ];
        let ours = ours.into_iter().map(|(name, value)| (name.into(), value.into()));
        let mut declaration = shell("true");
        declaration.environment.insert("TZ".into(), "Europe/Amsterdam".to_owned().into());
        declaration.environment.insert("TOKEN".into(), "t".to_owned().into());
        let environment = environment(&declaration, ours);
        let expected = [("LC_ALL", "C"), ("PATH", "/bin"), ("TOKEN", "t"), ("TZ", "Europe/Amsterdam")];
        assert_eq!(environment, expected.map(|(name, value)| (name.into(), value.into())).into());
    }

    #[tokio::test]
    async fn it_is_told_more_than_a_pipe_holds_while_it_says_more_than_a_pipe_holds() {
        let mut child = Child::start("p", &declare(&["cat"])).unwrap();
        child.tell(&b"0123456789\n".repeat(100_000));
        for _ in 0..100_000 {
            assert_eq!(hear(&mut child).await.unwrap(), "0123456789");
        }
        assert!(!child.is_behind());
        child.input = None;
        assert!(matches!(hear(&mut child).await, Err(Broken::Ended(status)) if status.success()));
    }

    #[tokio::test]
    async fn what_it_said_before_it_ended_is_heard() {
        let script = "sleep 600 & echo $!; echo two; echo why >&2; exit 3";
        let mut child = Child::start("p", &shell(script)).unwrap();
        let started = hear(&mut child).await.unwrap();
        assert_eq!(hear(&mut child).await.unwrap(), "two");
        // What it has started holds its output open, but not for longer than it lives itself.
        let broken = hear(&mut child).await.unwrap_err();
        assert_eq!(broken.to_string(), "ended with exit code 3");
        assert_eq!(child.end().await.as_deref(), Some("why"));
        goes(&started).await;
    }

    #[tokio::test]
    async fn neither_silence_nor_chatter_is_waited_for_longer_than_is_allowed() {
        let mut child = Child::start("p", &shell("sleep 600")).unwrap();
        child.tell(&vec![b'\n'; 1_000_000]);
        let since = Instant::now();
        let broken = child.hear(since, Duration::from_millis(100)).await.map(str::to_owned).unwrap_err();
        assert!(broken.to_string().starts_with("was silent for 0.1 s"), "{broken}");
        assert!(child.is_behind());

        let mut child = Child::start("p", &shell("yes")).unwrap();
        let since = Instant::now();
        while child.hear(since, Duration::from_millis(100)).await.is_ok() {}
        assert!(since.elapsed() < Duration::from_secs(10));
    }

    #[tokio::test]
    async fn it_is_dismissed_in_order_or_else_killed() {
        let folder = tempfile::tempdir().unwrap();
        let (file, script) =
            (folder.path().join("ended"), "echo ready; cat >/dev/null; sleep 0.1; echo > ended");
        let mut orderly = ProgramDeclaration { folder: folder.path().to_owned(), ..shell(script) };
        let mut child = Child::start("p", &orderly).unwrap();
        hear(&mut child).await.unwrap();
        child.dismiss(Duration::from_secs(20)).await;
        assert!(file.exists());

        orderly.command[2] = "echo $$; sleep 600".into();
        let mut child = Child::start("p", &orderly).unwrap();
        let pid = hear(&mut child).await.unwrap();
        child.dismiss(Duration::from_millis(50)).await;
        goes(&pid).await;
    }

    #[tokio::test]
    async fn its_memory_is_bounded_with_that_of_what_it_has_started() {
        let hoard = "x=$(head -c 50000000 /dev/zero | tr '\\0' x); echo $x | sleep 600";
        let mut declaration = shell(&format!("({hoard}) & wait"));
        declaration.memory_max = Some(40 << 20);
        let mut child = Child::start("p", &declaration).unwrap();
        assert!(matches!(hear(&mut child).await, Err(Broken::TooLarge { used, .. }) if used > 40 << 20));
    }

    #[test]
    fn a_program_is_found_by_its_name_or_from_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let worker = folder.path().join("worker");
        std::fs::write(&worker, "#!/bin/sh\n").unwrap();
        assert_eq!(find_program("./worker", folder.path(), None), None);
        std::fs::set_permissions(&worker, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(find_program("./worker", folder.path(), None).is_some());
        assert_eq!(find_program("worker", folder.path(), None), None);
        assert!(find_program("worker", folder.path(), Some(&folder.path().into())).is_some());
        assert!(find_program("sh", folder.path(), None).is_some());
    }
}
