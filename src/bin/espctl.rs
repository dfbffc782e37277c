//! The operator's tool `espctl`. It writes the manual pages and completions of the daemon, too.

fn main() -> std::process::ExitCode {
    espd::espctl::main(espd::daemon::command())
}
