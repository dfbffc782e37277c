//! How much memory a process uses.

use nix::unistd::Pid;

/// The memory of a process that is in RAM, in bytes; `None` where the system does not say.
pub(super) fn resident_bytes(pid: Pid) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    parse(&status)
}

fn parse(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zombie_uses_none() {
        assert_eq!(parse("Name:\tespd\nVmRSS:\t   12 kB\nThreads:\t2\n"), Some(12 << 10));
        assert_eq!(parse("Name:\tespd\nState:\tZ (zombie)\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_uses_some() {
        let used = resident_bytes(nix::unistd::getpid()).unwrap();
        assert!((1 << 20..1 << 40).contains(&used), "{used}");
    }
}
