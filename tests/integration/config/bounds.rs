//! Files that never end, files that never begin, and reports with thousands of faults.

use std::time::Duration;

use nix::sys::stat::Mode;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::mkfifo;

use super::{Folder, load};

/// Whether this ends soon, on a thread of its own.
fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || drop(sender.send(work())));
    ended.recv_timeout(Duration::from_secs(120)).expect("it does not end")
}

/// How long this thread has had a processor, however busy the machine is.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

#[test]
fn thousands_of_faults_are_reported_in_a_moment() {
    let text: String = (0..16_000).map(|n| format!("fault_{n} = {n}\n")).collect();
    let (report, spent) = in_time(move || (load(&text).unwrap_err().to_string(), processor_time()));
    assert!(spent < Duration::from_secs(5), "{spent:?}");
    assert!(report.contains("16000 faults"), "{}", &report[report.len() - 200..]);
    // Nobody reads all of them.
    assert!(report.lines().count() < 1_000, "{}", report.lines().count());
}

#[test]
fn a_variable_from_a_file_that_never_ends_is_refused() {
    for file in ["/dev/zero", "/dev/full"] {
        let report = in_time(move || {
            load(&format!("[event_store]\nurl = \"${{file:{file}}}\"\n")).unwrap_err().to_string()
        });
        assert!(report.contains(file) && report.contains("not a regular file"), "{report}");
    }
    let folder = Folder::new(&[("espd.toml", "[event_store]\nurl = \"${file:big}\"\n")]);
    std::fs::write(folder.path("big"), "x".repeat(3 << 20)).unwrap();
    assert!(folder.report().contains("1 MiB"), "{}", folder.report());
}

#[test]
fn a_file_that_nobody_writes_is_not_waited_for() {
    let folder = Folder::new(&[]);
    mkfifo(&folder.path("espd.toml"), Mode::S_IRWXU).unwrap();
    let report = in_time(move || folder.report());
    assert!(report.contains("not a regular file"), "{report}");
    let folder = Folder::new(&[("espd.toml", "include = ['more/*.toml']\n"), ("more/x", "")]);
    mkfifo(&folder.path("more/pipe.toml"), Mode::S_IRWXU).unwrap();
    assert!(in_time(move || folder.report()).contains("pipe.toml"));
}
