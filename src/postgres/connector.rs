//! Connects to a database: finds the host that is what is needed (`latest`), and whether a pooler is in between.
//!
//! Every session that espd opens is asked for with `row_security = off`, so that rows which a policy hides are an error.
//! Poolers refuse that parameter, or ignore it, which is how they are recognised.

mod latest;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, PgPool, Row as _};
use tokio::task::JoinHandle;

use super::connect_error::{explain, join};
use super::deadline;
use latest::Good;
pub(crate) use latest::SeenHost;

/// How long a primary is looked for at a time, and how long a look at the one that was found may take.
const SEARCH_TIME: Duration = Duration::from_secs(10);

/// The pause between two searches.
const SEARCH_INTERVAL: Duration = Duration::from_millis(500);

/// How often the primary that was found is looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Which of several hosts is good enough: the parameter `target_session_attrs` of libpq.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum NeededHost {
    /// Whatever answers. Of several hosts, one that is no standby.
    #[default]
    Any,
    /// One that is no standby.
    Primary,
    /// One whose transactions may write.
    Writable,
}

/// How to reach one database: over one host, or over that of several which is its primary.
///
/// Clones share what is known of the hosts.
#[derive(Debug, Clone)]
pub struct Connector {
    hosts: Arc<Hosts>,
    present: Arc<Present>,
    asked: Asked,
}

/// What sessions are asked for, beside what all are.
#[derive(Debug, Clone, Default)]
struct Asked {
    application_name: Option<String>,
    /// Whether the isolation of transactions is that of the role. Otherwise each statement sees what others have committed before it:
    /// what a lock was waited for is read behind it, and nothing is refused that nobody tries again.
    keeps_isolation: bool,
}

/// What is known of the hosts at present.
#[derive(Debug, Default)]
pub(super) struct Present {
    /// The host that was good last.
    good: Mutex<Option<Good>>,
    /// Pools that follow when another host becomes the primary.
    pools: Mutex<Vec<(PgPool, Asked)>>,
    /// Looks for the primary as long as there are such pools, where nobody else may do so.
    search: Mutex<Option<JoinHandle<()>>>,
}

/// What a [`Connector`] is made of.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    /// One for each host, in the order in which they are named.
    pub(crate) options: Vec<PgConnectOptions>,
    pub(crate) needed: NeededHost,
    /// How long each host may take.
    pub(crate) timeout: Option<Duration>,
    /// Whether the URL has parameters for the session, which must not be left out for a pooler that refuses them.
    pub(crate) has_session_options: bool,
    /// Files that have to be there, by the key that names them.
    pub(crate) files: Vec<(&'static str, PathBuf)>,
}

/// A new session, and what is known about it.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) connection: PgConnection,
    /// The pooler in between, if there is one: what a session is asked for when it starts has no effect then.
    pub(crate) pooler: Option<&'static str>,
    /// With what it was connected.
    pub(crate) options: PgConnectOptions,
}

impl Present {
    fn good(&self) -> Option<Good> {
        *self.good.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<PgConnectOptions> for Connector {
    fn from(options: PgConnectOptions) -> Self {
        Self::new(Hosts { options: vec![options], ..Hosts::default() })
    }
}

impl Connector {
    pub(crate) fn new(hosts: Hosts) -> Self {
        Self::of(Arc::new(hosts))
    }

    fn of(hosts: Arc<Hosts>) -> Self {
        Self { hosts, present: Arc::default(), asked: Asked::default() }
    }

    /// The same database, for sessions with this `application_name`.
    #[must_use]
    pub(crate) fn named(&self, application_name: &str) -> Self {
        let asked = Asked { application_name: Some(application_name.to_owned()), ..self.asked.clone() };
        Self { asked, ..self.clone() }
    }

    /// The same database, for sessions of an application, whose own transactions are as isolated as its role has them by default.
    #[must_use]
    pub(crate) fn keeping_isolation(self) -> Self {
        let asked = Asked { keeps_isolation: true, ..self.asked };
        Self { asked, ..self }
    }

    /// The same database, with what others know of its hosts.
    #[must_use]
    pub(super) fn knowing(self, present: &Arc<Present>) -> Self {
        Self { present: Arc::clone(present), ..self }
    }

    /// Opens a session on the host that was good last. If it is not any more, or nothing is known yet, on the primary of the latest life
    /// among all hosts.
    ///
    /// # Errors
    /// Why no host is good enough: the error of the only host, or one that names each.
    pub(crate) async fn connect(&self) -> Result<Connected, sqlx::Error> {
        self.require_files()?;
        if !self.has_several_hosts() {
            // On the heap: everything that connects somewhere would have room for it on its stack.
            return Box::pin(self.try_host(0)).await;
        }
        let (good, mut errors) = (self.present.good(), Vec::new());
        if let Some(Good { host, .. }) = good {
            match Box::pin(self.try_host(host)).await {
                Ok(connected) => return Ok(connected),
                Err(error) => errors.push((host, error)),
            }
        }
        let others = (0..self.hosts.options.len()).filter(|host| good.is_none_or(|good| good.host != *host));
        match Box::pin(self.find_latest(others, good.map(|good| good.life))).await {
            Ok((good, connected)) => {
                self.prefer(good);
                Ok(connected)
            }
            Err(of_others) => {
                errors.extend(of_others);
                errors.sort_by_key(|(host, _)| *host);
                let named = |(host, error): (usize, _)| (&self.hosts.options[host], error);
                Err(join(errors.into_iter().map(named).collect()))
            }
        }
    }

    async fn try_host(&self, index: usize) -> Result<Connected, sqlx::Error> {
        let connecting = async {
            let mut connected = self.open(index).await?;
            self.examine(&mut connected).await?;
            Ok(connected)
        };
        let connected = match self.hosts.timeout {
            Some(limit) => deadline::in_time(limit, connecting).await,
            None => connecting.await,
        };
        connected.map_err(|error| explain(error, &self.hosts.options[index]))
    }

    /// Opens a session as we want it, or as a pooler allows it.
    async fn open(&self, index: usize) -> Result<Connected, sqlx::Error> {
        let options = self.options(index);
        match options.connect().await {
            Ok(connection) => Ok(Connected { connection, pooler: None, options }),
            Err(error) if refuses_parameters(&error) && !self.hosts.has_session_options => {
                let options = self.plain_options(index).extra_float_digits(None);
                let pooler = Some(name_pooler(&error));
                Ok(Connected { connection: options.connect().await?, pooler, options })
            }
            Err(error) => Err(error),
        }
    }

    /// Finds out what the session is, and whether that is what is needed.
    async fn examine(&self, connected: &mut Connected) -> Result<(), sqlx::Error> {
        let statement = "-- examine_session
            select current_setting('row_security') = 'off' as sees_all_rows,
                   pg_is_in_recovery() as is_standby, current_setting('transaction_read_only') = 'on' as is_read_only";
        let row = sqlx::raw_sql(statement).fetch_one(&mut connected.connection).await?;
        if !row.try_get::<bool, _>("sees_all_rows")? {
            connected.pooler.get_or_insert("a pooler");
        }
        let (is_standby, is_read_only) = (row.try_get("is_standby")?, row.try_get("is_read_only")?);
        match self.needed() {
            NeededHost::Any => Ok(()),
            _ if is_standby => Err(not_needed("it is a standby")),
            NeededHost::Writable if is_read_only => Err(not_needed("its transactions are read-only")),
            NeededHost::Primary | NeededHost::Writable => Ok(()),
        }
    }

    /// espd needs the primary. Of several hosts it never takes another.
    fn needed(&self) -> NeededHost {
        match self.hosts.needed {
            NeededHost::Any if self.has_several_hosts() => NeededHost::Primary,
            needed => needed,
        }
    }

    /// What each host is connected with, without what espd adds.
    #[cfg(test)]
    pub(crate) fn options_of_hosts(&self) -> &[PgConnectOptions] {
        &self.hosts.options
    }

    /// Whether there is more than one host.
    pub(crate) fn has_several_hosts(&self) -> bool {
        self.hosts.options.len() > 1
    }

    /// As [`Self::prepared_pool`] without a statement, where perhaps nobody connects by [`Self::connect`]: as long as the pool is not closed, a session of its own finds
    /// out which host is the primary. With one host there is none.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub(crate) fn searching_pool(&self, settings: PgPoolOptions) -> PgPool {
        self.prepared_searching_pool(settings, "")
    }

    /// As [`Self::searching_pool`], of sessions that each begin with a statement.
    ///
    /// # Panics
    /// As it.
    pub(crate) fn prepared_searching_pool(&self, settings: PgPoolOptions, statement: &'static str) -> PgPool {
        let pool = self.prepared_pool(settings, statement);
        let mut search = self.present.search.lock().unwrap_or_else(PoisonError::into_inner);
        if self.has_several_hosts() && search.as_ref().is_none_or(JoinHandle::is_finished) {
            *search = Some(tokio::spawn(self.named("espd: primary").search()));
        }
        pool
    }

    /// Looks for the primary whenever there is another, until all pools are closed.
    async fn search(self) {
        while self.has_pools() {
            if let Ok(connected) = deadline::in_time(SEARCH_TIME, self.connect()).await {
                self.watch(connected.connection).await;
            }
            tokio::time::sleep(SEARCH_INTERVAL).await;
        }
    }

    /// Returns when this session no longer leads to the primary.
    async fn watch(&self, mut connection: PgConnection) {
        while self.has_pools() {
            tokio::time::sleep(WATCH_INTERVAL).await;
            if deadline::in_time(SEARCH_TIME, refuse_standby(&mut connection)).await.is_err() {
                return;
            }
        }
    }

    fn has_pools(&self) -> bool {
        let mut pools = self.present.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|(pool, _)| !pool.is_closed());
        !pools.is_empty()
    }

    /// What a session with the host is asked for that was good last.
    fn present_options(&self) -> PgConnectOptions {
        self.options(self.present.good().map_or(0, |good| good.host))
    }

    /// A pool of sessions with the present primary that each begin with a statement; an empty one is none. It follows when
    /// [`Self::connect`], on any clone, finds another.
    pub(crate) fn prepared_pool(&self, settings: PgPoolOptions, statement: &'static str) -> PgPool {
        self.make_pool(settings, self.present_options(), statement)
    }

    /// As [`Self::prepared_pool`], with what a session was connected with.
    pub(crate) fn make_pool(
        &self,
        settings: PgPoolOptions,
        options: PgConnectOptions,
        statement: &'static str,
    ) -> PgPool {
        let has_several_hosts = self.has_several_hosts();
        // What is known of the hosts has the pool, so the pool must not keep it.
        let (hosts, present) = (Arc::clone(&self.hosts), Arc::downgrade(&self.present));
        let settings = settings.after_connect(move |connection, _| {
            let (hosts, present) = (Arc::clone(&hosts), Weak::clone(&present));
            Box::pin(async move {
                if !statement.is_empty() {
                    sqlx::raw_sql(statement).execute(&mut *connection).await?;
                }
                if !has_several_hosts {
                    return Ok(());
                }
                if let Some(present) = present.upgrade() {
                    Self { present, ..Self::of(hosts) }.require_known().await?;
                }
                // A host that has become a standby must not be read.
                refuse_standby(connection).await
            })
        });
        let pool = settings.connect_lazy_with(options);
        if !has_several_hosts {
            return pool;
        }
        let mut pools = self.present.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|(pool, _)| !pool.is_closed());
        pools.push((pool.clone(), self.asked.clone()));
        pool
    }

    /// Refuses a session of a pool that was opened before anybody knew which host is the primary, and finds out.
    async fn require_known(&self) -> Result<(), sqlx::Error> {
        if self.present.good().is_some() {
            return Ok(());
        }
        let found = deadline::in_time(SEARCH_TIME, self.named("espd: primary").connect()).await?;
        found.connection.close().await?;
        Err(not_needed("nobody knew yet which host is the primary"))
    }

    /// Remembers which host is good, and leads the pools there.
    fn prefer(&self, good: Good) {
        let before = self.present.good.lock().unwrap_or_else(PoisonError::into_inner).replace(good);
        // A pool that was made before anybody knew leads to the first.
        if before.map_or(0, |before| before.host) == good.host {
            return;
        }
        for (pool, asked) in &*self.present.pools.lock().unwrap_or_else(PoisonError::into_inner) {
            let connector = Self { asked: asked.clone(), ..self.clone() };
            pool.set_connect_options(connector.options(good.host));
        }
    }

    /// What a session is asked for.
    fn options(&self, index: usize) -> PgConnectOptions {
        let options = self.plain_options(index).options([("row_security", "off")]);
        let isolation =
            (!self.asked.keeps_isolation).then_some(("default_transaction_isolation", "read committed"));
        options.options(isolation)
    }

    fn plain_options(&self, index: usize) -> PgConnectOptions {
        let options = self.hosts.options[index].clone().disable_statement_logging();
        match &self.asked.application_name {
            Some(name) => options.application_name(name),
            None => options,
        }
    }

    /// The driver's error would not say which file is not there.
    fn require_files(&self) -> Result<(), sqlx::Error> {
        for (key, file) in &self.hosts.files {
            if let Err(error) = std::fs::File::open(file) {
                let message = format!(
                    "cannot read {}, which `{key}` names: {error}; give the right path, or leave `{key}` out",
                    file.display()
                );
                return Err(sqlx::Error::Io(io::Error::new(error.kind(), message)));
            }
        }
        Ok(())
    }
}

/// How long [`find_hindrance`] tries.
const HINDRANCE_TIME: Duration = Duration::from_secs(2);

/// What keeps a pool from connecting; `None`: nothing does now. The pool itself tries again until its time is over, and then does not say
/// why it had to.
pub(crate) async fn find_hindrance(pool: &PgPool) -> Option<sqlx::Error> {
    let options = pool.connect_options();
    match deadline::in_time(HINDRANCE_TIME, options.connect()).await {
        Ok(connection) => {
            let _ = deadline::in_time(HINDRANCE_TIME, connection.close()).await;
            None
        }
        Err(error) => Some(explain(error, &options)),
    }
}

async fn refuse_standby(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let statement = "-- find_recovery\nselect pg_is_in_recovery() as is_standby";
    let row = sqlx::raw_sql(statement).fetch_one(connection).await?;
    if row.try_get("is_standby")? { Err(not_needed("it is a standby")) } else { Ok(()) }
}

fn not_needed(what: &str) -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(
        io::ErrorKind::ConnectionRefused,
        format!("it is not used, because {what}"),
    ))
}

/// Who refuses a parameter with these words.
fn name_pooler(error: &sqlx::Error) -> &'static str {
    if error.to_string().contains("startup parameter") { "PgBouncer" } else { "a pooler" }
}

/// Whether a server, or a pooler before it, wants to be asked for less.
fn refuses_parameters(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(answer) = error else { return false };
    let refused = answer.code().is_some_and(|code| matches!(&*code, "08P01" | "0A000"));
    let message = answer.message();
    refused && (message.contains("startup parameter") || message.contains("command-line options"))
}
