//! The daemon `espd`.

fn main() -> std::process::ExitCode {
    espd::internals::programs::espd()
}
