//! Verifies the tables of projectors slice by slice, a share of the aggregates each day.

use chrono::Utc;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::{Beside, Listener, Rebuilding, Selection};
use crate::operations::operator::{Operator, OperatorError};
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::processing::rebuild::{
    Difference, KEYS_MAX, Slice, Verification, clear_found, list_verifications, note_slice, pace,
};

/// A slice that was verified.
#[derive(Debug)]
pub(crate) struct VerifiedSlice {
    /// How many aggregates it had.
    pub(crate) aggregates: i64,
    /// How many rows were compared.
    pub(crate) rows: i64,
    /// How many rows differ.
    pub(crate) differing: i64,
    /// The first keys of those.
    pub(crate) keys: Vec<String>,
}

/// Where a slice begins that is to be verified now.
struct DueSlice {
    version: i32,
    /// The last aggregate of the slice before.
    after: Option<Uuid>,
    /// How many aggregates it has.
    size: i64,
}

impl Operator<'_> {
    /// Verifies the next slice of a projector's aggregates, if it is due. `share`: of all aggregates, in a day.
    ///
    /// # Errors
    /// [`OperatorError::Blocked`] if the projector cannot be verified in parts, [`OperatorError::Building`] if somebody else works on
    /// a version of it; or as for [`Rebuilding::begin`].
    pub(crate) async fn verify_slice(
        &self,
        name: &str,
        share: f64,
    ) -> Result<Option<VerifiedSlice>, OperatorError> {
        let Some(DueSlice { version, after, size }) = self.find_due_slice(name, share).await? else {
            return Ok(None);
        };
        let (aggregates, last) = self.find_slice_end(after, size).await?;
        let upto = last.filter(|_| aggregates == size);
        let difference = self.compare_slice(name, after, upto).await?;
        let (rows, differing) = sum(&difference);
        let found = (differing > 0).then(|| keys_of(&difference));
        let slice = Slice {
            processor: name,
            version,
            upto,
            aggregates,
            compared_rows: rows,
            differing_rows: differing,
            found: found.clone().map(Value::from),
        };
        note_slice(&self.databases.projections, self.trackers().schema(), &slice).await?;
        let keys = found.unwrap_or_default().iter().take(5).map(Value::to_string).collect();
        Ok(Some(VerifiedSlice { aggregates, rows, differing, keys }))
    }

    /// Whether the next slice of a projector's aggregates is to be verified now.
    pub(crate) async fn is_slice_due(&self, name: &str, share: f64) -> Result<bool, OperatorError> {
        Ok(self.find_due_slice(name, share).await?.is_some())
    }

    async fn find_due_slice(&self, name: &str, share: f64) -> Result<Option<DueSlice>, OperatorError> {
        let version = self.find(name).await?.version;
        let known = list_verifications(&self.databases.projections, self.trackers().schema()).await?;
        let known = known.into_iter().find(|row| row.processor == name && row.version == version);
        let all = match known.as_ref().and_then(|row| row.all_aggregates) {
            Some(all) => all,
            None => self.estimate_aggregates(name).await?,
        };
        let (size, pause) = pace(all, share);
        let is_due =
            |row: &Verification| (Utc::now() - row.verified_at).to_std().is_ok_and(|passed| passed >= pause);
        if known.as_ref().is_some_and(|row| !is_due(row)) {
            return Ok(None);
        }
        Ok(Some(DueSlice { version, after: known.and_then(|row| row.after_aggregate), size }))
    }

    /// Forgets which rows were found to differ, because all of them are as they should be.
    pub(crate) async fn clear_found(&self, name: &str) -> Result<(), OperatorError> {
        Ok(clear_found(&self.databases.projections, self.trackers().schema(), name).await?)
    }

    async fn compare_slice(
        &self,
        name: &str,
        after: Option<Uuid>,
        upto: Option<Uuid>,
    ) -> Result<Difference, OperatorError> {
        let silent = Listener { progress: &|_| (), note: &|_| () };
        let selection = Selection { between: Some((after, upto)), ..Selection::default() };
        let mut scratch =
            Rebuilding::begin_with(*self, name, Beside::Verification, &selection, silent).await?;
        let compared = match scratch.catch_up().await {
            Ok(()) => scratch.compare().await,
            Err(error) => Err(error),
        };
        scratch.remove().await?;
        compared
    }

    /// The last aggregate of a slice that begins behind one, and how many there are. Each is found in the index of aggregates.
    async fn find_slice_end(
        &self,
        after: Option<Uuid>,
        size: i64,
    ) -> Result<(i64, Option<Uuid>), sqlx::Error> {
        let events = self.databases.layout.events_table();
        let statement = format!(
            "-- find_slice_end
             with recursive slice (id, place) as (
               (select e.aggregate_id, 1::bigint from {events} as e where $1::uuid is null or e.aggregate_id > $1
                order by e.aggregate_id limit 1)
               union all
               select (select e.aggregate_id from {events} as e where e.aggregate_id > s.id order by e.aggregate_id limit 1),
                      s.place + 1
               from slice as s where s.id is not null and s.place < $2
             )
             select count(id), (array_agg(id order by place desc))[1] from slice where id is not null"
        );
        let query = sqlx::query_as(AssertSqlSafe(statement)).persistent(false).bind(after).bind(size);
        query.fetch_one(&self.databases.events).await
    }

    /// About how many aggregates the largest table of a projector has rows of.
    async fn estimate_aggregates(&self, name: &str) -> Result<i64, sqlx::Error> {
        let statement = format!(
            "-- estimate_aggregates
             select coalesce(max(c.reltuples), 0)::bigint from {}.projection_tables as p
             join pg_class as c on c.oid = to_regclass({} || quote_ident(p.table_name)) where p.processor = $1",
            self.trackers().schema(),
            quote_literal(&format!("{}.", quote_identifier(&self.databases.scope.schema)))
        );
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).bind(name);
        query.fetch_one(&self.databases.projections).await
    }
}

/// How many rows were compared, and how many differ.
fn sum(difference: &Difference) -> (i64, i64) {
    let tables = &difference.tables;
    (tables.iter().map(|table| table.rows).sum(), tables.iter().map(|table| table.number()).sum())
}

/// Some of the keys that differ, each with its table.
fn keys_of(difference: &Difference) -> Vec<Value> {
    let keys = difference.tables.iter().flat_map(|table| {
        table.examples.iter().map(|example| json!({ "table": table.table, "key": example.key }))
    });
    keys.take(KEYS_MAX).collect()
}
