//! What a command is sent with.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::CommandError;
use crate::event::{Event, Version};

/// What a command is sent with: who it is, on what condition, and what belongs to it.
///
/// ```
/// use espd::commands::Envelope;
/// use uuid::Uuid;
///
/// let envelope = Envelope::new().command_id(Uuid::new_v4()).expecting(3).metadata("user", "ada");
/// # let _ = envelope;
/// ```
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Envelope {
    /// Makes repeating harmless: a command with the id of one that was carried out is answered as that one was.
    pub command_id: Option<Uuid>,
    /// The version that the aggregate must be at; 0: it must not exist.
    pub expected_version: Option<Version>,
    /// Whether the aggregate must exist, at whatever version.
    pub must_exist: bool,
    /// The conversation that the events belong to; one of their own if there is none.
    pub correlation_id: Option<Uuid>,
    /// The event that has led to the command; the command itself if there is none.
    pub causation_id: Option<Uuid>,
    /// What the events get as metadata: who it was, for example.
    pub metadata: Map<String, Value>,
    /// Whether nothing is to be stored.
    pub dry_run: bool,
}

impl Envelope {
    /// Nothing is said.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the command an id, so that it can be repeated.
    #[must_use]
    pub fn command_id(self, id: Uuid) -> Self {
        Self { command_id: Some(id), ..self }
    }

    /// Carries it out only if the aggregate is at this version; 0: does not exist.
    #[must_use]
    pub fn expecting(self, version: impl Into<Version>) -> Self {
        Self { expected_version: Some(version.into()), ..self }
    }

    /// Makes the events a part of a conversation.
    #[must_use]
    pub fn correlation_id(self, id: Uuid) -> Self {
        Self { correlation_id: Some(id), ..self }
    }

    /// Names the event that has led to the command: its conversation goes on.
    #[must_use]
    pub fn caused_by(self, event: &Event) -> Self {
        let correlation_id = Some(event.correlation_id.unwrap_or(event.uuid));
        Self { causation_id: Some(event.uuid), correlation_id, ..self }
    }

    /// Carries it out only if the aggregate exists.
    #[must_use]
    pub fn existing(self) -> Self {
        Self { must_exist: true, ..self }
    }

    /// Adds to the metadata of the events.
    #[must_use]
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.metadata.insert(name.into(), value.into());
        self
    }

    /// Decides, and stores nothing.
    #[must_use]
    pub fn dry_run(self) -> Self {
        Self { dry_run: true, ..self }
    }

    /// What the headers of an HTTP request say: `Idempotency-Key` is the id of the command (a text that is no uuid becomes one), `If-Match` the
    /// expected version, in quotes or without, or `*`, which any will do for that exists; `X-Correlation-Id` the conversation. `header` finds a header by its name, in lower case: hand over its
    /// value as it came (a text, bytes, or what your framework has for it), so that one that is no text is an error instead of none.
    ///
    /// # Errors
    /// One of them is no text, `Idempotency-Key` is empty, `If-Match` is no version, or `X-Correlation-Id` no uuid.
    pub fn from_headers<'h, V>(header: impl Fn(&str) -> Option<&'h V>) -> Result<Self, CommandError>
    where
        V: AsRef<[u8]> + ?Sized + 'h,
    {
        let mut envelope = Self::new();
        let header = |name: &str| {
            let wrong = |_| CommandError::new("header", "is not UTF-8").at(name);
            header(name).map(|value| std::str::from_utf8(value.as_ref()).map_err(wrong)).transpose()
        };
        envelope.command_id = header("idempotency-key")?.map(id_of_key).transpose()?;
        match header("if-match")?.map(str::trim) {
            Some("*") => envelope.must_exist = true,
            Some(text) => envelope.expected_version = Some(version_of(text)?),
            None => {}
        }
        if let Some(text) = header("x-correlation-id")? {
            let wrong = |_| CommandError::new("header", "must be a uuid").at("X-Correlation-Id");
            envelope.correlation_id = Some(text.parse().map_err(wrong)?);
        }
        Ok(envelope)
    }
}

/// The uuid that a key is, or that is made of it. Whoever sends an empty one has forgotten it, and would get the answer of all others who have.
fn id_of_key(key: &str) -> Result<Uuid, CommandError> {
    if key.trim().is_empty() {
        return Err(
            CommandError::new("header", "is empty: send a key, or no such header").at("Idempotency-Key")
        );
    }
    Ok(key.parse().unwrap_or_else(|_| Uuid::new_v5(&Uuid::NAMESPACE_OID, key.as_bytes())))
}

fn version_of(text: &str) -> Result<Version, CommandError> {
    let version = text.trim_start_matches("W/").trim_matches('"').parse::<i64>();
    let wrong = || CommandError::new("header", "must be a version, such as \"3\", or *").at("If-Match");
    version.ok().filter(|version| *version >= 0).map(Version::from).ok_or_else(wrong)
}

/// A command as it comes from a queue, for example: `{"name": "LendBook", "body": {…}, "command_id": "…"}`.
#[derive(Clone, Serialize, Deserialize)]
pub struct Message {
    /// Which command.
    pub name: String,
    /// Its fields.
    #[serde(default)]
    pub body: Value,
    /// What it is sent with.
    #[serde(flatten)]
    pub envelope: Envelope,
}
