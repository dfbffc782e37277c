//! The operating system's side: spawning, signals, orphans, memory, exit codes, systemd, and what a worker reports.

mod condition;
pub(crate) mod descriptors;
#[cfg(feature = "processors")]
pub(crate) mod executable;
pub(crate) mod exit_code;
#[cfg(feature = "processors")]
pub(crate) mod group_guard;
#[cfg(feature = "processors")]
pub(crate) mod hook;
pub(crate) mod memory;
pub(crate) mod orphans;
pub(crate) mod report;
#[cfg(feature = "daemon")]
pub(crate) mod signal;
pub(crate) mod spawner;
#[cfg(feature = "daemon")]
pub(crate) mod systemd;
