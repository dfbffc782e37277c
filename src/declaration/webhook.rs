//! What is declared about a reactor whose events are sent over HTTP.

use serde::{Deserialize, Serialize};

use super::HandledEvents;

/// A receiver of events: `docs/webhooks.md`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WebhookDeclaration {
    /// The events that it is sent.
    pub events: HandledEvents,
    /// Where they are sent to.
    pub url: String,
}
