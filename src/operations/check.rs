//! What `espd check` and `espctl check` find, and a reload of the daemon: mistakes in declarations, before they are followed.

mod aggregate_column;
pub(crate) mod scope;

use crate::config::Config;
use crate::diagnostic::{Diagnostic, Severity, render_all};
use crate::embedded::{EmbeddedPostgres, Options};
use crate::event::Position;
use crate::handlers::{self, sql};
use crate::operations::connections;
use crate::operations::databases::{CONNECT_TIMEOUT, Databases, private_database, ways};
use crate::operations::declared_events::{self, note_differences};
use crate::operations::plan::{foresee, list_raised};
use crate::operations::unstored_types::find_unknown_types;
use crate::process::exit_code::Exit;
use crate::processing::declaration::{ProcessorDeclaration, ProcessorKind};
use crate::processing::processor::Fit;
use crate::processing::rebuild::list_left_out;
use crate::processing::tracker::{TrackerRow, Trackers};
use crate::retry::OnFailure;

/// What a check has found.
pub(crate) struct CheckReport {
    /// The mistakes and warnings, each with its line of the file; empty if everything is right.
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// What was checked, in words.
    checked: String,
    /// What is no mistake, and yet has to be known, each in a line.
    notes: Vec<String>,
}

impl CheckReport {
    /// The line to print if nothing is wrong; otherwise every mistake, with the exit code for a wrong configuration.
    pub(crate) fn into_result(self) -> Result<String, Exit> {
        let mistakes: Vec<Diagnostic> = self.diagnostics.into_iter().filter(|one| !is_warning(one)).collect();
        if mistakes.is_empty() {
            let notes = self.notes.iter().map(|note| format!("note: {note}\n")).collect::<String>();
            return Ok(format!("{notes}ok: {}", self.checked));
        }
        Err(Exit::configuration(render_all(&mistakes)))
    }

    /// What may be a mistake and prevents nothing.
    pub(crate) fn warnings(&self) -> impl Iterator<Item = &Diagnostic> {
        self.diagnostics.iter().filter(|one| is_warning(one))
    }
}

fn is_warning(diagnostic: &Diagnostic) -> bool {
    diagnostic.severity == Severity::Warning
}

/// Checks the store and every declared processor; changes nothing.
///
/// If no database is configured, the daemon would start a private server, so the SQL is checked on a server like it.
pub(crate) async fn check(config: &Config) -> anyhow::Result<CheckReport> {
    if config.event_store.url.is_some() {
        ways::require(config, "espd check", CONNECT_TIMEOUT).await?;
        return check_some(config, |_| true).await;
    }
    let server = EmbeddedPostgres::start_temporary(Options { durable: false, ..Options::default() }).await?;
    let mut config = config.clone();
    config.event_store.url = Some(private_database(&server).await?);
    let databases = Databases::connect(&config, "espd check").await?;
    databases.migrate().await?;
    declared_events::apply(&databases, &config.events, false).await?;
    let report = check_on(&config, &databases, |_| true).await;
    databases.close().await;
    server.stop().await;
    report
}

/// Refuses handlers that name a table of another processor, and may not. The daemon does so before it starts: the database would find out
/// at the first event only.
///
/// # Errors
/// Every such place.
pub(crate) fn require_own_tables(config: &Config) -> Result<(), Exit> {
    let found = handlers::find_foreign_tables(&config.processors);
    let found: Vec<Diagnostic> = found.into_iter().map(Diagnostic::with_line_of_file).collect();
    if found.is_empty() { Ok(()) } else { Err(Exit::configuration(render_all(&found))) }
}

/// Checks what in `config` differs from what runs already: every processor if the databases, what SQL means or the upcasts
/// do. Processors that are the same go on as they are, also with mistakes.
pub(crate) async fn check_changes(config: &Config, running: &Config) -> anyhow::Result<CheckReport> {
    let is_same_ground = config.event_store == running.event_store
        && config.projections == running.projections
        && config.upcasts == running.upcasts;
    if !is_same_ground {
        ways::require(config, "espd check", CONNECT_TIMEOUT).await?;
    }
    check_some(config, |processor| !is_same_ground || !running.processors.contains(processor)).await
}

async fn check_some(
    config: &Config,
    is_checked: impl Fn(&ProcessorDeclaration) -> bool,
) -> anyhow::Result<CheckReport> {
    let databases = Databases::connect_directly(config, "espd check", CONNECT_TIMEOUT).await?;
    let report = check_on(config, &databases, is_checked).await;
    databases.close().await;
    report
}

async fn check_on(
    config: &Config,
    databases: &Databases,
    is_checked: impl Fn(&ProcessorDeclaration) -> bool,
) -> anyhow::Result<CheckReport> {
    databases.check_schema().await?;
    databases.check_store().await?;
    let mut events = databases.events.acquire().await?;
    let mut found = sql::check_upcasts(&mut events, &databases.layout, &config.upcasts).await?;
    drop(events);
    let is_elsewhere = config.direct_projections_url().is_some();
    found.extend(sql::hidden_types(&config.processors, &config.upcasts));
    found.extend(
        config
            .processors
            .iter()
            .filter_map(|declared| sql::refuse_synchronous(declared, &databases.layout, is_elsewhere)),
    );
    found.extend(find_unknown_types(&databases.events, &databases.layout, &config.processors).await?);
    found.extend(declared_events::find_mistakes(&databases.events, &databases.layout, &config.events).await?);
    let unknown = scope::find_unknown(&databases.projections, &databases.scope, &config.main_file()).await?;
    // Nothing can be tried where SQL cannot mean what is declared.
    if unknown.is_empty() {
        let mut projections = databases.projections.acquire().await?;
        let scope = databases.scope.clone();
        let declared = &config.processors;
        let missing = aggregate_column::find_missing(&mut projections, declared, &scope, &is_checked);
        found.extend(missing.await?);
        found.extend(handlers::check_some(&mut projections, declared, scope, is_checked).await?);
    }
    found.extend(unknown);
    let mut notes = note_other_handlers(config, databases).await?;
    notes.extend(note_other_tables(config, databases).await?);
    notes.extend(note_raised_versions(config, databases).await?);
    notes.extend(note_endless_attempts(config));
    notes.extend(note_connections(config, databases).await?);
    let differences = declared_events::compare(&databases.events, &databases.layout, &config.events).await?;
    notes.extend(note_differences(&differences));
    let diagnostics = found.into_iter().map(Diagnostic::with_line_of_file).collect();
    let checked = format!("{}, event store {}", count(config), databases.layout.events_table());
    Ok(CheckReport { diagnostics, checked, notes })
}

/// How many connections are needed, where that may be a question: for many processors, or if the server lacks them.
async fn note_connections(config: &Config, databases: &Databases) -> anyhow::Result<Option<String>> {
    /// Fewer processors need no more connections than people expect.
    const MANY: usize = 10;
    let (message, is_enough) = connections::explain(config, databases).await?;
    Ok((config.processors.len() >= MANY || !is_enough).then_some(message))
}

/// The processors whose handlers are not those that have handled events.
async fn note_other_handlers(config: &Config, databases: &Databases) -> anyhow::Result<Vec<String>> {
    let trackers = Trackers::of(&databases.layout).list(&databases.projections, None).await?;
    let mut notes = Vec::new();
    for declaration in &config.processors {
        let is_its = |row: &&TrackerRow| row.name == declaration.name && row.version == declaration.version;
        let Some(row) = trackers.iter().find(is_its).filter(|row| row.position > Position::START) else {
            continue;
        };
        let declared = declaration.handler_fingerprint(&config.upcasts);
        if row.handlers.is_some() && declared.is_some() && row.handlers != declared {
            let ProcessorDeclaration { name, on_handler_change, .. } = declaration;
            notes.push(format!(
                "the handlers of {name} are not those that have handled the events up to {}; on_handler_change = \
                 \"{on_handler_change}\" says what the daemon does",
                row.position
            ));
        }
    }
    Ok(notes)
}

/// The projectors whose version was raised: what becomes of them.
async fn note_raised_versions(config: &Config, databases: &Databases) -> anyhow::Result<Vec<String>> {
    let trackers = Trackers::of(&databases.layout).list(&databases.projections, None).await?;
    let mut connection = databases.projections.acquire().await?;
    let left_out = list_left_out(&mut connection, &databases.layout, &list_raised(config, &trackers)).await?;
    let raised = |row: &TrackerRow| {
        let declares = |one: &&ProcessorDeclaration| one.name == row.name && one.version > row.version;
        let declaration = config.processors.iter().find(declares)?;
        let (name, version) = (&row.name, declaration.version);
        if let Some(left_out) = left_out.get(name) {
            return Some(format!(
                "version {} of {name} goes on serving: {}",
                row.version,
                left_out.describe(name, version)
            ));
        }
        let builder = if config.rebuild.parallelism > 0 { "a daemon" } else { "`espctl rebuild`" };
        Some(format!(
            "version {} of {name} serves until version {version}, which {builder} builds beside it, goes live; \
             `espctl rebuild {name} --dry-run` shows what would change",
            row.version
        ))
    };
    Ok(trackers.iter().filter(|row| row.position > Position::START).filter_map(raised).collect())
}

/// The processors whose tables are not those that are declared, and what becomes of them. What a program declares is not known here.
async fn note_other_tables(config: &Config, databases: &Databases) -> anyhow::Result<Vec<String>> {
    let trackers = Trackers::of(&databases.layout).list(&databases.projections, None).await?;
    let mut connection = databases.projections.acquire().await?;
    let mut notes = Vec::new();
    for declaration in &config.processors {
        let tracker = trackers.iter().find(|row| row.name == declaration.name);
        let fit = foresee(config, databases, &mut connection, declaration, tracker).await?;
        notes.extend(describe_fit(&declaration.name, &fit));
    }
    Ok(notes)
}

fn describe_fit(name: &str, fit: &Fit) -> Option<String> {
    match fit {
        Fit::AsDeclared => None,
        Fit::ToBeAltered(alteration) if alteration.is_empty() => None,
        Fit::ToBeAltered(alteration) => {
            Some(format!("{name} goes on, and the daemon {alteration}; no replay"))
        }
        Fit::AlteredSince(alteration) => Some(format!(
            "{name} goes on with tables that a newer declaration of the version has altered, and leaves them so: {alteration}"
        )),
        Fit::Other(reason) => {
            let because = reason
                .as_ref()
                .map_or(String::new(), |reason| format!("; a replay is needed, because {reason}"));
            Some(format!(
                "the tables of {name} were made from another declaration: it stops until `espctl rebuild {name}` has built \
                 them beside those, or the change is taken back; with a raised `version` it goes on meanwhile{because}"
            ))
        }
    }
}

/// The processors with a number of attempts after which nothing happens.
fn note_endless_attempts(config: &Config) -> Option<String> {
    let is_endless = |processor: &&ProcessorDeclaration| {
        processor.retry.max_attempts.is_some() && processor.retry.on_failure == OnFailure::Retry
    };
    let names: Vec<&str> =
        config.processors.iter().filter(is_endless).map(|processor| processor.name.as_str()).collect();
    (!names.is_empty()).then(|| {
        format!(
            "max_attempts has no effect on {}: on_failure = \"retry\" tries an event for ever; write \"stop\", \"park\" \
             or \"skip\", or leave max_attempts out",
            names.join(", ")
        )
    })
}

/// How many processors of each kind are declared, in words.
fn count(config: &Config) -> String {
    let of = |kind: ProcessorKind| {
        let number = config.processors.iter().filter(|processor| processor.kind() == kind).count();
        let plural = if number == 1 { "" } else { "s" };
        (number > 0).then(|| format!("{number} {}{plural}", kind.as_str()))
    };
    let counts: Vec<String> =
        [ProcessorKind::Projector, ProcessorKind::Reactor].into_iter().filter_map(of).collect();
    if counts.is_empty() { "no processor is declared".to_owned() } else { counts.join(", ") }
}
