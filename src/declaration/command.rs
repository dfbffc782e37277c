//! What is declared about a processor whose events a child process handles.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::HandledEvents;

/// A program that handles events, in any language: `docs/worker-protocol.md`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CommandDeclaration {
    /// The events that it is sent.
    pub events: HandledEvents,
    /// The program and its arguments. Never empty.
    pub command: Vec<String>,
    /// Where it is started: the folder of the file that declares it.
    pub folder: PathBuf,
}
