//! Which column of each table has the aggregate whose events alone write the row, where the handlers show it.

use std::collections::{BTreeMap, BTreeSet};

use super::statement::{Change, Kind, Statement};
use super::{on_deep_stack, recognise_handler};
use crate::postgres::lexer;
use crate::postgres::sql_scope::SqlScope;
use crate::processing::declaration::ProcessorDeclaration;

/// What a table looks like.
#[derive(Debug, Clone)]
pub(crate) struct TableShape {
    /// Its own name.
    pub(crate) name: String,
    /// In their order.
    pub(crate) columns: Vec<String>,
    /// The columns of the primary key.
    pub(crate) key: Vec<String>,
}

/// What one would do about it.
const ADVICE: &str = "If each row is written by the events of one aggregate alone, declare `aggregate_column`, the column that has it";

/// The column of each table that has the aggregate; or why that is not known.
pub(crate) fn find_aggregate_columns(
    declaration: &ProcessorDeclaration,
    scope: &SqlScope,
    tables: &[TableShape],
) -> Result<BTreeMap<String, String>, String> {
    if let Some(column) = &declaration.aggregate_column {
        return match tables.iter().find(|table| !table.columns.contains(column)) {
            Some(table) => {
                Err(format!("table {} has no column {column}, which aggregate_column names", table.name))
            }
            None => Ok(tables.iter().map(|table| (table.name.clone(), column.clone())).collect()),
        };
    }
    if declaration.handlers().is_empty() {
        return Err(format!(
            "which rows the handlers of {} write, only they know. {ADVICE}",
            declaration.name
        ));
    }
    let statements = read(declaration, scope)?;
    let column_of = |table: &TableShape| {
        let shown = statements.iter().filter(|statement| statement.table == table.name);
        let shown = shown.map(|statement| owned(statement, table));
        let common = shown.reduce(|one, other| one.intersection(&other).cloned().collect());
        match common.map(|columns| columns.into_iter().next()) {
            Some(Some(column)) => Ok((table.name.clone(), column)),
            Some(None) => Err(format!(
                "the handlers do not show that a row of {} belongs to the aggregate of one event: no column is event.aggregate_id \
                 wherever they write a row. {ADVICE}",
                table.name
            )),
            None => Err(format!("no handler writes {}. {ADVICE}", table.name)),
        }
    };
    tables.iter().map(column_of).collect()
}

/// The statements of all handlers.
fn read(declaration: &ProcessorDeclaration, scope: &SqlScope) -> Result<Vec<Statement>, String> {
    if declaration.ddl.iter().any(|ddl| makes_rows(&ddl.text)) {
        return Err(format!("`ddl` of {} has a trigger, a rule or rows. {ADVICE}", declaration.name));
    }
    let read = || {
        let handlers = declaration.handlers().iter().enumerate();
        let statements = handlers.map(|(place, handler)| {
            recognise_handler(declaration, handler, scope)
                .map_err(|reason| format!("handler {} cannot be read: {reason}. {ADVICE}", place + 1))
        });
        statements.collect::<Result<Vec<_>, String>>()
    };
    let read = on_deep_stack(read).unwrap_or_else(|| Err("the handlers could not be read".to_owned()));
    Ok(read?.into_iter().flatten().collect())
}

/// Whether a statement of `ddl` may write rows, now or later.
fn makes_rows(text: &str) -> bool {
    let writes = ["trigger", "rule", "insert", "update", "cascade"];
    lexer::tokens(text).unwrap_or_default().iter().any(|token| writes.iter().any(|word| token.is_word(word)))
}

/// The columns by which a statement touches rows of the event's aggregate alone.
fn owned(statement: &Statement, table: &TableShape) -> BTreeSet<String> {
    let name = |(place, (name, _)): (usize, &(String, String))| {
        if name.is_empty() { table.columns.get(place).cloned() } else { Some(name.clone()) }
    };
    let values = statement.values.iter().enumerate().filter(|(_, (_, value))| is_aggregate(value));
    let inserted: BTreeSet<String> = values.filter_map(name).collect();
    let conflicts: Vec<String> = if statement.key.is_empty() {
        table.key.clone()
    } else {
        statement.key.iter().map(|(column, _)| column.clone()).collect()
    };
    let compared = statement.key.iter().filter(|(_, value)| is_aggregate(value)).map(|(column, _)| column);
    let mut owned: BTreeSet<String> = match statement.kind {
        Kind::Insert => inserted,
        Kind::InsertNew | Kind::Upsert => {
            inserted.into_iter().filter(|column| conflicts.contains(column)).collect()
        }
        Kind::Update | Kind::Delete => compared.cloned().collect(),
    };
    for (column, change) in &statement.sets {
        if *change != Change::Excluded {
            owned.remove(column);
        }
    }
    owned
}

/// Whether an expression is the aggregate of the event.
fn is_aggregate(expression: &str) -> bool {
    let written: String = expression.chars().filter(|character| !character.is_whitespace()).collect();
    ["event.aggregate_id", "event.aggregate_id::text", "event.aggregate_id::uuid"]
        .iter()
        .any(|known| written.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(handlers: &[&str]) -> Option<String> {
        let table = TableShape {
            name: "t".to_owned(),
            columns: vec!["id".to_owned(), "n".to_owned()],
            key: vec!["id".to_owned()],
        };
        let mut common: Option<BTreeSet<String>> = None;
        for handler in handlers {
            let tokens = lexer::tokens(handler).unwrap();
            let statement = super::super::statement::recognise(handler, &tokens, "app").unwrap();
            let shown = owned(&statement, &table);
            common = Some(common.map_or(shown.clone(), |one| one.intersection(&shown).cloned().collect()));
        }
        common.and_then(|columns| columns.into_iter().next())
    }

    #[test]
    fn a_column_has_the_aggregate_where_every_statement_says_so() {
        for handlers in [
            &["insert into t values (event.aggregate_id, 1)"][..],
            &["insert into t (n, id) values (1, event.aggregate_id::text) on conflict do nothing"],
            &[
                "insert into t values (event.aggregate_id, 1) on conflict (id) do update set n = t.n + excluded.n",
                "update t set n = n + 1 where id = event.aggregate_id",
                "delete from t where event.aggregate_id = id",
            ],
        ] {
            assert_eq!(find(handlers).as_deref(), Some("id"), "{handlers:?}");
        }
        for handlers in [
            &["insert into t values (event.id, 1)"][..],
            &["insert into t values (event.id, event.aggregate_id::text) on conflict (id) do nothing"],
            &[
                "insert into t values (event.aggregate_id, 1)",
                "delete from t where id = event.correlation_id",
            ],
            &["update t set id = event.uuid where id = event.aggregate_id"],
        ] {
            assert_eq!(find(handlers), None, "{handlers:?}");
        }
    }
}
