//! Why a test cannot go on.

use std::error::Error;
use std::fmt;

use crate::postgres::error::chain;

/// Why a test cannot go on: what was wanted, and what is in the way. `unwrap` shows it as it is to be read.
pub struct TestFailure(String);

impl TestFailure {
    pub(super) fn new(wanted: &str, error: &(dyn Error + 'static)) -> Self {
        Self(format!("{wanted}: {}", chain(error)))
    }
}

impl fmt::Display for TestFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TestFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{}", self.0)
    }
}

impl Error for TestFailure {}
