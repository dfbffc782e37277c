//! Finds out how much of what is settled would outlive a crash of the server.
//!
//! PostgreSQL writes its log to disk when a transaction commits, not when an id is drawn. Ids whose transactions
//! rolled back may therefore be drawn again after a crash, and an event that was appended with
//! `synchronous_commit = off` may be gone. A position that is stored in the same database is safe from that:
//! its own commit writes all of the log before it. A position that is stored on another server is not. It
//! would be ahead of the ids that the crashed server gives out next, and their events would never be handled.
//!
//! So where positions are stored on another server, a settled position counts only once the log has been written up to the
//! place that it had when the position was seen to be settled.

use std::time::{Duration, Instant};

use sqlx::{PgConnection, Row as _};

use crate::event::Position;

/// How long to wait for a commit of any transaction before asking for the log to be written.
const PATIENCE: Duration = Duration::from_millis(100);

/// A place in the server's log, in bytes from its beginning.
type LogPlace = i64;

/// The durable part of one observer's horizon.
#[derive(Debug, Default)]
pub(super) struct Durability {
    durable: Position,
    /// Settled, but not known to be durable yet.
    pending: Option<Pending>,
}

#[derive(Debug)]
struct Pending {
    settled: Position,
    /// Durable once the log is written up to here.
    place: LogPlace,
    asked: Instant,
}

impl Durability {
    /// The position at or below which nothing can change any more, not even by a crash.
    pub(super) fn durable(&self) -> Position {
        self.durable
    }

    /// Looks how much of what is settled has become durable. Costs nothing when all of it is.
    pub(super) async fn observe(
        &mut self,
        connection: &mut PgConnection,
        settled: Position,
    ) -> Result<(), sqlx::Error> {
        if settled <= self.durable {
            return Ok(());
        }
        let statement = "-- read_log_places
             select (pg_current_wal_flush_lsn() - '0/0')::bigint as written,
                    (pg_current_wal_insert_lsn() - '0/0')::bigint as filled";
        let row = sqlx::raw_sql(statement).fetch_one(&mut *connection).await?;
        self.note(settled, row.try_get("written")?, row.try_get("filled")?);
        match &mut self.pending {
            Some(pending) if pending.asked.elapsed() > PATIENCE => {
                pending.asked = Instant::now();
                ask_for_a_write(connection).await
            }
            _ => Ok(()),
        }
    }

    /// Takes that `settled` is settled, that the log was filled up to `filled` after that was seen, and that it
    /// is written up to `written`.
    fn note(&mut self, settled: Position, written: LogPlace, filled: LogPlace) {
        if let Some(pending) = self.pending.take_if(|pending| pending.place <= written) {
            self.durable = pending.settled;
        }
        if filled <= written {
            (self.durable, self.pending) = (settled, None);
        } else if settled > self.durable {
            self.pending.get_or_insert(Pending { settled, place: filled, asked: Instant::now() });
        }
    }
}

/// Makes the server write its log soon, although no transaction commits. A transaction that does nothing but take an id
/// for itself is reason enough for the server's own writer, which looks every 0.2 s.
async fn ask_for_a_write(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let statement = "-- ask_for_a_log_write\nselect pg_current_xact_id()";
    sqlx::raw_sql(statement).execute(connection).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(position: i64) -> Position {
        Position::new(position)
    }

    #[test]
    fn a_settled_position_is_durable_once_the_log_is_written_up_to_where_it_was() {
        let mut durability = Durability::default();
        durability.note(at(7), 100, 130);
        assert_eq!(durability.durable(), 0);
        durability.note(at(9), 129, 150);
        assert_eq!(durability.durable(), 0, "one byte is missing");
        durability.note(at(9), 130, 150);
        assert_eq!(durability.durable(), 7, "what was settled later waits for its own place");
        durability.note(at(9), 150, 170);
        assert_eq!(durability.durable(), 9);
    }

    #[test]
    fn where_all_of_the_log_is_written_everything_settled_is_durable() {
        let mut durability = Durability::default();
        durability.note(at(7), 100, 130);
        durability.note(at(9), 140, 140);
        assert_eq!(durability.durable(), 9);
        assert!(durability.pending.is_none());
    }

    #[test]
    fn a_log_that_grows_all_the_time_does_not_hold_the_position_for_ever() {
        let mut durability = Durability::default();
        for turn in 1..100 {
            durability.note(at(turn), turn * 10, turn * 10 + 5);
        }
        assert!(durability.durable() > at(95));
    }
}
