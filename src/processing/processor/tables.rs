//! The tables that a processor owns: made at its first start, dropped and made anew by a reset.
//!
//! Nothing is prepared for longer than a statement: behind a transaction pooler it would be left to strangers.

use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::diagnostic::Diagnostic;
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::postgres::sql_scope::SqlScope;
use crate::postgres::sqlstate::{is_infrastructure_error, lacks_right};
use crate::processing::declaration::{CreateTable, ProcessorDeclaration, SourceText, TableDeclaration};
use crate::processing::processor::ProcessorError;

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

    /// Refuses to run on tables that were made from something else than is declared now.
    pub(crate) fn compare(&self, version: i32, made_from: &str) -> Result<(), ProcessorError> {
        let ProcessorDeclaration { name, version: declared, .. } = self.declaration;
        if version != *declared {
            return Err(ProcessorError::Blocked(format!(
                "the tables of {name} are version {version}, the declaration is version {declared}: \
                 `espctl reset {name}` drops and rebuilds them"
            )));
        }
        if made_from != fingerprint(self.declaration) {
            return Err(ProcessorError::Blocked(format!(
                "the declared tables of {name} have changed since they were made: take the change back, or \
                 `espctl reset {name}` drops and rebuilds them"
            )));
        }
        Ok(())
    }

    /// Makes the tables, runs the extra DDL and records both in the caller's transaction.
    pub(crate) async fn create(&self, connection: &mut PgConnection) -> Result<(), ProcessorError> {
        self.enter_scope(connection).await?;
        for table in &self.declaration.tables {
            self.refuse_foreign(connection, &table.name).await?;
            let CreateTable { statement, places } = table.create(&self.qualified(&table.name));
            self.define(connection, statement, &places).await?;
            if let Some(comment) = table.comment_on(&self.qualified(&table.name)) {
                sqlx::raw_sql(AssertSqlSafe(comment)).execute(&mut *connection).await?;
            }
            self.record(connection, &table.name).await?;
        }
        for ddl in &self.declaration.ddl {
            self.define(connection, ddl.text.clone(), &[(0, ddl)]).await?;
        }
        self.record_declaration(connection).await
    }

    /// Records tables that exist already as this projector's, in the caller's transaction.
    pub(crate) async fn adopt(&self, connection: &mut PgConnection) -> Result<(), ProcessorError> {
        for table in &self.declaration.tables {
            self.record(connection, &table.name).await?;
        }
        self.record_declaration(connection).await
    }

    /// Drops every table that is recorded as this projector's, with what depends on it.
    pub(crate) async fn drop(&self, connection: &mut PgConnection) -> Result<(), ProcessorError> {
        let statement = format!(
            "-- forget_tables
             with forgotten as (delete from {schema}.declarations where processor = $1)
             delete from {schema}.projection_tables where processor = $1 returning table_schema, table_name",
            schema = self.schema
        );
        let owned: Vec<(String, String)> = sqlx::query_as(AssertSqlSafe(statement))
            .persistent(false)
            .bind(&self.declaration.name)
            .fetch_all(&mut *connection)
            .await?;
        // Somebody who reads for long would make everybody else queue behind the drop.
        sqlx::raw_sql("set local lock_timeout = '5s'").execute(&mut *connection).await?;
        for (schema, table) in owned {
            let table = format!("{}.{}", quote_identifier(&schema), quote_identifier(&table));
            sqlx::raw_sql(AssertSqlSafe(format!("drop table if exists {table} cascade")))
                .execute(&mut *connection)
                .await?;
        }
        Ok(())
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

    /// A table that somebody else made must never be dropped by a reset, so it is not taken over either.
    async fn refuse_foreign(&self, connection: &mut PgConnection, table: &str) -> Result<(), ProcessorError> {
        let exists: bool = sqlx::query_scalar("-- find_table\nselect to_regclass($1) is not null")
            .persistent(false)
            .bind(self.qualified(table))
            .fetch_one(connection)
            .await?;
        if !exists {
            return Ok(());
        }
        Err(ProcessorError::Blocked(format!(
            "table {}.{table} exists already and was not made by projector {}: drop or rename it, or declare another name",
            self.scope.schema, self.declaration.name
        )))
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
            Err(error) if is_infrastructure_error(&error) && !lacks_right(&error) => Err(error.into()),
            Err(error) => {
                let mistake = Diagnostic::of_refusal_in(places, &statement, &error);
                Err(ProcessorError::Blocked(mistake.to_string()))
            }
        }
    }

    async fn record(&self, connection: &mut PgConnection, table: &str) -> Result<(), ProcessorError> {
        let statement = format!(
            "-- record_table
             insert into {}.projection_tables (table_schema, table_name, processor, version) values ($1, $2, $3, $4)
             on conflict (table_schema, table_name) do update
               set processor = excluded.processor, version = excluded.version",
            self.schema
        );
        sqlx::query(AssertSqlSafe(statement))
            .persistent(false)
            .bind(&self.scope.schema)
            .bind(table)
            .bind(&self.declaration.name)
            .bind(self.declaration.version)
            .execute(connection)
            .await?;
        Ok(())
    }

    async fn record_declaration(&self, connection: &mut PgConnection) -> Result<(), ProcessorError> {
        let statement = format!(
            "-- record_declaration
             insert into {}.declarations (processor, version, fingerprint) values ($1, $2, $3)
             on conflict (processor, version) do update set fingerprint = excluded.fingerprint",
            self.schema
        );
        sqlx::query(AssertSqlSafe(statement))
            .persistent(false)
            .bind(&self.declaration.name)
            .bind(self.declaration.version)
            .bind(fingerprint(self.declaration))
            .execute(connection)
            .await?;
        Ok(())
    }
}

/// Returns the fingerprint of everything in the declaration that shapes the tables.
fn fingerprint(declaration: &ProcessorDeclaration) -> String {
    let tables = declaration.tables.iter().map(TableDeclaration::identity);
    let ddl = declaration.ddl.iter().map(|sql| sql.text.clone());
    let text = tables.chain(ddl).collect::<Vec<_>>().join("\u{2}");
    Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes()).simple().to_string()
}
