//! Which life of which server a session leads to. A standby that is promoted begins another one: what the former primary goes on to
//! write afterwards is no part of it.

use sqlx::{PgConnection, Row as _};

/// SQLSTATEs of a function that the role may not call, or that the server does not have.
const NOT_TOLD: [&str; 3] = ["42501", "42883", "0A000"];

/// One life of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Life {
    /// The number that `initdb` gave the server, and that its copies share; `None`: the server does not tell.
    pub(crate) system_identifier: Option<i64>,
    /// The timeline that the server writes, which each promotion raises; `None`: the server does not tell.
    pub(crate) timeline: Option<i64>,
}

impl Life {
    /// Reads the life of a server, which has to be a primary.
    ///
    /// # Errors
    /// The server does not answer.
    pub(crate) async fn read(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let system_identifier = "-- read_system_identifier
             select system_identifier from pg_control_system()";
        // The control file has the new timeline only some time after a promotion.
        let timeline = "-- read_timeline
             select ('x' || lpad(left(pg_walfile_name(pg_current_wal_lsn()), 8), 16, '0'))::bit(64)::bigint";
        Ok(Self {
            system_identifier: read_if_told(connection, system_identifier).await?,
            timeline: read_if_told(connection, timeline).await?,
        })
    }

    /// Whether another life of the same server began after this one.
    pub(crate) fn is_before(&self, other: &Self) -> bool {
        let (one, two) = (self.system_identifier, other.system_identifier);
        let is_same_server = one.is_some() && one == two;
        is_same_server && self.timeline.zip(other.timeline).is_some_and(|(this, other)| this < other)
    }
}

/// The number that a statement returns; `None` where this role or this server may not ask.
async fn read_if_told(
    connection: &mut PgConnection,
    statement: &'static str,
) -> Result<Option<i64>, sqlx::Error> {
    match sqlx::raw_sql(statement).fetch_one(connection).await {
        Ok(row) => row.try_get(0),
        Err(sqlx::Error::Database(error))
            if error.code().is_some_and(|code| NOT_TOLD.contains(&code.as_ref())) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_before_a_later_one_of_the_same_server_only() {
        let life =
            |server: i64, timeline: i64| Life { system_identifier: Some(server), timeline: Some(timeline) };
        assert!(life(7, 1).is_before(&life(7, 2)));
        assert!(!life(7, 2).is_before(&life(7, 2)) && !life(7, 3).is_before(&life(7, 2)));
        assert!(!life(7, 1).is_before(&life(8, 2)), "another server");
        assert!(!life(7, 1).is_before(&Life::default()) && !Life::default().is_before(&life(7, 1)));
        let untold = Life { system_identifier: None, timeline: Some(1) };
        assert!(!untold.is_before(&Life { timeline: Some(2), ..untold }), "it may be another server");
    }
}
