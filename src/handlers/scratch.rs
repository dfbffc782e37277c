//! The transaction and the schema that a declaration is tried in.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use uuid::Uuid;

use crate::diagnostic::Diagnostic;
use crate::handlers::others_tables::OthersTables;
use crate::postgres::quote::quote_identifier;
use crate::postgres::server_mark;
use crate::postgres::sql_scope::SqlScope;
use crate::postgres::sqlstate::{describe, is_no_answer};
use crate::processing::alteration::constant_columns;
use crate::processing::declaration::{CreateTable, ProcessorDeclaration};

/// A transaction that is rolled back, with a schema of its own for the tables of one declaration.
///
/// The processor's own tables are neither touched nor locked. The type [`EVENT_TABLE`] in the schema has the columns of an
/// event.
pub(crate) struct Scratch<'c> {
    transaction: sqlx::Transaction<'c, sqlx::Postgres>,
    /// The name of the schema, which needs no quotes.
    pub(crate) schema: String,
    /// What SQL means in the scratch schema.
    pub(crate) scope: SqlScope,
    /// How many functions were named.
    functions: u32,
}

/// The quoted name of the type and table with the columns of an event. No declared table has such a name.
pub(crate) const EVENT_TABLE: &str = "\"Event of espd\"";

/// The schema of scratch objects of roles that may not create schemas, as `migrations/roles.sql` makes it.
const SHARED_SCHEMA: &str = "espd_check";

/// Chooses the schema to work in. Returns its name and the statement after which it can be used: it creates one, or waits
/// until no one else works in the shared one.
async fn choose_schema(connection: &mut PgConnection) -> Result<(String, String), sqlx::Error> {
    let statement = format!(
        "-- find_scratch_schema
         select not has_database_privilege(current_database(), 'create')
            and coalesce(has_schema_privilege(to_regnamespace('{SHARED_SCHEMA}')::oid, 'create'), false)"
    );
    let is_shared: bool =
        sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).fetch_one(connection).await?;
    if is_shared {
        let wait = format!("select pg_advisory_xact_lock(hashtext('espd: {SHARED_SCHEMA}'))");
        return Ok((SHARED_SCHEMA.to_owned(), wait));
    }
    let schema = format!("espd_check_{}", Uuid::new_v4().simple());
    let create = format!("create schema {schema}");
    Ok((schema, create))
}

impl<'c> Scratch<'c> {
    /// Begins the transaction and creates the schema, which hides that of the projections. SQL means what it means in the
    /// `scope` of the projections.
    pub(crate) async fn open(
        connection: &'c mut PgConnection,
        scope: &SqlScope,
    ) -> Result<Self, sqlx::Error> {
        let mut transaction = connection.begin_with(server_mark::begin(None)).await?;
        let (schema, make) = choose_schema(&mut transaction).await?;
        let scope = scope.beside(&schema);
        let statement = format!(
            "-- open_scratch
             {make};
             select {meaning};
             set local lock_timeout = '5s';
             set local statement_timeout = '30s';
             create table {schema}.{EVENT_TABLE} (
               id bigint, uuid uuid, aggregate_id uuid, type text, version bigint, body jsonb, metadata jsonb,
               correlation_id uuid, causation_id uuid, created_at timestamptz
             )",
            meaning = scope.set_local()
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *transaction).await?;
        Ok(Self { transaction, schema, scope, functions: 0 })
    }

    /// Rolls everything back.
    pub(crate) async fn close(self) -> Result<(), sqlx::Error> {
        self.transaction.rollback().await
    }

    /// The connection, inside the transaction.
    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }

    /// Creates the tables that a declaration reads and others of `all` own, as they are declared, because they need not exist
    /// yet. One that is wrong is a mistake of its owner.
    pub(crate) async fn create_read_tables(
        &mut self,
        declaration: &ProcessorDeclaration,
        all: &[ProcessorDeclaration],
    ) -> Result<(), sqlx::Error> {
        let tables =
            all.iter().filter(|other| other.name != declaration.name).flat_map(|other| &other.tables);
        for table in tables.filter(|table| declaration.reads(&table.name)) {
            let name = format!("{}.{}", self.schema, quote_identifier(&table.name));
            self.attempt(&table.create(&name).statement).await?;
        }
        Ok(())
    }

    /// Creates the declared tables and runs the declared DDL; returns what the database refuses, and what changes tables of `others`,
    /// or espd's own.
    pub(crate) async fn check_tables(
        &mut self,
        declaration: &ProcessorDeclaration,
        others: &[ProcessorDeclaration],
    ) -> Result<Vec<Diagnostic>, sqlx::Error> {
        let mut found = Vec::new();
        for table in &declaration.tables {
            let name = format!("{}.{}", self.schema, quote_identifier(&table.name));
            let CreateTable { statement, places } = table.create(&name);
            let refusal = self.attempt(&statement).await?;
            found.extend(refusal.map(|error| Diagnostic::of_refusal_in(&places, &statement, &error)));
        }
        // The DDL needs the tables.
        let ddl = if found.is_empty() { declaration.ddl.as_slice() } else { &[] };
        if ddl.is_empty() {
            return Ok(found);
        }
        let schemas = [self.schema.as_str(), self.scope.search_path.first().map_or("public", String::as_str)];
        let mut of_others = OthersTables::look(&mut self.transaction, &schemas, declaration, others).await?;
        for statement in ddl {
            let refusal = self.attempt(&statement.text).await?;
            found.extend(refusal.map(|error| Diagnostic::of_refusal(statement, 0, &statement.text, &error)));
            found.extend(of_others.find_changed(&mut self.transaction, statement).await?);
        }
        Ok(found)
    }

    /// Warns of constant defaults that their columns do not take: each row that is written without such a column is refused, and so
    /// is the column where it is added to a table that is there.
    pub(crate) async fn try_defaults(
        &mut self,
        declaration: &ProcessorDeclaration,
    ) -> Result<Vec<Diagnostic>, sqlx::Error> {
        let mut found = Vec::new();
        for table in &declaration.tables {
            for column in constant_columns(table) {
                let trial = format!("{}.\"Default of espd\"", self.schema);
                // On a line of its own: a comment may end it.
                let statement = format!(
                    "create table {trial} ({}\n); insert into {trial} default values; drop table {trial}",
                    column.definition
                );
                if let Some(error) = self.attempt(&statement).await? {
                    let message = format!(
                        "column {} of {} does not take its own default: {}",
                        column.column,
                        column.table,
                        describe(&error)
                    );
                    let offset = table.columns.text.find(&column.definition).unwrap_or(0);
                    found.push(Diagnostic::in_source(&table.columns, offset, message).into_warning());
                }
            }
        }
        Ok(found)
    }

    /// A name for a function in the scratch schema, with the schema. Each function has a name of its own: to replace one over and over in a
    /// transaction takes longer each time.
    pub(crate) fn name_function(&mut self) -> String {
        self.functions += 1;
        format!("{}.espd_tried_{}", self.schema, self.functions)
    }

    /// Runs a statement behind a savepoint, and returns the error with which the database refuses it.
    ///
    /// Fails if the database could not be asked.
    pub(crate) async fn attempt(&mut self, statement: &str) -> Result<Option<sqlx::Error>, sqlx::Error> {
        let mut savepoint = self.transaction.begin().await?;
        let outcome = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut *savepoint).await;
        match outcome {
            Ok(_) => savepoint.commit().await.map(|()| None),
            Err(error) if is_no_answer(&error) => Err(error),
            Err(error) => savepoint.rollback().await.map(|()| Some(error)),
        }
    }
}
