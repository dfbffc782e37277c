//! The fingerprint of what handles a processor's events.

use std::fs;

use uuid::Uuid;

use super::{HandledEvents, Handling, ProcessorDeclaration, ProgramDeclaration, SourceText};
use crate::store::upcast::Upcast;

/// Separates parts, which may contain anything else.
const SEPARATOR: &str = "\u{1}";

/// The largest file of a program that counts: more is no source text.
const FILE_MAX: u64 = 1 << 20;

impl ProcessorDeclaration {
    /// Returns a fingerprint of what handles the events, and of how old events are read. Where the text stands, and which
    /// version of espd runs it, does not matter. `None`: only the program itself knows its handlers.
    pub(crate) fn handler_fingerprint(&self, upcasts: &[Upcast]) -> Option<String> {
        let mut parts = match &self.handling {
            Handling::Native(_) => return None,
            Handling::Sql(handlers) => {
                let texts =
                    handlers.iter().flat_map(|handler| [events(&handler.events), handler.sql.text.clone()]);
                texts.collect()
            }
            Handling::Program(program) => program_parts(program),
            Handling::Webhook(webhook) => vec![events(&webhook.events), webhook.url.expose().to_string()],
        };
        parts.extend(upcasts.iter().map(upcast_part));
        Some(hash(&parts.join(SEPARATOR)))
    }
}

/// A fingerprint of how old events are read alone.
pub(crate) fn upcast_fingerprint(upcasts: &[Upcast]) -> String {
    hash(&upcasts.iter().map(upcast_part).collect::<Vec<_>>().join(SEPARATOR))
}

fn hash(text: &str) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes()).simple().to_string()
}

fn events(events: &HandledEvents) -> String {
    events.types().map_or("*".to_owned(), |types| types.into_iter().collect::<Vec<_>>().join(","))
}

/// The command, and the content of the files that it names.
fn program_parts(program: &ProgramDeclaration) -> Vec<String> {
    let mut parts = vec![events(&program.events)];
    for argument in &program.command {
        let path = program.folder.join(argument);
        let is_source = fs::metadata(&path).is_ok_and(|file| file.is_file() && file.len() <= FILE_MAX);
        let content = is_source.then(|| fs::read(&path).ok()).flatten();
        let content = content.map(|content| Uuid::new_v5(&Uuid::NAMESPACE_OID, &content).to_string());
        parts.extend([argument.clone(), content.unwrap_or_default()]);
    }
    parts
}

fn upcast_part(upcast: &Upcast) -> String {
    let text =
        |source: &Option<SourceText>| source.as_ref().map(|source| source.text.clone()).unwrap_or_default();
    let event_type = upcast.event_type.clone().unwrap_or_default();
    let body = if upcast.code.is_some() { "in Rust".to_owned() } else { text(&upcast.body) };
    [upcast.events.join(","), event_type, body, text(&upcast.when)].join(SEPARATOR)
}
