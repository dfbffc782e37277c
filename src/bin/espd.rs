//! The daemon `espd`.

fn main() -> std::process::ExitCode {
    espd::daemon::main()
}
