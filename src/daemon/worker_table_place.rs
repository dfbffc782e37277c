//! Where the table `workers` is, with what else a daemon does in that database.

use std::sync::Arc;

use super::worker_rows::Entry;
use crate::config::Config;
use crate::postgres::connector::Connector;
use crate::processing::tracker::Trackers;
use crate::schema::exclusion::Tables;
use crate::store::Layout;
use crate::store::layout::CreatedBy;
use crate::store::scheduled::Scheduler;

/// Where the table is.
#[derive(Debug, Clone)]
pub(super) struct WorkerTablePlace {
    /// The database of the projections.
    pub database: Connector,
    /// The schema of the trackers.
    pub schema: String,
    /// The trackers.
    pub trackers: Trackers,
    /// The processors that the daemon is configured to run.
    pub processors: Vec<String>,
    /// Appends what applications have scheduled; `None`: espd appends nothing to the store.
    pub scheduler: Option<Scheduler>,
    /// Those of its tables that migrations have made.
    pub migrated: Vec<Tables>,
    /// The database of the events, if it is another one and migrations have made its tables.
    pub events_elsewhere: Option<Connector>,
    /// What is shown of workers that do not run, because a newer espd excludes this program from the tables.
    pub held: Vec<Entry>,
    /// The configuration whose projectors are verified slice by slice; `None`: they are not.
    pub verified: Option<Arc<Config>>,
}

impl WorkerTablePlace {
    /// Where the table is, if the configuration names a database.
    pub(super) fn of(config: &Config) -> Option<Self> {
        let url = config.direct_projections_url().or(config.direct_event_store_url())?;
        let processors = config.processors.iter().map(|processor| processor.name.clone()).collect();
        let layout = layout(config)?;
        let of_events = layout.created_by == CreatedBy::Migrations;
        let elsewhere = config.direct_projections_url().is_some();
        let events = if elsewhere { config.direct_event_store_url().filter(|_| of_events) } else { None };
        let tables = (of_events && !elsewhere).then_some(Tables::EventStore);
        Some(Self {
            migrated: tables.into_iter().chain([Tables::Processing]).collect(),
            events_elsewhere: events.and_then(|url| url.connector().ok()),
            held: Vec::new(),
            database: url.connector().ok()?,
            trackers: Trackers::of(&layout),
            schema: config.event_store.schema.clone(),
            processors,
            scheduler: scheduler(config, &layout),
            verified: (config.verify.share > 0.0).then(|| Arc::new(config.clone())),
        })
    }

    /// The same place, where nothing is done but to show why the workers of `config` do not run.
    pub(super) fn held(self, config: &Config, reason: &str) -> Self {
        let held = Entry::all_waiting(config, reason);
        Self { held, processors: Vec::new(), scheduler: None, verified: None, ..self }
    }
}

/// The scheduler of the configured store; `None`: espd appends nothing to it, or no database is known.
fn scheduler(config: &Config, layout: &Layout) -> Option<Scheduler> {
    let database = config.direct_event_store_url()?.connector().ok()?;
    Scheduler::new(&database, layout)
}

/// The layout of the configured store, whose names were checked when the configuration was read.
fn layout(config: &Config) -> Option<Layout> {
    Layout::new(&config.event_store.layout, &config.event_store.schema).ok()
}
