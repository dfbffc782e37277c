//! How many connections a configuration needs, in each isolation, and how many a server has left for it.

use sqlx::{PgPool, Row as _};

use crate::config::Config;
use crate::operations::databases::Databases;
use crate::postgres::literal::simple;
use crate::processing::declaration::{Handling, Isolation, ProcessorDeclaration};
use crate::processing::runner::SHARED_SESSIONS;
use crate::store::layout::Layout;

/// The daemon's own: what it writes of its workers, and two of the admin endpoint while that is asked.
const OF_DAEMON: usize = 3;

/// The connections of a daemon, where the events and the projections are. Those that a batch needs for a moment, and those that an
/// author's code opens, are not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Needed {
    /// With the database of the events.
    pub(crate) events: usize,
    /// With the database of the projections. Where that is the same, all of them are.
    pub(crate) projections: usize,
}

impl Needed {
    /// What the configuration needs, with this isolation for every processor; `None`: with the one that each has.
    pub(crate) fn by(config: &Config, layout: &Layout, isolation: Option<&Isolation>) -> Self {
        let mut workers: Vec<(String, Vec<&ProcessorDeclaration>)> = Vec::new();
        for declared in &config.processors {
            let worker = isolation.unwrap_or(&declared.isolation).worker_of(&declared.name);
            match workers.iter_mut().find(|(name, _)| *name == worker) {
                Some((_, members)) => members.push(declared),
                None => workers.push((worker, vec![declared])),
            }
        }
        let is_elsewhere = config.projections.url.is_some();
        let mut needed = Self { events: 0, projections: OF_DAEMON };
        // The scheduler looks for events that are due.
        needed.events += usize::from(layout.append.is_some());
        for (_, members) in &workers {
            needed.events += 1 + if is_elsewhere { members.len() } else { 0 };
            needed.projections += of_runners(members) + usize::from(members.iter().any(|one| emits(one)));
        }
        if is_elsewhere {
            needed
        } else {
            Self { events: 0, projections: needed.events + needed.projections }
        }
    }

    /// For people: `8 connections`, or those with each database.
    fn describe(self) -> String {
        match self.events {
            0 => self.projections.to_string(),
            events => format!("{} ({events} of them with the event store)", events + self.projections),
        }
    }
}

/// What the runners of one worker need.
fn of_runners(members: &[&ProcessorDeclaration]) -> usize {
    if members.len() <= SHARED_SESSIONS {
        return members.len();
    }
    let sharing = members.iter().filter(|one| matches!(one.handling, Handling::Sql(_))).count();
    // One of them renews all leases.
    1 + sharing.min(SHARED_SESSIONS) + members.len() - sharing
}

fn emits(declaration: &ProcessorDeclaration) -> bool {
    declaration.reactor.as_ref().is_some_and(|reactor| !reactor.emits.is_empty())
}

/// How many connections a server has left for a daemon: those that are free, and those that a daemon has already.
async fn count_left(pool: &PgPool) -> Result<usize, sqlx::Error> {
    let statement = "-- count_connections
        select greatest(0, least(
          current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
            - coalesce(current_setting('reserved_connections', true), '0')::int
            - (select count(*) from pg_stat_activity where backend_type = 'client backend'),
          (select nullif(datconnlimit, -1) - (select count(*) from pg_stat_activity where datid = d.oid)
             from pg_database as d where datname = current_database()),
          (select nullif(rolconnlimit, -1) - (select count(*) from pg_stat_activity where usesysid = r.oid)
             from pg_roles as r where rolname = current_user)))
        + (select count(*) from pg_stat_activity
           where datname = current_database() and application_name like 'espd%') as left_over";
    let row = simple(statement.to_owned()).fetch_one(pool).await?;
    Ok(usize::try_from(row.try_get::<i64, _>("left_over")?).unwrap_or_default())
}

/// What the configuration needs in each isolation, in a sentence, and whether the servers have that many left.
pub(crate) async fn explain(config: &Config, databases: &Databases) -> Result<(String, bool), sqlx::Error> {
    let by = |isolation: Option<&Isolation>| Needed::by(config, &databases.layout, isolation);
    let needed = by(None);
    let left = count_left(&databases.projections).await?;
    let mut message = format!(
        "the daemon needs {} connections as configured, {} with isolation = \"process\" and {} with \"task\"; \
         {left} are left for it",
        needed.describe(),
        by(Some(&Isolation::Process)).describe(),
        by(Some(&Isolation::Task)).describe(),
    );
    let mut is_enough = needed.projections <= left;
    if config.projections.url.is_some() {
        let left = count_left(&databases.events).await?;
        message += &format!(", and {left} with the event store");
        is_enough &= needed.events <= left;
    }
    Ok((message, is_enough))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needed(processors: usize, isolation: Option<&Isolation>) -> Needed {
        let mut text = "[event_store]\nurl = 'postgres://localhost/espd'\n".to_owned();
        for number in 0..processors {
            text += &format!(
                "[[projector]]\nname = 'p{number}'\ntables = {{ t{number} = 'id bigint' }}\n\
                 [[projector.on]]\nevents = ['A']\nsql = 'insert into t{number} values (event.id)'\n"
            );
        }
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("espd.toml");
        std::fs::write(&file, text).unwrap();
        Needed::by(&Config::load(&file).unwrap(), &Layout::espd("espd").unwrap(), isolation)
    }

    #[test]
    fn connections_follow_workers_and_not_processors_where_they_share_one() {
        let all = |processors, isolation| needed(processors, Some(&isolation)).projections;
        assert_eq!([1, 4, 100].map(|count| all(count, Isolation::Process)), [6, 12, 204]);
        assert_eq!([1, 4, 5, 100].map(|count| all(count, Isolation::Task)), [6, 9, 10, 10]);
        assert_eq!(needed(4, None), needed(4, Some(&Isolation::Process)));
    }
}
