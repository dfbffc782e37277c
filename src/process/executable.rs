//! The file that this process was started from: whether it was replaced since, how to start again from it, and what tells its content
//! from another one.

use std::fs::{File, Metadata};
use std::hash::{DefaultHasher, Hasher as _};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// On Linux, the file that this process runs, also where another one is at its path now.
const OWN_FILE: &str = "/proc/self/exe";

/// How much of a file is read at once.
const CHUNK: usize = 1 << 16;

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

/// A fingerprint of the program that this process runs: another one after each change of it, and the same one on each host. Empty
/// where the program cannot be read.
pub(crate) fn own_fingerprint() -> &'static str {
    static FOUND: OnceLock<String> = OnceLock::new();
    FOUND.get_or_init(|| {
        let own = Some(PathBuf::from(OWN_FILE)).filter(|path| path.exists());
        let path = own.or_else(|| std::env::current_exe().ok()).unwrap_or_default();
        fingerprint(&path).unwrap_or_default()
    })
}

fn fingerprint(path: &Path) -> io::Result<String> {
    let (mut file, mut buffer) = (File::open(path)?, vec![0; CHUNK]);
    // Only this program compares what it makes, so it need not be the same in another version of the standard library.
    let mut hasher = DefaultHasher::new();
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(format!("{:016x}", hasher.finish())),
            length => hasher.write(&buffer[..length]),
        }
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

    #[test]
    fn a_fingerprint_is_of_the_content_wherever_the_file_is() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| {
            std::fs::write(folder.path().join(name), content).unwrap();
            fingerprint(&folder.path().join(name)).unwrap()
        };
        let (one, copy, other) = (write("one", "a"), write("copy", "a"), write("other", "b"));
        assert!(one == copy && one != other);
        assert_eq!(own_fingerprint().len(), 16);
    }
}
