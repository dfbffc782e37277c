//! Every URL of the configuration is a way to a database. They are tried with what is done through them, and compared:
//! `url` and `direct_url` have to be two ways to the same one.

use std::time::Duration;

use anyhow::bail;
use sqlx::{Connection as _, PgConnection, PgPool, Row as _};
use tokio::sync::Mutex;

use super::Databases;
use crate::config::{Config, DatabaseUrl};
use crate::postgres::connect_error::explanation;
use crate::postgres::connector::{Connected, Connector};
use crate::postgres::deadline::in_time;
use crate::postgres::server_mark::{self, ServerMark, is_elsewhere};
use crate::postgres::sqlstate::describe;

/// One way to a database, and what was found on it.
#[derive(Debug)]
pub(crate) struct Way {
    /// The section of the configuration.
    section: &'static str,
    /// The key of the section.
    key: &'static str,
    /// What is wrong with it; `None`: nothing.
    pub(crate) fault: Option<WayFault>,
    /// The pooler that it leads through, and whether that gives each transaction another session.
    pooler: Option<(&'static str, bool)>,
}

/// Why a way cannot be gone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WayFault {
    /// What is done through it does not work.
    #[error("{0}")]
    Unusable(String),
    /// It leads to another database than the direct one.
    #[error(
        "`url` and `direct_url` lead to different databases: the session of `url` is in another database than that of \
         `direct_url`. Nothing is handled before one of the URLs, or the pooler, is corrected"
    )]
    Elsewhere,
    /// It should be direct.
    #[error(
        "it leads through {0} in transaction mode, where no session lasts: write `url` through the pooler, and \
         `direct_url` past it to the same database"
    )]
    Pooled(&'static str),
}

impl Way {
    /// What was found, in a sentence without its end.
    pub(crate) fn describe(&self) -> String {
        let Self { section, key, .. } = self;
        match (&self.fault, self.pooler) {
            (Some(fault), _) => format!("{section} `{key}`: {fault}"),
            (None, Some((pooler, true))) => {
                format!("{section} `{key}` leads through {pooler} in transaction mode")
            }
            (None, Some((pooler, false))) => {
                format!("{section} `{key}` leads through {pooler} in session mode")
            }
            (None, None) => format!("{section} `{key}` leads to the server"),
        }
    }
}

/// Tries every URL of the configuration. Each step may take as long as `limit`.
pub(crate) async fn examine(config: &Config, program: &str, limit: Duration) -> Vec<Way> {
    let Config { event_store, projections, .. } = config;
    let mut ways = Vec::new();
    for (section, url, direct_url) in [
        ("[event_store]", &event_store.url, &event_store.direct_url),
        ("[projections]", &projections.url, &projections.direct_url),
    ] {
        let Some(url) = url else { continue };
        if section == "[projections]" && config.direct_projections_url().is_none() {
            continue;
        }
        let pair = Pair { section, program, limit };
        ways.extend(pair.examine(url, direct_url.as_ref()).await);
    }
    ways
}

/// Fails if any way cannot be gone.
pub(crate) async fn require(config: &Config, program: &str, limit: Duration) -> anyhow::Result<()> {
    let ways = examine(config, program, limit).await;
    let faults: Vec<String> = ways.iter().filter(|way| way.fault.is_some()).map(Way::describe).collect();
    if faults.is_empty() { Ok(()) } else { bail!("{}", faults.join("; ")) }
}

/// Fails if two ways lead to different databases. That one cannot be gone is no reason: the tools go the direct ones.
pub(super) async fn require_same(config: &Config, program: &str, limit: Duration) -> anyhow::Result<()> {
    let has_two = config.event_store.direct_url.is_some() || config.projections.direct_url.is_some();
    if !has_two {
        return Ok(());
    }
    let ways = examine(config, program, limit).await;
    match ways.iter().find(|way| way.fault == Some(WayFault::Elsewhere)) {
        Some(way) => bail!("{}", way.describe()),
        None => Ok(()),
    }
}

/// Fails if a way that sessions have to last on, which a key of a section names, leads through a pooler that mixes them: statements
/// fail there sooner or later, with errors of the driver that say nothing of poolers.
pub(super) async fn refuse_pooled(
    (section, key): (&'static str, &'static str),
    connected: &mut Connected,
    connector: &Connector,
) -> anyhow::Result<()> {
    let Some(pooler) = connected.pooler else { return Ok(()) };
    let pair = Pair { section, program: "", limit: MIXING_TIME };
    // Who gets no second session, or not in time, has the first one for himself.
    if !pair.mixes_sessions(connected, connector).await.unwrap_or(false) {
        return Ok(());
    }
    let way = Way { section, key, fault: Some(WayFault::Pooled(pooler)), pooler: None };
    bail!("{}", way.describe())
}

/// The ways that batches go, where there are others for what sessions have to last on: through poolers. Each is tried through one
/// connection, again and again.
#[derive(Debug, Default)]
pub(crate) struct Through(Vec<(&'static str, DatabaseUrl, Connector, Mutex<Option<PgConnection>>)>);

impl Through {
    /// The ways of the configuration, for sessions with this `application_name`.
    pub(crate) fn of(config: &Config, program: &str) -> anyhow::Result<Self> {
        let Config { event_store, projections, .. } = config;
        let mut ways = Vec::new();
        for (section, url, direct_url) in [
            ("[event_store]", &event_store.url, &event_store.direct_url),
            ("[projections]", &projections.url, &projections.direct_url),
        ] {
            if let (Some(url), Some(_)) = (url, direct_url) {
                ways.push((section, url.clone(), url.connector()?.named(program), Mutex::default()));
            }
        }
        Ok(Self(ways))
    }

    /// Fails where one of them cannot be gone, or leads to another database than the direct one.
    pub(crate) async fn require(&self, databases: &Databases, limit: Duration) -> Result<(), String> {
        for (section, url, connector, connection) in &self.0 {
            let direct = if *section == "[projections]" { &databases.projections } else { &databases.events };
            let mut known = connection.lock().await;
            let answered = in_time(limit, answer_through(connector, known.take(), direct)).await;
            let connection = answered.map_err(|error| {
                let fault = if is_elsewhere(&error) { WayFault::Elsewhere } else { unusable(url, &error) };
                format!("{section} `url`: {fault}")
            })?;
            *known = Some(connection);
        }
        Ok(())
    }
}

/// Has the server answer through this connection, or through a new one, and compares it with the one that `direct` leads to.
async fn answer_through(
    connector: &Connector,
    known: Option<PgConnection>,
    direct: &PgPool,
) -> Result<PgConnection, sqlx::Error> {
    let mut direct = direct.acquire().await?;
    let mark = ServerMark::set(&mut direct).await?;
    let answered = answer_marked(connector, known, mark).await;
    mark.remove(&mut direct).await?;
    answered
}

async fn answer_marked(
    connector: &Connector,
    known: Option<PgConnection>,
    mark: ServerMark,
) -> Result<PgConnection, sqlx::Error> {
    if let Some(mut connection) = known {
        match compare(&mut connection, Some(mark)).await {
            Ok(()) => return Ok(connection),
            Err(error) if is_elsewhere(&error) => return Err(error),
            // It has ended meanwhile.
            Err(_) => {}
        }
    }
    let mut connection = connector.connect().await?.connection;
    compare(&mut connection, Some(mark)).await?;
    Ok(connection)
}

/// How long a second session may take, to see whether a pooler mixes it with the first one.
const MIXING_TIME: Duration = Duration::from_secs(3);

/// The ways of one section.
struct Pair<'p> {
    section: &'static str,
    program: &'p str,
    limit: Duration,
}

impl Pair<'_> {
    async fn examine(&self, url: &DatabaseUrl, direct_url: Option<&DatabaseUrl>) -> Vec<Way> {
        let Some(direct_url) = direct_url else {
            return vec![self.try_direct("url", url).await.0];
        };
        let (direct, mut session) = self.try_direct("direct_url", direct_url).await;
        let mark = match session.as_mut().filter(|_| direct.fault.is_none()) {
            Some(session) => self.in_time(ServerMark::set(&mut session.connection)).await.ok(),
            None => None,
        };
        let through = self.try_through(url, mark).await;
        if let Some(session) = session {
            let _ = self.in_time(session.connection.close()).await;
        }
        vec![through, direct]
    }

    /// Tries a way that sessions have to last on.
    async fn try_direct(&self, key: &'static str, url: &DatabaseUrl) -> (Way, Option<Connected>) {
        let opened = self.open(url).await;
        let mut way = Way { section: self.section, key, fault: None, pooler: None };
        let mut connected = match opened {
            Ok((connected, _)) if connected.pooler.is_none() => return (way, Some(connected)),
            Ok((connected, connector)) => (connected, connector),
            Err(fault) => return (Way { fault: Some(fault), ..way }, None),
        };
        match self.mixes_sessions(&mut connected.0, &connected.1).await {
            Ok(mixes) => {
                way.pooler = connected.0.pooler.map(|pooler| (pooler, mixes));
                way.fault = connected.0.pooler.filter(|_| mixes).map(WayFault::Pooled);
            }
            Err(error) => way.fault = Some(unusable(url, &error)),
        }
        (way, Some(connected.0))
    }

    /// Tries a way that transactions are enough for, and compares where it leads to.
    async fn try_through(&self, url: &DatabaseUrl, mark: Option<ServerMark>) -> Way {
        let way = Way { section: self.section, key: "url", fault: None, pooler: None };
        let (mut connected, connector) = match self.open(url).await {
            Ok(opened) => opened,
            Err(fault) => return Way { fault: Some(fault), ..way },
        };
        if let Err(error) = self.in_time(compare(&mut connected.connection, mark)).await {
            let fault = if is_elsewhere(&error) { WayFault::Elsewhere } else { unusable(url, &error) };
            return Way { fault: Some(fault), ..way };
        }
        match connected.pooler {
            None => way,
            Some(pooler) => {
                let mixes = self.mixes_sessions(&mut connected, &connector).await.unwrap_or(true);
                Way { pooler: Some((pooler, mixes)), ..way }
            }
        }
    }

    async fn open(&self, url: &DatabaseUrl) -> Result<(Connected, Connector), WayFault> {
        let connector = url.connector().map_err(|error| WayFault::Unusable(error.to_string()))?;
        let connector = connector.named(self.program);
        let connected = self.in_time(connector.connect()).await.map_err(|error| unusable(url, &error))?;
        Ok((connected, connector))
    }

    /// Whether one connection gets two sessions, if another connection takes a session in between.
    async fn mixes_sessions(&self, ours: &mut Connected, connector: &Connector) -> Result<bool, sqlx::Error> {
        let before = self.in_time(read_pid(&mut ours.connection)).await?;
        let mut other = self.in_time(connector.connect()).await?.connection;
        // A pooler gives the session that has just become free to the next transaction.
        let mut transaction = self.in_time(other.begin()).await?;
        let others = self.in_time(read_pid(&mut transaction)).await?;
        if before == others {
            return Ok(true);
        }
        let after = self.in_time(read_pid(&mut ours.connection)).await?;
        Ok(before != after)
    }

    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        in_time(self.limit, answer).await
    }
}

/// Opens a transaction, as batches do, and looks whether it is on the server of the mark.
async fn compare(connection: &mut PgConnection, mark: Option<ServerMark>) -> Result<(), sqlx::Error> {
    let transaction = connection.begin_with(server_mark::begin(mark)).await?;
    transaction.rollback().await
}

async fn read_pid(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    sqlx::raw_sql("-- read_pid\nselect pg_backend_pid() as pid").fetch_one(connection).await?.try_get("pid")
}

fn unusable(url: &DatabaseUrl, error: &sqlx::Error) -> WayFault {
    let said = explanation(error, "the server").unwrap_or_else(|| describe(error));
    WayFault::Unusable(format!("{url} cannot be used: {said}"))
}
