//! The folder of one embedded server: its data, its log, its socket, and the lock that reserves it for one espd.

use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::account::Account;
use super::error::{Error, Result};
use super::process::POLL;

/// The longest path of a socket that every system takes (macOS: 104 bytes).
const SOCKET_PATH_BYTES_MAX: usize = 100;

/// What PostgreSQL adds to the socket's folder.
const SOCKET_NAME: &str = "/.s.PGSQL.5432";

/// A folder that no other espd uses.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    socket: PathBuf,
    pub(super) account: Account,
    temporary: Option<TempDir>,
    // Held, not read.
    _lock: Option<FolderLock>,
}

impl Folder {
    /// A new folder that disappears with this value.
    pub(super) fn temporary() -> Result<Self> {
        let account = Account::for_data(Path::new(""))?;
        let temporary = short_temporary(&account)?;
        let path = temporary.path().to_owned();
        Ok(Self { socket: path.clone(), path, account, temporary: Some(temporary), _lock: None })
    }

    /// The folder at `path`, created if need be. A server whose owner died has `patience` to end.
    pub(super) fn persistent(path: &Path, patience: Duration) -> Result<Self> {
        let context = |source| Error::Folder { folder: path.to_owned(), source };
        fs::create_dir_all(path).map_err(context)?;
        let path = &path.canonicalize().map_err(context)?;
        let lock = lock(path)?;
        let account = Account::for_data(&path.join("data"))?;
        refuse_unreachable(path, &account)?;
        account.own(path).map_err(context)?;
        fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(context)?;

        let temporary = if fits(path) { None } else { Some(short_temporary(&account)?) };
        let socket = temporary.as_ref().map_or(path.as_path(), TempDir::path).to_owned();
        let folder = Self { path: path.clone(), socket, account, temporary, _lock: Some(lock) };
        folder.clear_predecessor(patience)?;
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// Where `initdb` works, so that a half-made data folder is never taken for a whole one.
    pub(super) fn unfinished_data(&self) -> PathBuf {
        self.path.join("data.unfinished")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path.join("server.log")
    }

    /// The folder of the socket.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// What has to be removed when the server is gone.
    pub(super) fn temporary_path(&self) -> Option<&Path> {
        self.temporary.as_ref().map(TempDir::path)
    }

    /// The last lines of the server's log, for error messages.
    pub(super) fn log_tail(&self) -> String {
        let text = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// Makes room for a new log; one predecessor is kept, as it may tell why the last server ended.
    pub(super) fn new_log(&self) -> Result<File> {
        let log = self.log();
        if log.exists() {
            fs::rename(&log, self.path.join("server.log.1"))?;
        }
        let file = File::create(&log)?;
        self.account.own(&log)?;
        Ok(file)
    }

    /// Waits for a server that an earlier espd has left behind, and removes a `postmaster.pid` without a server.
    ///
    /// The lock says that no espd owns this folder. So a server that runs here is about to end, since its owner
    /// died, or was started by hand. If none runs, the file is a leftover; PostgreSQL would often see
    /// that itself, but not where another process of the same user has the id now, as in a restarted container.
    fn clear_predecessor(&self, patience: Duration) -> Result<()> {
        let file = self.data().join("postmaster.pid");
        let deadline = Instant::now() + patience;
        while let Some(pid) = first_line_number(&file) {
            if !works_in(pid, &self.data()) {
                fs::remove_file(&file)?;
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::ForeignServer { folder: self.path.clone(), pid });
            }
            thread::sleep(POLL);
        }
        Ok(())
    }
}

/// The line of `postmaster.pid` that has the folder of the socket.
const SOCKET_LINE: usize = 4;

/// The folder of the socket of the server that runs on `folder`; `None`: none runs there.
pub(super) fn running_socket(folder: &Path) -> Option<PathBuf> {
    let data = folder.canonicalize().ok()?.join("data");
    let file = data.join("postmaster.pid");
    let pid = first_line_number(&file).filter(|pid| works_in(*pid, &data));
    let text = pid.and_then(|_| fs::read_to_string(&file).ok())?;
    let socket = text.lines().nth(SOCKET_LINE).map(str::trim).filter(|socket| !socket.is_empty());
    socket.map(PathBuf::from)
}

/// Keeps a folder for this process until it is dropped.
///
/// Closing the file would not do: while another thread starts a program, its child has the file as well, until it has become that
/// program, and with it the lock.
#[derive(Debug)]
struct FolderLock(File);

impl Drop for FolderLock {
    fn drop(&mut self) {
        // If it fails, closing the file is what is left.
        let _ = self.0.unlock();
    }
}

/// Takes the folder for this process.
fn lock(folder: &Path) -> Result<FolderLock> {
    let context = |source| Error::Folder { folder: folder.to_owned(), source };
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(folder.join("espd.lock"))
        .map_err(context)?;
    match file.try_lock() {
        Ok(()) => Ok(FolderLock(file)),
        Err(TryLockError::WouldBlock) => Err(Error::Locked { folder: folder.to_owned() }),
        Err(TryLockError::Error(source)) => Err(context(source)),
    }
}

/// A temporary folder whose path is short enough for a socket and open to `account`.
fn short_temporary(account: &Account) -> Result<TempDir> {
    let base = Some(std::env::temp_dir())
        .filter(|base| fits(&base.join("espd-xxxxxx")) && account.barred_by(&base.join("x")).is_none())
        .unwrap_or_else(|| PathBuf::from("/tmp"));
    let context = |source| Error::Folder { folder: base.clone(), source };
    let folder = tempfile::Builder::new().prefix("espd-").tempdir_in(&base).map_err(context)?;
    account.own(folder.path()).map_err(context)?;
    Ok(folder)
}

fn fits(socket_folder: &Path) -> bool {
    let bytes = socket_folder.as_os_str().as_bytes().len();
    socket_folder.is_absolute() && bytes + SOCKET_NAME.len() < SOCKET_PATH_BYTES_MAX
}

fn refuse_unreachable(folder: &Path, account: &Account) -> Result<()> {
    match account.barred_by(folder) {
        None => Ok(()),
        Some(barrier) => {
            Err(Error::Unreachable { folder: folder.to_owned(), user: account.name().to_owned(), barrier })
        }
    }
}

fn first_line_number(file: &Path) -> Option<u32> {
    fs::read_to_string(file).ok()?.lines().next()?.trim().parse().ok()
}

/// Whether process `pid` is the server of `data`: a postmaster works in its data folder.
#[cfg(target_os = "linux")]
fn works_in(pid: u32, data: &Path) -> bool {
    match fs::read_link(format!("/proc/{pid}/cwd")) {
        Ok(cwd) => cwd == data,
        // Root in a container may not look at other users' processes that closely.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            arguments.split(|byte| *byte == 0).any(|argument| argument == data.as_os_str().as_bytes())
        }
        Err(_) => false,
    }
}

/// Whether process `pid` exists at all; this system does not tell where it works.
#[cfg(not(target_os = "linux"))]
fn works_in(pid: u32, _data: &Path) -> bool {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), None).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_free_again_also_while_a_child_has_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let held = lock(folder.path()).unwrap();
        // What a child has between its beginning and its program.
        let _of_child = held.0.try_clone().unwrap();
        assert!(matches!(lock(folder.path()), Err(Error::Locked { .. })));
        drop(held);
        lock(folder.path()).unwrap();
    }
}
