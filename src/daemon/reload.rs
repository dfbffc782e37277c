//! The daemon's configuration, and reading it again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::{info, warn};

use super::registered::add_registered;
use super::requests::Reloaded;
use super::worker_table_place::WorkerTablePlace;
use crate::config::{Config, DatabaseUrl, InvalidConfig};
use crate::diagnostic::Diagnostic;
use crate::handlers::native::Registry;
use crate::operations::check::{check_changes, describe_no_work, only_schedules};
use crate::postgres::error::chain;
use crate::postgres::query_text::show_literals;
use crate::process::executable::Executable;
use crate::process::exit_code::Exit;
use crate::processing::declaration::{Handling, ProcessorDeclaration};

/// What came of looking at the configuration again, before anything follows it.
pub(super) enum Examined {
    /// It is what the daemon follows already.
    Unchanged,
    /// It can be followed.
    Changed(Box<Config>),
    /// What is wrong with it, in words.
    Refused(Vec<String>),
}

/// What a daemon is configured to do, and the file that says so.
pub(super) struct Configured {
    pub(super) file: PathBuf,
    pub(super) config: Config,
    /// The database of the private PostgreSQL; `None` if the configuration names a database.
    pub(super) private: Option<DatabaseUrl>,
    /// The processors that this program has registered.
    pub(super) registry: Arc<Registry>,
    /// The program that runs, if it is known.
    pub(super) executable: Option<Executable>,
}

impl Configured {
    /// Whether the program, which was replaced by another one, is to be started again: it has handlers, and the configuration
    /// is sound.
    pub(super) async fn can_start_again(&self) -> bool {
        if self.registry.is_empty() {
            info!("the program has changed: the new one runs after a restart");
            return false;
        }
        let is_refused = matches!(self.examine().await, Examined::Refused(_));
        if !is_refused {
            info!("the program has changed, and the handlers in it may have: starting again");
        }
        !is_refused
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    async fn read(&self) -> Result<Config, Vec<String>> {
        match read(self.file.clone()).await {
            Some(Ok(config)) => self.accept(config),
            Some(Err(invalid)) => Err(invalid.diagnostics().iter().map(Diagnostic::render).collect()),
            None => Err(vec![format!("{} cannot be read within {READING_MAX:?}", self.file.display())]),
        }
    }

    /// Reads the configuration again, and asks the databases about what is new in it, as `espd check` does.
    pub(super) async fn examine(&self) -> Examined {
        let examined = self.read_again().await;
        let Examined::Changed(config) = &examined else { return examined };
        let checked = match timeout(CHECK_MAX, check_changes(config, &self.config)).await {
            Ok(Ok(report)) => report.into_result().map_err(|mistakes| mistakes.message),
            Ok(Err(error)) => Err(chain(&*error)),
            Err(_elapsed) => Err(format!("what has changed could not be checked within {CHECK_MAX:?}")),
        };
        match checked {
            Ok(_) => examined,
            Err(mistakes) => Examined::Refused(vec![mistakes]),
        }
    }

    /// Reads the configuration again, without asking a database.
    pub(super) async fn read_again(&self) -> Examined {
        match self.read().await {
            Ok(config) if config == self.config => Examined::Unchanged,
            Ok(config) => Examined::Changed(Box::new(config)),
            Err(faults) => Examined::Refused(faults),
        }
    }

    /// Follows what was found. With any fault in it, the daemon keeps what it has.
    pub(super) fn follow(&mut self, examined: Examined) -> Reloaded {
        match examined {
            Examined::Unchanged => {
                info!("the configuration was read again: nothing has changed");
                Reloaded::Unchanged
            }
            Examined::Changed(config) => Reloaded::Changed(self.replace(*config)),
            Examined::Refused(faults) => {
                for fault in &faults {
                    warn!(fault, "the configuration was read again and is wrong, keeping the old one");
                }
                Reloaded::Refused(faults)
            }
        }
    }

    /// Follows another configuration. Returns what is to be said about it.
    fn replace(&mut self, config: Config) -> Vec<String> {
        let processors = config.processors.len();
        info!(processors, "the configuration was read again and has changed");
        let mut report = vec![format!("processors: {processors}")];
        let edited = find_edited(&config, &self.config).join(", ");
        if !edited.is_empty() {
            info!(processors = edited, "started again, because their programs have changed");
            report.push(format!("started again, because their programs have changed: {edited}"));
        }
        // What is not to be shown any more is not.
        show_literals(config.log.query_literals);
        let mut later = Vec::new();
        if config.log != self.config.log {
            later.push("the daemon's own log is as configured at its next start");
        }
        let listen = |config: &Config| config.admin.as_ref().map(|admin| admin.listen.clone());
        if config.admin.is_none() && self.config.admin.is_some() {
            later.push(
                "the admin endpoint is there until the daemon's next start, with the tokens that it has had last",
            );
        } else if listen(&config) != listen(&self.config) {
            later.push("the admin endpoint listens as configured at the daemon's next start");
        }
        for line in later {
            info!("{line}");
            report.push(line.to_owned());
        }
        self.config = config;
        report
    }

    /// Completes a new configuration with what only this daemon knows.
    ///
    /// # Errors
    /// Why the configuration cannot be used.
    fn accept(&self, mut config: Config) -> Result<Config, Vec<String>> {
        let mut faults = add_registered(&mut config, &self.registry).err().unwrap_or_default();
        // What runs processors does not lose all of them by a mistake.
        if config.processors.is_empty()
            && (!self.config.processors.is_empty() || !self.only_schedules(&config))
        {
            faults.push(describe_no_work(&config));
        }
        if config.event_store.url.is_none() {
            config.event_store.url = self.private.clone();
        }
        if config.event_store.url.is_none() {
            faults.push("a private PostgreSQL is started with the daemon only: restart espd".to_owned());
        }
        if faults.is_empty() { Ok(config) } else { Err(faults) }
    }

    /// Where this daemon writes the states of its workers.
    pub(super) fn worker_table_place(&self) -> anyhow::Result<WorkerTablePlace> {
        WorkerTablePlace::of(&self.config).context("the database is known by now")
    }

    /// Fails if there is nothing to run.
    pub(super) fn require_work(&self) -> Result<(), Exit> {
        if !self.config.processors.is_empty() {
            return Ok(());
        }
        if !self.only_schedules(&self.config) {
            return Err(Exit::configuration(describe_no_work(&self.config)));
        }
        warn!(
            "no processor is declared: the daemon appends the events that are scheduled, and does nothing else"
        );
        Ok(())
    }

    /// Whether a configuration without processors is meant so, which it is not with a private server, or by a program that should have
    /// processors.
    fn only_schedules(&self, config: &Config) -> bool {
        self.private.is_none() && self.registry.is_empty() && only_schedules(config)
    }
}

/// The processors of which nothing has changed but the program.
fn find_edited<'c>(config: &'c Config, former: &Config) -> Vec<&'c str> {
    let is_edited = |processor: &&ProcessorDeclaration| {
        let former = former.processors.iter().find(|former| former.name == processor.name);
        match (&processor.handling, former.map(|former| &former.handling)) {
            (Handling::Program(program), Some(Handling::Program(former))) => program.is_edited_from(former),
            _ => false,
        }
    };
    config.processors.iter().filter(is_edited).map(|processor| processor.name.as_str()).collect()
}

/// Reads the files on a thread of its own, because a file system may hang. `None`: it does.
async fn read(file: PathBuf) -> Option<Result<Config, InvalidConfig>> {
    let (sender, read) = oneshot::channel();
    // A task of the runtime would be waited for when the daemon ends.
    std::thread::spawn(move || drop(sender.send(Config::load(&file))));
    timeout(READING_MAX, read).await.ok()?.ok()
}

/// How long reading the configuration again may take.
const READING_MAX: Duration = Duration::from_secs(10);

/// How long checking what has changed may take: programs are started for it.
const CHECK_MAX: Duration = Duration::from_secs(20);
