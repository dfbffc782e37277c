//! What processes cost, as `/proc` tells.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;
use nix::unistd::{SysconfVar, sysconf};

/// A process and its descendants, at one moment.
pub(crate) struct Family {
    pids: Vec<u32>,
}

impl Family {
    /// The process and everything that it and its children have started.
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let mut pids = vec![pid];
        let mut next = 0;
        while let Some(parent) = pids.get(next).copied() {
            pids.extend(children(parent));
            next += 1;
        }
        Ok(Self { pids })
    }

    /// All but the first, which are the workers.
    pub(crate) fn descendants(&self) -> &[u32] {
        &self.pids[1..]
    }

    /// Processor time that all of them have used since they were started.
    pub(crate) fn processor_time(&self) -> anyhow::Result<Duration> {
        self.pids.iter().map(|pid| processor_time(*pid)).sum()
    }

    /// Memory of all of them together in bytes, what they share counted once.
    pub(crate) fn memory(&self) -> anyhow::Result<u64> {
        self.pids.iter().map(|pid| proportional(*pid)).sum()
    }
}

/// Resident memory of a process in bytes, what it shares with others included.
pub(crate) fn resident(pid: u32) -> anyhow::Result<u64> {
    kibibytes(pid, "status", "VmRSS:")
}

/// Memory of a process in bytes, with its part of what it shares with others.
pub(crate) fn proportional(pid: u32) -> anyhow::Result<u64> {
    kibibytes(pid, "smaps_rollup", "Pss:")
}

/// The most resident memory that a process ever had, in bytes.
pub(crate) fn peak(pid: u32) -> anyhow::Result<u64> {
    kibibytes(pid, "status", "VmHWM:")
}

fn children(parent: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

fn kibibytes(pid: u32, file: &str, key: &str) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .with_context(|| format!("{path} has no {key}"))?;
    let number = line.split_whitespace().next().context("no number")?;
    Ok(number.parse::<u64>()? * 1024)
}

/// Processor time that a process has used since it was started.
pub(crate) fn processor_time(pid: u32) -> anyhow::Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    // The name in brackets may contain anything. Behind it, utime and stime are the 12th and 13th field.
    let behind = text.rsplit_once(')').context("no name")?.1;
    let ticks: u64 =
        behind.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock ticks")?;
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}
