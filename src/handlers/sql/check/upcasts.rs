//! Checks the SQL of upcasts, and the handlers of types that upcasts have replaced.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::diagnostic::Diagnostic;
use crate::postgres::sqlstate::is_infrastructure_error;
use crate::processing::declaration::{Handler, ProcessorDeclaration, SourceText};
use crate::store::layout::Layout;
use crate::store::upcast::Upcast;

/// All mistakes in the SQL of the upcasts of a store. Its database analyses the SQL and is not changed.
pub(crate) async fn check_upcasts(
    connection: &mut PgConnection,
    layout: &Layout,
    upcasts: &[Upcast],
) -> Result<Vec<Diagnostic>, sqlx::Error> {
    let (mut found, mut source) = (Vec::new(), layout.source().to_owned());
    for (place, upcast) in upcasts.iter().enumerate() {
        let before = found.len();
        if let Some(body) = &upcast.body {
            found.extend(check_expression(connection, &source, body, ")::jsonb is not null").await?);
        }
        if let Some(when) = &upcast.when {
            found.extend(check_expression(connection, &source, when, ")").await?);
        }
        // The upcasts above a wrong one would seem wrong as well.
        if found.len() == before {
            source = upcast.over(&source, place);
        }
    }
    Ok(found)
}

/// Has PostgreSQL analyse an expression over the events of `source`; `end` makes a condition of it.
async fn check_expression(
    connection: &mut PgConnection,
    source: &str,
    sql: &SourceText,
    end: &str,
) -> Result<Option<Diagnostic>, sqlx::Error> {
    let head = format!("-- analyse_upcast\nselect from {source} as event where (\n");
    let statement = format!("{head}{}\n{end} limit 0", sql.text);
    match sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(connection).await {
        Ok(_) => Ok(None),
        Err(error) if is_infrastructure_error(&error) => Err(error),
        Err(error) => Ok(Some(Diagnostic::of_refusal(sql, head.len(), &statement, &error))),
    }
}

/// Handlers of types that no event is read as any more, because an upcast gives its events another type.
pub(crate) fn hidden_types(declarations: &[ProcessorDeclaration], upcasts: &[Upcast]) -> Vec<Diagnostic> {
    let handlers = declarations.iter().flat_map(ProcessorDeclaration::handlers);
    handlers.flat_map(|handler| hidden_types_of(handler, upcasts)).collect()
}

fn hidden_types_of(handler: &Handler, upcasts: &[Upcast]) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for name in handler.events.types().into_iter().flatten() {
        let Some(upcast) = upcasts.iter().find(|upcast| upcast.hides(name)) else { continue };
        let new = upcast.event_type.as_deref().unwrap_or_default();
        let message = format!("this is for {name}, which no event is read as");
        let advice = format!("an upcast reads {name} as {new}: handle {new}");
        found.push(Diagnostic::in_source(&handler.sql, 0, message).with_advice(advice));
    }
    found
}
