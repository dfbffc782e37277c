//! Whether espd can work on its databases at present: they answer, they are no standby, they let it write, and what it writes is committed.

use sqlx::{PgExecutor, PgPool, Row as _};

use super::Databases;
use crate::operations::setting::assign;
use crate::postgres::connector::find_hindrance;
use crate::postgres::literal::simple;
use crate::postgres::sqlstate::{TOO_MANY_CONNECTIONS, describe};

/// Why nothing can be handled with a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unusable {
    /// What is wrong, in a sentence without its end.
    pub(crate) problem: String,
    /// What to do about it.
    pub(crate) remedy: String,
    /// Whether it answers all the same.
    pub(crate) answers: bool,
}

impl Databases {
    /// Fails where nothing can be handled, because one of the databases does not answer, is a standby, or may only be read.
    pub(crate) async fn require_usable(&self) -> Result<(), Unusable> {
        for (pool, is_only_read) in [(&self.events, self.elsewhere), (&self.projections, false)] {
            match examine(pool).await? {
                // What projectors write is elsewhere.
                Some(found) if !found.is_standby && is_only_read => {}
                Some(found) => return Err(found.unusable),
                None => {}
            }
        }
        Ok(())
    }

    /// What keeps the pools from connecting, where they have not said why; `None`: nothing does now.
    pub(crate) async fn find_hindrance(&self) -> Option<Unusable> {
        for pool in [&self.events, &self.projections] {
            if let Some(error) = find_hindrance(pool).await {
                return Some(Unusable::of(&error));
            }
        }
        None
    }
}

/// Why a database that answers cannot be worked on.
#[derive(Debug)]
pub(crate) struct Restriction {
    pub(crate) unusable: Unusable,
    /// Whether it is a copy of another server. Otherwise, its transactions may not write, or are not committed.
    pub(crate) is_standby: bool,
    /// Whether that is so for everybody, and not only for the role or the session that asks.
    pub(crate) concerns_all: bool,
}

/// What keeps espd from working on a database; `None`: nothing.
///
/// # Errors
/// It does not answer.
pub(crate) async fn examine(pool: &PgPool) -> Result<Option<Restriction>, Unusable> {
    match look(pool).await {
        Ok(restriction) => Ok(restriction),
        Err(error) => Err(explain_unreachable(pool, error).await),
    }
}

async fn look(pool: &PgPool) -> Result<Option<Restriction>, sqlx::Error> {
    // The pool tests an idle connection before it hands it out.
    let mut connection = pool.acquire().await?;
    let found = find_restriction(&mut *connection).await?;
    if found.is_some() {
        // What a session begins with, it keeps.
        connection.close().await?;
    }
    Ok(found)
}

/// As [`examine`], by a session that is there.
pub(crate) async fn find_restriction(
    connection: impl PgExecutor<'_>,
) -> Result<Option<Restriction>, sqlx::Error> {
    let statement = "
        -- find_restriction
        select pg_is_in_recovery() as is_standby, current_setting('transaction_read_only') = 'on' as is_read_only,
               s.source, quote_ident(current_database()) as database, quote_ident(session_user) as login,
               -- As far as this role may see: at least its own sessions.
               (select format('%s sessions, among them process %s, for up to %s s', count(*), min(pid),
                              round(extract(epoch from max(clock_timestamp() - query_start))))
                from pg_stat_activity
                where wait_event = 'SyncRep' and query_start < clock_timestamp() - interval '5s' having count(*) > 0) as waits,
               exists (select from pg_stat_activity
                       where application_name like 'espd: %' and usename = session_user and pid <> pg_backend_pid()) as is_espds
        from pg_settings as s where s.name = 'default_transaction_read_only'";
    let row = simple(statement.to_owned()).fetch_one(connection).await?;
    if row.try_get("is_standby")? {
        let remedy = "connect to the primary, or run `select pg_promote()` if this is to be it; espd then goes on by itself";
        let problem = "the server is a standby, on which nothing can be handled".to_owned();
        let unusable = Unusable { problem, remedy: remedy.to_owned(), answers: true };
        return Ok(Some(Restriction { unusable, is_standby: true, concerns_all: true }));
    }
    if let Some(waits) = row.try_get::<Option<String>, _>("waits")? {
        return Ok(Some(of_standby_that_is_away(&waits)));
    }
    if !row.try_get::<bool, _>("is_read_only")? {
        return Ok(None);
    }
    let (source, database, login): (String, String, String) =
        (row.try_get("source")?, row.try_get("database")?, row.try_get("login")?);
    let assignment = assign(&source, &database, &login, "default_transaction_read_only = off");
    let unusable = Unusable {
        problem: format!(
            "transactions of {login} in database {database} may only read, because default_transaction_read_only is on"
        ),
        remedy: format!("{}, which counts for new sessions", assignment.trim_end_matches(';')),
        answers: true,
    };
    let is_of_all = matches!(source.as_str(), "database" | "configuration file" | "command line" | "default");
    // A daemon that works with the role is there as well.
    let concerns_all =
        is_of_all || matches!(source.as_str(), "user" | "database user") && row.try_get("is_espds")?;
    Ok(Some(Restriction { unusable, is_standby: false, concerns_all }))
}

/// Commits wait for a synchronous standby that does not answer; `waits`: which, and for how long.
fn of_standby_that_is_away(waits: &str) -> Restriction {
    let unusable = Unusable {
        problem: format!("commits wait for a synchronous standby that does not answer: {waits}"),
        remedy: "start the standby again, or take it out of synchronous_standby_names (`alter system set …`, then `select \
             pg_reload_conf()`). To end the sessions would commit what they have, without the standby"
            .to_owned(),
        answers: true,
    };
    Restriction { unusable, is_standby: false, concerns_all: true }
}

/// Why a database does not answer. A pool tries to connect until its time is over, and then only says that.
async fn explain_unreachable(pool: &PgPool, error: sqlx::Error) -> Unusable {
    let timed_out = matches!(error, sqlx::Error::PoolTimedOut);
    let hindrance = if timed_out { find_hindrance(pool).await } else { Some(error) };
    hindrance.as_ref().map_or_else(
        || Unusable {
            problem: "no connection within the time limit".to_owned(),
            remedy: "try again: the server answers, and other requests have used the connections".to_owned(),
            answers: false,
        },
        Unusable::of,
    )
}

impl Unusable {
    /// What an error of connecting, or of the session, means.
    fn of(error: &sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|answer| answer.code());
        let remedy = match code.as_deref() {
            Some(TOO_MANY_CONNECTIONS) => {
                "end sessions that nobody needs, or raise max_connections or the limit of the role or database (`alter role … \
             connection limit`); `espctl doctor` says how many espd needs"
            }
            _ => "check that the server runs and accepts the configured user",
        };
        Self { problem: describe(error), remedy: remedy.to_owned(), answers: false }
    }
}
