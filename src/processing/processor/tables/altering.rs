//! Tables that were made from another declaration than the present one: altered where that needs no replay.

use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::{Tables, dependents, fingerprint, run_behind_savepoint};
use crate::event::Position;
use crate::postgres::quote::quote_literal;
use crate::postgres::row::from_row;
use crate::postgres::server_mark;
use crate::postgres::sql_scope::SqlScope;
use crate::postgres::sqlstate::{describe, is_lock_timeout, is_missing_right, is_no_answer};
use crate::processing::alteration::{self, AddedColumn, Alteration};
use crate::processing::declaration::{Handling, ProcessorDeclaration};
use crate::store::upcast::Upcast;

/// How long an attempt waits for a table: whoever wants to read or write it meanwhile waits as well.
const LIMIT_WAIT_FOR_TABLES: &str = "-- limit_wait_for_tables\nset local lock_timeout = '100ms'";

/// How the tables of a processor fit its declaration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fit {
    /// They were made from it, or there are none.
    AsDeclared,
    /// They have to be altered, which needs no replay. Until then the handlers do with them as they are.
    ToBeAltered(Alteration),
    /// They would have to be altered, and the database refuses it, as a copy without rows has shown.
    Refused {
        /// What would have to be done.
        alteration: Alteration,
        /// What the database says about it.
        error: String,
    },
    /// A newer declaration of the same version has altered them, in this way. The handlers do with them, and they stay so.
    AlteredSince(Alteration),
    /// A replay is needed, for this reason if it is known.
    Other(Option<String>),
}

/// The handlers that have handled the events of a processor, as its tracker says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HandledBy<'h> {
    pub(crate) fingerprint: Option<&'h str>,
    pub(crate) position: Position,
}

/// From what the tables were made.
#[derive(Debug)]
struct Made {
    fingerprint: String,
    declared: Option<Json<serde_json::Value>>,
    altered_from: Option<Vec<String>>,
}

from_row!(Made { fingerprint, declared, altered_from });

impl Tables<'_> {
    /// How the tables fit the declaration. Leaves the search path of the transaction as SQL of the declaration needs it.
    pub(crate) async fn fit(
        &self,
        connection: &mut PgConnection,
        upcasts: &[Upcast],
        handled_by: HandledBy<'_>,
    ) -> Result<Fit, sqlx::Error> {
        let Some(made) = self.read_made(connection, "").await? else { return Ok(Fit::AsDeclared) };
        self.fit_made(connection, &made, upcasts, handled_by).await
    }

    async fn fit_made(
        &self,
        connection: &mut PgConnection,
        made: &Made,
        upcasts: &[Upcast],
        handled_by: HandledBy<'_>,
    ) -> Result<Fit, sqlx::Error> {
        let present = fingerprint(self.declaration);
        if made.fingerprint == present {
            return Ok(Fit::AsDeclared);
        }
        // Versions beside the one that serves are built anew.
        let is_beside = self.declaration.name.contains('$');
        if is_beside || !matches!(self.declaration.handling, Handling::Sql(_)) {
            return Ok(Fit::Other(None));
        }
        let declared =
            made.declared.as_ref().and_then(|Json(value)| serde_json::from_value(value.clone()).ok());
        let former = declared.filter(|former| fingerprint(former) == made.fingerprint);
        let Some(former): Option<ProcessorDeclaration> = former else {
            return Ok(Fit::Other(Some("it is not recorded what they were made from".to_owned())));
        };
        let is_older = made.altered_from.as_ref().is_some_and(|from| from.contains(&present));
        let alteration = if is_older {
            alteration::compare(self.declaration, &former, self.declaration)
        } else if self.has_other_handlers(upcasts, handled_by) {
            Err("the handlers have changed as well".to_owned())
        } else {
            alteration::compare(&former, self.declaration, self.declaration)
        };
        let alteration = match alteration {
            Ok(alteration) => alteration,
            Err(reason) => return Ok(Fit::Other(Some(reason))),
        };
        Ok(match self.find_obstacle(connection, &alteration, is_older).await? {
            Some(reason) => Fit::Other(Some(reason)),
            None if is_older => Fit::AlteredSince(alteration),
            None => Fit::ToBeAltered(alteration),
        })
    }

    fn has_other_handlers(&self, upcasts: &[Upcast], handled_by: HandledBy<'_>) -> bool {
        let present = self.declaration.handler_fingerprint(upcasts);
        handled_by.position > Position::START
            && (present.is_none() || present.as_deref() != handled_by.fingerprint)
    }

    /// Reads from what the tables were made; `None`: there are none. `lock` is what stands behind the query.
    async fn read_made(
        &self,
        connection: &mut PgConnection,
        lock: &str,
    ) -> Result<Option<Made>, sqlx::Error> {
        let statement = format!(
            "-- read_made
             select fingerprint, declared, altered_from from {}.declarations
             where processor = $1 and version = $2 {lock}",
            self.schema
        );
        sqlx::query_as(AssertSqlSafe(statement))
            .persistent(false)
            .bind(&self.declaration.name)
            .bind(self.declaration.version)
            .fetch_optional(connection)
            .await
    }

    /// What only the database knows and a replay might bring to light. `is_done`: the tables have been altered already.
    async fn find_obstacle(
        &self,
        connection: &mut PgConnection,
        alteration: &Alteration,
        is_done: bool,
    ) -> Result<Option<String>, sqlx::Error> {
        let scope = format!("-- enter_scope\nselect {}", self.scope.set_local());
        sqlx::raw_sql(AssertSqlSafe(scope)).execute(&mut *connection).await?;
        let columns: &[_] = if is_done { &[] } else { &alteration.columns };
        let indexes = alteration.made.iter().filter(|index| !is_done && !index.may_exist);
        let strings = |all: Vec<&str>| all.into_iter().map(str::to_owned).collect::<Vec<String>>();
        let handlers = self.declaration.handlers().iter();
        let widened = strings(alteration.widened().into_iter().collect());
        let altered = alteration.made.iter().chain(&alteration.dropped).map(|index| index.table.clone());
        let mut altered: Vec<String> = altered.chain(widened.iter().cloned()).collect();
        altered.sort();
        altered.dedup();
        let statement = include_str!("obstacles.sql").replace("{schema}", &self.schema.replace('\'', "''"));
        sqlx::query_scalar(AssertSqlSafe(statement))
            .persistent(false)
            .bind(&self.scope.schema)
            .bind(widened)
            .bind(strings(columns.iter().map(|column| column.table.as_str()).collect()))
            .bind(strings(columns.iter().map(|column| column.column.as_str()).collect()))
            .bind(strings(columns.iter().map(|column| column.data_type.as_str()).collect()))
            .bind(alteration::called_names(self.declaration).into_iter().collect::<Vec<_>>())
            .bind(alteration::names(self.declaration).into_iter().collect::<Vec<_>>())
            .bind(handlers.map(|handler| handler.sql.text.clone()).collect::<Vec<_>>())
            .bind(altered)
            .bind(indexes.map(|index| index.name.clone()).collect::<Vec<_>>())
            .fetch_optional(connection)
            .await
    }

    /// Alters the tables in the caller's transaction, which has locked the tracker, as far as one transaction should. `None`: there
    /// is nothing to alter. What was done is told; the caller prepares anew, and finds out whether there is more.
    ///
    /// # Errors
    /// 55P03 if others use the tables: the caller may try again later.
    pub(crate) async fn alter(
        &self,
        connection: &mut PgConnection,
        upcasts: &[Upcast],
        handled_by: HandledBy<'_>,
    ) -> Result<Option<Alteration>, sqlx::Error> {
        sqlx::raw_sql(LIMIT_WAIT_FOR_TABLES).execute(&mut *connection).await?;
        let Some(made) = self.read_made(connection, "for update").await? else { return Ok(None) };
        let fit = self.fit_made(connection, &made, upcasts, handled_by).await?;
        let Fit::ToBeAltered(alteration) = fit else { return Ok(None) };
        let (step, declared) = alteration.first_step(self.declaration);
        let before = dependents::list(connection, &self.schema, &self.declaration.name).await?;
        let statement =
            format!("-- alter_tables\nselect {};\n{}", self.scope.set_local(), self.statements(&step));
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *connection).await?;
        let after = dependents::list(connection, &self.schema, &self.declaration.name).await?;
        let beyond = |these: &[dependents::Dependent], those: &[dependents::Dependent]| {
            let is_beyond = |one: &&dependents::Dependent| !those.iter().any(|other| other.item == one.item);
            these.iter().filter(is_beyond).map(|one| one.item.clone()).collect::<Vec<_>>()
        };
        let (gone, new) = (beyond(&before, &after), beyond(&after, &before));
        let made: Vec<&str> = step.made.iter().map(|index| index.name.as_str()).collect();
        self.record_alteration(connection, &declared, &gone, &new, &made).await?;
        Ok(Some(step))
    }

    /// Tries the columns on copies of the tables that have no rows, in the caller's transaction, which is rolled back: nobody who reads
    /// or writes the tables waits for it. Returns what the database refuses; `None` also where it could not be tried.
    async fn try_on_copies(
        &self,
        connection: &mut PgConnection,
        alteration: &Alteration,
    ) -> Result<Option<String>, sqlx::Error> {
        const COPY: &str = "pg_temp.\"Copy of espd\"";
        for table in alteration.widened() {
            let copy = format!(
                "-- copy_table
                 set local lock_timeout = '1s'; set local client_min_messages = warning; drop table if exists {COPY};
                 create temporary table \"Copy of espd\" (like {})",
                self.qualified(table)
            );
            match run_behind_savepoint(connection, copy).await {
                Ok(()) => {}
                // On a standby, without a right, or while somebody has the table for himself.
                Err(error) if is_untried(&error) => continue,
                Err(error) => return Err(error),
            }
            let columns = added(&alteration.columns, table);
            match run_behind_savepoint(connection, format!("-- try_columns\nalter table {COPY} {columns}"))
                .await
            {
                Ok(()) => {}
                Err(error) if is_no_answer(&error) => return Err(error),
                Err(error) => return Ok(Some(describe(&error))),
            }
        }
        Ok(None)
    }

    /// What alters the tables, one statement for each table and index.
    fn statements(&self, step: &Alteration) -> String {
        let mut statements = Vec::new();
        for table in step.widened() {
            statements.push(format!("alter table {} {}", self.qualified(table), added(&step.columns, table)));
        }
        let dropped = step.dropped.iter();
        statements
            .extend(dropped.map(|index| format!("drop index if exists {}\n", self.qualified(&index.name))));
        statements.extend(step.made.iter().map(|index| format!("{}\n", index.statement)));
        statements.join(";\n")
    }

    /// Records what the tables are declared as now, and what has come and gone on them. Declared `indexes` count as made by espd also
    /// if somebody has made them before.
    async fn record_alteration(
        &self,
        connection: &mut PgConnection,
        declared: &ProcessorDeclaration,
        gone: &[String],
        new: &[String],
        indexes: &[&str],
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- record_alteration
             update {}.declarations
             set fingerprint = $3, declared = $4,
                 altered_from = array_append(array_remove(array_remove(coalesce(altered_from, '{{}}'), fingerprint), $3), fingerprint),
                 made = case when made is not null then array(
                   select distinct item
                   from unnest(made || $6::text[]
                     || array(select format('index %I.%I', $7, i.name) from unnest($8::text[]) as i (name))) as m (item)
                   where item <> all ($5::text[])) end
             where processor = $1 and version = $2",
            self.schema
        );
        sqlx::query(AssertSqlSafe(statement))
            .persistent(false)
            .bind(&self.declaration.name)
            .bind(self.declaration.version)
            .bind(fingerprint(declared))
            .bind(Json(declared))
            .bind(gone)
            .bind(new)
            .bind(&self.scope.schema)
            .bind(indexes)
            .execute(connection)
            .await
            .map(drop)
    }

    /// Who has a lock on one of the tables, as people read it; empty if nobody has.
    pub(crate) async fn find_holders(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Vec<String>, sqlx::Error> {
        let statement = format!(
            "-- find_holders
             select distinct format('pid %s%s', l.pid, ' (' || nullif(a.application_name, '') || ')')
             from {schema}.projection_tables as p
               join pg_locks as l on l.relation = to_regclass(format('%I.%I', p.table_schema, p.table_name))
                 and l.granted and l.pid <> pg_backend_pid()
                 and l.database = (select oid from pg_database where datname = current_database())
               left join pg_stat_activity as a on a.pid = l.pid
             where p.processor = {processor} limit 5",
            schema = self.schema,
            processor = quote_literal(&self.declaration.name)
        );
        sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).fetch_all(connection).await
    }
}

/// What an `alter table` of this table says about its columns.
fn added(columns: &[AddedColumn], table: &str) -> String {
    let columns = columns.iter().filter(|column| column.table == table);
    // On a line of its own: a comment may end it.
    let columns = columns.map(|column| format!("add column {}\n", column.definition));
    columns.collect::<Vec<_>>().join(", ")
}

/// Whether an error says that no copy can be made here and now, and nothing of what would be tried on it.
fn is_untried(error: &sqlx::Error) -> bool {
    const READ_ONLY: &str = "25006";
    let code = error.as_database_error().and_then(|answer| answer.code());
    code.as_deref() == Some(READ_ONLY) || is_missing_right(error) || is_lock_timeout(error)
}

/// How the tables that a processor has fit a declaration of it. What would be altered is tried. `schema` is that of the trackers.
pub(crate) async fn foresee_fit(
    connection: &mut PgConnection,
    schema: &str,
    scope: &SqlScope,
    declaration: &ProcessorDeclaration,
    upcasts: &[Upcast],
    handled_by: HandledBy<'_>,
) -> Result<Fit, sqlx::Error> {
    let mut transaction = connection.begin_with(server_mark::begin(None)).await?;
    let tables = Tables::new(declaration, schema, scope);
    let fit = match tables.fit(&mut transaction, upcasts, handled_by).await? {
        Fit::ToBeAltered(alteration) => match tables.try_on_copies(&mut transaction, &alteration).await? {
            Some(error) => Fit::Refused { alteration, error },
            None => Fit::ToBeAltered(alteration),
        },
        fit => fit,
    };
    transaction.rollback().await?;
    Ok(fit)
}
