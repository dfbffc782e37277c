//! Tracks which rows have pending changes. A row without any can be read at once, without flushing the batch.

use std::collections::HashSet;

use serde_json::value::RawValue;

use super::effects::Action;
use super::tables::RowTables;

/// The rows that pending changes are about.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    rows: HashSet<(String, Vec<String>)>,
    /// Tables with a pending change of which the row cannot be told.
    unclear: HashSet<String>,
}

impl Touched {
    /// Takes note of a pending action.
    pub(crate) fn note(&mut self, tables: &RowTables, action: &Action) {
        let (table, row) = match action {
            Action::Upsert { table, row } => (table, row),
            Action::Delete { table, columns } => (table, columns),
            Action::Emit(_) | Action::EmitAs(..) | Action::Cancel { .. } => return,
        };
        match tables.row_of(table, row) {
            Some(key) => drop(self.rows.insert((table.clone(), key))),
            None => drop(self.unclear.insert(table.clone())),
        }
    }

    /// Whether it is certain that the row of this key has no pending change.
    pub(crate) fn spares(&self, tables: &RowTables, table: &str, key: &RawValue) -> bool {
        let row = tables.row_of(table, key).map(|key| (table.to_owned(), key));
        !self.unclear.contains(table) && row.is_some_and(|row| !self.rows.contains(&row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handlers::batch::tables::tests::{json, tables};

    #[test]
    fn only_rows_without_pending_changes_are_read_without_a_flush() {
        let tables = tables();
        let mut touched = Touched::default();
        let spares = |touched: &Touched, table: &str, id: &str| {
            touched.spares(&tables, table, &json(&format!("{{\"id\":{id}}}")))
        };
        let upsert = |table: &str, row: &str| Action::Upsert { table: table.into(), row: json(row) };
        touched.note(&tables, &upsert("todos", r#"{"id":1,"title":"a"}"#));
        assert!(!spares(&touched, "todos", "\"1\"") && spares(&touched, "todos", "2"));
        // Nothing is known of keys that cannot be compared, and of rows that depend on others.
        assert!(!spares(&touched, "todos", "2.0"));
        assert!(!spares(&touched, "lists", "\"c0ffee00-0000-4000-8000-000000000001\""));
        touched.note(&tables, &Action::Delete { table: "todos".into(), columns: json(r#"{"list":3}"#) });
        assert!(!spares(&touched, "todos", "2"));
    }
}
