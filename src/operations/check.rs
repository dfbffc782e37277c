//! `espctl check`, which is also `espd check`: find mistakes before they are deployed.

use crate::config::Config;
use crate::embedded::{EmbeddedPostgres, Options};
use crate::espctl::output;
use crate::handlers::sql::{self, Fault};
use crate::operations::databases::{Databases, private_database};
use crate::process::exit_code::Exit;
use crate::processing::processor::ProcessorKind;

/// Checks the store and every declared projector; changes nothing.
pub(crate) async fn run(config: &Config) -> anyhow::Result<()> {
    if config.event_store.url.is_some() {
        let databases = Databases::connect(config, "espd check").await?;
        let outcome = check(config, &databases).await;
        databases.close().await;
        return outcome;
    }
    // The daemon would start a private server; the SQL is judged by one like it.
    let server = EmbeddedPostgres::start_temporary(Options { durable: false, ..Options::default() }).await?;
    let mut config = config.clone();
    config.event_store.url = Some(private_database(&server).await?);
    let databases = Databases::connect(&config, "espd check").await?;
    databases.migrate().await?;
    let outcome = check(&config, &databases).await;
    databases.close().await;
    server.stop().await;
    outcome
}

async fn check(config: &Config, databases: &Databases) -> anyhow::Result<()> {
    databases.check_schema().await?;
    databases.check_store().await?;
    let mut events = databases.events.acquire().await?;
    let mut found = sql::check_upcasts(&mut events, &databases.layout, &config.upcasts).await?;
    drop(events);
    found.extend(sql::hidden_types(&config.processors, &config.upcasts));
    let mut projections = databases.projections.acquire().await?;
    let schema = &databases.projections_schema;
    found.extend(sql::check(&mut projections, &config.processors, schema).await?);
    let faults: Vec<String> = found.iter().map(show).collect();
    if !faults.is_empty() {
        return Err(Exit::configuration(faults.join("\n\n")).into());
    }
    output::print(&format!("ok: {}, event store {}", count(config), databases.layout.events_table()))
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

/// A fault with the line that it is about, in the manner of the configuration's own faults.
fn show(fault: &Fault) -> String {
    let Fault { file, line, column, message, hint } = fault;
    let mut text = format!("{file}:{line}:{column}: {message}");
    let source = std::fs::read_to_string(file).unwrap_or_default();
    if let Some(source) = source.lines().nth(line - 1) {
        text.push_str(&format!("\n{line:>5} | {source}\n      | {:indent$}^", "", indent = column - 1));
    }
    if let Some(hint) = hint {
        text.push_str(&format!("\n      = {hint}"));
    }
    text
}
