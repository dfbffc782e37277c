//! Tables that others have made: none is ever taken over, because a reset would drop it.

use sqlx::{AssertSqlSafe, PgConnection};

use super::Tables;
use crate::postgres::quote::quote_identifier;
use crate::postgres::sql_scope::SqlScope;
use crate::processing::declaration::ProcessorDeclaration;
use crate::processing::processor::ProcessorError;

impl Tables<'_> {
    /// A table that somebody else made must never be dropped by a reset, so it is not taken over either.
    pub(super) async fn refuse_foreign(
        &self,
        connection: &mut PgConnection,
        table: &str,
    ) -> Result<(), ProcessorError> {
        self.find_foreign(connection, table)
            .await?
            .map_or(Ok(()), |reason| Err(ProcessorError::Blocked(reason)))
    }

    /// Why a table is none that the processor may make; `None`: it may.
    pub(super) async fn find_foreign(
        &self,
        connection: &mut PgConnection,
        table: &str,
    ) -> Result<Option<String>, sqlx::Error> {
        let statement = format!(
            "-- find_table
             select to_regclass($1) is not null, p.processor,
               exists (select from {0}.projection_tables as k where starts_with(k.processor, p.processor || '$'))
             from (values (1)) as one left join {0}.projection_tables as p on p.table_schema = $2 and p.table_name = $3",
            self.schema
        );
        let query = sqlx::query_as(AssertSqlSafe(statement)).persistent(false).bind(self.qualified(table));
        let found: (bool, Option<String>, bool) =
            query.bind(&self.scope.schema).bind(table).fetch_one(connection).await?;
        let (schema, name) = (&self.scope.schema, &self.declaration.name);
        Ok(Some(match found {
            (false, ..) => return Ok(None),
            (true, Some(maker), keeps_versions) if maker != *name => {
                describe_maker(&format!("{schema}.{table}"), &maker, name, keeps_versions)
            }
            (true, ..) => format!(
                "table {schema}.{table} exists already and was not made by projector {name}: drop or rename it, or declare another name; \
                 one that a processor of EventSourcery has filled is taken over by `espctl import-positions`"
            ),
        }))
    }
}

/// Whose a table is, and how the processor `name` may get it.
fn describe_maker(table: &str, maker: &str, name: &str, keeps_versions: bool) -> String {
    let before = if keeps_versions {
        format!("`espctl rebuild drop {maker}` drops its former versions, and then ")
    } else {
        String::new()
    };
    format!(
        "table {table} belongs to {maker}: if that is the former name of {name}, {before}`espctl rename {maker} {name}` hands it over with \
         its position; if nobody needs {maker} any more, `espctl drop {maker}` removes it; otherwise declare another name"
    )
}

/// Why a table of a declaration cannot be made, because it is not the processor's; `None`: it is, or it is not there. `schema` is that of
/// the trackers.
pub(crate) async fn find_foreign_table(
    connection: &mut PgConnection,
    schema: &str,
    scope: &SqlScope,
    declaration: &ProcessorDeclaration,
) -> Result<Option<String>, sqlx::Error> {
    let tables = Tables::new(declaration, schema, scope);
    let statement = format!(
        "-- list_own_tables
         select table_name from {}.projection_tables where processor = $1 and table_schema = $2",
        quote_identifier(schema)
    );
    let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
    let own: Vec<String> =
        query.bind(&declaration.name).bind(&scope.schema).fetch_all(&mut *connection).await?;
    for table in declaration.table_names().iter().filter(|table| !own.contains(table)) {
        if let Some(reason) = tables.find_foreign(&mut *connection, table).await? {
            return Ok(Some(reason));
        }
    }
    Ok(None)
}
