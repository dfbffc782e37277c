//! This module renews leases and moves positions for many trackers in one statement.
//!
//! No row is waited for: a tracker that somebody else has locked is skipped, and whoever asked does for it what it does alone. A
//! claim that is no longer valid is told apart from that.

use std::fmt::Write as _;
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{FromRow as _, PgConnection, Row as _};

use super::claim::SERVER_START;
use super::{Claim, LeaseStatus, Trackers};
use crate::event::Position;
use crate::postgres::literal::{interval, simple};
use crate::postgres::quote::quote_literal;
use crate::postgres::server_mark::{self, ServerMark};
use crate::store::layout::Layout;
use crate::store::witness::attachments;

/// The uuid in the witness of a store without an event.
const NO_UUID: &str = "'00000000-0000-0000-0000-000000000000'";

/// A lease that is to be renewed.
#[derive(Debug, Clone)]
pub(crate) struct Renewal {
    pub(crate) claim: Claim,
    /// Whether a recorded outage has ended and is removed from the row.
    pub(crate) outage_over: bool,
    /// Ids passed per second lately.
    pub(crate) rate: f32,
}

/// What became of a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renewed {
    /// The claim is no longer valid.
    Lost,
    /// Somebody else has locked the tracker.
    Skipped,
    /// The lease lasts on.
    Done {
        lease_status: LeaseStatus,
        /// Whether the store is known to be the one that the tracker remembers. False also where that needs a closer look.
        is_remembered: bool,
        /// The last id that the store has drawn, if its events are in the same database.
        head: Option<Position>,
    },
}

/// A position that is to be moved over events of types that the processor does not handle.
#[derive(Debug, Clone)]
pub(crate) struct Passing {
    pub(crate) claim: Claim,
    /// The types that the processor handles, as they are stored.
    pub(crate) types: Vec<String>,
    /// Ids passed per second lately.
    pub(crate) rate: f32,
}

/// How far positions may be moved: from one that all of them have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// The position of all trackers.
    pub(crate) after: Position,
    /// The last id to look at.
    pub(crate) upto: Position,
    /// The settled horizon, up to which ids without an event are passed as well.
    pub(crate) settled: Position,
    /// The mark that has to be on the server; `None`: there is nothing to compare.
    pub(crate) mark: Option<ServerMark>,
}

impl Trackers {
    /// Renews the leases of claims for `lease` from now, and says for each what [`Self::renew`] would, in the same order. `events`:
    /// the layout of the events, if they are in the same database; otherwise nothing is said of the store.
    pub(crate) async fn renew_all(
        &self,
        connection: &mut PgConnection,
        renewals: &[Renewal],
        lease: Duration,
        events: Option<&Layout>,
    ) -> Result<Vec<Renewed>, sqlx::Error> {
        let rows = simple(self.renewing(renewals, lease, events)).fetch_all(connection).await?;
        rows.iter().map(read_renewed).collect()
    }

    fn renewing(&self, renewals: &[Renewal], lease: Duration, events: Option<&Layout>) -> String {
        let wanted = list(renewals, |renewal| {
            let rate = if renewal.rate.is_finite() { renewal.rate } else { 0.0 };
            (&renewal.claim, format!("{}, {rate}::real", renewal.outage_over))
        });
        let (is_remembered, store) = match events {
            None => ("false".to_owned(), "cross join (select null::bigint as last) as head".to_owned()),
            Some(layout) => (
                format!(
                    "coalesce({} and {} and r.position <= head.last
                       and case when r.synchronous is null then true
                                else {}.has_met_all(wanted.name, wanted.version, wanted.partition) end, false)",
                    stands("r"),
                    has_partitions("r", layout),
                    self.schema,
                ),
                format!(
                    "cross join (select {} as last) as head {}",
                    layout.order.head_expression(),
                    last_event(layout, "r.witness_at", "w")
                ),
            ),
        };
        format!(
            "-- renew_leases
             with wanted (place, name, version, partition, epoch, server_start, outage_over, rate) as (values {wanted}),
             free as materialized ({free}),
             renewed as (
               update {trackers} as t
               set lease_until = clock_timestamp() + {lease}, rate = free.rate, updated_at = clock_timestamp(),
                   outage = case when not free.outage_over then t.outage end
               from free where {of_free}
               returning free.place, t.position, t.paused_at is not null as paused,
                         coalesce(t.attempts > 0 and t.next_retry_at <= clock_timestamp(), false) as retry_now,
                         exists (select from {schema}.dead_letters as d
                                 where d.processor = t.name and d.version = t.version and d.partition = t.partition
                                   and d.retry_requested_at is not null) as dead_letters_requested,
                         t.witness_at, t.witness_id, t.witness_uuid, t.events_partitions, t.synchronous
             )
             select c.epoch is not null as is_claimed, r.place is not null as is_renewed,
                    r.position, r.paused, r.retry_now, r.dead_letters_requested, {is_remembered} as is_remembered, head.last as head
             from wanted
             left join {trackers} as c on {of_wanted}
             left join renewed as r on r.place = wanted.place
             {store}
             order by wanted.place",
            free = self.free("wanted.*", "wanted", "true"),
            trackers = self.table,
            schema = self.schema,
            lease = interval(lease),
            of_free = of("t", "free"),
            of_wanted = is_valid("c", "wanted"),
        )
    }

    /// Moves the positions of trackers over events that none of them handles, as far as there are only such events, and lets their
    /// leases run on. Returns for each, in the same order, where it is now; `None`: it could not be moved, because the next
    /// event is for it, somebody else has locked it, or what its batch would find out.
    pub(crate) async fn pass_over(
        &self,
        connection: &mut PgConnection,
        passings: &[Passing],
        stretch: Stretch,
        lease: Duration,
        layout: &Layout,
    ) -> Result<Vec<Option<Position>>, sqlx::Error> {
        let statement = format!(
            "{} set local statement_timeout = '2s';\n{};\n-- Nothing depends on this commit: if it is lost in a crash, the same events are passed again.\n\
             set local synchronous_commit = off",
            server_mark::prelude(stretch.mark),
            self.passing(passings, stretch, lease, layout)
        );
        let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).fetch_all(connection).await?;
        rows.iter().map(|row| row.try_get("passed")).collect()
    }

    fn passing(&self, passings: &[Passing], stretch: Stretch, lease: Duration, layout: &Layout) -> String {
        let Stretch { after, upto, settled, .. } = stretch;
        let wanted = list(passings, |Passing { claim, types, rate }| {
            let rate = if rate.is_finite() { *rate } else { 0.0 };
            let types: Vec<String> = types.iter().map(|one| quote_literal(one)).collect();
            (claim, format!("{rate}::real, array[{}]::text[]", types.join(", ")))
        });
        let has_place = format!(
            "wanted.target > {after} and t.position = {after} and t.paused_at is null and t.diverged is null"
        );
        let of_tracker = "wanted.*, t.witness_at, t.witness_id, t.witness_uuid, t.events_partitions";
        format!(
            "-- pass_over
             with seen as materialized (
               select e.type::text as type, min(e.id)::bigint as first
               from {source} as e where e.id > {after} and e.id <= {upto} group by 1
             ), claimed (place, name, version, partition, epoch, server_start, rate, types) as (values {wanted}),
             reach (upto) as materialized (
               select case when exists (select from seen) then {upto}
                           else least({settled}, (select min(id) - 1 from {events} where id > {upto})) end::bigint
             ),
             aimed as materialized (
               select claimed.*, coalesce((select min(seen.first) - 1 from seen where seen.type = any(claimed.types)),
                                          reach.upto) as target
               from claimed, reach
             ),
             free as materialized ({free}),
             moved as materialized (
               select r.place, r.target, {schema}.advance_tracker(r.name, r.version, r.partition, epoch => r.epoch,
                   from_position => {after}, to_position => r.target, handled => 0, lease => {lease},
                   caught_up => r.target >= {upto}, rate => r.rate, witness_at => r.target,
                   witness_id => coalesce(e.id, 0), witness_uuid => coalesce(e.uuid, {NO_UUID})) as moved
               from free as r
               {witness}
               {end}
               where (r.witness_at is null or {stands})
                 and (r.events_partitions is null or {has_partitions})
             )
             select case when moved.moved then moved.target end as passed
             from claimed left join moved using (place)
             order by place",
            source = layout.source(),
            events = layout.events_table(),
            free = self.free(of_tracker, "aimed as wanted", &has_place),
            schema = self.schema,
            lease = interval(lease),
            witness = last_event(layout, "r.witness_at", "w"),
            end = last_event(layout, "r.target", "e"),
            stands = stands("r"),
            has_partitions = has_partitions("r", layout),
        )
    }

    /// A query that locks the trackers of valid claims which nobody else has locked.
    fn free(&self, columns: &str, wanted: &str, condition: &str) -> String {
        format!(
            "select {columns} from {wanted} join {} as t on {} where {condition}
             order by t.name, t.version, t.partition for update of t skip locked",
            self.table,
            is_valid("t", "wanted")
        )
    }

    /// Records that this session works on the tracker of a claim, so that a standby can end it if it is frozen.
    pub(crate) fn recording_backend(&self, claim: &Claim) -> String {
        format!(
            "-- record_backend
             update {} set backend_pid = pg_backend_pid(),
                 backend_start = (select backend_start from pg_stat_activity where pid = pg_backend_pid())
             where {}",
            self.table,
            super::is_claimed(claim)
        )
    }
}

/// Returns rows of `values`: place, key, epoch and server of each claim, and what follows them.
fn list<T>(all: &[T], row: impl Fn(&T) -> (&Claim, String)) -> String {
    let mut text = String::new();
    for (place, one) in all.iter().enumerate() {
        let (claim, rest) = row(one);
        let separator = if place == 0 { "" } else { ", " };
        let (name, version, partition) =
            (quote_literal(&claim.key.name), claim.key.version, claim.key.partition);
        // Writing into a String cannot fail.
        let _ = write!(
            text,
            "{separator}({place}, {name}::text, {version}, {partition}, {}::bigint, {}::bigint, {rest})",
            claim.epoch, claim.server_start
        );
    }
    text
}

/// The condition that two rows are of the same tracker.
fn of(tracker: &str, other: &str) -> String {
    format!(
        "{tracker}.name = {other}.name and {tracker}.version = {other}.version and {tracker}.partition = {other}.partition"
    )
}

/// The condition that a tracker is that of a claim, which is valid.
fn is_valid(tracker: &str, claim: &str) -> String {
    format!(
        "{} and {tracker}.epoch = {claim}.epoch and {claim}.server_start = {SERVER_START}",
        of(tracker, claim)
    )
}

/// A join with the last event at or below a position.
fn last_event(layout: &Layout, at: &str, name: &str) -> String {
    format!(
        "left join lateral (select id, uuid from {} where id <= {at} order by id desc limit 1) as {name} on true",
        layout.events_table()
    )
}

/// The condition that the event `w` is the witness of a row.
fn stands(row: &str) -> String {
    format!("coalesce(w.id, 0) = {row}.witness_id and coalesce(w.uuid, {NO_UUID}) = {row}.witness_uuid")
}

/// The condition that the table of events has the partitions that a row has recorded.
fn has_partitions(row: &str, layout: &Layout) -> String {
    format!(
        "case when {row}.events_partitions is not null then
           array(select p::bigint from jsonb_object_keys({row}.events_partitions) as p order by p::bigint)
         end is not distinct from ({})",
        attachments(layout.events_table())
    )
}

fn read_renewed(row: &PgRow) -> Result<Renewed, sqlx::Error> {
    if row.try_get("is_renewed")? {
        let (is_remembered, head) = (row.try_get("is_remembered")?, row.try_get("head")?);
        return Ok(Renewed::Done { lease_status: LeaseStatus::from_row(row)?, is_remembered, head });
    }
    Ok(if row.try_get("is_claimed")? { Renewed::Skipped } else { Renewed::Lost })
}
