//! Finds what `[projections]` names and the database does not know: PostgreSQL passes over a schema that is not there in
//! silence, and so would look for tables and operators elsewhere.

use sqlx::PgPool;

use crate::config::nearest;
use crate::diagnostic::Diagnostic;
use crate::postgres::sql_scope::{SEARCH_PATH, SqlScope};
use crate::postgres::sqlstate::{describe, is_no_answer};

/// The schemas of `search_path` that this role cannot look into, and the settings that the database refuses. `file` is where
/// they are declared.
pub(crate) async fn find_unknown(
    projections: &PgPool,
    scope: &SqlScope,
    file: &str,
) -> Result<Vec<Diagnostic>, sqlx::Error> {
    let mut found = find_schemas(projections, scope, file).await?;
    for (name, value) in &scope.settings {
        let statement = "-- try_setting\nselect set_config($1, $2, true)";
        let query = sqlx::query(statement).persistent(false).bind(name).bind(value);
        match query.execute(projections).await {
            Ok(_) => {}
            Err(error) if is_no_answer(&error) => return Err(error),
            Err(error) => {
                let message = format!("[projections] settings.{name}: {}", describe(&error));
                found.push(
                    Diagnostic::of_file(file, message).with_advice("write a value that PostgreSQL knows"),
                );
            }
        }
    }
    Ok(found)
}

async fn find_schemas(
    projections: &PgPool,
    scope: &SqlScope,
    file: &str,
) -> Result<Vec<Diagnostic>, sqlx::Error> {
    // A database without `public` is nobody's mistake.
    if scope.search_path == SEARCH_PATH {
        return Ok(Vec::new());
    }
    let statement = "-- list_schemas
         select nspname::text, has_schema_privilege(oid, 'usage') from pg_namespace where nspname !~ '^pg_'";
    let schemas: Vec<(String, bool)> =
        sqlx::query_as(statement).persistent(false).fetch_all(projections).await?;
    let fault = |name: &String| match schemas.iter().find(|(schema, _)| schema == name) {
        Some((_, true)) => None,
        Some((_, false)) => {
            let message = format!("[projections] search_path: the role of espd may not use schema {name}");
            let advice = format!("`grant usage on schema {name} to` the role, or remove it");
            Some(Diagnostic::of_file(file, message).with_advice(advice))
        }
        None => {
            let message = format!("[projections] search_path: there is no schema {name}");
            let names = schemas.iter().map(|(schema, _)| schema.as_str());
            let guess = nearest(name, names).map(|near| format!("did you mean {near:?}? "));
            let advice = format!("{}create it, or remove it", guess.unwrap_or_default());
            Some(Diagnostic::of_file(file, message).with_advice(advice))
        }
    };
    Ok(scope.search_path.iter().filter_map(fault).collect())
}
