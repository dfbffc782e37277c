//! The operator's tool.

fn main() -> std::process::ExitCode {
    espd::espctl::main()
}
