//! Operators: `espctl`, as they type it, in processes of their own that may be killed at any time.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use fastrand::Rng;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::daemons::die_with_us;

/// Most commands that run at a time.
const AT_A_TIME: usize = 3;

/// How long a command may take once nothing disturbs it any more.
const PATIENCE: Duration = Duration::from_secs(180);

/// The exit codes of `espctl`: whatever it meets, it ends with one of these.
const EXIT_CODES: [i32; 5] = [0, 1, 2, 64, 75];

/// What operators do with versions of projectors, and how often relative to the others.
const ACTS: [(&[&str], u32); 8] = [
    (&["rebuild", "{name}", "--yes"], 5),
    (&["rebuild", "{name}", "--yes", "--go-live", "swap"], 5),
    (&["rebuild", "{name}", "--yes", "--go-live", "merge"], 2),
    (&["verify", "{name}"], 2),
    (&["rebuild", "{name}", "--dry-run"], 1),
    (&["rollback", "{name}", "--yes"], 4),
    (&["rebuild", "abort", "{name}"], 2),
    (&["rebuild", "drop", "{name}", "--yes"], 1),
];

/// What came of the commands.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    pub begun: u32,
    pub killed: u32,
    pub succeeded: u32,
}

/// The operators of all places.
pub struct Operators {
    folder: PathBuf,
    running: Vec<(String, Child)>,
    pub tally: Tally,
    pub complaints: Vec<String>,
}

impl Operators {
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            running: Vec::new(),
            tally: Tally::default(),
            complaints: Vec::new(),
        }
    }

    /// Begins to do something with a projector in a place. `false`: enough is being done.
    pub fn act(&mut self, place: &str, name: &str, rng: &mut Rng) -> anyhow::Result<bool> {
        self.look()?;
        if self.running.len() >= AT_A_TIME {
            return Ok(false);
        }
        let sum: u32 = ACTS.iter().map(|(_, weight)| weight).sum();
        let mut drawn = rng.u32(..sum);
        let act = ACTS.iter().find(|(_, weight)| {
            let found = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            found
        });
        let words = act.map_or(ACTS[0].0, |(words, _)| *words);
        self.begin(place, &words.iter().map(|word| word.replace("{name}", name)).collect::<Vec<_>>())?;
        Ok(true)
    }

    /// Begins a command.
    pub fn begin(&mut self, place: &str, words: &[String]) -> anyhow::Result<()> {
        let child = self.command(place, words)?.spawn().context("could not start espctl")?;
        self.tally.begun += 1;
        self.running.push((format!("espctl {} {place}", words.join(" ")), child));
        Ok(())
    }

    /// Runs a command to its end, when nothing disturbs it any more. Returns whether it has succeeded.
    pub async fn run(&self, place: &str, words: &[&str]) -> anyhow::Result<bool> {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        let mut child = self.command(place, &words)?.spawn()?;
        let status = timeout(PATIENCE, child.wait()).await;
        Ok(status.with_context(|| format!("espctl {} does not end", words.join(" ")))??.success())
    }

    fn command(&self, place: &str, words: &[String]) -> anyhow::Result<Command> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_espctl"));
        command
            .args(words)
            .arg("--config")
            .arg(self.folder.join(format!("{place}.toml")))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        die_with_us(&mut command);
        let mut command = Command::from(command);
        command.kill_on_drop(true);
        Ok(command)
    }

    /// Whether a command runs.
    pub fn are_busy(&mut self) -> anyhow::Result<bool> {
        self.look()?;
        Ok(!self.running.is_empty())
    }

    /// Kills a command that runs. Returns whether there was one, and it died of that.
    pub async fn kill(&mut self, rng: &mut Rng) -> anyhow::Result<bool> {
        if !self.are_busy()? {
            return Ok(false);
        }
        let (what, mut child) = self.running.swap_remove(rng.usize(..self.running.len()));
        child.start_kill()?;
        let status = child.wait().await?;
        if status.code().is_some() {
            self.note(&what, status);
            return Ok(false);
        }
        self.tally.killed += 1;
        Ok(true)
    }

    /// Takes note of the commands that have ended.
    fn look(&mut self) -> anyhow::Result<()> {
        for (what, mut child) in std::mem::take(&mut self.running) {
            match child.try_wait()? {
                Some(status) => self.note(&what, status),
                None => self.running.push((what, child)),
            }
        }
        Ok(())
    }

    /// Waits until all commands have ended.
    pub async fn finish(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        for (what, mut child) in std::mem::take(&mut self.running) {
            match timeout(deadline.saturating_duration_since(Instant::now()), child.wait()).await {
                Ok(status) => self.note(&what, status?),
                Err(_) => self.complaints.push(format!("{what} does not end")),
            }
        }
        let log = std::fs::read(self.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let panics = log.lines().filter(|line| line.contains("panicked at"));
        self.complaints.extend(panics.map(|line| format!("espctl: {line}")));
        Ok(())
    }

    fn note(&mut self, what: &str, status: std::process::ExitStatus) {
        self.tally.succeeded += u32::from(status.success());
        if !status.code().is_some_and(|code| EXIT_CODES.contains(&code)) {
            self.complaints.push(format!("{what} ended with {status}"));
        }
    }

    fn log(&self) -> PathBuf {
        self.folder.join("operators.log")
    }
}
