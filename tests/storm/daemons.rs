//! The daemons under test: `espd run`, as an operator would start it.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::processes::{MARKER_VARIABLE, Process, wait_until_none};

/// How long the children of a killed daemon may live on.
const ORPHAN_LIMIT: Duration = Duration::from_secs(5);

/// How long a daemon may take to stop. More than its own `shutdown_timeout`.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// One daemon, in all its lives.
pub struct Daemon {
    pub name: &'static str,
    folder: PathBuf,
    config: PathBuf,
    lives: u32,
    process: Option<Child>,
}

impl Daemon {
    /// A daemon that will run with the configuration `config` and keep its log in `folder`.
    pub fn new(name: &'static str, folder: &Path, config: PathBuf) -> Self {
        Self { name, folder: folder.to_owned(), config, lives: 0, process: None }
    }

    /// Starts it. To be called on the main thread: the daemon dies with the thread that started it.
    pub fn start(&mut self) -> anyhow::Result<()> {
        self.lives += 1;
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command
            .arg("run")
            .arg("--config")
            .arg(&self.config)
            .env(MARKER_VARIABLE, self.marker())
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        die_with_us(&mut command);
        let process = Command::from(command).kill_on_drop(true).spawn();
        self.process = Some(process.context("could not start espd")?);
        Ok(())
    }

    /// Whether it has been started and not been stopped by us.
    pub fn is_started(&self) -> bool {
        self.process.is_some()
    }

    /// How it ended, if it did so by itself.
    pub fn end(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(process) = &mut self.process else { return Ok(None) };
        let status = process.try_wait()?;
        if status.is_some() {
            self.process = None;
        }
        Ok(status)
    }

    /// Its children, the workers.
    pub fn workers(&self) -> Vec<Process> {
        let own = self.process.as_ref().and_then(Child::id);
        let mut workers = self.processes();
        workers.retain(|process| Some(process.pid().cast_unsigned()) != own);
        workers
    }

    /// The daemon itself and its workers.
    pub fn processes(&self) -> Vec<Process> {
        Process::list(&self.marker())
    }

    /// Kills it with SIGKILL. Returns how long the last of its children has survived it.
    ///
    /// # Errors
    /// When it did not die of that, or a child lives on.
    pub async fn kill(&mut self) -> anyhow::Result<Duration> {
        let mut process = self.process.take().context("not running")?;
        process.start_kill()?;
        let status = process.wait().await?;
        let died = Instant::now();
        ensure!(status.signal() == Some(Signal::SIGKILL as i32), "ended by itself: {status}");
        let orphans = wait_until_none(&self.marker(), ORPHAN_LIMIT).await;
        ensure!(orphans.is_empty(), "children outlive daemon {}: {orphans:?}", self.name);
        Ok(died.elapsed())
    }

    /// Stops it with SIGTERM.
    ///
    /// # Errors
    /// When it does not stop in time, says that it failed, or leaves a process behind.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        let mut process = self.process.take().context("not running")?;
        let pid = process.id().context("ended by itself")?;
        nix::sys::signal::kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM)?;
        let status = timeout(STOP_LIMIT, process.wait()).await.context("does not stop after TERM")??;
        ensure!(status.success(), "stopped with {status}");
        let left = Process::list(&self.marker());
        ensure!(left.is_empty(), "left processes behind: {left:?}");
        Ok(())
    }

    /// What its lives have logged.
    pub fn read_log(&self) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.log())?).into_owned())
    }

    fn log(&self) -> PathBuf {
        self.folder.join(format!("{}.log", self.name))
    }

    /// Differs from life to life, from daemon to daemon and from storm to storm.
    fn marker(&self) -> String {
        format!("{}/{}/{}/", self.folder.display(), self.name, self.lives)
    }
}

/// Has the kernel kill a child when we die without saying so.
#[expect(unsafe_code, reason = "std offers no safe way to run prctl between fork and exec")]
pub fn die_with_us(command: &mut std::process::Command) {
    let arm = || nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from);
    // SAFETY: the closure runs in the forked child before exec. It makes one system call that is safe there, and
    // its error conversion only carries a number.
    unsafe { command.pre_exec(arm) };
}
