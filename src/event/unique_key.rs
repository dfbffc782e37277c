//! Keys that one aggregate has at a time.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A key that one aggregate has at a time, such as an e-mail address: its scope says what it is unique among.
///
/// Each part is a text of 1 to 1,000 bytes without NUL, compared byte by byte: bring it into one form before (`Ann@Example.org` is not
/// `ann@example.org`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UniqueKey {
    /// What the key is unique among: `email`.
    pub scope: String,
    /// The key itself: `ann@example.org`.
    pub key: String,
}

impl UniqueKey {
    /// A key of a scope.
    pub fn new(scope: impl Into<String>, key: impl Into<String>) -> Self {
        Self { scope: scope.into(), key: key.into() }
    }
}

impl fmt::Display for UniqueKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.scope, self.key)
    }
}

/// What an event does to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyChange {
    /// The aggregate of the event has it from now on.
    Claim(UniqueKey),
    /// The aggregate of the event gives it back.
    Release(UniqueKey),
}

impl KeyChange {
    /// The key in question.
    pub fn key(&self) -> &UniqueKey {
        match self {
            Self::Claim(key) | Self::Release(key) => key,
        }
    }
}
