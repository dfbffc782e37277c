//! The transaction and the schema that a declaration is tried in.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use uuid::Uuid;

use crate::diagnostic::Diagnostic;
use crate::postgres::quote::quote_identifier;
use crate::postgres::sqlstate::is_infrastructure_error;
use crate::processing::declaration::{ProcessorDeclaration, SourceText};

/// A transaction that is rolled back, with a schema of its own for the tables of one declaration.
///
/// The processor's own tables are neither touched nor locked. The type `espd_event` in the schema has the columns of an
/// event.
pub(crate) struct Scratch<'c> {
    transaction: sqlx::Transaction<'c, sqlx::Postgres>,
    /// The name of the schema, which needs no quotes.
    pub(crate) schema: String,
}

impl<'c> Scratch<'c> {
    /// Begins the transaction and creates the schema, which hides that of the projections.
    pub(crate) async fn open(
        connection: &'c mut PgConnection,
        projections_schema: &str,
    ) -> Result<Self, sqlx::Error> {
        let schema = format!("espd_check_{}", Uuid::new_v4().simple());
        let mut transaction = connection.begin().await?;
        let statement = format!(
            "-- open_scratch
             create schema {schema};
             set local search_path = {schema}, {}, public;
             set local lock_timeout = '5s';
             set local statement_timeout = '30s';
             create table {schema}.espd_event (
               id bigint, uuid uuid, aggregate_id uuid, type text, version bigint, body jsonb, metadata jsonb,
               correlation_id uuid, causation_id uuid, created_at timestamptz
             )",
            quote_identifier(projections_schema)
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *transaction).await?;
        Ok(Self { transaction, schema })
    }

    /// Rolls everything back.
    pub(crate) async fn close(self) -> Result<(), sqlx::Error> {
        self.transaction.rollback().await
    }

    /// The connection, inside the transaction.
    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }

    /// Creates the declared tables and runs the declared DDL; returns what the database refuses.
    pub(crate) async fn check_tables(
        &mut self,
        declaration: &ProcessorDeclaration,
    ) -> Result<Vec<Diagnostic>, sqlx::Error> {
        let mut found = Vec::new();
        for table in &declaration.tables {
            let head = format!("create table {}.{} (\n", self.schema, quote_identifier(&table.name));
            let statement = format!("{head}{}\n)", table.columns.text);
            found.extend(self.attempt_source(&table.columns, head.len(), &statement).await?);
        }
        // The DDL needs the tables.
        let ddl = if found.is_empty() { declaration.ddl.as_slice() } else { &[] };
        for statement in ddl {
            found.extend(self.attempt_source(statement, 0, &statement.text).await?);
        }
        Ok(found)
    }

    /// Runs a statement that holds `source` verbatim from byte `lead` on.
    async fn attempt_source(
        &mut self,
        source: &SourceText,
        lead: usize,
        statement: &str,
    ) -> Result<Option<Diagnostic>, sqlx::Error> {
        let refusal = self.attempt(statement).await?;
        Ok(refusal.map(|error| Diagnostic::of_refusal(source, lead, statement, &error)))
    }

    /// Runs a statement behind a savepoint, and returns the error with which the database refuses it.
    ///
    /// Fails if the database could not be asked.
    pub(crate) async fn attempt(&mut self, statement: &str) -> Result<Option<sqlx::Error>, sqlx::Error> {
        let mut savepoint = self.transaction.begin().await?;
        let outcome = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut *savepoint).await;
        match outcome {
            Ok(_) => savepoint.commit().await.map(|()| None),
            Err(error) if is_infrastructure_error(&error) => Err(error),
            Err(error) => savepoint.rollback().await.map(|()| Some(error)),
        }
    }
}
