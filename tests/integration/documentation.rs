//! The pages of `docs/` that are to be followed: their files and commands are tried as a reader copies them, and what they
//! name exists.

mod benchmarks;
mod consistency;
mod features;
mod page;
mod quoted;
mod recipes;
mod shell;
mod tour;

use std::path::PathBuf;

/// A page of the documentation.
fn read(page: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(page);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
