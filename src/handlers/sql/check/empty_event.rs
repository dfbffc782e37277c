//! The event that handlers are tried with.

use crate::postgres::quote::quote_literal;
use crate::processing::declaration::{HandledEvents, Handler};

/// The row of an event with an empty body, of the first type that the handler is for.
pub(super) fn empty_event_for(handler: &Handler) -> String {
    let event_type = match &handler.events {
        HandledEvents::All => "",
        HandledEvents::Types(types) => types.first().map_or("", String::as_str),
    };
    format!(
        "row(1, gen_random_uuid(), gen_random_uuid(), {}, 1, '{{}}', '{{}}', null, null, clock_timestamp())",
        quote_literal(event_type)
    )
}
