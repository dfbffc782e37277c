//! A witness says which event was the last one at or below a position, so that a store that has gone back is recognised.
//!
//! A position alone is a number, which a store reaches again after a failover that lost a tail, after a restore or a
//! truncation. So every tracker keeps a witness of what was read, and whoever reads on asks the same question again: which
//! event is the last one at or below [`Witness::at`]? Another answer means that the store is not the one that was
//! followed, or that events have appeared where all were taken to be handled. One probe of the index answers it.

use sqlx::{PgExecutor, Row as _};
use uuid::Uuid;

use super::layout::Layout;
use crate::event::{Event, Position};
use crate::postgres::literal::simple;
use crate::postgres::quote::quote_literal;

/// In the store that was read, the event `id` was the last one at or below `at`, whatever its type. Where there was no event at
/// all, `id` is 0 and `uuid` is nil: that is as much of a witness as an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Witness {
    /// The position that the question is about.
    pub at: Position,
    /// The id of the event.
    pub id: Position,
    /// The identity of the event, which no other event has.
    pub uuid: Uuid,
}

/// An event of the store, as a witness names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoredEvent {
    pub(crate) id: Position,
    pub(crate) uuid: Uuid,
}

/// What a store says when it is asked for a witness.
#[derive(Debug, Clone)]
pub(crate) struct Examined {
    pub(crate) standing: Standing,
    /// The last event at or below the position that was asked for.
    pub(crate) end: Witness,
    /// The [attachments](attachments) of the table of events, in order; `None`: it has none.
    pub(crate) partitions: Option<Vec<i64>>,
}

/// What a store says of a witness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The event is still the last one at or below the position.
    Stands,
    /// The event is not in the store any more.
    Gone,
    /// Another event has its id.
    Replaced,
    /// There are later events at or below the position, which nobody has handled.
    Overtaken,
}

impl Witness {
    /// An event is the last one at or below its own id.
    pub(crate) fn of(event: &Event) -> Self {
        Self { at: event.id, id: event.id, uuid: event.uuid }
    }

    /// Asks the store whether `witness` stands, and which event is the last one at or below `at`. Without a witness, nothing
    /// contradicts.
    pub(crate) async fn examine(
        witness: Option<Self>,
        at: Position,
        connection: impl PgExecutor<'_>,
        layout: &Layout,
    ) -> Result<Examined, sqlx::Error> {
        let before = witness.map_or(at, |witness| witness.at);
        let (before, end, partitions) = find_last_events(connection, layout, before, at).await?;
        let standing = witness.map_or(Standing::Stands, |witness| witness.compare(before));
        let end = end.map_or(Self::of_nothing(at), |StoredEvent { id, uuid }| Self { at, id, uuid });
        Ok(Examined { standing, end, partitions })
    }

    /// There was no event at or below `at`.
    fn of_nothing(at: Position) -> Self {
        Self { at, id: Position::START, uuid: Uuid::nil() }
    }

    /// The event that the witness names; `None`: there was none.
    pub(crate) fn event(&self) -> Option<StoredEvent> {
        (self.id > Position::START).then_some(StoredEvent { id: self.id, uuid: self.uuid })
    }

    /// What it means that `found` is the last event at or below [`Self::at`].
    pub(crate) fn compare(&self, found: Option<StoredEvent>) -> Standing {
        match found {
            Some(found) if found.id == self.id && found.uuid == self.uuid => Standing::Stands,
            Some(found) if found.id == self.id => Standing::Replaced,
            Some(found) if found.id > self.id => Standing::Overtaken,
            None if self.event().is_none() => Standing::Stands,
            Some(_) | None => Standing::Gone,
        }
    }
}

/// Returns a query for the attachments of a table's partitions, in order, as one array; null where it has none.
///
/// An attachment is a number made of the partition's object id and of the transaction that has attached it: a partition
/// that is taken out and put back has another one, also when both were done in one transaction.
pub(crate) fn attachments(table: &str) -> String {
    format!("select array_agg(a.attachment order by a.attachment) from ({}) as a", attached(table))
}

/// Returns a query for each partition of a table, at every level: `oid`, `name` and `attachment`.
pub(crate) fn attached(table: &str) -> String {
    format!(
        "select i.inhrelid::bigint as oid, i.inhrelid::regclass::text as name,
           (i.inhrelid::bigint << 32) | i.xmin::text::bigint as attachment
         from pg_partition_tree({}::regclass) as p
         join pg_inherits as i on i.inhrelid = p.relid and i.inhparent = p.parentrelid
         where p.level > 0",
        quote_literal(table)
    )
}

/// For each position, the last event at or below it; and the attachments of the table.
async fn find_last_events(
    connection: impl PgExecutor<'_>,
    layout: &Layout,
    first: Position,
    second: Position,
) -> Result<(Option<StoredEvent>, Option<StoredEvent>, Option<Vec<i64>>), sqlx::Error> {
    let statement = format!(
        "-- find_last_events
         select e.id, e.uuid,
           ({}) as partitions
         from (values (1, {first}::bigint), (2, {second})) as p (place, at)
         left join lateral (
           select id, uuid from {} where id <= p.at order by id desc limit 1
         ) as e on true
         order by p.place",
        attachments(layout.events_table()),
        layout.events_table()
    );
    let rows = simple(statement).fetch_all(connection).await?;
    let event = |place: usize| -> Result<Option<StoredEvent>, sqlx::Error> {
        let row = rows.get(place).ok_or(sqlx::Error::RowNotFound)?;
        let (id, uuid): (Option<Position>, Option<Uuid>) = (row.try_get("id")?, row.try_get("uuid")?);
        Ok(id.zip(uuid).map(|(id, uuid)| StoredEvent { id, uuid }))
    };
    let partitions = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get("partitions")?;
    Ok((event(0)?, event(1)?, partitions))
}

/// The witnesses of what was read, in order, for a position that is to be moved over a part of it.
///
/// They belong to the moment at which the events were read, not to the one at which they are committed, because the store
/// may be another one by then.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trail(Vec<Witness>);

impl Trail {
    /// Adds what was read: the `events`, and which event was the last one at or below the end of the reading.
    pub(crate) fn extend(&mut self, events: &[Event], end: Option<Witness>) {
        self.0.extend(events.iter().map(Witness::of));
        let last = self.0.last().map_or(Position::START, |witness| witness.id);
        // If the last event that was read had gone by then, the next reading finds that out by its own witness.
        self.0.extend(end.filter(|end| end.id >= last));
    }

    /// Adds a trail that begins where this one ends.
    pub(crate) fn append(&mut self, behind: Self) {
        self.0.extend(behind.0);
    }

    /// The newest witness of all.
    pub(crate) fn last(&self) -> Option<Witness> {
        self.0.last().copied()
    }

    /// The newest witness of a position at or below `position`.
    pub(crate) fn upto(&self, position: Position) -> Option<Witness> {
        let count = self.0.partition_point(|witness| witness.at <= position);
        count.checked_sub(1).map(|last| self.0[last])
    }

    /// Forgets the witnesses of positions below `position`, except for the newest of them.
    pub(crate) fn forget_below(&mut self, position: Position) {
        let count = self.0.partition_point(|witness| witness.at <= position);
        self.0.drain(..count.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: i64) -> StoredEvent {
        StoredEvent { id: id.into(), uuid: Uuid::from_u128(u128::from(id.unsigned_abs())) }
    }

    fn witness(at: i64, id: i64) -> Witness {
        Witness { at: at.into(), id: id.into(), uuid: event(id).uuid }
    }

    #[test]
    fn a_witness_stands_only_where_the_same_event_is_still_the_last_one() {
        let other = StoredEvent { uuid: Uuid::max(), ..event(7) };
        let cases = [
            (Some(event(7)), Standing::Stands),
            (Some(other), Standing::Replaced),
            (Some(event(6)), Standing::Gone),
            (None, Standing::Gone),
            (Some(event(9)), Standing::Overtaken),
        ];
        for (found, expected) in cases {
            assert_eq!(witness(10, 7).compare(found), expected, "{found:?}");
        }
    }

    #[test]
    fn that_there_was_no_event_is_a_witness() {
        let nothing = Witness::of_nothing(50.into());
        assert_eq!(nothing.compare(None), Standing::Stands);
        assert_eq!(nothing.compare(Some(event(10))), Standing::Overtaken);
    }

    #[test]
    fn a_trail_has_the_newest_witness_of_each_position() {
        let mut trail = Trail(vec![witness(3, 3), witness(5, 5)]);
        trail.extend(&[], Some(witness(9, 6)));
        let found =
            |trail: &Trail, position: i64| trail.upto(position.into()).map(|witness| witness.id.get());
        let all: Vec<_> =
            [2, 3, 4, 5, 8, 9, 20].into_iter().map(|position| found(&trail, position)).collect();
        assert_eq!(all, [None, Some(3), Some(3), Some(5), Some(5), Some(6), Some(6)]);
        trail.forget_below(8.into());
        assert_eq!((found(&trail, 4), found(&trail, 5), trail.last()), (None, Some(5), Some(witness(9, 6))));
    }

    #[test]
    fn an_end_that_lacks_what_was_read_is_no_witness() {
        let mut trail = Trail(vec![witness(5, 5)]);
        trail.extend(&[], Some(witness(9, 4)));
        trail.extend(&[], None);
        assert_eq!(trail.last(), Some(witness(5, 5)));
    }
}
