//! The configuration: one TOML file and what it includes, read into one validated [`Config`].
//!
//! Reading never stops at the first mistake. Each file is parsed into a tree that knows its places. Every section is
//! read key by key, and each mistake becomes a [`Diagnostic`] with file, line, column and advice. At the end there is
//! either a complete `Config`, or an [`InvalidConfig`] that prints the whole report.
//!
//! `docs/configuration.md` describes every key; `config/espd.example.toml` shows each.

mod argument;
mod event_store;
mod json_schema;
mod keys;
mod load;
mod reader;
mod redacted;
mod sections;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use argument::{ConfigArgument, demo_file, demo_link};
pub use keys::known_keys;
pub use reader::diagnostics::InvalidConfig;
pub(crate) use reader::key::nearest;
pub use sections::admin::{AdminSettings, Listen, Token};
pub(crate) use sections::log::find_wrong_variable;
pub use sections::rebuild::RebuildSection;
pub use sections::runner::RunnerSection;
pub(crate) use sections::store::{EventStoreSettings, ProjectionsSettings};
pub(crate) use sections::verify::VerifySection;

pub(crate) use crate::diagnostic::Diagnostic;
pub use crate::postgres::database_url::DatabaseUrl;
pub use crate::telemetry::LogFormat;
pub(crate) use crate::telemetry::LogSettings;

use crate::processing::declaration::{ProcessorDeclaration, ProcessorSettings};
use crate::retry::RetryPolicy;
use crate::store::declared_event::DeclaredEvent;
use crate::store::upcast::Upcast;
use crate::supervision::hooks::HookSettings;

/// The commented example of every key: the very file `config/espd.example.toml`.
pub const EXAMPLE: &str = include_str!("../../config/espd.example.toml");

/// The environment variable that names the database if there is no file.
pub(crate) const DATABASE_URL: &str = "DATABASE_URL";

/// Reads a duration as the configuration has it, for command lines: `"30s"`.
///
/// # Errors
/// What to write instead.
pub fn parse_duration(words: &str) -> Result<Duration, String> {
    reader::quantity::parse_duration(words)
        .ok_or_else(|| "write a number and a unit: 500ms, 30s, 5m, 1h, 1d".to_owned())
}

/// Looks up an environment variable; `None` if it is not set.
pub(crate) type LookUp<'l> = &'l dyn Fn(&str) -> Option<String>;

/// Everything that is configured, with every default filled in. Its fields are no part of the public interface.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config {
    /// The files that it was read from, the main file first. Empty without a file.
    pub files: Vec<PathBuf>,
    /// Whether the main file names others in `include`, even if there are none.
    pub includes: bool,
    /// Whether the database is that of `DATABASE_URL`, for a tool, because the files name none.
    pub is_database_of_environment: bool,
    /// Where the events are.
    pub event_store: EventStoreSettings,
    /// Where the projectors' tables are.
    pub projections: ProjectionsSettings,
    /// How processors follow the store.
    pub runner: RunnerSection,
    /// How a daemon builds versions beside those that serve.
    pub rebuild: RebuildSection,
    /// How to retry, for processors that do not say otherwise.
    pub retry: RetryPolicy,
    /// How much of the projectors' tables is verified while they serve.
    pub verify: VerifySection,
    /// What is logged, and how.
    pub log: LogSettings,
    /// The endpoint for probes, metrics and operators; `None`: there is none.
    pub admin: Option<AdminSettings>,
    /// What to run when a worker ends or a processor fails.
    pub hooks: HookSettings,
    /// How old events are read as new ones, in the order of the file.
    pub upcasts: Vec<Upcast>,
    /// What the bodies of events look like: those of the main file, then those of the included files in their order.
    pub events: Vec<DeclaredEvent>,
    /// The processors: those of the main file, then those of the included files in their order.
    pub processors: Vec<ProcessorDeclaration>,
    /// What the sections of native processors themselves say, by name, until the program that has registered them adds what it
    /// says.
    pub said: BTreeMap<String, ProcessorSettings>,
}

impl Config {
    /// Reads a file and what it includes; variables come from the environment of this process.
    ///
    /// # Errors
    /// Everything that is wrong with the files, as one report.
    pub fn load(path: &Path) -> Result<Self, InvalidConfig> {
        Self::load_with(path, &|name| std::env::var(name).ok())
    }

    /// As [`Config::load`], for commands that need to reach the databases, and not all declarations: where nothing else is wrong, the
    /// configuration comes without those that are, together with the report.
    pub(crate) fn load_usable(path: &Path) -> Result<(Self, Option<InvalidConfig>), InvalidConfig> {
        load::load_usable(path, &|name| std::env::var(name).ok())
    }

    /// The defaults, with the database that `url` names, like `postgres://user:password@host/database`: for tests and for
    /// programs that need no file.
    ///
    /// # Errors
    /// It is no PostgreSQL URL.
    pub fn for_database(url: &str) -> Result<Self, InvalidConfig> {
        let refuse = |error: &dyn std::fmt::Display| {
            InvalidConfig::one(Diagnostic::of_file("the URL", error.to_string()))
        };
        let mut config = Self::default();
        config.event_store.url = Some(DatabaseUrl::new(url.to_owned()).map_err(|error| refuse(&error))?);
        Ok(config)
    }

    /// As [`Config::load`], with the variables from elsewhere.
    ///
    /// # Errors
    /// Everything that is wrong with the files, as one report.
    pub fn load_with(path: &Path, variable: LookUp<'_>) -> Result<Self, InvalidConfig> {
        load::load(path, variable)
    }

    /// Uses the database that `DATABASE_URL` names if the files name none. Tools need it to reach the private PostgreSQL of
    /// a daemon.
    #[must_use]
    pub fn or_database_of_environment(mut self) -> Self {
        if self.event_store.url.is_none() {
            self.event_store.url =
                std::env::var(DATABASE_URL).ok().and_then(|url| DatabaseUrl::new(url).ok());
            self.is_database_of_environment = self.event_store.url.is_some();
        }
        self
    }

    /// The defaults, with the database that `DATABASE_URL` names: for a tool that is given no file.
    ///
    /// # Errors
    /// The variable is not set, or not a PostgreSQL URL.
    pub fn from_environment() -> Result<Self, InvalidConfig> {
        Self::from_environment_with(&|name| std::env::var(name).ok())
    }

    /// As [`Config::from_environment`], with the variable from elsewhere.
    ///
    /// # Errors
    /// The variable is not set, or not a PostgreSQL URL.
    pub fn from_environment_with(variable: LookUp<'_>) -> Result<Self, InvalidConfig> {
        let refuse = |message: String| {
            let advice =
                "name a file with --config, or set DATABASE_URL to postgres://user:password@host/database";
            InvalidConfig::one(Diagnostic::of_file(DATABASE_URL, message).with_advice(advice))
        };
        let url = variable(DATABASE_URL).filter(|url| !url.is_empty());
        let url =
            url.ok_or_else(|| refuse("neither a configuration file nor this variable is given".into()))?;
        let url = DatabaseUrl::new(url).map_err(|error| refuse(error.to_string()))?;
        let mut config = Self::default();
        config.event_store.url = Some(url);
        Ok(config)
    }

    /// The workers by name, each with its processors; both in the order of the files.
    pub fn workers(&self) -> Vec<(String, Vec<&ProcessorDeclaration>)> {
        let mut workers: Vec<(String, Vec<_>)> = Vec::new();
        for projector in &self.processors {
            let name = projector.isolation.worker_of(&projector.name);
            match workers.iter_mut().find(|(worker, _)| *worker == name) {
                Some((_, processors)) => processors.push(projector),
                None => workers.push((name, vec![projector])),
            }
        }
        workers
    }

    /// The main file, for messages about a section of it.
    pub(crate) fn main_file(&self) -> String {
        self.files.first().map_or_else(|| "the configuration".to_owned(), |file| file.display().to_string())
    }

    /// The URL of the events' database past a pooler, if there is one: for prepared statements and for `listen`.
    pub fn direct_event_store_url(&self) -> Option<&DatabaseUrl> {
        self.event_store.direct_url.as_ref().or(self.event_store.url.as_ref())
    }

    /// The URL of the projections' database past a pooler, if there is one; `None`: it is the one of the events.
    pub fn direct_projections_url(&self) -> Option<&DatabaseUrl> {
        let url = self.projections.url.as_ref().filter(|url| Some(*url) != self.event_store.url.as_ref())?;
        Some(self.projections.direct_url.as_ref().unwrap_or(url))
    }

    /// A JSON Schema (draft 2020-12) of the files, for editors.
    pub fn json_schema() -> serde_json::Value {
        json_schema::schema()
    }

    /// The configuration as people may see it: in the shape of its file, with the included processors
    /// and every default filled in, without secrets.
    pub fn redacted(&self) -> serde_json::Value {
        redacted::redact(self)
    }
}
