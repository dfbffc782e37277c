//! A program declaration says which child process handles the events of a processor.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use url::Url;

use super::hidden_texts::HiddenTexts;
use super::{HandledEvents, SourceText};

/// The schemes of HTTP after which credentials follow, which are secret without them.
const SCHEMES: [&str; 3] = ["bearer", "basic", "token"];

/// A program that handles events, in any language: `docs/worker-protocol.md`.
///
/// The serialized form includes the values of the environment, because the supervisor sends declarations to workers in this
/// form, through a pipe. `Debug` leaves them out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProgramDeclaration {
    /// The events that the program is sent.
    pub events: HandledEvents,
    /// The program and its arguments. Never empty.
    pub command: Vec<String>,
    /// The folder that the program is started in: that of the file that declares it.
    pub folder: PathBuf,
    /// Where the program is declared.
    pub place: SourceText,
    /// How long the program may be silent while an answer is due.
    pub timeout: Duration,
    /// How many bytes of memory the program and its child processes may use together; `None`: no limit.
    pub memory_max: Option<u64>,
    /// Variables of the program's environment, in addition to the few that every program needs.
    pub environment: BTreeMap<String, Secret>,
    /// A fingerprint of the files that the command names, from when the declaration was read: a program that was edited makes
    /// another declaration. Empty: it was not read from a file.
    #[serde(default)]
    pub files: String,
}

impl ProgramDeclaration {
    /// The values of the environment, in each form in which the program may repeat them.
    pub(crate) fn hidden(&self) -> HiddenTexts {
        let values = self.environment.values().map(Secret::expose);
        let parts = |value: &'_ str| -> Vec<String> {
            let lines = value.lines().map(|line| line.trim().to_owned());
            let password = Url::parse(value).ok().and_then(|url| url.password().map(str::to_owned));
            let credentials = value
                .split_once(' ')
                .filter(|(scheme, _)| SCHEMES.contains(&scheme.to_ascii_lowercase().as_str()));
            std::iter::once(value.to_owned())
                .chain(lines)
                .chain(password)
                .chain(credentials.map(|(_, credentials)| credentials.trim().to_owned()))
                .collect()
        };
        HiddenTexts::new(values.flat_map(parts).collect())
    }

    /// Declares a program with a timeout of 30 s, no memory limit, and no further environment variables.
    pub fn new(events: HandledEvents, command: Vec<String>, folder: PathBuf) -> Self {
        let (place, timeout) = (SourceText::unplaced("command"), Duration::from_secs(30));
        let (environment, files) = (BTreeMap::new(), String::new());
        Self { events, command, folder, place, timeout, memory_max: None, environment, files }
    }

    /// Whether the two differ in nothing but what the files have in them.
    pub(crate) fn is_edited_from(&self, former: &Self) -> bool {
        self.files != former.files && *self == Self { files: self.files.clone(), ..former.clone() }
    }
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Returns the text, to be used but never shown.
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
