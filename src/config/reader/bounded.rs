//! Reads files that are named by a configuration: regular ones, and only so much of them.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

/// The whole content of a regular file of at most `limit` bytes.
///
/// # Errors
/// Why the file cannot be read. A pipe would be waited for, and a device may never end.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut content = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        let message = format!("it is larger than {} MiB", limit >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(content)
}
