//! The fingerprint of what handles a processor's events.

use std::fs;

use uuid::Uuid;

use super::{HandledEvents, Handling, ProcessorDeclaration, ProgramDeclaration, SourceText};
use crate::store::upcast::{Upcast, stored_types};

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

/// What a fingerprint begins with that is only of how old events are read.
const READING: &str = "upcasts ";

/// Whether two fingerprints that were noted are of the same kind, so that they can be compared.
pub(crate) fn are_comparable(one: &str, other: &str) -> bool {
    one.starts_with(READING) == other.starts_with(READING)
}

impl ProcessorDeclaration {
    /// Returns the fingerprint that an owner notes, and the next one compares: of the handlers; of those in Rust, which change with each
    /// build of their program, how the events that they handle are read.
    pub(crate) fn noted_fingerprint(&self, upcasts: &[Upcast]) -> Option<String> {
        let Handling::Native(events) = &self.handling else { return self.handler_fingerprint(upcasts) };
        let types = events.types();
        let stored = types.map(|types| stored_types(upcasts, types));
        let concerns = |upcast: &&Upcast| {
            let is_read = |event_type: &String| {
                stored.as_ref().is_none_or(|stored| stored.contains(&event_type.as_str()))
            };
            upcast.events.iter().any(is_read)
        };
        let parts: Vec<String> = upcasts.iter().filter(concerns).map(upcast_part).collect();
        Some(format!("{READING}{}", hash(&parts.join(SEPARATOR))))
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

impl ProgramDeclaration {
    /// Takes note of what the files have in them now.
    #[must_use]
    pub(crate) fn with_files(self) -> Self {
        Self { files: fingerprint_files(&self), ..self }
    }
}

/// A fingerprint of the files alone that a command names. Of one that is too large to be read, as compiled programs are, it has when it
/// was written.
fn fingerprint_files(program: &ProgramDeclaration) -> String {
    let written = program.command.iter().filter_map(|argument| {
        let file = fs::metadata(program.folder.join(argument)).ok()?;
        let is_large = file.is_file() && file.len() > FILE_MAX;
        is_large.then(|| format!("{} {:?}", file.len(), file.modified().ok()))
    });
    hash(&file_parts(program).into_iter().chain(written).collect::<Vec<_>>().join(SEPARATOR))
}

/// The command, and the content of the files that it names.
fn program_parts(program: &ProgramDeclaration) -> Vec<String> {
    std::iter::once(events(&program.events)).chain(file_parts(program)).collect()
}

fn file_parts(program: &ProgramDeclaration) -> Vec<String> {
    let mut parts = Vec::new();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_was_edited_makes_another_declaration_also_where_it_is_large() {
        let folder = tempfile::tempdir().unwrap();
        let command = vec!["python3".to_owned(), "small.py".to_owned(), "large".to_owned()];
        let write = |name: &str, bytes: usize| {
            std::fs::write(folder.path().join(name), vec![b' '; bytes]).unwrap();
            ProgramDeclaration::new(HandledEvents::All, command.clone(), folder.path().to_owned())
                .with_files()
        };
        write("small.py", 5);
        let first = write("large", 2 << 20);
        assert_eq!(first, first.clone().with_files());
        let small = write("small.py", 6);
        let large = write("large", 3 << 20);
        assert!(small.is_edited_from(&first) && large.is_edited_from(&small));
        assert!(
            !large.is_edited_from(&large)
                && !large.is_edited_from(&ProgramDeclaration { memory_max: Some(1), ..small })
        );
    }
}
