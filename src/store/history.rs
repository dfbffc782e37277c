//! Tells one life of an event store from another: after a failover, a restore or a truncation the same address leads to a
//! store that may lack what was read before.
//!
//! What was concluded in one history means nothing in another: a settled horizon, a position. A [`History`] is read on
//! every new connection, and from time to time, and compared with the one before.

use std::fmt;

use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::event::Position;
use crate::postgres::life::Life;
use crate::store::layout::{LAST_VALUE, Layout, Order};

/// Which store a connection leads to, and how far that store has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct History {
    /// The number that `initdb` gave the server, and that its copies share; `None`: the server does not tell.
    pub(crate) system_identifier: Option<i64>,
    /// The timeline that the server writes, which each promotion raises; `None`: the server does not tell.
    pub(crate) timeline: Option<i64>,
    /// The last id drawn.
    pub(crate) head: Position,
}

/// How a store differs from the one that was followed before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HistoryChange {
    /// It is on another server, which is no copy of the one before.
    OtherServer {
        /// The system identifier of the server before.
        before: i64,
        /// The one of the server now.
        now: i64,
    },
    /// A copy of the server before was promoted, which may lack its last transactions.
    OtherTimeline {
        /// The timeline before.
        before: i64,
        /// The timeline now.
        now: i64,
    },
    /// Fewer ids are drawn than before: it was restored, truncated, or its sequence set back.
    WentBack {
        /// The last id drawn before.
        before: Position,
        /// The last id drawn now.
        now: Position,
    },
}

impl History {
    /// Reads the history of the store that the connection leads to, which has to be a primary.
    pub(crate) async fn read(connection: &mut PgConnection, layout: &Layout) -> Result<Self, sqlx::Error> {
        let Life { system_identifier, timeline } = Life::read(&mut *connection).await?;
        Ok(Self { system_identifier, timeline, head: read_head(connection, layout).await? })
    }

    /// How this store differs from the one `before`; `None`: it is the same one, no older.
    pub(crate) fn change_since(&self, before: &Self) -> Option<HistoryChange> {
        let differing = |before: Option<i64>, now: Option<i64>| before.zip(now).filter(|(a, b)| a != b);
        if let Some((before, now)) = differing(before.system_identifier, self.system_identifier) {
            return Some(HistoryChange::OtherServer { before, now });
        }
        if let Some((before, now)) = differing(before.timeline, self.timeline) {
            return Some(HistoryChange::OtherTimeline { before, now });
        }
        let (before, now) = (before.head, self.head);
        (now < before).then_some(HistoryChange::WentBack { before, now })
    }
}

impl fmt::Display for HistoryChange {
    /// Writes what happened, as the middle of a sentence about the store.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherServer { before, now } => {
                write!(f, "it is on another server now (system identifier {now}, before {before})")
            }
            Self::OtherTimeline { before, now } => {
                write!(f, "a copy of its server was promoted (timeline {now}, before {before})")
            }
            Self::WentBack { before, now } => {
                write!(f, "it has gone back (last id drawn {now}, before {before})")
            }
        }
    }
}

async fn read_head(connection: &mut PgConnection, layout: &Layout) -> Result<Position, sqlx::Error> {
    let Order::DrawnInTransaction { sequence, .. } = &layout.order;
    let statement = format!("-- read_head\nselect {LAST_VALUE} as head from {sequence}");
    sqlx::raw_sql(AssertSqlSafe(statement)).fetch_one(connection).await?.try_get("head")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: History =
        History { system_identifier: Some(71), timeline: Some(1), head: Position::new(20) };

    #[test]
    fn a_store_that_only_grows_is_the_same_one() {
        assert_eq!(BEFORE.change_since(&BEFORE), None);
        assert_eq!(History { head: 90.into(), ..BEFORE }.change_since(&BEFORE), None);
    }

    #[test]
    fn another_server_a_promotion_and_fewer_ids_are_told_apart() {
        let change = |now: History| now.change_since(&BEFORE).unwrap();
        let elsewhere = History { system_identifier: Some(72), timeline: Some(3), head: 5.into() };
        assert_eq!(change(elsewhere), HistoryChange::OtherServer { before: 71, now: 72 });
        let promoted = History { timeline: Some(2), head: 90.into(), ..BEFORE };
        assert_eq!(change(promoted), HistoryChange::OtherTimeline { before: 1, now: 2 });
        let restored = History { head: 19.into(), ..BEFORE };
        assert_eq!(change(restored).to_string(), "it has gone back (last id drawn 19, before 20)");
    }

    #[test]
    fn what_the_server_does_not_tell_is_not_compared() {
        let silent = History { system_identifier: None, timeline: None, ..BEFORE };
        assert_eq!(silent.change_since(&BEFORE), None);
        assert_eq!(BEFORE.change_since(&silent), None);
    }
}
