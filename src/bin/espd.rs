//! The daemon.

fn main() -> std::process::ExitCode {
    espd::daemon::main()
}
