//! The operator's tool `espctl`. It writes the manual pages and completions of the daemon, too.

use espd::internals::programs;

fn main() -> std::process::ExitCode {
    programs::espctl(programs::espd_command())
}
