//! What is recorded of tables: whose they are, and from what they were made.

use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use super::Tables;
use super::dependents::Dependent;
use crate::postgres::quote::quote_identifier;
use crate::processing::declaration::{ProcessorDeclaration, TableDeclaration};
use crate::processing::processor::ProcessorError;
use crate::store::upcast::Upcast;

impl Tables<'_> {
    /// Records the whole declaration, with the upcasts and what SQL means to it, so that this version can go on where the configuration has others. Of tables that
    /// fit a newer declaration of the version, that one stays recorded.
    pub(crate) async fn note_declared(
        &self,
        connection: &mut PgConnection,
        upcasts: &[Upcast],
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- note_declared
             update {}.declarations set declared = $3
             where processor = $1 and version = $2 and declared is distinct from $3 and fingerprint = $4",
            self.schema
        );
        sqlx::query(AssertSqlSafe(statement))
            .persistent(false)
            .bind(&self.declaration.name)
            .bind(self.declaration.version)
            .bind(sqlx::types::Json(self.declaration.recorded(upcasts, self.scope)))
            .bind(fingerprint(self.declaration))
            .execute(connection)
            .await
            .map(drop)
    }

    /// Records tables that exist already as this projector's, in the caller's transaction.
    pub(crate) async fn adopt(&self, connection: &mut PgConnection) -> Result<(), ProcessorError> {
        for table in &self.declaration.tables {
            self.record(connection, &table.name).await?;
        }
        self.record_declaration(connection, None).await
    }

    pub(super) async fn record(
        &self,
        connection: &mut PgConnection,
        table: &str,
    ) -> Result<(), ProcessorError> {
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

    /// Records from what the tables were made. `made`: what there is on them now; `None`: they were made by others.
    pub(super) async fn record_declaration(
        &self,
        connection: &mut PgConnection,
        made: Option<&[String]>,
    ) -> Result<(), ProcessorError> {
        let statement = format!(
            "-- record_declaration
             insert into {}.declarations (processor, version, fingerprint, made) values ($1, $2, $3, $4)
             on conflict (processor, version) do update
               set fingerprint = excluded.fingerprint, made = excluded.made, altered_from = null",
            self.schema
        );
        sqlx::query(AssertSqlSafe(statement))
            .persistent(false)
            .bind(&self.declaration.name)
            .bind(self.declaration.version)
            .bind(fingerprint(self.declaration))
            .bind(made)
            .execute(connection)
            .await?;
        Ok(())
    }
}

/// Records what is on the tables of a processor `now` as made by espd: it is under its final names.
pub(crate) async fn note_made(
    connection: &mut PgConnection,
    schema: &str,
    processor: &str,
    now: &[Dependent],
) -> Result<(), sqlx::Error> {
    let statement = format!("-- note_made\nupdate {schema}.declarations set made = $2 where processor = $1");
    let made: Vec<&str> = now.iter().map(|dependent| dependent.item.as_str()).collect();
    sqlx::query(AssertSqlSafe(statement))
        .persistent(false)
        .bind(processor)
        .bind(made)
        .execute(connection)
        .await
        .map(drop)
}

/// Whether the tables of a processor exist and were made from another declaration than this one. `schema` is that of the
/// trackers.
pub(crate) async fn were_made_from_other(
    connection: &mut PgConnection,
    schema: &str,
    declaration: &ProcessorDeclaration,
) -> Result<bool, sqlx::Error> {
    let statement = format!(
        "-- read_declaration
         select fingerprint from {}.declarations where processor = $1 and version = $2",
        quote_identifier(schema)
    );
    let made_from: Option<String> = sqlx::query_scalar(AssertSqlSafe(statement))
        .bind(&declaration.name)
        .bind(declaration.version)
        .persistent(false)
        .fetch_optional(connection)
        .await?;
    Ok(made_from.is_some_and(|made_from| made_from != fingerprint(declaration)))
}

/// Returns the fingerprint of everything in the declaration that shapes the tables.
pub(crate) fn fingerprint(declaration: &ProcessorDeclaration) -> String {
    let tables = declaration.tables.iter().map(TableDeclaration::identity);
    let ddl = declaration.ddl.iter().map(|sql| sql.text.clone());
    let text = tables.chain(ddl).collect::<Vec<_>>().join("\u{2}");
    Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes()).simple().to_string()
}
