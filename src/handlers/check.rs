//! Finds an author's mistakes before they are deployed, whatever handles the events.

use sqlx::PgConnection;

use crate::diagnostic::Diagnostic;
use crate::event::Position;
use crate::handlers::batch::RowTables;
use crate::handlers::scratch::Scratch;
use crate::handlers::{program, sql};
use crate::postgres::sql_scope::SqlScope;
use crate::processing::declaration::{
    Handling, ProcessorDeclaration, ProcessorKind, ProgramDeclaration, Start,
};

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
    check_some(connection, declarations, scope.into(), |_| true).await
}

/// As [`check`], for those of the declarations that `is_checked` chooses.
pub(crate) async fn check_some(
    connection: &mut PgConnection,
    declarations: &[ProcessorDeclaration],
    scope: SqlScope,
    is_checked: impl Fn(&ProcessorDeclaration) -> bool,
) -> Result<Vec<Diagnostic>, sqlx::Error> {
    let mut found = Vec::new();
    for declaration in declarations.iter().filter(|declaration| is_checked(declaration)) {
        found.extend(sql::find_foreign_tables(declaration, declarations));
        let foreign = sql::find_foreign_tables_in_ddl(declaration, declarations);
        // What is known to change a table of somebody else is not tried: others wait for that table.
        let is_tried = foreign.is_empty();
        found.extend(foreign);
        found.extend(warn_of_unknown_reads(connection, declaration, declarations, &scope).await?);
        found.extend(warn_of_late_start(declaration));
        if !is_tried {
            continue;
        }
        let mut scratch = Scratch::open(connection, &scope).await?;
        scratch.create_read_tables(declaration, declarations).await?;
        found.extend(check_one(&mut scratch, declaration, declarations).await?);
        scratch.close().await?;
    }
    Ok(found)
}

/// The mistakes that are found without a database: handlers that name a table of another of the declarations, and may not.
pub(crate) fn find_foreign_tables(declarations: &[ProcessorDeclaration]) -> Vec<Diagnostic> {
    let of_one = |declaration| sql::find_foreign_tables(declaration, declarations);
    declarations.iter().flat_map(of_one).collect()
}

/// Warnings of tables that the declaration says it reads, and that neither a processor declares nor the database has.
async fn warn_of_unknown_reads(
    connection: &mut PgConnection,
    declaration: &ProcessorDeclaration,
    all: &[ProcessorDeclaration],
    scope: &SqlScope,
) -> Result<Vec<Diagnostic>, sqlx::Error> {
    let mut found = Vec::new();
    for read in &declaration.reads {
        if all.iter().any(|other| other.tables.iter().any(|table| table.name == read.text)) {
            continue;
        }
        let query = "-- find_read_table\nselect exists (select from pg_class where relname = $1 and relkind in ('r', 'p', 'v', 'm')
                       and relnamespace in (select oid from pg_namespace where nspname = any ($2)))";
        let schemas: Vec<&String> = [&scope.schema].into_iter().chain(&scope.search_path).collect();
        let query = sqlx::query_scalar(query).persistent(false).bind(&read.text).bind(schemas);
        let exists: bool = query.fetch_one(&mut *connection).await?;
        if !exists {
            let message = format!("there is no table {}, and no processor declares it", read.text);
            let warning = Diagnostic::in_source(read, 0, message).into_warning();
            found.push(match advise_tables(&read.text, declaration, all) {
                Some(advice) => warning.with_advice(advice),
                None => warning,
            });
        }
    }
    Ok(found)
}

/// What to write in `reads` instead of the name of a processor; `None`: it is none.
fn advise_tables(
    name: &str,
    declaration: &ProcessorDeclaration,
    all: &[ProcessorDeclaration],
) -> Option<String> {
    let named = all.iter().find(|other| other.name == name)?;
    if named.name == declaration.name {
        return Some("this is the processor itself, which reads its own tables anyway: remove it".to_owned());
    }
    let kind = named.kind().as_str();
    Some(match named.table_names().as_slice() {
        [] => format!("{name} is a {kind}, and declares no table"),
        tables => format!("{name} is a {kind}: name the tables that are read, of {}", tables.join(", ")),
    })
}

/// A warning where the tables of a projector will not hold what was in the store before.
fn warn_of_late_start(declaration: &ProcessorDeclaration) -> Option<Diagnostic> {
    let what = match declaration.start() {
        Start::Beginning => return None,
        Start::Position(position) if position == Position::START => return None,
        Start::Position(position) => format!("after event {position}"),
        Start::Now => "with the events that are appended from its first start on".to_owned(),
        Start::Time(time) => format!("with the events of {} and later", time.to_rfc3339()),
    };
    let name = &declaration.name;
    let message = format!("projector {name} begins {what}: its tables will not hold what was before");
    let is_projector = declaration.kind() == ProcessorKind::Projector;
    let warning = Diagnostic::of_file(declaration.file(), message).into_warning();
    is_projector.then(|| warning.with_advice("if that is meant, all is well; otherwise remove `start`"))
}

/// The mistakes in the tables of a declaration; if there are none, those in what handles its events.
async fn check_one(
    scratch: &mut Scratch<'_>,
    declaration: &ProcessorDeclaration,
    all: &[ProcessorDeclaration],
) -> Result<Vec<Diagnostic>, sqlx::Error> {
    let found = scratch.check_tables(declaration, all).await?;
    if !found.is_empty() {
        return Ok(found);
    }
    let mut found = scratch.try_defaults(declaration).await?;
    found.extend(plan_checks(scratch, declaration).await?);
    found.extend(match &declaration.handling {
        Handling::Sql(_) => sql::check(scratch, declaration).await?,
        Handling::Program(program) => check_program(scratch, declaration, program).await?,
        // Only a Rust program knows its handlers, and a receiver is asked by `espctl webhook-test`.
        Handling::Native(_) | Handling::Webhook(_) => Vec::new(),
    });
    Ok(found)
}

/// The mistakes in the checks of an author, which are planned on the declared tables and not run.
async fn plan_checks(
    scratch: &mut Scratch<'_>,
    declaration: &ProcessorDeclaration,
) -> Result<Vec<Diagnostic>, sqlx::Error> {
    const LEAD: &str = "explain select to_jsonb(found) from (\n";
    let mut found = Vec::new();
    for check in &declaration.checks {
        let sql = check.sql.text.trim_end().trim_end_matches(';');
        let statement = format!("{LEAD}{sql}\n) as found");
        let refusal = scratch.attempt(&statement).await?;
        found.extend(refusal.map(|error| Diagnostic::of_refusal(&check.sql, LEAD.len(), &statement, &error)));
    }
    Ok(found)
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
