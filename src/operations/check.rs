//! What `espd check` and `espctl check` find, and a reload of the daemon: mistakes in declarations, before they are followed.

mod aggregate_column;
pub(crate) mod scope;
mod startable;

use crate::config::{Config, find_wrong_variable};
use crate::diagnostic::{Diagnostic, Severity, render_all};
use crate::embedded::{EmbeddedPostgres, Options};
use crate::event::Position;
use crate::handlers::{self, sql};
use crate::operations::connections;
use crate::operations::databases::{CONNECT_TIMEOUT, Databases, private_database, ways};
use crate::operations::declared_events::{self, note_differences};
use crate::operations::lock_watch::say_who_locks;
use crate::operations::plan::{self, Known, Planned};
use crate::operations::unstored_events::find_unknown_types;
use crate::process::exit_code::Exit;
use crate::processing::declaration::{ProcessorDeclaration, ProcessorKind};
use crate::processing::history::find_divergence;
use crate::processing::processor::{Fit, find_obstacle_to_emit};
use crate::processing::tracker::{TrackerRow, Trackers};
use crate::retry::OnFailure;
pub(crate) use startable::{describe_no_work, only_schedules};
use startable::{find_newly_unstartable, find_unstartable};

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
    let mut unstartable = find_unstartable(config);
    unstartable.extend(find_wrong_variable());
    let has_database = config.event_store.url.is_some();
    if !has_database && config.processors.is_empty() && unstartable.iter().any(|one| !is_warning(one)) {
        // A private server would be started for nothing.
        return Ok(CheckReport { diagnostics: unstartable, checked: String::new(), notes: Vec::new() });
    }
    let mut report = check_databases(config).await?;
    report.diagnostics.extend(unstartable);
    Ok(report)
}

async fn check_databases(config: &Config) -> anyhow::Result<CheckReport> {
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
    let mut report =
        check_some(config, |processor| !is_same_ground || !running.processors.contains(processor)).await?;
    report.diagnostics.extend(find_newly_unstartable(config, running));
    Ok(report)
}

async fn check_some(
    config: &Config,
    is_checked: impl Fn(&ProcessorDeclaration) -> bool,
) -> anyhow::Result<CheckReport> {
    let databases = Databases::connect_directly_to_look(config, "espd check", CONNECT_TIMEOUT).await?;
    let checking = Box::pin(check_on(config, &databases, is_checked));
    let report = say_who_locks(&databases, |_| {}, checking).await;
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
    let checked = config.processors.iter().filter(|declaration| is_checked(declaration));
    found.extend(sql::find_own_tables(checked, &databases.layout));
    found.extend(
        config
            .processors
            .iter()
            .filter_map(|declared| sql::refuse_synchronous(declared, &databases.layout, is_elsewhere)),
    );
    found.extend(config.processors.iter().filter_map(|declared| {
        let obstacle = find_obstacle_to_emit(declared, &databases.layout)?;
        Some(Diagnostic::of_file(declared.file(), obstacle))
    }));
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
        found.extend(handlers::check_some(&mut projections, declared, scope, &is_checked).await?);
    }
    found.extend(unknown);
    let trackers = plan::list_trackers(databases).await?;
    found.extend(warn_of_missed_events(config, databases, &trackers).await?);
    let known = plan::look(config, databases, &trackers).await?;
    let planned = plan::foretell(config, &known, &trackers);
    let owned_by_others = find_owned_by_others(&known, &is_checked);
    // What is a mistake is said as that.
    let is_mistake = |planned: &&Planned| owned_by_others.iter().any(|(name, _)| *name == planned.processor);
    let lost: Vec<&Planned> =
        planned.iter().filter(|planned| planned.action.loses() && !is_mistake(planned)).collect();
    found.extend(owned_by_others.iter().map(|(_, mistake)| mistake.clone()));
    found.extend(lost.iter().map(|planned| warn_of_loss(config, planned)));
    // What would be lost is said once.
    let is_lost = |one: &Known<'_>| lost.iter().any(|lost| lost.processor == one.declaration.name);
    let mut notes = note_changes(config, known.iter().filter(|one| !is_lost(one)));
    notes.extend(note_endless_attempts(config));
    notes.extend(note_connections(config, databases).await?);
    let differences = declared_events::compare(&databases.events, &databases.layout, &config.events).await?;
    notes.extend(note_differences(&differences));
    let diagnostics = found.into_iter().map(Diagnostic::with_line_of_file).collect();
    let checked = format!("{}, event store {}", count(config), databases.layout.events_table());
    Ok(CheckReport { diagnostics, checked, notes })
}

/// The processors that this role could not run, because others own what they have made.
fn find_owned_by_others<'k>(
    known: &[Known<'k>],
    is_checked: impl Fn(&ProcessorDeclaration) -> bool,
) -> Vec<(&'k str, Diagnostic)> {
    let checked = known.iter().filter(|one| is_checked(one.declaration));
    let mistake = |one: &Known<'k>| {
        let (declaration, found) = (one.declaration, one.owned_by_others.as_ref()?);
        let diagnostic =
            Diagnostic::of_file(declaration.file(), format!("{}: {}", declaration.name, found.describe()));
        Some((declaration.name.as_str(), diagnostic.with_advice(found.remedy())))
    };
    checked.filter_map(mistake).collect()
}

/// Warnings of synchronous projectors whose triggers may have missed events.
async fn warn_of_missed_events(
    config: &Config,
    databases: &Databases,
    trackers: &[TrackerRow],
) -> Result<Vec<Diagnostic>, sqlx::Error> {
    let mut warnings = Vec::new();
    for row in trackers.iter().filter(|row| row.synchronous.is_some() || row.diverged.is_some()) {
        let Some(declaration) = config.processors.iter().find(|one| one.name == row.name) else { continue };
        let (mut events, mut projections) =
            (databases.events.acquire().await?, databases.projections.acquire().await?);
        let (table, layout) = (Trackers::of(&databases.layout), &databases.layout);
        let found = find_divergence(&table, row, &mut events, &mut projections, layout).await?;
        let Some(found) = found.filter(|found| found.kind.is_of_triggers()) else { continue };
        let warning = Diagnostic::of_file(declaration.file(), found.describe(&row.name)).into_warning();
        warnings.push(warning.with_advice(found.remedy(&row.name)));
    }
    Ok(warnings)
}

/// How many connections are needed, where that may be a question: for many processors, or if the server lacks them.
async fn note_connections(config: &Config, databases: &Databases) -> anyhow::Result<Option<String>> {
    /// Fewer processors need no more connections than people expect.
    const MANY: usize = 10;
    let (message, is_enough) = connections::explain(config, databases).await?;
    Ok((config.processors.len() >= MANY || !is_enough).then_some(message))
}

/// A warning of what `espctl plan` says with its exit code.
fn warn_of_loss(config: &Config, planned: &Planned) -> Diagnostic {
    let declaration = config.processors.iter().find(|one| one.name == planned.processor);
    let file = declaration.map_or_else(|| config.main_file(), |one| one.file().to_owned());
    Diagnostic::of_file(&file, planned.in_words()).into_warning().with_advice(
        "if that is meant, all is well; `espctl plan` says all that a deploy would do, and has exit code 2 because of this",
    )
}

/// What becomes of processors that were declared otherwise: of all handlers, then of all tables, then of all versions.
fn note_changes<'k>(config: &Config, known: impl Iterator<Item = &'k Known<'k>> + Clone) -> Vec<String> {
    let tables = known.clone().filter_map(describe_tables);
    let raised = known.clone().filter_map(|one| describe_raised(config, one));
    let given_up = known.clone().filter_map(describe_given_up);
    known.clone().filter_map(describe_other_handlers).chain(tables).chain(raised).chain(given_up).collect()
}

/// Of a processor whose handlers are not those that have handled events.
fn describe_other_handlers(known: &Known<'_>) -> Option<String> {
    let ProcessorDeclaration { name, version, on_handler_change, .. } = known.declaration;
    let row = known.tracker.filter(|row| known.other_handlers && row.version == *version)?;
    Some(format!(
        "the handlers of {name} are not those that have handled the events up to {}; on_handler_change = \
         \"{on_handler_change}\" says what the daemon does",
        row.position
    ))
}

/// Of a projector whose version was raised.
fn describe_raised(config: &Config, known: &Known<'_>) -> Option<String> {
    let ProcessorDeclaration { name, version, .. } = known.declaration;
    let row = known.tracker.filter(|row| row.position > Position::START && row.version < *version)?;
    let serves = row.version;
    if let Some(unsuitable) = known.unsuitable() {
        let (because, remedy) = (unsuitable.because(name), unsuitable.remedy(name, *version));
        return Some(format!(
            "version {serves} of {name} goes on, and nobody builds version {version}, because {because}: {remedy}"
        ));
    }
    if let Some(left_out) = known.left_out {
        return Some(format!(
            "version {serves} of {name} goes on serving: {}",
            left_out.describe(name, *version)
        ));
    }
    if let Some(foreign) = &known.foreign {
        return Some(format!(
            "version {serves} of {name} goes on, and version {version} cannot be built beside it, because {foreign}"
        ));
    }
    if let Some(lacks) = &known.lacks {
        return Some(format!(
            "version {serves} of {name} goes on, and version {version} cannot be built beside it, because {lacks}"
        ));
    }
    let losses = known.describe_losses();
    if let Some((standing, true)) = &known.standing {
        return Some(format!("version {serves} of {name} serves; {}{losses}", standing.describe()));
    }
    let builder = if config.rebuild.parallelism > 0 { "a daemon" } else { "`espctl rebuild`" };
    Some(format!(
        "version {serves} of {name} serves until version {version}, which {builder} builds beside it, goes live; \
         `espctl rebuild {name} --dry-run` shows what would change{losses}"
    ))
}

/// Of a projector beside which a version is built that is not declared any more, or in another way.
fn describe_given_up(known: &Known<'_>) -> Option<String> {
    let end = known.describe_given_up()?;
    Some(format!("version {} of {} serves; {end}", known.tracker?.version, known.declaration.name))
}

/// Of a processor whose tables are not those that are declared.
fn describe_tables(known: &Known<'_>) -> Option<String> {
    let ProcessorDeclaration { name, version, .. } = known.declaration;
    if known.tracker.is_some_and(|row| row.version != *version) {
        return None;
    }
    match &known.fit {
        // What needs a replay stops the processor, which is a warning.
        Fit::AsDeclared | Fit::Refused { .. } | Fit::Other(_) => None,
        Fit::ToBeAltered(alteration) if alteration.is_empty() => None,
        Fit::ToBeAltered(alteration) => {
            Some(format!("{name} goes on, and the daemon {alteration}; no replay"))
        }
        Fit::AlteredSince(alteration) => Some(format!(
            "{name} goes on with tables that a newer declaration of the version has altered, and leaves them so: it {}",
            alteration.in_the_past()
        )),
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
    match counts.as_slice() {
        [] if config.includes => "no processor is declared".to_owned(),
        [] => "no processor is declared: a daemon appends scheduled events only".to_owned(),
        _ => counts.join(", "),
    }
}
