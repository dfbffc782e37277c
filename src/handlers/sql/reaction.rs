//! What the generated function of a reactor has beside that of a projector: who emits, and for which event.
//!
//! `migrations/processing/0006_emissions.sql` reads these settings.

use crate::postgres::quote::quote_literal;
use crate::processing::declaration::Reaction;

/// Declares what the other parts use.
pub(super) const DECLARATIONS: &str = "  espd_silent_until bigint;\n";

/// Says who emits, once for a batch; `outbox`: into a store that is in another database.
pub(super) fn begin_batch(
    name: &str,
    version: i32,
    reaction: &Reaction,
    schema: &str,
    outbox: bool,
) -> String {
    format!(
        "  {who};\n  perform set_config('espd.outbox', '{outbox}', true),\n    \
             set_config('espd.partition', espd_partition::text, true);\n  \
           if espd_letter is null then\n    \
             select t.silent_until into espd_silent_until from {schema}.trackers as t\n      \
               where t.name = {name} and t.version = {version} and t.partition = espd_partition;\n  \
           else\n    \
             -- What is a dead letter was never handled, unless it became one after a reset.\n    \
             select case when d.replaying then espd_letter else 0 end into espd_silent_until\n      \
               from {schema}.dead_letters as d\n      \
               where d.processor = {name} and d.version = {version} and d.partition = espd_partition\n        \
               and d.event_id = espd_letter;\n  \
           end if;\n",
        who = say_who("perform", name, reaction),
        name = quote_literal(name),
        outbox = if outbox { "on" } else { "off" },
    )
}

/// Says which event is at hand.
pub(super) const BEGIN_EVENT: &str = "        \
        perform set_config('espd.source', event.uuid::text, true),
          set_config('espd.correlation', coalesce(event.correlation_id, event.uuid)::text, true),
          set_config('espd.depth',
            coalesce(substring(event.metadata #>> '{espd,depth}' from '^[0-9]{1,6}$'), '0'), true),
          set_config('espd.emitted', '0', true),
          set_config('espd.replaying', case when event.id <= espd_silent_until then 'on' else 'off' end, true);
";

/// A statement after which handlers can be tried: what they emit is judged and not stored.
pub(super) fn pretend(name: &str, reaction: &Reaction) -> String {
    format!("{}, set_config('espd.replaying', 'on', true)", say_who("select", name, reaction))
}

fn say_who(verb: &str, name: &str, reaction: &Reaction) -> String {
    let emits: Vec<String> = reaction.emits.iter().map(|event_type| quote_literal(event_type)).collect();
    format!(
        "{verb} set_config('espd.reactor', {}, true), set_config('espd.emits', array[{}]::text[]::text, true), \
         set_config('espd.chain_max', '{}', true)",
        quote_literal(name),
        emits.join(", "),
        reaction.chain_max
    )
}
