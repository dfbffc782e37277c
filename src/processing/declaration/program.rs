//! What is declared about a processor whose events a child process handles.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{HandledEvents, SourceText};

/// A program that handles events, in any language: `docs/worker-protocol.md`.
///
/// Serialization has the values of its environment in it: it is how a supervisor hands a declaration to a worker through
/// a pipe. `Debug` has not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProgramDeclaration {
    /// The events that it is sent.
    pub events: HandledEvents,
    /// The program and its arguments. Never empty.
    pub command: Vec<String>,
    /// Where it is started: the folder of the file that declares it.
    pub folder: PathBuf,
    /// Where it is declared.
    pub place: SourceText,
    /// The longest silence while an answer is due.
    pub timeout: Duration,
    /// The memory that it and what it has started may have in use, in bytes; `None`: as much as there is.
    pub memory_max: Option<u64>,
    /// Variables of its environment, beside the few that every program needs.
    pub environment: BTreeMap<String, Secret>,
}

impl ProgramDeclaration {
    /// 30 s, as much memory as there is, and no variables of its own.
    pub fn new(events: HandledEvents, command: Vec<String>, folder: PathBuf) -> Self {
        let (place, timeout) = (SourceText::unplaced("command"), Duration::from_secs(30));
        Self { events, command, folder, place, timeout, memory_max: None, environment: BTreeMap::new() }
    }
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text itself, to be used and not to be shown.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}
