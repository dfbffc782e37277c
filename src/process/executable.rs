//! The file that this process was started from: whether it was replaced since, and how to start again from it.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

/// The executable of this process.
#[derive(Debug)]
pub(crate) struct Executable {
    path: PathBuf,
    identity: Identity,
}

/// Tells one file from another one at the same path, and from what it was before it was written again.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Identity {
    fn of(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
        }
    }
}

impl Executable {
    /// The executable as it is now. To be asked early: later there may be another file at its path.
    ///
    /// # Errors
    /// The system does not say which it is.
    pub(crate) fn of_this_process() -> io::Result<Self> {
        let path = std::env::current_exe()?;
        let identity = Identity::of(&path.metadata()?);
        Ok(Self { path, identity })
    }

    /// Whether there is another file at the path now, or another content. A file that is gone replaces nothing.
    pub(crate) fn is_replaced(&self) -> bool {
        self.path.metadata().is_ok_and(|file| Identity::of(&file) != self.identity)
    }

    /// Runs what is at the path now in place of this process, with the same arguments. Returns only if that is not possible.
    pub(crate) fn start_again(&self) -> io::Error {
        Command::new(&self.path).args(std::env::args_os().skip(1)).exec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_written_anew_or_put_in_its_place_is_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        std::fs::write(&path, "one").unwrap();
        let identity = Identity::of(&path.metadata().unwrap());
        let program = Executable { path: path.clone(), identity };
        assert!(!program.is_replaced());
        std::fs::write(folder.path().join("new"), "one").unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        assert!(program.is_replaced());
        std::fs::remove_file(&path).unwrap();
        assert!(!program.is_replaced());
    }
}
