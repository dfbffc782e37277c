//! Reads the main file and the files that it includes.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::keys;
use super::reader::context::{Context, UniqueNames};
use super::reader::diagnostics::{Diagnostics, InvalidConfig};
use super::reader::include::expand;
use super::reader::interpolation::Environment;
use super::reader::key::Keys;
use super::reader::source_file::SourceFile;
use super::reader::syntax::report_syntax_errors;
use super::reader::tree::Section;
use super::sections::admin::AdminSettings;
use super::sections::event::read_event;
use super::sections::hooks::read_hooks;
use super::sections::log::read_log;
use super::sections::processor::{Defaults, read_processor};
use super::sections::rebuild::RebuildSection;
use super::sections::retry::read_retry;
use super::sections::runner::RunnerSection;
use super::sections::store::{EventStoreSettings, ProjectionsSettings};
use super::sections::upcast::read_upcast;
use super::sections::verify::VerifySection;
use super::{Config, LookUp};
use crate::processing::declaration::{Handling, ProcessorKind};
use crate::retry::RetryPolicy;
use crate::store::layout::LayoutSettings;

/// Reads everything; returns the configuration, or everything that is wrong with all files.
pub(super) fn load(path: &Path, variable: LookUp<'_>) -> Result<Config, InvalidConfig> {
    match load_usable(path, variable)? {
        (config, None) => Ok(config),
        (_, Some(faults)) => Err(faults),
    }
}

/// As [`load`], but where nothing but declarations of processors and events is wrong, the rest comes with what is wrong.
pub(super) fn load_usable(
    path: &Path,
    variable: LookUp<'_>,
) -> Result<(Config, Option<InvalidConfig>), InvalidConfig> {
    let reader = Reader {
        diagnostics: Diagnostics::default(),
        names: UniqueNames::default(),
        variable,
        settings_are_sound: Cell::new(false),
    };
    let mut config = Config { files: vec![path.to_owned()], ..Config::default() };
    let included = reader.read_main_file(path, &mut config);
    for file in included {
        reader.read_included_file(&file, &mut config);
        config.files.push(file);
    }
    let files: Vec<String> = config.files.iter().map(|file| file.display().to_string()).collect();
    let is_usable = reader.settings_are_sound.get();
    match reader.diagnostics.into_faults(&files) {
        Some(faults) if !is_usable => Err(faults),
        faults => Ok((config, faults)),
    }
}

/// What the reading of all files shares.
struct Reader<'r> {
    diagnostics: Diagnostics,
    names: UniqueNames,
    variable: LookUp<'r>,
    /// Whether nothing is wrong with the main file but perhaps its declarations.
    settings_are_sound: Cell<bool>,
}

impl Reader<'_> {
    /// Reads the main file into `config` and returns the files that it includes.
    fn read_main_file(&self, path: &Path, config: &mut Config) -> Vec<PathBuf> {
        let mut included = Vec::new();
        self.read_file(path, &keys::MAIN_FILE, |file| {
            read_sections(file, config);
            self.settings_are_sound.set(self.diagnostics.is_empty());
            read_declarations(file, config);
            let patterns = file.value("include");
            config.includes = patterns.is_some();
            included = patterns.map(|patterns| expand(&patterns, path)).unwrap_or_default();
        });
        included
    }

    /// Adds the events and processors of an included file to `config`.
    fn read_included_file(&self, path: &Path, config: &mut Config) {
        self.read_file(path, &keys::INCLUDED_FILE, |file| {
            read_declarations(file, config);
        });
    }

    /// Parses a file and hands the top of it to `read`.
    fn read_file(&self, path: &Path, keys: &'static Keys, read: impl FnOnce(&Section<'_>)) {
        let file = match SourceFile::read(path) {
            Ok(file) => file,
            Err(diagnostic) => return self.diagnostics.push(*diagnostic),
        };
        let (tree, errors) = DeTable::parse_recoverable(&file.text);
        let damaged_lines = report_syntax_errors(&file, &errors, tree.get_ref(), &self.diagnostics);
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let environment = Environment { variable: self.variable, folder };
        let context = Context {
            file: &file,
            diagnostics: &self.diagnostics,
            names: &self.names,
            environment: &environment,
            sections: keys::SECTIONS,
            damaged_lines,
        };
        read(&Section::open(&context, keys, tree.get_ref(), 0..0));
    }
}

fn read_sections(file: &Section<'_>, config: &mut Config) {
    let event_store = file.section("event_store");
    if let Some(event_store) = &event_store {
        config.event_store = EventStoreSettings::read(event_store);
    }
    let projections = file.section("projections");
    if let Some(projections) = &projections {
        config.projections = ProjectionsSettings::read(projections);
    }
    refuse_foreign_schema(config, event_store.as_ref());
    refuse_shared_schema(config, event_store, projections);
    if let Some(runner) = file.section("runner") {
        config.runner = RunnerSection::read(&runner);
    }
    if let Some(rebuild) = file.section("rebuild") {
        config.rebuild = RebuildSection::read(&rebuild);
    }
    if let Some(retry) = file.section("retry") {
        config.retry = read_retry(&retry, RetryPolicy::default());
    }
    if let Some(verify) = file.section("verify") {
        config.verify = VerifySection::read(&verify);
    }
    if let Some(log) = file.section("log") {
        config.log = read_log(&log);
    }
    if let Some(hooks) = file.section("hooks") {
        config.hooks = read_hooks(&hooks);
    }
    config.upcasts = file.sections("upcast").iter().filter_map(read_upcast).collect();
    config.admin = file.section("admin").map(|admin| AdminSettings::read(&admin));
}

/// espd's own tables must not be created in the schema of a store that espd only reads.
fn refuse_foreign_schema(config: &Config, event_store: Option<&Section<'_>>) {
    let LayoutSettings::EventSourcery(names) = &config.event_store.layout else { return };
    let Some(layout) = event_store.and_then(|section| section.value("layout")) else { return };
    if names.schema == config.event_store.schema {
        let message =
            format!("the store is in the schema `{}`, and so would be espd's own tables", names.schema);
        layout.location.report(message, "write another `schema` under [event_store], like \"espd\"");
    }
}

/// A reset drops the tables of a projector, so the tables of the store need a schema of their own.
fn refuse_shared_schema(config: &Config, event_store: Option<Section<'_>>, projections: Option<Section<'_>>) {
    let elsewhere = match &config.projections.url {
        Some(url) => config.event_store.url.as_ref() != Some(url),
        // A URL that is given but wrong tells nothing.
        None => projections.is_some_and(|section| section.value("url").is_some()),
    };
    if elsewhere || config.projections.schema != config.event_store.schema {
        return;
    }
    let schemas =
        [projections, event_store].into_iter().flatten().filter_map(|section| section.value("schema"));
    for schema in schemas.take(1) {
        let message = format!("events and projections share the schema `{}`", config.event_store.schema);
        schema
            .location
            .report(message, "give each of them a schema of its own, like \"espd\" and \"public\"");
    }
}

fn read_declarations(file: &Section<'_>, config: &mut Config) {
    config.events.extend(file.sections("event").iter().filter_map(read_event));
    read_processors(file, config);
}

fn read_processors(file: &Section<'_>, config: &mut Config) {
    let RunnerSection { batch, isolation, on_handler_change, .. } = &config.runner;
    let defaults = Defaults {
        batch: *batch,
        retry: config.retry,
        isolation: isolation.clone(),
        on_handler_change: *on_handler_change,
    };
    for kind in [ProcessorKind::Projector, ProcessorKind::Reactor] {
        for section in file.sections(kind.as_str()) {
            let Some((declaration, said)) = read_processor(&section, kind, &defaults) else { continue };
            if matches!(declaration.handling, Handling::Native(_)) {
                config.said.insert(declaration.name.clone(), said);
            }
            config.processors.push(declaration);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a file says wrong in its first line, with the advice.
    fn first_advice(text: &str) -> (String, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("espd.toml");
        std::fs::write(&path, text).unwrap();
        let invalid = load(&path, &|_| None).unwrap_err();
        let first = &invalid.diagnostics()[0];
        (first.message.clone(), first.advice.clone().unwrap())
    }

    #[test]
    fn a_key_in_the_wrong_section_is_recognised() {
        for (text, message, advice) in [
            (
                "shutdown_timeout = \"30s\"",
                "unknown key `shutdown_timeout` at the top of this file",
                "did you mean `shutdown_timeout` of [runner]? ",
            ),
            (
                "[runner]\njitter = 0.5",
                "unknown key `jitter` in [runner]",
                "did you mean `jitter` of [retry] or [projector.retry] or [reactor.retry]? ",
            ),
            (
                "[retry]\nbatch_size = 100",
                "unknown key `batch_size` in [retry]",
                "did you mean `batch_size` of [runner] or [projector] or [reactor]? ",
            ),
        ] {
            let (found_message, found_advice) = first_advice(text);
            assert_eq!(found_message, message);
            assert!(found_advice.starts_with(advice), "{text}: {found_advice}");
        }
    }
}
