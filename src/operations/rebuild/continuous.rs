//! Verifies the tables of projectors slice by slice, a share of the aggregates each day.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Postgres};
use uuid::Uuid;

use super::beginning::unlock_session;
use super::{Beside, Listener, Rebuilding, Selection};
use crate::operations::operator::{Operator, OperatorError};
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::processing::rebuild::{
    Difference, KEYS_MAX, Slice, Verification, clear_found, forget_unverified, list_verifications,
    note_slice, note_unverified, pace,
};

/// Nobody is told how far a slice is.
const SILENT: Listener<'static> = Listener { progress: &|_| (), note: &|_| () };

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
    /// When the slice before was verified, of whichever version; `None`: none was.
    recorded_at: Option<DateTime<Utc>>,
}

impl VerifiedSlice {
    fn of(aggregates: i64, difference: &Difference) -> Self {
        let (rows, differing) = sum(difference);
        let keys = keys_of(difference).iter().take(5).map(Value::to_string).collect();
        Self { aggregates, rows, differing, keys }
    }
}

impl Rebuilding<'_> {
    /// Compares the rows of the slice that it was begun with.
    async fn compare_slice(&mut self) -> Result<Difference, OperatorError> {
        self.catch_up().await?;
        self.compare().await
    }
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
        if !self.is_slice_due(name, share).await? {
            return Ok(None);
        }
        self.refuse_unsuitable(&self.find(name).await?, self.declaration(name)?, Beside::Verification)?;
        let mut worker = self.lock_versions_after_slice(name, SILENT).await?;
        // Another daemon may have verified it since.
        match self.find_due_slice(name, share).await {
            Ok(Some(due)) => self.verify_due(name, due, worker).await,
            other => {
                let _ = unlock_session(&mut worker, name).await;
                other.map(|_| None)
            }
        }
    }

    /// Verifies a slice and records it, by a session that has the lock of the versions until then.
    async fn verify_due(
        &self,
        name: &str,
        due: DueSlice,
        worker: PoolConnection<Postgres>,
    ) -> Result<Option<VerifiedSlice>, OperatorError> {
        let DueSlice { version, after, size, recorded_at } = due;
        let (aggregates, last) = self.find_slice_end(after, size).await?;
        let upto = last.filter(|_| aggregates == size);
        let selection = Selection { between: Some((after, upto)), ..Selection::default() };
        let what = (Beside::Verification, &selection);
        let mut scratch = Rebuilding::begin_locked(*self, name, what, SILENT, worker).await?;
        let compared = scratch.compare_slice().await;
        let noted = match &compared {
            Ok(difference) => {
                let (compared_rows, differing_rows) = sum(difference);
                let found = (differing_rows > 0).then(|| Value::from(keys_of(difference)));
                let slice = Slice {
                    processor: name,
                    version,
                    upto,
                    aggregates,
                    compared_rows,
                    differing_rows,
                    found,
                };
                note_slice(&mut *scratch.worker, self.trackers().schema(), &slice, recorded_at).await
            }
            Err(_) => Ok(false),
        };
        scratch.remove().await?;
        let (difference, is_noted) = (compared?, noted?);
        // Who has lost the lock meanwhile leaves the slice to whoever has it.
        Ok(is_noted.then(|| VerifiedSlice::of(aggregates, &difference)))
    }

    /// Whether the next slice of a projector's aggregates is to be verified now.
    pub(crate) async fn is_slice_due(&self, name: &str, share: f64) -> Result<bool, OperatorError> {
        Ok(self.find_due_slice(name, share).await?.is_some())
    }

    async fn find_due_slice(&self, name: &str, share: f64) -> Result<Option<DueSlice>, OperatorError> {
        let version = self.find(name).await?.version;
        let rows = list_verifications(&self.databases.projections, self.trackers().schema()).await?;
        let row = rows.into_iter().find(|row| row.processor == name);
        let recorded_at = row.as_ref().map(|row| row.verified_at);
        let known = row.filter(|row| row.version == version);
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
        let after = known.and_then(|row| row.after_aggregate);
        Ok(Some(DueSlice { version, after, size, recorded_at }))
    }

    /// Records what has come of a try to verify a slice: a projector that is not verified, though that is wanted, is told of by others.
    /// `is_lasting`: whether that stays so until its declaration changes.
    pub(crate) async fn note_tried(
        &self,
        name: &str,
        tried: &Result<Option<VerifiedSlice>, OperatorError>,
        is_lasting: bool,
    ) -> Result<(), sqlx::Error> {
        let (projections, schema) = (&self.databases.projections, self.trackers().schema().to_owned());
        match tried {
            Ok(Some(_)) => forget_unverified(projections, &schema, name).await,
            Ok(None) | Err(OperatorError::Building { .. } | OperatorError::Unknown { .. }) => Ok(()),
            // A database that does not answer takes no note either.
            Err(OperatorError::Database(error)) if error.as_database_error().is_none() => Ok(()),
            Err(error) => {
                let because = error.to_string();
                let because = because.strip_prefix("nothing was done: ").unwrap_or(&because);
                note_unverified(projections, &schema, name, (because, is_lasting)).await
            }
        }
    }

    /// Forgets which rows were found to differ, because all of them are as they should be.
    pub(crate) async fn clear_found(&self, name: &str) -> Result<(), OperatorError> {
        Ok(clear_found(&self.databases.projections, self.trackers().schema(), name).await?)
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
