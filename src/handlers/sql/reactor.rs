//! The settings that say who emits. `migrations/processing/0006_emissions.sql` reads them.

use crate::postgres::quote::quote_literal;
use crate::processing::declaration::ReactorDeclaration;

/// A statement after which handlers can be tried: what they emit is judged and not stored.
pub(super) fn pretend(name: &str, reactor: &ReactorDeclaration) -> String {
    format!("select {}, set_config('espd.replaying', 'on', true)", emits_as(name, reactor))
}

/// Calls that set who emits, what it may emit, and how long chains may get.
pub(super) fn emits_as(name: &str, reactor: &ReactorDeclaration) -> String {
    let emits: Vec<String> = reactor.emits.iter().map(|event_type| quote_literal(event_type)).collect();
    format!(
        "set_config('espd.reactor', {}, true), set_config('espd.emits', array[{}]::text[]::text, true), \
         set_config('espd.chain_max', '{}', true)",
        quote_literal(name),
        emits.join(", "),
        reactor.chain_max
    )
}
