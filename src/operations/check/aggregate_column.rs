//! Finds tables that lack the column which `aggregate_column` names. Where it stands in the declaration, the configuration is refused
//! already; what a table takes from others, or from `ddl`, only the database knows.

use sqlx::PgConnection;

use crate::diagnostic::Diagnostic;
use crate::handlers;
use crate::postgres::quote::quote_identifier;
use crate::postgres::source_text::SourceText;
use crate::postgres::sql_scope::SqlScope;
use crate::processing::declaration::{Check, HandledEvents, Handling, ProcessorDeclaration};

/// The file that an answer to a question of this check is about.
const ASKED: &str = "<aggregate_column>";

/// The tables of these declarations that have no such column, as far as they can be made.
pub(super) async fn find_missing(
    connection: &mut PgConnection,
    declarations: &[ProcessorDeclaration],
    scope: &SqlScope,
    is_checked: impl Fn(&ProcessorDeclaration) -> bool,
) -> Result<Vec<Diagnostic>, sqlx::Error> {
    let mut found = Vec::new();
    for (place, declaration) in declarations.iter().enumerate().filter(|(_, one)| is_checked(one)) {
        let Some(column) = declaration.aggregate_column.as_ref().filter(|_| !declaration.tables.is_empty())
        else {
            continue;
        };
        // The tables of others may be referred to.
        let mut asking = declarations.to_vec();
        asking[place] = ask(declaration, column);
        let is_asking = |one: &ProcessorDeclaration| one.name == declaration.name;
        let answers = handlers::check_some(connection, &asking, scope.clone(), is_asking).await?;
        let missing = answers.iter().filter(|answer| answer.file == ASKED);
        let missing = missing.filter_map(|answer| declaration.tables.get(answer.line?.checked_sub(1)?));
        found.extend(missing.map(|table| {
            let message = format!(
                "table {} has no column {column}, which aggregate_column of {} names",
                table.name, declaration.name
            );
            let advice = "name a column that each of its tables has, or remove `aggregate_column`";
            Diagnostic::of_file(declaration.file(), message).with_advice(advice)
        }));
    }
    Ok(found)
}

/// The declaration with nothing to be checked but the question whether each of its tables has the column. The line of a question is
/// the number of the table.
fn ask(declaration: &ProcessorDeclaration, column: &str) -> ProcessorDeclaration {
    let question = |(place, name): (usize, String)| {
        // No column is called as the row, which has all of them.
        let sql = format!(
            "select {} from {} as \"Row of espd\"",
            quote_identifier(column),
            quote_identifier(&name)
        );
        Check { name, sql: SourceText::new(&sql, ASKED, place + 1, 1) }
    };
    ProcessorDeclaration {
        handling: Handling::Native(HandledEvents::All),
        checks: declaration.table_names().into_iter().enumerate().map(question).collect(),
        ..declaration.clone()
    }
}
