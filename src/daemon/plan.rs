//! From the configuration to the workers: what the supervisor supervises, and what each worker runs.

use anyhow::Context as _;

use crate::config::{Config, DatabaseUrl};
use crate::process::exit_code::Exit;
use crate::process::hook::HookCommand;
use crate::processing::declaration::ProcessorDeclaration;
use crate::processing::tracker::Owner;
use crate::supervision::lifecycle::Policy;
use crate::supervision::{SupervisionPlan, WorkerProgram};
use crate::worker::{Assignment, WorkerSettings};

/// Plans all workers of the configuration, working for `owner`.
///
/// # Errors
/// The configuration names no database, not even a private one.
pub(super) fn supervision_plan(config: &Config, owner: &Owner) -> anyhow::Result<SupervisionPlan> {
    let url = config.event_store.url.as_ref().context("the database is known by now")?;
    let mut programs = Vec::new();
    for (name, members) in config.workers() {
        let settings = worker_settings(config, &members, url);
        let assignment = Assignment { owner: owner.clone(), settings };
        programs.push(WorkerProgram {
            name,
            processors: members.iter().map(|processor| processor.name.clone()).collect(),
            kinds: members.iter().map(|processor| processor.kind().as_str().to_owned()).collect(),
            versions: members.iter().map(|processor| processor.version).collect(),
            settings: serde_json::to_string(&assignment)?,
        });
    }
    let policy = Policy {
        grace: config.runner.shutdown_timeout,
        restart_max: config.runner.restart_max,
        hang_timeout: config.runner.hang_timeout,
        ..Policy::default()
    };
    Ok(SupervisionPlan {
        programs,
        policy,
        memory_max: config.runner.memory_max.map(i64::unsigned_abs),
        hooks: config.hooks.clone(),
        is_resting: false,
    })
}

/// The plan of a daemon that may run nothing at present, and the configuration by which it builds nothing.
pub(super) fn resting(plan: SupervisionPlan, config: &Config) -> (SupervisionPlan, Config) {
    let plan = SupervisionPlan { programs: Vec::new(), is_resting: true, ..plan };
    let mut config = config.clone();
    config.rebuild.parallelism = 0;
    (plan, config)
}

/// Assigns one processor to a worker that no supervisor starts.
///
/// # Errors
/// The configuration does not declare the processor, or names no database.
pub(super) fn single_assignment(config: &Config, name: &str) -> Result<Assignment, Exit> {
    let processor = config.processors.iter().find(|processor| processor.name == name);
    let processor =
        processor.ok_or_else(|| Exit::configuration(format!("no processor {name} is declared")))?;
    let url = config.event_store.url.as_ref();
    let url =
        url.ok_or_else(|| Exit::configuration("a worker needs a database: write url under [event_store]"))?;
    Ok(Assignment { owner: Owner::generate(), settings: worker_settings(config, &[processor], url) })
}

/// Assigns all processors of the configuration to one process that is no worker.
///
/// # Errors
/// The configuration names no database, or declares no processor.
pub(super) fn all_in_one(config: &Config) -> Result<Assignment, Exit> {
    let url = config.event_store.url.as_ref();
    let url = url.ok_or_else(|| {
        Exit::configuration(
            "processors inside a process need a database: write url under [event_store], or start one with `espd::embedded`",
        )
    })?;
    let processors: Vec<_> = config.processors.iter().collect();
    if processors.is_empty() {
        return Err(Exit::configuration("no processor is registered or declared"));
    }
    Ok(Assignment { owner: Owner::generate(), settings: worker_settings(config, &processors, url) })
}

/// Settles what a worker of these processors needs. `event_store_url` is the configured URL, or the one of the private
/// PostgreSQL.
pub fn worker_settings(
    config: &Config,
    processors: &[&ProcessorDeclaration],
    event_store_url: &DatabaseUrl,
) -> WorkerSettings {
    let Config { event_store, projections, .. } = config;
    let projections_url = projections.url.as_ref().filter(|url| *url != event_store_url);
    let direct_url = match projections_url {
        Some(_) => &projections.direct_url,
        None => &event_store.direct_url,
    };
    WorkerSettings {
        event_store_url: event_store.direct_url.as_ref().unwrap_or(event_store_url).clone(),
        batches_url: projections_url.unwrap_or(event_store_url).clone(),
        direct_batches_url: direct_url.clone(),
        layout: event_store.layout.clone(),
        upcasts: config.upcasts.clone(),
        event_store_schema: event_store.schema.clone(),
        projections_url: projections_url.cloned(),
        scope: projections.scope(),
        poll_interval_max: config.runner.poll_interval_max,
        log: config.log.clone(),
        start_hook: (!config.hooks.on_worker_start.is_empty()).then(|| HookCommand {
            command: config.hooks.on_worker_start.clone(),
            timeout: config.hooks.timeout,
        }),
        processors: processors.iter().copied().cloned().collect(),
    }
}
