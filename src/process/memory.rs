//! How much memory processes use.

use nix::unistd::Pid;

/// Returns the memory of a process that is in RAM, in bytes; `None` if the system does not tell.
pub(crate) fn resident_bytes(pid: Pid) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    parse(&status)
}

/// Returns the memory of all processes of a group that is in RAM, in bytes. Shared memory counts for each process.
pub(crate) fn resident_bytes_of_group(group: Pid) -> u64 {
    let Ok(processes) = std::fs::read_dir("/proc") else { return 0 };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let members = pids.filter(|pid| group_of(*pid) == Some(group.as_raw()));
    members.filter_map(|pid| resident_bytes(Pid::from_raw(pid))).sum()
}

fn group_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything. After it come state, parent and group.
    stat.rsplit_once(") ")?.1.split(' ').nth(2)?.parse().ok()
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

    #[cfg(target_os = "linux")]
    #[test]
    fn a_group_uses_what_its_members_use() {
        let own = resident_bytes(nix::unistd::getpid()).unwrap();
        assert!(resident_bytes_of_group(nix::unistd::getpgrp()) >= own / 2);
        assert_eq!(resident_bytes_of_group(Pid::from_raw(i32::MAX)), 0);
    }
}
