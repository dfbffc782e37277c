//! The checks of an author: SQL that returns no row where the tables are right.

use serde_json::Value;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::{Phase, Rebuilding};
use crate::operations::operator::OperatorError;
use crate::postgres::server_mark;
use crate::postgres::sqlstate::describe;
use crate::processing::declaration::Check;

/// How many rows of a check are shown.
const ROWS: i64 = 5;

/// How long a check may take. It holds nothing up, but the version does not go live meanwhile.
const LIMIT: &str = "10min";

/// A check that has returned rows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct FailedCheck {
    /// The name of the check.
    pub(crate) name: String,
    /// Its first rows.
    pub(crate) rows: Vec<Value>,
}

impl FailedCheck {
    /// The check and its rows in one line.
    pub(crate) fn describe(&self) -> String {
        let rows: Vec<String> = self.rows.iter().map(describe_row).collect();
        format!("the check `{}` returns {}", self.name, rows.join(" and "))
    }
}

fn describe_row(row: &Value) -> String {
    let Value::Object(columns) = row else { return row.to_string() };
    columns.iter().map(|(name, value)| format!("{name} = {value}")).collect::<Vec<_>>().join(", ")
}

impl Rebuilding<'_> {
    /// Runs the checks of the declaration on the tables that are built. Returns those that fail.
    ///
    /// # Errors
    /// A check cannot be run, or the database does not answer.
    pub(crate) async fn run_checks(&mut self) -> Result<Vec<FailedCheck>, OperatorError> {
        let checks = self.declaration.checks.clone();
        // Of a part of the rows nothing need be true.
        if checks.is_empty() || self.part.is_some() {
            return Ok(Vec::new());
        }
        self.enter(Phase::Checking).await?;
        let scope = self.operator.databases.scope.beside(&self.building_in);
        let path = scope.search_path();
        let mut failed = Vec::new();
        let trackers = self.operator.trackers();
        let live = (trackers.schema(), self.live.name.as_str());
        for check in &checks {
            let at = format!("{}:{}: the check `{}`", check.sql.file, check.sql.line, check.name);
            match run(&mut self.worker, &path, check, live).await {
                Ok(Ran { read_of_live: Some(table), .. }) => {
                    return Err(OperatorError::Rebuild(format!(
                        "{at} reads {table} of the version that serves: name tables that this version declares, without a schema"
                    )));
                }
                Ok(Ran { rows, .. }) if rows.is_empty() => {}
                Ok(Ran { rows, .. }) => failed.push(FailedCheck { name: check.name.clone(), rows }),
                Err(error @ sqlx::Error::Database(_)) => {
                    return Err(OperatorError::Rebuild(format!("{at}: {}", describe(&error))));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(failed)
    }
}

/// What a check has returned, and which table of the version that serves it has read.
struct Ran {
    rows: Vec<Value>,
    read_of_live: Option<String>,
}

/// Runs a check in a transaction that writes nothing. `live`: the quoted schema of the trackers, and the processor.
async fn run(
    connection: &mut PgConnection,
    path: &str,
    check: &Check,
    (schema, processor): (&str, &str),
) -> Result<Ran, sqlx::Error> {
    let mut transaction = connection.begin_with(server_mark::begin(None)).await?;
    let statement = format!(
        "-- set_path\nset transaction read only; set local statement_timeout = '{LIMIT}'; set local search_path = {path}"
    );
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *transaction).await?;
    let sql = check.sql.text.trim().trim_end_matches(';');
    let statement = format!("-- run_check\nselect to_jsonb(found) from (\n{sql}\n) as found limit {ROWS}");
    let rows: Vec<Json<Value>> =
        sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).fetch_all(&mut *transaction).await?;
    // Whoever has read a table holds a lock on it.
    let statement = format!(
        "-- find_read_of_live
         select o.name from {schema}.owned_relations as o where o.processor = $1 and o.oid in (
           select l.relation from pg_catalog.pg_locks as l
           where l.locktype = 'relation' and l.pid = pg_catalog.pg_backend_pid() and l.granted) limit 1"
    );
    let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).bind(processor);
    let read_of_live = query.fetch_optional(&mut *transaction).await?;
    transaction.rollback().await?;
    Ok(Ran { rows: rows.into_iter().map(|Json(row)| row).collect(), read_of_live })
}
