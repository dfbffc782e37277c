//! Starting child processes that never outlive us.
//!
//! The kernel can signal a child when its parent *thread* ends, and a thread of an async runtime's pool may
//! end at any time. So all children are started by one thread that lives as long as the process.

use std::io;
use std::sync::{LazyLock, mpsc};
use std::thread;

use nix::sys::signal::Signal;

type Order = Box<dyn FnOnce() + Send>;

/// Bounded by those who wait for an answer: each has one order under way.
static SPAWNER: LazyLock<mpsc::Sender<Order>> = LazyLock::new(|| {
    let (sender, orders) = mpsc::channel::<Order>();
    thread::spawn(move || orders.into_iter().for_each(|order| order()));
    sender
});

/// Runs `spawn` on the spawning thread and waits for it: the time of a fork.
pub(crate) fn on_spawning_thread<T, F>(spawn: F) -> io::Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> io::Result<T> + Send + 'static,
{
    let (reply, answer) = mpsc::sync_channel(1);
    let gone = || io::Error::other("the thread that starts children is gone");
    let order: Order = Box::new(move || {
        // Whoever asked waits for the answer.
        let _ = reply.send(spawn());
    });
    SPAWNER.send(order).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

/// Has the kernel send `signal` to the child when the thread that spawns it ends.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "std offers no safe way to run prctl between fork and exec")]
pub(crate) fn die_with_owner(command: &mut std::process::Command, signal: Signal) {
    use std::os::unix::process::CommandExt as _;

    let owner = nix::unistd::getpid();
    let arm = move || {
        nix::sys::prctl::set_pdeathsig(signal)?;
        // Had the owner died before that call, the signal would never come.
        if nix::unistd::getppid() == owner { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
    };
    // SAFETY: the closure runs in the forked child before exec. It makes two system calls that are safe there and
    // allocates nothing: both error conversions only carry a number.
    unsafe { command.pre_exec(arm) };
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn die_with_owner(_command: &mut std::process::Command, _signal: Signal) {}

/// Has the child keep none of our files but its standard streams. Ours are closed on exec already; these are what we have
/// inherited ourselves.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "std and nix offer no safe way to close what somebody else has opened")]
pub(crate) fn close_files_on_exec(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt as _;

    use nix::libc;

    let mark = || {
        let (first, last) = (3 as libc::c_uint, libc::c_uint::MAX);
        // SAFETY: it only marks files to be closed by exec, which std's own pipe to us is as well.
        let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) };
        // Linux before 5.11 cannot; a worker then inherits what we have, which is no reason not to work.
        let _ = done;
        Ok(())
    };
    // SAFETY: the closure runs in the forked child before exec and makes one system call that is safe there.
    unsafe { command.pre_exec(mark) };
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn close_files_on_exec(_command: &mut std::process::Command) {}
