//! What the benchmarks stand on: a durable PostgreSQL of their own, the release binaries, a small report, and its results as JSON.

#![allow(dead_code, unused_imports, reason = "for all benchmarks, and not every one uses all of it")]

mod installation;
pub(crate) mod machine;
pub(crate) mod processes;
mod report;
pub(crate) mod results;
mod server;

use anyhow::{Context as _, bail};

pub(crate) use installation::{Daemon, Installation};
pub(crate) use report::{Limits, Report};
pub(crate) use results::{Spread, percentile};
pub(crate) use server::Server;

/// The schema of the event store and of the trackers.
pub(crate) const SCHEMA: &str = "espd";

/// How a benchmark was called.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Arguments {
    quick: bool,
    rounds: Option<usize>,
    /// The only part to run; `None`: all of them.
    part: Option<&'static str>,
}

impl Arguments {
    /// Reads the command line: `--quick`, `--rounds N`, and cargo's own `--bench`.
    pub(crate) fn read() -> anyhow::Result<Self> {
        Self::read_with_parts(&[])
    }

    /// As [`Self::read`], also `--part NAME`, for a benchmark that has these parts.
    pub(crate) fn read_with_parts(parts: &[&'static str]) -> anyhow::Result<Self> {
        let mut read = Self::default();
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => read.quick = true,
                "--rounds" => {
                    read.rounds = Some(arguments.next().context("--rounds takes a number")?.parse()?)
                }
                "--part" if !parts.is_empty() => {
                    let named = arguments.next();
                    let found = parts.iter().find(|part| named.as_deref() == Some(**part));
                    read.part = Some(found.with_context(|| format!("the parts are {}", parts.join(", ")))?);
                }
                "--bench" => {}
                other => bail!("unknown argument {other}; there are --quick and --rounds N"),
            }
        }
        Ok(read)
    }

    /// What a round is made of: as much as it takes, or just enough to show that the benchmark works.
    pub(crate) fn size<T>(self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Whether a part is to run.
    pub(crate) fn wants(self, part: &str) -> bool {
        self.part.is_none_or(|only| only == part)
    }

    /// How often everything is measured.
    pub(crate) fn rounds(self, full: usize) -> usize {
        self.rounds.unwrap_or(if self.quick { 1 } else { full })
    }
}
