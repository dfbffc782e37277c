//! Whether the file that was opened is still under its name. SQLite goes on with one that was deleted or renamed, and whatever is
//! written to it is lost with the last connection.

use std::fs::{Metadata, metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::answer;

/// A file as it was opened.
#[derive(Debug)]
pub(super) struct OpenedFile {
    /// The file itself, wherever a link or the current folder lead to later.
    path: PathBuf,
    /// The numbers of its device and on it.
    identity: (u64, u64),
}

impl OpenedFile {
    pub(super) fn find(path: &Path) -> io::Result<Self> {
        let path = path.canonicalize()?;
        let identity = identity(&metadata(&path)?);
        Ok(Self { path, identity })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// # Errors
    /// There is none, or another one; it is called `file`.
    pub(super) fn require_there(&self, file: &str) -> Result<(), sqlx::Error> {
        match metadata(&self.path) {
            Ok(found) if identity(&found) == self.identity => Ok(()),
            Ok(_) => Err(answer::gone(file, "another file has its name")),
            // Who may not look any more may still write: SQLite says what it cannot do.
            Err(error) if error.kind() != io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(answer::gone(file, &error.to_string())),
        }
    }
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}
