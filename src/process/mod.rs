//! The operating system's side: spawning, signals, orphans, memory, exit codes, systemd, and what a worker reports.

pub mod exit_code;
pub(crate) mod memory;
pub(crate) mod orphans;
pub mod report;
#[cfg(feature = "daemon")]
pub mod signal;
pub(crate) mod spawner;
#[cfg(feature = "daemon")]
pub(crate) mod systemd;
