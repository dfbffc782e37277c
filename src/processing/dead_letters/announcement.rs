//! This module announces that an event was set aside: with one log line, and in the count that the supervisor receives.

use tracing::error;

use crate::event::Position;
use crate::processing::failure::Failure;
use crate::processing::heartbeat;

/// Announces that the event of `failure` was set aside for a processor. Called once that is committed.
pub(crate) fn announce_set_aside(processor: &str, failure: &Failure, attempts: u32) {
    error!(
        processor,
        event.id = failure.event_id().map(Position::get),
        event.r#type = failure.event_type(),
        attempt = attempts,
        error = %failure,
        "set an event aside that could not be handled: `espctl dead-letters list` shows it"
    );
    if let Some(id) = failure.event_id() {
        heartbeat::record_set_aside(id, failure.facts(None, attempts, None));
    }
}
