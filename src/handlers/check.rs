//! Finds an author's mistakes before they are deployed, whatever handles the events.

use sqlx::PgConnection;

use crate::diagnostic::Diagnostic;
use crate::handlers::batch::RowTables;
use crate::handlers::scratch::Scratch;
use crate::handlers::{program, sql};
use crate::postgres::sql_scope::SqlScope;
use crate::processing::declaration::{Handling, ProcessorDeclaration, ProgramDeclaration};

/// All mistakes that can be found in these declarations without handling an event of the store.
///
/// Everything happens in transactions that are rolled back, so nothing stays in the database.
///
/// # Errors
/// The database cannot be asked.
pub async fn check(
    connection: &mut PgConnection,
    declarations: &[ProcessorDeclaration],
    scope: impl Into<SqlScope>,
) -> Result<Vec<Diagnostic>, sqlx::Error> {
    let scope = scope.into();
    let mut found = Vec::new();
    for declaration in declarations {
        found.extend(sql::find_foreign_tables(declaration, declarations));
        let mut scratch = Scratch::open(connection, &scope).await?;
        found.extend(check_one(&mut scratch, declaration).await?);
        scratch.close().await?;
    }
    Ok(found)
}

/// The mistakes in the tables of a declaration; if there are none, those in what handles its events.
async fn check_one(
    scratch: &mut Scratch<'_>,
    declaration: &ProcessorDeclaration,
) -> Result<Vec<Diagnostic>, sqlx::Error> {
    let found = scratch.check_tables(declaration).await?;
    if !found.is_empty() {
        return Ok(found);
    }
    match &declaration.handling {
        Handling::Sql(_) => sql::check(scratch, declaration).await,
        Handling::Program(program) => check_program(scratch, declaration, program).await,
        // Only a Rust program knows its handlers, and a receiver is asked by `espctl webhook-test`.
        Handling::Native(_) | Handling::Webhook(_) => Ok(Vec::new()),
    }
}

async fn check_program(
    scratch: &mut Scratch<'_>,
    declaration: &ProcessorDeclaration,
    program: &ProgramDeclaration,
) -> Result<Vec<Diagnostic>, sqlx::Error> {
    let schema = scratch.schema.clone();
    let tables = RowTables::read(scratch.connection(), &schema, &declaration.table_names()).await?;
    Ok(program::check(declaration, program, &tables).await)
}
