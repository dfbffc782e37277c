//! The programs under test, as an operator would install them: a folder with a configuration, and the binaries.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use chrono::{DateTime, Utc};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use tempfile::TempDir;

/// Between two looks at the daemon's log.
const POLL: Duration = Duration::from_millis(20);

/// How long a daemon may take for what it is asked.
const PATIENCE: Duration = Duration::from_secs(120);

/// A configuration on the disk.
pub(crate) struct Installation {
    folder: TempDir,
    url: String,
    /// The beginning of the configuration, before the processors.
    head: String,
}

/// A line of the daemon's log; other keys do not matter here.
#[derive(Debug, Deserialize)]
struct Line {
    timestamp: DateTime<Utc>,
    message: Option<String>,
    position: Option<i64>,
    handled: Option<i64>,
}

/// A batch that the daemon says it has committed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Batch {
    /// When the commit had returned.
    pub(crate) at: DateTime<Utc>,
    /// Where the processor stood then.
    pub(crate) position: i64,
    /// Events handled in it.
    pub(crate) handled: i64,
}

impl Installation {
    /// A configuration with these processors, for the database with this URL.
    pub(crate) fn new(url: &str, log_level: &str, processors: &str) -> anyhow::Result<Self> {
        Self::of_layout(url, "espd", log_level, processors)
    }

    /// The same for a store of this layout.
    pub(crate) fn of_layout(
        url: &str,
        layout: &str,
        log_level: &str,
        processors: &str,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let head = format!(
            "[event_store]\nurl = \"${{DATABASE_URL}}\"\nlayout = \"{layout}\"\n\n[log]\nlevel = \"{log_level}\"\nformat = \"json\"\n\n"
        );
        let installation = Self { folder, url: url.to_owned(), head };
        installation.declare(processors)?;
        Ok(installation)
    }

    /// Declares other processors instead.
    pub(crate) fn declare(&self, processors: &str) -> anyhow::Result<()> {
        self.write("espd.toml", &format!("{}{processors}", self.head))
    }

    /// Puts a file beside the configuration.
    pub(crate) fn write(&self, name: &str, content: &str) -> anyhow::Result<()> {
        Ok(std::fs::write(self.folder.path().join(name), content)?)
    }

    /// Where the configuration is; workers are started there.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("DATABASE_URL", &self.url)
            .env_remove("RUST_LOG")
            .arg("--config")
            .arg(self.folder.path().join("espd.toml"))
            .stdin(Stdio::null());
        command
    }

    /// Runs `espctl` to its end.
    pub(crate) fn espctl(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let output = self.command(env!("CARGO_BIN_EXE_espctl")).args(arguments).output()?;
        ensure!(
            output.status.success(),
            "espctl {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Runs `espctl` to its end, and returns how long after its start it said a line that begins so, and how long it took.
    pub(crate) fn espctl_until(
        &self,
        arguments: &[&str],
        line: &str,
    ) -> anyhow::Result<(Duration, Duration)> {
        let mut command = self.command(env!("CARGO_BIN_EXE_espctl"));
        let command = command.args(arguments).stdout(Stdio::null()).stderr(Stdio::piped());
        let begun = Instant::now();
        let mut child = command.spawn()?;
        let said = BufReader::new(child.stderr.take().context("its standard error")?);
        let (mut when, mut all) = (None, String::new());
        for text in said.lines() {
            let text = text?;
            if when.is_none() && text.starts_with(line) {
                when = Some(begun.elapsed());
            }
            all.push_str(&text);
            all.push('\n');
        }
        let status = child.wait()?;
        let took = begun.elapsed();
        ensure!(status.success(), "espctl {}: {all}", arguments.join(" "));
        let when = when.with_context(|| format!("espctl has not said `{line}`: {all}"))?;
        Ok((when, took))
    }

    /// Starts `espd run`.
    pub(crate) fn start(&self) -> anyhow::Result<Daemon> {
        self.start_program(Path::new(env!("CARGO_BIN_EXE_espd")))
    }

    /// Starts a program with the command line of `espd`.
    pub(crate) fn start_program(&self, program: &Path) -> anyhow::Result<Daemon> {
        let log = self.folder.path().join("espd.log");
        let mut command = self.command(program);
        let started = Utc::now();
        let child = command.arg("run").stderr(File::create(&log)?).spawn()?;
        Ok(Daemon { child, log, started })
    }
}

/// A running `espd run`. Dropped, it is asked to stop and waited for.
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
    /// Just before its process was made.
    pub(crate) started: DateTime<Utc>,
}

impl Daemon {
    /// The batches so far. Their lines are logged at level `debug`.
    pub(crate) fn batches(&self) -> anyhow::Result<Vec<Batch>> {
        let log = std::fs::read_to_string(&self.log)?;
        // The last line may be half written.
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
        let batch = |line: Line| match (line.message.as_deref(), line.position, line.handled) {
            (Some("batch committed"), Some(position), Some(handled)) => {
                Some(Batch { at: line.timestamp, position, handled })
            }
            _ => None,
        };
        Ok(lines.filter_map(batch).collect())
    }

    /// Waits until the only processor has reached a position, and returns the batches until then.
    pub(crate) async fn wait_for_position(&mut self, position: i64) -> anyhow::Result<Vec<Batch>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let batches = self.batches()?;
            if batches.last().is_some_and(|batch| batch.position >= position) {
                return Ok(batches);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the daemon ended with {status}:\n{}", std::fs::read_to_string(&self.log)?);
            }
            ensure!(Instant::now() < deadline, "the daemon has not reached {position}: {batches:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its process, and those of its workers.
    pub(crate) fn processes(&self) -> anyhow::Result<Vec<Pid>> {
        let own = i32::try_from(self.child.id())?;
        let mut pids = vec![own];
        // Each thread has children of its own.
        let threads = std::fs::read_dir(format!("/proc/{own}/task"));
        for thread in threads.context("the children of a process are known on Linux only")? {
            let children = std::fs::read_to_string(thread?.path().join("children"))?;
            for child in children.split_whitespace() {
                pids.push(child.parse()?);
            }
        }
        Ok(pids.into_iter().map(Pid::from_raw).collect())
    }

    /// Waits until it has ended, however that comes about.
    pub(crate) fn wait(mut self) -> anyhow::Result<()> {
        self.child.wait()?;
        Ok(())
    }

    /// Stops it and waits until it has ended well.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        self.terminate()?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the daemon ended with {status}");
        Ok(())
    }

    fn terminate(&self) -> anyhow::Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, Signal::SIGTERM).context("the daemon is gone")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // After `stop` both fail, as they should.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.terminate();
            // A benchmark that gives up may have left it suspended.
            if let Ok(pid) = i32::try_from(self.child.id()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
            }
            let _ = self.child.wait();
        }
    }
}
