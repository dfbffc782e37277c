//! Shares of the aggregates by their hash: each has a tracker of its own, and all of them write the same tables, so a version whose
//! handlers run one event after the other is built by several sessions at once.
//!
//! The shares are partitions 1, 2, … of the version's tracker, whose own partition is 0. So where each of them is stands in the database,
//! and moves with its rows. Once all are at the same position, they become one again.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::part::{AggregateColumn, HASHES};
use super::replay::ReplayError;
use crate::event::Position;
use crate::postgres::literal::interval;
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::postgres::server_mark::READ_COMMITTED;
use crate::processing::tracker::{Claim, ProcessorKey, Trackers};

/// The most shares that a version is divided into.
pub(crate) const SHARES_MAX: i32 = 16;

/// How long the claim of the whole lasts after the shares became one.
const LEASE: Duration = Duration::from_secs(10);

/// One of the shares of the aggregates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    /// From 1.
    pub(crate) number: i32,
    /// How many there are.
    pub(crate) of: i32,
}

impl Share {
    /// All shares, where there are so many.
    pub(crate) fn all(of: i32) -> impl Iterator<Item = Self> {
        (1..=of).map(move |number| Self { number, of })
    }

    /// The condition on an event `e`.
    pub(crate) fn of_event(self) -> String {
        let Self { number, of } = self;
        format!("({} % {of}) = {}", hash_of_event(), number - 1)
    }
}

/// The hash of the aggregate of an event or a dead letter `e`, by which its share is known.
fn hash_of_event() -> String {
    format!("(hashtextextended(e.aggregate_id::text, 0) & {})", HASHES - 1)
}

/// The positions of the shares of a version, in their order; empty: it is not divided.
pub(crate) async fn list_shares(
    connection: &mut PgConnection,
    trackers: &Trackers,
    key: &ProcessorKey,
) -> Result<Vec<Position>, sqlx::Error> {
    let statement = format!(
        "-- list_shares\nselect position from {} where {} order by partition",
        trackers.table(),
        is_share(key, "name")
    );
    sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).fetch_all(connection).await
}

/// Divides a version into shares, which begin where it is. Events that are set aside already are in the share of their aggregate.
pub(crate) async fn create_shares(
    connection: &mut PgConnection,
    trackers: &Trackers,
    claim: &Claim,
    number: i32,
) -> Result<(), ReplayError> {
    let mut transaction = connection.begin_with(READ_COMMITTED).await?;
    if !trackers.lock_claimed(&mut transaction, claim).await? {
        return Err(ReplayError::ClaimLost);
    }
    let statement = format!(
        "-- create_shares
         insert into {trackers} (name, version, partition, kind, position, began_at)
         select t.name, t.version, share, t.kind, t.position, t.began_at
         from {trackers} as t, generate_series(1, {number}) as share where {};
         update {schema}.dead_letters as e set partition = 1 + {hash} % {number}
         where e.processor = {name} and e.version = {version}",
        claim.key.is_tracker(),
        trackers = trackers.table(),
        schema = trackers.schema(),
        hash = hash_of_event(),
        name = quote_literal(&claim.key.name),
        version = claim.key.version
    );
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *transaction).await?;
    Ok(transaction.commit().await?)
}

/// Has the shares of a version become one again: its position is theirs, and so are their dead letters. Returns the position.
pub(crate) async fn join_shares(
    connection: &mut PgConnection,
    trackers: &Trackers,
    claim: &Claim,
) -> Result<Position, ReplayError> {
    let mut transaction = connection.begin_with(READ_COMMITTED).await?;
    if !trackers.lock_claimed(&mut transaction, claim).await? {
        return Err(ReplayError::ClaimLost);
    }
    let (key, table, schema) = (&claim.key, trackers.table(), trackers.schema());
    let lock = format!(
        "-- lock_shares\nselect position, handled from {table} where {} order by partition for update",
        is_share(key, "name")
    );
    let shares: Vec<(Position, i64)> =
        sqlx::query_as(AssertSqlSafe(lock)).persistent(false).fetch_all(&mut *transaction).await?;
    let position = match shares.first() {
        Some((first, _)) if shares.iter().all(|(position, _)| position == first) => *first,
        _ => return Err(ReplayError::ClaimLost),
    };
    let handled: i64 = shares.iter().map(|(_, handled)| handled).sum();
    let join = format!(
        "-- join_shares
         select {schema}.advance_tracker({arguments}, epoch => {epoch}, from_position => {from}, to_position => {position},
           handled => {handled}, lease => {lease},
           witness_at => w.witness_at, witness_id => w.witness_id, witness_uuid => w.witness_uuid)
         from (values (true)) as one left join lateral (
           select t.witness_at, t.witness_id, t.witness_uuid from {table} as t
           where {is_share} and t.witness_id is not null order by t.witness_at desc limit 1) as w on true",
        arguments = key.arguments(),
        epoch = claim.epoch,
        from = claim.position,
        handled = i32::try_from(handled).unwrap_or(i32::MAX),
        lease = interval(LEASE),
        is_share = is_share(key, "t.name"),
    );
    let query = sqlx::query_scalar(AssertSqlSafe(join)).persistent(false);
    if !query.fetch_one(&mut *transaction).await? {
        return Err(ReplayError::ClaimLost);
    }
    let forget = format!(
        "-- forget_shares
         update {schema}.dead_letters set partition = {} where {};
         delete from {table} where {};",
        key.partition,
        is_share(key, "processor"),
        is_share(key, "name")
    );
    sqlx::raw_sql(AssertSqlSafe(forget)).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(position)
}

fn is_share(key: &ProcessorKey, column: &str) -> String {
    format!("{column} = {} and version = {} and partition > 0", quote_literal(&key.name), key.version)
}

/// Why it could matter in which order the events of different aggregates are handled, or that those of others are handled as well,
/// as far as the catalog tells; `None`: it does not. `columns`: those that have the aggregate.
pub(crate) async fn find_obstacle_to_division(
    connection: &mut PgConnection,
    schema: &str,
    columns: &BTreeMap<String, AggregateColumn>,
) -> Result<Option<String>, sqlx::Error> {
    let rows = columns
        .iter()
        .map(|(table, column)| format!("({}, {})", quote_literal(table), quote_literal(&column.name)));
    let statement = format!(
        "-- find_obstacle_to_division
         with owned as (
           select c.oid, c.relname, c.relhasrules, a.attnum
           from (values {}) as v (table_name, column_name)
           join pg_class as c on c.relnamespace = to_regnamespace($1) and c.relname = v.table_name
           join pg_attribute as a on a.attrelid = c.oid and a.attname = v.column_name
         )
         select format('the unique index %s of %s is over rows of all aggregates', x.relname, o.relname)
         from owned as o join pg_index as i on i.indrelid = o.oid join pg_class as x on x.oid = i.indexrelid
         where i.indisunique and not o.attnum = any ((i.indkey::int2[])[0:i.indnkeyatts - 1]) or i.indisexclusion
         union all
         select format('the foreign key %s of %s may refer to rows of other aggregates', k.conname, o.relname)
         from owned as o join pg_constraint as k on k.conrelid = o.oid and k.contype = 'f'
         where not exists (select from owned as r, generate_subscripts(k.conkey, 1) as s
           where r.oid = k.confrelid and k.conkey[s] = o.attnum and k.confkey[s] = r.attnum)
         union all
         select format('column %s of %s gets a number in the order of all events', a.attname, o.relname)
         from owned as o join pg_attribute as a on a.attrelid = o.oid and not a.attisdropped
         where a.attidentity <> '' or exists (
           select from pg_attrdef as f
             join pg_depend as d on d.classid = 'pg_attrdef'::regclass and d.objid = f.oid and d.refclassid = 'pg_class'::regclass
             join pg_class as s on s.oid = d.refobjid and s.relkind = 'S'
           where f.adrelid = o.oid and f.adnum = a.attnum)
         union all
         select format('function %s, which a default or a check of %s calls, may read rows of all aggregates', p.oid::regprocedure, o.relname)
         from owned as o join pg_depend as d on d.refclassid = 'pg_proc'::regclass
           join pg_proc as p on p.oid = d.refobjid and p.pronamespace <> 'pg_catalog'::regnamespace
         where d.classid = 'pg_attrdef'::regclass and d.objid in (select f.oid from pg_attrdef as f where f.adrelid = o.oid)
            or d.classid = 'pg_constraint'::regclass and d.objid in (select k.oid from pg_constraint as k where k.conrelid = o.oid)
         union all
         select format('column %s of %s may have one value for several aggregates', a.attname, o.relname)
         from owned as o join pg_attribute as a on a.attrelid = o.oid and a.attnum = o.attnum
         where a.atttypid not in ('uuid'::regtype, 'text'::regtype, 'varchar'::regtype, 'bigint'::regtype, 'integer'::regtype,
             'numeric'::regtype)
           or a.atttypmod <> -1
         union all
         select format('there is a trigger on %s', o.relname)
         from owned as o join pg_trigger as t on t.tgrelid = o.oid and not t.tgisinternal
         union all
         select format('there is a rule on %s', o.relname) from owned as o where o.relhasrules
         limit 1",
        rows.collect::<Vec<_>>().join(", ")
    );
    let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).bind(quote_identifier(schema));
    query.fetch_optional(connection).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_aggregate_is_in_one_share() {
        let conditions: Vec<String> = Share::all(3).map(Share::of_event).collect();
        assert_eq!(conditions.len(), 3);
        for (place, condition) in conditions.iter().enumerate() {
            let expected = format!("((hashtextextended(e.aggregate_id::text, 0) & 1048575) % 3) = {place}");
            assert_eq!(condition, &expected);
        }
    }
}
