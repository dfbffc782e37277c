//! The real programs, as an operator runs them: configured by a file, in processes of their own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;

use super::facts::{PATIENCE, eventually, within};

/// A folder with a configuration.
pub struct Installation {
    folder: TempDir,
}

impl Installation {
    /// A configuration of the given database. `settings` are further sections of the file.
    pub fn new(url: &str, settings: &str) -> Self {
        let store = format!("[event_store]\nurl = '{url}'\n");
        Self::without_database(&format!("{store}{settings}"))
    }

    /// A configuration without an event store.
    pub fn without_database(settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("processors")).unwrap();
        let log = "[log]\nformat = 'json'\nlevel = 'info,espd=debug'\n";
        let text = format!("include = ['processors/*.toml']\n{log}{settings}");
        std::fs::write(folder.path().join("espd.toml"), text).unwrap();
        Self { folder }
    }

    /// Adds or replaces the file of one processor.
    pub fn declare(&self, name: &str, text: &str) -> &Self {
        std::fs::write(self.folder.path().join(format!("processors/{name}.toml")), text).unwrap();
        self
    }

    /// Adds a projector that notes the events of type `A`, in order, in a table of its own name. Nothing keeps it from
    /// noting an event twice. `first` is SQL that comes before the note.
    pub fn declare_notes(&self, name: &str, first: &str) -> &Self {
        self.declare(
            name,
            &format!(
                "[projector]\nname = '{name}'\n[projector.tables]\n\
                 {name} = 'place bigint generated always as identity, event_id bigint'\n\
                 [[projector.on]]\nevents = ['A']\nsql = '''{first}\n\
                 insert into {name} (event_id) values (event.id)'''\n"
            ),
        )
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// A program of the installation, ready to be started.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("ESPD_CONFIG", self.folder.path().join("espd.toml"))
            .env_remove("DATABASE_URL")
            .env_remove("RUST_LOG")
            .process_group(0);
        die_with_this_thread(&mut command);
        command
    }

    /// Starts `espd run`.
    pub fn start_daemon(&self) -> Program {
        self.start(&["run"])
    }

    /// Starts `espd` with these arguments.
    pub fn start(&self, arguments: &[&str]) -> Program {
        Program::start(self.espd_command(arguments))
    }

    /// Runs `espd` to its end.
    pub async fn espd(&self, arguments: &[&str]) -> Outcome {
        run(self.espd_command(arguments), "").await
    }

    /// Runs `espctl`.
    pub async fn espctl(&self, arguments: &[&str]) -> Outcome {
        self.espctl_fed(arguments, "").await
    }

    /// Runs `espctl` with a standard input.
    pub async fn espctl_fed(&self, arguments: &[&str], input: &str) -> Outcome {
        run(self.espctl_command(arguments), input).await
    }

    /// `espd`, ready to be started.
    pub fn espd_command(&self, arguments: &[&str]) -> Command {
        self.command(env!("CARGO_BIN_EXE_espd"), arguments)
    }

    /// `espctl`, ready to be started.
    pub fn espctl_command(&self, arguments: &[&str]) -> Command {
        self.command(env!("CARGO_BIN_EXE_espctl"), arguments)
    }

    /// One processor's object of `espctl status --json`.
    pub async fn status(&self, name: &str) -> Value {
        let statuses = self.espctl(&["status", name, "--json"]).await.json();
        statuses.as_array().and_then(|all| all.first()).expect("one status").clone()
    }
}

/// How a program ended, and what it said.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// What it printed; it must have succeeded.
    pub fn printed(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    /// The JSON that it printed; it must have succeeded.
    pub fn json(self) -> Value {
        serde_json::from_str(&self.printed()).unwrap()
    }

    /// The JSON lines that it printed; it must have succeeded.
    pub fn json_lines(self) -> Vec<Value> {
        self.printed().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What it complained about; it must have failed with this code, and without a backtrace or a panic.
    pub fn complained(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        // A daemon whose log is JSON ends with a line of the log.
        let is_said = self.stderr.starts_with("error: ")
            || self.stderr.lines().last().is_some_and(|line| line.contains("\"message\":\"espd ends\""));
        assert!(is_said && !self.stderr.contains("panicked"), "{self:?}");
        self.stderr
    }
}

/// Runs a prepared command to its end.
pub async fn run(command: Command, input: &str) -> Outcome {
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feed = async move {
        // A program that does not want it all closes the pipe.
        let _ = stdin.write_all(input.as_bytes()).await;
    };
    let (output, ()) = tokio::join!(tokio::time::timeout(PATIENCE, child.wait_with_output()), feed);
    let output = output.expect("the program does not end").unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Outcome { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A running `espd`, which ends with this value.
pub struct Program {
    process: Child,
    input: Option<ChildStdin>,
    log: Arc<Mutex<Log>>,
}

#[derive(Default)]
struct Log {
    lines: Vec<String>,
    /// Whether every process that could write to it is gone.
    closed: bool,
}

impl Program {
    /// Starts a prepared command.
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let input = process.stdin.take();
        let errors = BufReader::new(process.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(Log::default()));
        let written = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                written.lock().unwrap().lines.push(line);
            }
            written.lock().unwrap().closed = true;
        });
        Self { process, input, log }
    }

    /// Writes a line to its standard input, which stays open.
    pub fn tell(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Closes its standard input.
    pub fn hang_up(&mut self) {
        self.input = None;
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id().cast_signed())
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// The log so far; a line that is no JSON is its own `message`.
    pub fn log(&self) -> Vec<Value> {
        let parse = |line: &String| {
            serde_json::from_str(line).unwrap_or_else(|_| serde_json::json!({"message": line}))
        };
        self.log.lock().unwrap().lines.iter().map(parse).collect()
    }

    /// Lines with this message.
    pub fn logged(&self, message: &str) -> Vec<Value> {
        self.log().into_iter().filter(|line| line["message"] == message).collect()
    }

    /// Waits for a line with this message and returns the first one.
    pub async fn says(&self, message: &str) -> Value {
        eventually(message, async || self.logged(message).into_iter().next()).await
    }

    /// Process ids of all children of this name that were ever started, the present one last.
    pub fn children(&self, worker: &str) -> Vec<Pid> {
        let started = self.logged("worker started").into_iter().filter(|line| line["worker"] == worker);
        started
            .map(|line| Pid::from_raw(i32::try_from(line["worker.pid"].as_i64().unwrap()).unwrap()))
            .collect()
    }

    /// Waits for the `nth` child of this name, from 1.
    pub async fn child(&self, worker: &str, nth: usize) -> Pid {
        eventually(&format!("child {nth} of {worker}"), async || self.children(worker).get(nth - 1).copied())
            .await
    }

    /// Waits for the end of the process.
    pub async fn ended(&mut self) -> ExitStatus {
        let process = &mut self.process;
        eventually("the end of the program", async || process.try_wait().unwrap()).await
    }

    /// Asks it to stop and requires that it does, without a trace.
    pub async fn stop(self) {
        self.signal(Signal::SIGTERM);
        self.stop_after_request().await;
    }

    /// Asks it to stop, and requires that its last line names exactly the workers that did not end by themselves in time.
    pub async fn stop_uncleanly(mut self, workers: &str) {
        self.signal(Signal::SIGTERM);
        assert_eq!(self.ended().await.code(), Some(70));
        self.is_deserted().await;
        // A worker that fails says so in the same log.
        let said = self.logged("espd ends").pop().unwrap();
        assert_eq!(said["error"], format!("not all workers have ended by themselves in time: {workers}"));
    }

    /// Asks it to stop when a worker may just have been killed from outside, which its exit code tells.
    pub async fn stop_after_kills(self) {
        self.signal(Signal::SIGTERM);
        self.ends_after_kills().await;
    }

    /// Requires that it stops, as it was asked to, where a worker may just have been killed from outside.
    pub async fn ends_after_kills(mut self) {
        assert!(matches!(self.ended().await.code(), Some(0 | 70)));
        self.is_deserted().await;
    }

    /// Requires that it stops, as it was asked to, without a trace.
    pub async fn stop_after_request(mut self) {
        assert_eq!(self.ended().await.code(), Some(0));
        self.is_deserted().await;
    }

    /// Kills it alone, as the kernel does when memory is short.
    pub async fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        assert_eq!(self.ended().await.signal(), Some(Signal::SIGKILL as i32));
    }

    /// Waits until no process has its log open any more: neither itself nor anything that it started.
    pub async fn is_deserted(&self) {
        let what = "the end of all processes that the program has started";
        within(Duration::from_secs(5), what, async || self.log.lock().unwrap().closed.then_some(())).await;
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Its children die with it.
        let _ = killpg(self.pid(), Signal::SIGKILL);
        let _ = self.process.wait();
        if std::thread::panicking() {
            let log = self.log.lock().map(|log| log.lines.join("\n"));
            eprintln!("--- log of the program\n{}\n---", log.unwrap_or_default());
        }
    }
}

/// A running program that keeps printing, and ends with this value.
pub struct Talker {
    pub process: Child,
    lines: Receiver<String>,
}

impl Talker {
    pub fn start(mut command: Command) -> Self {
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { process, lines }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id().cast_signed())
    }

    /// Waits for the next line.
    pub async fn next(&self) -> String {
        eventually("a line of output", async || self.printed()).await
    }

    /// The next line, if it is printed already.
    pub fn printed(&self) -> Option<String> {
        self.lines.try_recv().ok()
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Has the kernel end the program with the test that started it, should that be killed.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "std offers no safe way to run prctl between fork and exec")]
pub fn die_with_this_thread(command: &mut Command) {
    // SAFETY: one system call that is safe between fork and exec.
    unsafe { command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)) };
}

#[cfg(not(target_os = "linux"))]
pub fn die_with_this_thread(_command: &mut Command) {}

/// Whether a process still does something; one that has ended and is a zombie does not.
pub fn is_alive(pid: Pid) -> bool {
    let ended = |stat: String| stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('Z'));
    kill(pid, None).is_ok() && !std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(ended)
}
