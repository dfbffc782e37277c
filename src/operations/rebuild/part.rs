//! A part of a projector's tables: which rows are meant, and how they are brought to what their events say.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use uuid::Uuid;

use super::going_live::MERGE_LIMIT;
use super::{GoLive, Rebuilding};
use crate::handlers::sql::{TableShape, find_aggregate_columns};
use crate::operations::operator::{Operator, OperatorError};
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::postgres::row::from_row;
use crate::postgres::server_mark::READ_COMMITTED;
use crate::processing::declaration::ProcessorDeclaration;
use crate::processing::rebuild::{
    AggregateColumn, Aggregates, Beside, Difference, Merged, Part, find_obstacle_to_division, merge,
};

/// The most aggregates that are taken apart from the others: a statement names each of them.
const LISTED_MAX: usize = 20_000;

/// Which aggregates an operator asks for. Nothing: all of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    /// These.
    pub(crate) aggregates: Vec<Uuid>,
    /// Those that have events of these types.
    pub(crate) event_types: Vec<String>,
    /// Those that have events of this time or later.
    pub(crate) since: Option<DateTime<Utc>>,
    /// This share of all, in percent.
    pub(crate) sample: Option<f64>,
    /// Those behind one, up to another one.
    pub(crate) between: Option<(Option<Uuid>, Option<Uuid>)>,
}

impl Selection {
    /// One aggregate.
    pub(crate) fn of(aggregate: Uuid) -> Self {
        Self { aggregates: vec![aggregate], ..Self::default() }
    }

    /// Whether nothing is left out.
    pub(crate) fn is_whole(&self) -> bool {
        self.aggregates.is_empty()
            && self.event_types.is_empty()
            && self.since.is_none()
            && self.sample.is_none()
            && self.between.is_none()
    }
}

/// A column as the catalog has it.
struct Column {
    table: String,
    name: String,
    is_uuid: bool,
    key: Option<i32>,
}

from_row!(Column { table, name, is_uuid, key });

fn not_apart(name: &str, reason: &str) -> OperatorError {
    OperatorError::NotApart { name: name.to_owned(), reason: reason.to_owned() }
}

impl Operator<'_> {
    /// What is selected; `None`: everything.
    pub(super) async fn find_part(
        &self,
        connection: &mut PgConnection,
        declaration: &ProcessorDeclaration,
        selection: &Selection,
    ) -> Result<Option<Part>, OperatorError> {
        if selection.is_whole() {
            return Ok(None);
        }
        let columns = self.find_aggregate_columns(connection, declaration).await?;
        let columns = columns.map_err(|reason| not_apart(&declaration.name, &reason))?;
        for aggregate in &selection.aggregates {
            self.refuse_unknown(connection, &declaration.name, *aggregate, &columns).await?;
        }
        Ok(Some(Part { aggregates: self.find_aggregates(selection).await?, columns }))
    }

    /// Refuses an aggregate that has neither events nor rows: its id is probably mistyped. One whose events were deleted may have rows.
    async fn refuse_unknown(
        &self,
        connection: &mut PgConnection,
        name: &str,
        aggregate: Uuid,
        columns: &BTreeMap<String, AggregateColumn>,
    ) -> Result<(), OperatorError> {
        let statement = format!(
            "-- has_events\nselect exists (select from {} as e where e.aggregate_id = $1)",
            self.databases.layout.source()
        );
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).bind(aggregate);
        if query.fetch_one(&self.databases.events).await? {
            return Ok(());
        }
        let part = Part { aggregates: Aggregates::Listed(vec![aggregate]), columns: columns.clone() };
        for table in columns.keys() {
            let statement = format!(
                "-- has_rows\nselect exists (select from {}.{} as t where {})",
                quote_identifier(&self.databases.scope.schema),
                quote_identifier(table),
                part.of_row(table, "t")
            );
            let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
            if query.fetch_one(&mut *connection).await? {
                return Ok(());
            }
        }
        Err(OperatorError::Blocked(format!(
            "aggregate {aggregate} has no events, and {name} has no row of it: its id may be mistyped"
        )))
    }

    /// Why the tables that were made for a part do not let the events of its aggregates be handled without those of others.
    pub(super) async fn find_obstacle_to_part(
        &self,
        connection: &mut PgConnection,
        name: &str,
        beside: Beside,
        part: Option<&Part>,
    ) -> Result<Option<OperatorError>, OperatorError> {
        let Some(part) = part else { return Ok(None) };
        let schema = beside.schema(&self.databases.scope.schema, name);
        let reason = find_obstacle_to_division(connection, &schema, &part.columns).await?;
        Ok(reason.map(|reason| not_apart(name, &reason)))
    }

    /// The column of each table of the serving version that has the aggregate. The inner error says why it is not known.
    pub(super) async fn find_aggregate_columns(
        &self,
        connection: &mut PgConnection,
        declaration: &ProcessorDeclaration,
    ) -> Result<Result<BTreeMap<String, AggregateColumn>, String>, OperatorError> {
        self.find_aggregate_columns_of(connection, declaration, &declaration.name).await
    }

    /// As [`Self::find_aggregate_columns`], of the version whose tracker has this name.
    pub(super) async fn find_aggregate_columns_of(
        &self,
        connection: &mut PgConnection,
        declaration: &ProcessorDeclaration,
        tracker: &str,
    ) -> Result<Result<BTreeMap<String, AggregateColumn>, String>, OperatorError> {
        let found = self.list_columns(connection, tracker).await?;
        let mut shapes: Vec<TableShape> = Vec::new();
        for Column { table, name, key, .. } in &found {
            if shapes.last().is_none_or(|shape| shape.name != *table) {
                shapes.push(TableShape { name: table.clone(), columns: Vec::new(), key: Vec::new() });
            }
            if let Some(shape) = shapes.last_mut() {
                shape.columns.push(name.clone());
                shape.key.extend(key.map(|_| name.clone()));
            }
        }
        let is_uuid = |(table, name): (String, String)| {
            let is_it = |column: &&Column| column.table == table && column.name == name;
            let is_uuid = found.iter().find(is_it).is_some_and(|column| column.is_uuid);
            (table, AggregateColumn { name, is_uuid })
        };
        let columns = find_aggregate_columns(declaration, &self.databases.scope, &shapes);
        Ok(columns.map(|columns| columns.into_iter().map(is_uuid).collect()))
    }

    async fn list_columns(
        &self,
        connection: &mut PgConnection,
        name: &str,
    ) -> Result<Vec<Column>, sqlx::Error> {
        let statement = format!(
            "-- list_columns_of_tables
             select p.table_name as table, a.attname::text as name, a.atttypid = 'uuid'::regtype as is_uuid, k.place::integer as key
             from {}.projection_tables as p
             join pg_attribute as a on a.attrelid = to_regclass(format('%I.%I', p.table_schema, p.table_name))
               and a.attnum > 0 and not a.attisdropped
             left join pg_index as i on i.indrelid = a.attrelid and i.indisprimary
             left join lateral (
               select place from unnest(i.indkey::smallint[]) with ordinality as k (number, place)
               where k.number = a.attnum and place <= i.indnkeyatts
             ) as k on true
             where p.processor = $1 order by p.table_name, a.attnum",
            self.trackers().schema()
        );
        sqlx::query_as(AssertSqlSafe(statement)).persistent(false).bind(name).fetch_all(connection).await
    }

    async fn find_aggregates(&self, selection: &Selection) -> Result<Aggregates, OperatorError> {
        if let Some(percent) = selection.sample {
            return Ok(Aggregates::Sampled { percent });
        }
        if let Some((after, upto)) = selection.between {
            return Ok(Aggregates::Between { after, upto });
        }
        let mut ids = selection.aggregates.clone();
        if selection.since.is_some() || !selection.event_types.is_empty() {
            let found = self.list_aggregates(selection).await?;
            if found.is_empty() && ids.is_empty() {
                return Err(OperatorError::Blocked("no aggregate has such events".to_owned()));
            }
            ids.extend(found);
        }
        ids.sort_unstable();
        ids.dedup();
        if ids.len() > LISTED_MAX {
            return Err(OperatorError::Blocked(format!(
                "more than {LISTED_MAX} aggregates are meant, which is no small part: leave the selection out, or narrow it"
            )));
        }
        Ok(Aggregates::Listed(ids))
    }

    /// The aggregates that have such events, up to one more than may be.
    async fn list_aggregates(&self, selection: &Selection) -> Result<Vec<Uuid>, sqlx::Error> {
        let statement = format!(
            "-- list_aggregates
             select distinct e.aggregate_id from {} as e
             where ($1::timestamptz is null or e.created_at >= $1) and (cardinality($2::text[]) = 0 or e.type = any ($2))
             limit {}",
            self.databases.layout.source(),
            LISTED_MAX + 1
        );
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
        query.bind(selection.since).bind(&selection.event_types).fetch_all(&self.databases.events).await
    }
}

impl Rebuilding<'_> {
    /// How many aggregates are meant, where that is known.
    pub(crate) fn number_of_aggregates(&self) -> Option<usize> {
        match &self.part.as_ref()?.aggregates {
            Aggregates::Listed(ids) => Some(ids.len()),
            Aggregates::Sampled { .. } | Aggregates::Between { .. } => None,
        }
    }

    /// Limits how long each statement of a merge may take, and has the triggers of others run with the search path and the settings that they
    /// have when a batch of the projector is handled: what works every day has to work then.
    pub(super) async fn enter_merge(&self, transaction: &mut PgConnection) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- enter_merge\nset local statement_timeout = '{MERGE_LIMIT}'; select {}",
            self.operator.databases.scope.set_local()
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(transaction).await.map(drop)
    }

    /// Refuses a part where the events of its aggregates have written rows of others.
    pub(super) async fn refuse_rows_of_others(
        &self,
        connection: &mut PgConnection,
    ) -> Result<(), OperatorError> {
        let Some(part) = &self.part else { return Ok(()) };
        for (table, column) in &part.columns {
            let statement = format!(
                "-- find_rows_of_others\nselect exists (select from {}.{} as t where ({}) is not true)",
                quote_identifier(&self.building_in),
                quote_identifier(table),
                part.of_own_row(table, "t")
            );
            let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
            if query.fetch_one(&mut *connection).await? {
                return Err(OperatorError::Blocked(format!(
                    "the events of these aggregates have written rows of {table} in which {} is another one: a part of it cannot \
                     be told apart",
                    column.name
                )));
            }
        }
        Ok(())
    }

    /// Brings the rows of the part to what their events say, in one transaction. The caller has compared them. Returns how many
    /// rows were changed.
    ///
    /// # Errors
    /// [`OperatorError::Blocked`] if the tables are not declared alike, or an event of these aggregates is a dead letter; or the
    /// database does not answer. The tables are as they were then.
    pub(crate) async fn replace_part(&mut self, difference: &Difference) -> Result<u64, OperatorError> {
        self.choose_way(GoLive::Merge, difference).await?;
        let projections = self.operator.databases.projections.clone();
        let mut connection = projections.acquire().await?;
        let mut transaction = connection.begin_with(READ_COMMITTED).await?;
        self.hold_live(&mut transaction).await?;
        // The rows that were built do not survive a crash of the server, and nor does the session that has built them.
        sqlx::raw_sql("-- find_session\nselect 1").execute(&mut *self.worker).await?;
        // Also of the events that have come since the comparison.
        if self.replay.set_aside > 0 {
            return Err(OperatorError::Blocked(format!(
                "{} events of these aggregates could not be handled, so their rows were not changed",
                self.replay.set_aside
            )));
        }
        self.refuse_rows_of_others(&mut transaction).await?;
        self.refuse_dead_letters(&mut transaction).await?;
        self.enter_merge(&mut transaction).await?;
        let schemas = (self.operator.databases.scope.schema.as_str(), self.building_in.as_str());
        let tables = self.declaration.table_names();
        let Merged::Rows(changed) = merge(&mut transaction, &tables, schemas, self.part.as_ref()).await?
        else {
            return Err(OperatorError::Blocked(format!(
                "triggers, rules or foreign keys on the tables of {} change more than these rows, so they were left as they were: \
                 `espctl rebuild {} --go-live swap` builds all of them",
                self.live.name, self.live.name
            )));
        };
        self.log_part(&mut transaction, changed).await?;
        transaction.commit().await?;
        Ok(changed)
    }

    /// An event that waits among the dead letters is in the rows that were built, and would be handled once more.
    async fn refuse_dead_letters(&self, connection: &mut PgConnection) -> Result<(), OperatorError> {
        let Some(part) = &self.part else { return Ok(()) };
        let name = &self.live.name;
        let statement = format!(
            "-- count_dead_letters\nselect count(*) from {}.dead_letters as e where e.processor = $1 and e.version = $2 and {}",
            self.operator.trackers().schema(),
            part.aggregates.condition("e.aggregate_id", false)
        );
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
        let number: i64 = query.bind(name).bind(self.live.version).fetch_one(connection).await?;
        if number == 0 {
            return Ok(());
        }
        Err(OperatorError::Blocked(format!(
            "{number} events of these aggregates are dead letters of {name}: `espctl dead-letters retry {name}` or discard them \
             before"
        )))
    }

    async fn log_part(&self, connection: &mut PgConnection, changed: u64) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- log_part\nselect {}.log_act($1, 'rebuild', {}, 0, $2, $2, $3)",
            self.operator.trackers().schema(),
            quote_literal(&self.live.name)
        );
        let aggregates: Value = match self.part.as_ref().map(|part| &part.aggregates) {
            Some(Aggregates::Listed(ids)) if ids.len() <= 100 => json!(ids),
            Some(Aggregates::Listed(ids)) => json!(ids.len()),
            _ => Value::Null,
        };
        let detail =
            json!({ "version": self.live.version, "aggregates": aggregates, "changed_rows": changed });
        let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
        let query = query.bind(self.operator.name).bind(self.replay.position()).bind(Json(detail));
        query.execute(connection).await.map(drop)
    }
}
