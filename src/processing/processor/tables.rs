//! The tables that a processor owns: made at its first start, dropped and made anew by a reset.
//!
//! Nothing is prepared for longer than a statement: behind a transaction pooler it would be left to strangers.

mod altering;
mod carried_over;
mod dependents;
mod foreign;
mod missing;
mod moved;
mod recorded;
mod touched;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

pub(crate) use altering::{Fit, HandledBy, foresee_fit};
pub(crate) use dependents::{
    Dependent, Dropped, ObjectId, Replaced, find_made, forget_planned as forget_planned_dependents,
    list_on as list_dependents_on, list_planned as list_planned_dependents,
};
pub(crate) use foreign::find_foreign_table;
pub(crate) use missing::{describe_missing, find_missing, list_missing};
pub(crate) use moved::{describe_moved, find_moved, list_moved};
pub(crate) use recorded::{fingerprint, note_made, were_made_from_other};

use crate::diagnostic::Diagnostic;
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::postgres::sql_scope::SqlScope;
use crate::postgres::sqlstate::is_no_answer;
use crate::processing::declaration::{CreateTable, ProcessorDeclaration, SourceText, Unsuitable};
use crate::processing::processor::ProcessorError;
use crate::store::upcast::Upcast;

/// One projector's tables in one database.
#[derive(Debug)]
pub(crate) struct Tables<'a> {
    declaration: &'a ProcessorDeclaration,
    schema: String,
    scope: &'a SqlScope,
}

impl<'a> Tables<'a> {
    pub(crate) fn new(declaration: &'a ProcessorDeclaration, schema: &str, scope: &'a SqlScope) -> Self {
        Self { declaration, schema: quote_identifier(schema), scope }
    }

    /// Refuses to run on tables that were made from something else than is declared now, unless the handlers do with them.
    pub(crate) async fn compare(
        &self,
        connection: &mut PgConnection,
        version: i32,
        upcasts: &[Upcast],
        handled_by: HandledBy<'_>,
    ) -> Result<Fit, ProcessorError> {
        let ProcessorDeclaration { name, version: declared, .. } = self.declaration;
        if version != *declared {
            // Who is synchronous is so no more, or its function goes on.
            return Err(match Unsuitable::find(self.declaration, false) {
                Some(unsuitable) => ProcessorError::Blocked(format!(
                    "{name} stands at version {version}, and the declaration is version {declared}, which nobody builds, because {}: {}",
                    unsuitable.because(name),
                    unsuitable.remedy(name, *declared)
                )),
                None => ProcessorError::AwaitsVersion { serves: version, declared: *declared },
            });
        }
        match self.fit(connection, upcasts, handled_by).await? {
            Fit::Other(reason) => Err(ProcessorError::Blocked(self.describe_other(reason.as_deref()))),
            fit => Ok(fit),
        }
    }

    /// What to do about tables that are not as declared and need a replay.
    fn describe_other(&self, reason: Option<&str>) -> String {
        let name = &self.declaration.name;
        let because =
            reason.map_or(String::new(), |reason| format!("; a replay is needed, because {reason}"));
        let is_synchronous = self.declaration.synchronous.is_some();
        let built = match Unsuitable::find(self.declaration, is_synchronous) {
            Some(_) => String::new(),
            None => format!(", or raise `version`, or run `espctl rebuild {name}` as it is"),
        };
        format!(
            "the declared tables of {name} have changed since they were made: take the change back{built}; `espctl reset {name} \
             --in-place` drops and rebuilds them{because}"
        )
    }

    /// Makes the tables, runs the extra DDL and records both in the caller's transaction.
    pub(crate) async fn create(&self, connection: &mut PgConnection) -> Result<(), ProcessorError> {
        let is_unpublished =
            is_only_looked_at(&self.declaration.name) && is_published(&mut *connection).await?;
        self.make(connection, is_unpublished).await
    }

    /// Makes everything in a transaction that the caller rolls back.
    pub(crate) async fn try_out(&self, connection: &mut PgConnection) -> Result<(), ProcessorError> {
        self.make(connection, false).await
    }

    async fn make(&self, connection: &mut PgConnection, is_unpublished: bool) -> Result<(), ProcessorError> {
        self.enter_scope(connection).await?;
        let before = self.list_touched(connection).await?;
        for table in &self.declaration.tables {
            self.refuse_foreign(connection, &table.name).await?;
            let CreateTable { statement, places } = table.create(&self.qualified(&table.name));
            self.define(connection, statement, &places).await?;
            if let Some(comment) = table.comment_on(&self.qualified(&table.name)) {
                sqlx::raw_sql(AssertSqlSafe(comment)).execute(&mut *connection).await?;
            }
        }
        let refers = |ddl: &SourceText| ddl.text.to_lowercase().contains("references");
        // Before the rows of its DDL, unless that makes tables which refer to these: a logged one cannot refer to one that is not.
        if is_unpublished && !self.declaration.ddl.iter().any(refers) {
            self.make_unlogged(connection).await?;
        }
        for ddl in &self.declaration.ddl {
            self.define(connection, ddl.text.clone(), &[(0, ddl)]).await?;
        }
        if is_unpublished {
            self.make_unlogged(connection).await?;
        }
        self.refuse_touched(connection, &before).await?;
        for table in &self.declaration.tables {
            self.record(connection, &table.name).await?;
        }
        let made = dependents::list(connection, &self.schema, &self.declaration.name).await?;
        let made: Vec<String> = made.into_iter().map(|dependent| dependent.item).collect();
        self.record_declaration(connection, Some(&made)).await?;
        self.carry_over_kept(connection, &made).await?;
        self.enter_scope(connection).await
    }

    /// Keeps the rows of tables that go again out of publications of all tables, whose subscribers do not have them. Partitioned
    /// tables have no rows.
    async fn make_unlogged(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- make_unlogged
             do $unlogged$ declare one regclass; was_logged boolean; begin
               loop
                 was_logged := false;
                 -- One after the other: no logged table refers to it any more.
                 for one in select c.oid from pg_catalog.pg_class as c
                            where c.relnamespace = {schema}::regnamespace and c.relkind = 'r' and c.relpersistence = 'p'
                              and not exists (select from pg_catalog.pg_constraint as f
                                join pg_catalog.pg_class as r on r.oid = f.conrelid
                                where f.contype = 'f' and f.confrelid = c.oid and r.oid <> c.oid and r.relpersistence = 'p') loop
                   execute format('alter table %s set unlogged', one);
                   was_logged := true;
                 end loop;
                 exit when not was_logged;
               end loop;
             end $unlogged$",
            schema = quote_literal(&quote_identifier(&self.scope.schema))
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.map(drop)
    }

    /// Drops every table that is recorded as this processor's: see [`drop_tables`].
    pub(crate) async fn drop(&self, connection: &mut PgConnection) -> Result<Dropped, sqlx::Error> {
        drop_tables(connection, &self.schema, &self.declaration.name).await
    }

    /// Lets the author's SQL mean what it means in the schema of the projections, which is made where it is missing.
    async fn enter_scope(&self, connection: &mut PgConnection) -> Result<(), ProcessorError> {
        let schema = quote_identifier(&self.scope.schema);
        let exists: bool = sqlx::query_scalar("-- find_schema\nselect to_regnamespace($1) is not null")
            .persistent(false)
            .bind(&schema)
            .fetch_one(&mut *connection)
            .await?;
        // Asking first: `if not exists` needs the right to create even where nothing is to be created. Asking again
        // under a lock: all projectors of a daemon come here at the same time.
        let create = format!(
            "select pg_advisory_xact_lock(hashtext('espd: create schema'));
             do $$ begin
               if to_regnamespace({name}) is null then create schema {schema}; end if;
             end $$;",
            name = quote_literal(&schema)
        );
        let create = if exists { "" } else { create.as_str() };
        let statement = format!("{create} select {}", self.scope.set_local());
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await?;
        Ok(())
    }

    fn qualified(&self, table: &str) -> String {
        format!("{}.{}", quote_identifier(&self.scope.schema), quote_identifier(table))
    }

    /// Runs one declared statement. If the database refuses it, the author has to fix it.
    async fn define(
        &self,
        connection: &mut PgConnection,
        statement: String,
        places: &[(usize, &SourceText)],
    ) -> Result<(), ProcessorError> {
        match sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(connection).await {
            Ok(_) => Ok(()),
            Err(error) if is_no_answer(&error) => Err(error.into()),
            Err(error) => {
                let mistake = Diagnostic::of_refusal_in(places, &statement, &error);
                Err(ProcessorError::Blocked(mistake.to_string()))
            }
        }
    }
}

/// Runs statements behind a savepoint, so that the transaction goes on if the database refuses them.
async fn run_behind_savepoint(connection: &mut PgConnection, statements: String) -> Result<(), sqlx::Error> {
    let mut savepoint = connection.begin().await?;
    match sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut *savepoint).await {
        Ok(_) => savepoint.commit().await,
        Err(error) => {
            savepoint.rollback().await?;
            Err(error)
        }
    }
}

/// Whether a processor is a version that is built to be looked at, and removed then: nothing of it need survive a crash.
pub(crate) fn is_only_looked_at(name: &str) -> bool {
    ["$dry", "$check", "$part"].iter().any(|suffix| name.ends_with(suffix))
}

/// Whether new tables are published. Only then are those that go again unlogged: where a transaction that makes such a table is rolled
/// back, and the server crashes in the same moment, PostgreSQL 15 does not start any more ("could not create file: File exists").
async fn is_published(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let statement = "select exists (select from pg_catalog.pg_publication as p where p.puballtables)";
    sqlx::query_scalar(statement).persistent(false).fetch_one(connection).await
}

/// Drops every table that is recorded as a processor's, with what depends on it. Returns what that was: what others have
/// made must not go without a word. `schema` is quoted. The caller has set a `lock_timeout`: everybody else who wants a table
/// waits behind the drop.
pub(crate) async fn drop_tables(
    connection: &mut PgConnection,
    schema: &str,
    processor: &str,
) -> Result<Dropped, sqlx::Error> {
    let before = dependents::list(connection, schema, processor).await?;
    let made = dependents::find_made(connection, schema, processor).await?;
    let statement = format!(
        "-- forget_tables
         with forgotten as (delete from {schema}.declarations where processor = $1)
         delete from {schema}.projection_tables where processor = $1 returning table_schema, table_name"
    );
    let owned: Vec<(String, String)> = sqlx::query_as(AssertSqlSafe(statement))
        .persistent(false)
        .bind(processor)
        .fetch_all(&mut *connection)
        .await?;
    for (schema, table) in owned {
        let table = format!("{}.{}", quote_identifier(&schema), quote_identifier(&table));
        sqlx::raw_sql(AssertSqlSafe(format!("-- drop_table\ndrop table if exists {table} cascade")))
            .execute(&mut *connection)
            .await?;
    }
    Ok(Dropped::new(before, made))
}

/// What is on the tables of a processor, and what espd has made of that. `schema` is quoted. The rest of the transaction has an
/// empty search path.
pub(crate) async fn observe(
    connection: &mut PgConnection,
    schema: &str,
    processor: &str,
) -> Result<Dropped, sqlx::Error> {
    observe_with(connection, (schema, processor), &[]).await
}

/// As [`observe`], with what depends on other objects that espd has made.
pub(crate) async fn observe_with(
    connection: &mut PgConnection,
    (schema, processor): (&str, &str),
    made: &[ObjectId],
) -> Result<Dropped, sqlx::Error> {
    let before = dependents::list_with(connection, (schema, processor), made).await?;
    let made = dependents::find_made(connection, schema, processor).await?;
    Ok(Dropped::new(before, made))
}

/// As [`observe_with`], and what is on the tables can be asked for again at little cost in the same transaction.
pub(crate) async fn observe_planned(
    connection: &mut PgConnection,
    (schema, processor): (&str, &str),
    made: &[ObjectId],
) -> Result<Dropped, sqlx::Error> {
    dependents::plan(connection, (schema, processor)).await?;
    let before = dependents::list_planned(connection, made).await?;
    let made = dependents::find_made(connection, schema, processor).await?;
    Ok(Dropped::new(before, made))
}
