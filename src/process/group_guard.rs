//! Has a process group die with this process, however that ends.
//!
//! The kernel kills a child of ours when we end (see [`super::spawner`]), but not what that child has started. So a small shell
//! script reads a pipe whose other end only we hold. When it closes and nothing was said before, the script kills the group.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use nix::unistd::Pid;

/// What runs the script.
const SHELL: &str = "/bin/sh";

/// One line on standard input means that the group has ended; the end of input is the death of its owner.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
read -r line || kill -s KILL -- "-$1"
"#;

/// Guards a process group. Dropping it without [`Self::dismiss`] kills the group.
#[derive(Debug)]
pub(crate) struct GroupGuard {
    lifeline: File,
    /// Collected by the runtime when it has ended.
    _shell: tokio::process::Child,
}

impl GroupGuard {
    /// Starts to guard a group of which a process lives.
    ///
    /// # Errors
    /// The script cannot be started.
    pub(crate) fn start(group: Pid) -> io::Result<Self> {
        let mut command = Command::new(SHELL);
        command
            .args(["-c", SCRIPT, "espd-guard", &group.to_string()])
            .current_dir("/")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        let spawned = tokio::process::Command::from(command).spawn();
        let mut shell = spawned.map_err(|error| {
            let text = format!(
                "{SHELL}, which has to watch over it, cannot be started, so no program can run here: {error}"
            );
            io::Error::new(error.kind(), text)
        })?;
        let lifeline = shell.stdin.take().ok_or_else(|| io::Error::other("no pipe to the guard"))?;
        Ok(Self { lifeline: File::from(lifeline.into_owned_fd()?), _shell: shell })
    }

    /// Ends the guard, because the group was killed: later its number may belong to another group.
    pub(crate) fn dismiss(mut self) {
        // An error means that the guard is gone already.
        let _ = self.lifeline.write_all(b"\n");
    }
}
