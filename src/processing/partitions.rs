//! Compares the partitions of the table of events with those that a tracker has recorded.
//!
//! Events vanish with a partition that is detached, and appear with one that is attached, also behind a position. One that is
//! detached and attached again may have other events than before, so it counts as attached.

use std::collections::BTreeMap;

use sqlx::{PgConnection, Row as _};

use crate::event::Position;
use crate::postgres::literal::simple;
use crate::store::layout::Layout;
use crate::store::witness::attached;

/// What a tracker records: the last event of each partition when that was recorded last, by its [attachment](attached). An
/// espd of before has recorded the partition's object id alone.
pub(crate) type RecordedPartitions = BTreeMap<i64, Option<Position>>;

/// What is below this number is the object id of a partition, without the transaction that has attached it.
const ATTACHMENT_MIN: i64 = 1 << 32;

/// The object id of the partition that was attached by `attachment`.
fn oid_of(attachment: i64) -> i64 {
    if (0..ATTACHMENT_MIN).contains(&attachment) {
        attachment
    } else {
        (attachment >> 32) & (ATTACHMENT_MIN - 1)
    }
}

/// A partition, or a table that was one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    oid: i64,
    name: String,
    /// See [`attached`]; `None`: it is no partition now.
    attachment: Option<i64>,
    /// Whether it has an event beyond the position.
    has_beyond: bool,
    first: Option<Position>,
    last: Option<Position>,
}

/// A change of partitions that concerns a processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PartitionChange {
    /// A partition was detached or dropped that had events beyond the position.
    Gone { name: String },
    /// A partition was attached that has events at or below the position.
    Added { name: String, first: Position },
}

/// Reads the partitions of the table of events; none if it has none.
pub(crate) async fn list(
    events: &mut PgConnection,
    layout: &Layout,
    position: Position,
) -> Result<Vec<Partition>, sqlx::Error> {
    let statement = format!("-- list_event_partitions\n{}", attached(layout.events_table()));
    read(events, statement, position).await
}

/// Reads those of the tables that still exist, although they are no partitions any more.
async fn list_detached(
    events: &mut PgConnection,
    oids: &[i64],
    position: Position,
) -> Result<Vec<Partition>, sqlx::Error> {
    let oids = oids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let statement = format!(
        "-- list_detached_partitions
         select oid::bigint as oid, oid::regclass::text as name, null::bigint as attachment
         from pg_class where oid = any ('{{{oids}}}'::oid[])"
    );
    read(events, statement, position).await
}

async fn read(
    events: &mut PgConnection,
    statement: String,
    position: Position,
) -> Result<Vec<Partition>, sqlx::Error> {
    let rows = simple(statement).fetch_all(&mut *events).await?;
    let mut partitions = Vec::new();
    for row in rows {
        let (oid, name): (i64, String) = (row.try_get("oid")?, row.try_get("name")?);
        let attachment = row.try_get("attachment")?;
        let bounds = format!(
            "-- read_partition_bounds
             select min(id) as first, max(id) as last, coalesce(max(id) > {position}, false) as has_beyond
             from {name}"
        );
        let row = simple(bounds).fetch_one(&mut *events).await?;
        let (first, last) = (row.try_get("first")?, row.try_get("last")?);
        partitions.push(Partition {
            oid,
            name,
            attachment,
            first,
            last,
            has_beyond: row.try_get("has_beyond")?,
        });
    }
    Ok(partitions)
}

/// What a tracker is to record of these partitions.
pub(crate) fn to_record(partitions: &[Partition]) -> RecordedPartitions {
    partitions.iter().filter_map(|partition| Some((partition.attachment?, partition.last))).collect()
}

/// Finds a change that concerns a processor at this position.
pub(crate) async fn find_change(
    events: &mut PgConnection,
    recorded: &RecordedPartitions,
    present: &[Partition],
    position: Position,
) -> Result<Option<PartitionChange>, sqlx::Error> {
    let is_present = |oid: &i64| present.iter().any(|partition| partition.oid == *oid);
    let gone: Vec<i64> = recorded.keys().map(|key| oid_of(*key)).filter(|oid| !is_present(oid)).collect();
    let detached = if gone.is_empty() { vec![] } else { list_detached(events, &gone, position).await? };
    Ok(compare(recorded, present, &detached, position))
}

fn compare(
    recorded: &RecordedPartitions,
    present: &[Partition],
    detached: &[Partition],
    position: Position,
) -> Option<PartitionChange> {
    let known = |oid: i64| present.iter().chain(detached).any(|partition| partition.oid == oid);
    // Another database has other object ids for the same tables: a copy, about which the witness says more.
    if !recorded.is_empty() && !recorded.keys().any(|key| known(oid_of(*key))) {
        return None;
    }
    let taken_out = detached.iter().find(|partition| partition.has_beyond);
    let taken_out = taken_out.map(|partition| PartitionChange::Gone { name: partition.name.clone() });
    let dropped = || {
        let lost = recorded
            .iter()
            .find(|(key, last)| !known(oid_of(**key)) && last.is_some_and(|last| last > position));
        lost.map(|(key, _)| PartitionChange::Gone { name: format!("{} (dropped)", oid_of(*key)) })
    };
    let is_recorded = |partition: &Partition| {
        let attachment = partition.attachment.is_some_and(|attachment| recorded.contains_key(&attachment));
        attachment || recorded.contains_key(&partition.oid)
    };
    let added = || {
        present.iter().filter(|partition| !is_recorded(partition)).find_map(|partition| {
            let first = partition.first.filter(|first| *first <= position)?;
            Some(PartitionChange::Added { name: partition.name.clone(), first })
        })
    };
    let shortened = || {
        let found = present.iter().filter(|partition| !is_recorded(partition)).find(|partition| {
            let of_it = |(key, _): &(&i64, &Option<Position>)| oid_of(**key) == partition.oid;
            let before = recorded.iter().find(of_it).and_then(|(_, last)| *last);
            before > partition.last && before.is_some_and(|last| last > position)
        });
        found.map(|partition| PartitionChange::Gone { name: format!("{} (as it was)", partition.name) })
    };
    taken_out.or_else(dropped).or_else(added).or_else(shortened)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A partition with the events from `first` to `last`, as a processor at 15 sees it.
    fn partition(oid: i64, first: i64, last: i64) -> Partition {
        let name = format!("events_{oid}");
        let attachment = Some(attachment(oid, 700));
        Partition {
            oid,
            name,
            attachment,
            first: Some(first.into()),
            last: Some(last.into()),
            has_beyond: last > 15,
        }
    }

    fn attachment(oid: i64, transaction: i64) -> i64 {
        oid << 32 | transaction
    }

    #[test]
    fn a_partition_that_was_put_back_may_have_other_events() {
        let put_back = |oid, first, last| Partition {
            attachment: Some(attachment(oid, 701)),
            ..partition(oid, first, last)
        };
        let all = [partition(1, 1, 10), partition(2, 11, 20), partition(3, 21, 30)];
        let recorded = to_record(&all);
        let find = |changed: Partition| {
            let present: Vec<Partition> = all.iter().filter(|one| one.oid != changed.oid).cloned().collect();
            compare(&recorded, &[present, vec![changed]].concat(), &[], 15.into())
        };
        let added = |oid: i64, first: i64| PartitionChange::Added {
            name: format!("events_{oid}"),
            first: first.into(),
        };
        assert_eq!(find(put_back(1, 4, 10)), Some(added(1, 4)));
        assert_eq!(find(put_back(2, 11, 20)), Some(added(2, 11)));
        assert_eq!(find(put_back(3, 21, 30)), None, "all that it has is still to come");
        assert_eq!(find(put_back(3, 21, 31)), None);
        let shortened = PartitionChange::Gone { name: "events_3 (as it was)".to_owned() };
        assert_eq!(find(put_back(3, 21, 29)), Some(shortened));
    }

    #[test]
    fn an_espd_of_before_has_recorded_no_transactions() {
        let all = [partition(1, 1, 10), partition(2, 11, 20)];
        let recorded: RecordedPartitions =
            all.iter().map(|partition| (partition.oid, partition.last)).collect();
        assert_eq!(compare(&recorded, &all, &[], 15.into()), None);
        let dropped = PartitionChange::Gone { name: "2 (dropped)".to_owned() };
        assert_eq!(compare(&recorded, &all[..1], &[], 15.into()), Some(dropped));
        assert_eq!(
            [oid_of(7), oid_of(attachment(7, 5)), oid_of(attachment(3_000_000_000, 5))],
            [7, 7, 3_000_000_000]
        );
    }

    #[test]
    fn only_events_that_the_processor_would_miss_matter() {
        let all = [partition(1, 1, 10), partition(2, 11, 20), partition(3, 21, 30)];
        let recorded = to_record(&all);
        let gone = |name: &str| Some(PartitionChange::Gone { name: name.to_owned() });
        let find = |recorded: &RecordedPartitions, present: &[Partition], detached: &[Partition]| {
            compare(recorded, present, detached, 15.into())
        };
        assert_eq!(find(&recorded, &all, &[]), None);
        assert_eq!(find(&recorded, &all[1..], &all[..1]), None, "all of its events were handled");
        assert_eq!(find(&recorded, &all[1..], &[]), None, "old ones are dropped");
        let two = [all[0].clone(), all[2].clone()];
        assert_eq!(find(&recorded, &two, &all[1..2]), gone("events_2"));
        assert_eq!(find(&recorded, &two, &[]), gone("2 (dropped)"));
        let grown = to_record(&two);
        let added = PartitionChange::Added { name: "events_2".to_owned(), first: 11.into() };
        assert_eq!(find(&grown, &all, &[]), Some(added));
        assert_eq!(find(&to_record(&all[..2]), &all, &[]), None, "the next one is for new events");
        let elsewhere = [partition(101, 1, 10), partition(102, 11, 30)];
        assert_eq!(find(&recorded, &elsewhere, &[]), None, "a copy in another database");
    }
}
