//! Starts child processes that never outlive us.
//!
//! The kernel can signal a child when its parent *thread* ends, and a thread of an async runtime's pool may end at any
//! time. So all children are started by one thread that lives as long as the process.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::{LazyLock, mpsc};
use std::thread;

use nix::sys::signal::Signal;

#[cfg(feature = "processors")]
use super::orphans::note_started;

type SpawnRequest = Box<dyn FnOnce() + Send>;

/// The way to the spawning thread. It needs no bound: each caller waits for the answer to its one request.
static SPAWNER: LazyLock<mpsc::Sender<SpawnRequest>> = LazyLock::new(|| {
    let (sender, requests) = mpsc::channel::<SpawnRequest>();
    thread::spawn(move || requests.into_iter().for_each(|request| request()));
    sender
});

/// Starts a child in a process group of its own, which is killed when this process ends.
///
/// # Errors
/// As for [`Command::spawn`].
#[cfg(feature = "processors")]
pub(crate) fn spawn_group(mut command: Command) -> io::Result<tokio::process::Child> {
    command.process_group(0);
    die_with_owner(&mut command, Signal::SIGKILL);
    let runtime = tokio::runtime::Handle::current();
    on_spawning_thread(move || {
        let _entered = runtime.enter();
        let child = tokio::process::Command::from(command).spawn()?;
        child.id().into_iter().for_each(note_started);
        Ok(child)
    })
}

/// Runs `spawn` on the spawning thread and waits for it: the time of a fork.
pub(crate) fn on_spawning_thread<T, F>(spawn: F) -> io::Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> io::Result<T> + Send + 'static,
{
    let (reply, answer) = mpsc::sync_channel(1);
    let gone = || io::Error::other("the thread that starts children is gone");
    let request: SpawnRequest = Box::new(move || {
        // The caller waits below, so the answer arrives.
        let _ = reply.send(spawn());
    });
    SPAWNER.send(request).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

/// Has the kernel send `signal` to the child when the thread that spawns it ends.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "std offers no safe way to run prctl between fork and exec")]
pub(crate) fn die_with_owner(command: &mut Command, signal: Signal) {
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
pub(crate) fn die_with_owner(_command: &mut Command, _signal: Signal) {}

/// Has the child keep none of our files but its standard streams. Files that we have opened are closed on exec anyway; this
/// is about files that we have inherited ourselves.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "std and nix offer no safe way to close files that were inherited")]
pub(crate) fn close_files_on_exec(command: &mut Command) {
    use nix::libc;

    let mark = || {
        let (first, last) = (3 as libc::c_uint, libc::c_uint::MAX);
        // SAFETY: the call only marks files to be closed by exec, which std's own pipe to us is as well.
        let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) };
        // Linux before 5.11 cannot do this. The child then inherits what we have, which is no reason not to start it.
        let _ = done;
        Ok(())
    };
    // SAFETY: the closure runs in the forked child before exec and makes one system call that is safe there.
    unsafe { command.pre_exec(mark) };
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn close_files_on_exec(_command: &mut Command) {}
