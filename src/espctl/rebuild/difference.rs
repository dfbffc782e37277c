//! What differs between two versions, for people.

use crate::operations::status::format::thousands;
use crate::processing::rebuild::{
    Columns, Difference, EventAt, Example, SetAside, SetAsideEvent, Since, TableDifference, describe_lost,
};

/// How many keys of a table are shown.
const SHOWN: usize = 100;

/// What differs, one paragraph for each table.
pub(super) fn render(name: &str, difference: &Difference) -> String {
    let mut lines = Vec::new();
    if difference.has_same_tables() {
        let rows: i64 = difference.tables.iter().map(|table| table.rows).sum();
        let what = if difference.is_none() { "nothing" } else { "no row" };
        lines.push(format!("{name}: {what} differs, {} rows were compared", thousands(rows)));
    }
    lines.extend(set_aside(name, &difference.dead_letters));
    lines.extend(difference.new_tables.iter().map(|table| format!("{table}: a new table")));
    lines.extend(difference.gone_tables.iter().map(|table| format!("{table}: not there any more")));
    lines.extend(
        difference.changed_ddl.iter().map(|statement| format!("{name}: {}", describe_lost(statement))),
    );
    for table in &difference.tables {
        if table.number() > 0 || !table.other_columns.is_empty() || table.changed_key.is_some() {
            lines.push(counts(table));
            for example in table.examples.iter().take(SHOWN) {
                lines.push(format!("  {}", describe(example)));
                lines.extend(example.since.iter().map(|since| format!("      {}", describe_since(since))));
            }
            let hidden = table.number() - table.examples.len().min(SHOWN) as i64;
            if hidden > 0 {
                lines.push(format!("  … and {} more", thousands(hidden)));
            }
        }
        lines.extend(describe_columns(table).map(|text| format!("  {text}")));
        if !table.not_compared.is_empty() {
            lines.push(format!(
                "  {}: no replay makes the same values again, not compared: {}",
                table.table,
                table.not_compared.join(", ")
            ));
        }
    }
    lines.join("\n")
}

/// Events that would be dead letters, and why.
fn set_aside(name: &str, found: &SetAside) -> Vec<String> {
    if found.is_none() {
        return Vec::new();
    }
    let mut lines = vec![format!("{name}: {}", found.describe())];
    lines.extend(found.examples.iter().map(
        |SetAsideEvent { event_id, event_type, aggregate_id, message }| {
            format!(
                "  ! event {} ({event_type}) of aggregate {aggregate_id}: {message}",
                thousands(*event_id)
            )
        },
    ));
    let hidden = found.number - found.waiting() - found.examples.len() as i64;
    if hidden > 0 {
        lines.push(format!("  … and {} more", thousands(hidden)));
    }
    lines
}

/// Which columns only one of the tables has, or both with other types, and whether the primary key is another one.
fn describe_columns(table: &TableDifference) -> impl Iterator<Item = String> {
    let columns = [
        ("new", table.new_columns()),
        ("gone", table.lacked_columns()),
        ("of another type", table.retyped_columns.iter().map(String::as_str).collect()),
    ];
    let columns =
        columns.iter().flat_map(|(what, names)| names.iter().map(move |name| format!("{name} ({what})")));
    let columns = columns.collect::<Vec<_>>().join(", ");
    let columns = (!columns.is_empty()).then(|| {
        format!(
            "other columns, not compared: {columns}; a prepared `select *` fails after a swap until it is prepared again"
        )
    });
    let key = table
        .changed_key
        .as_ref()
        .map(|key| format!("the primary key would be {key}, so whole rows were compared"));
    columns.into_iter().chain(key)
}

fn counts(table: &TableDifference) -> String {
    let TableDifference { table: name, rows, added, gone, changed, changed_columns, .. } = table;
    let columns: Vec<String> =
        changed_columns.iter().map(|(column, count)| format!("{column} in {}", thousands(*count))).collect();
    let columns = if columns.is_empty() { String::new() } else { format!(" ({})", columns.join(", ")) };
    format!(
        "{name}: of {} rows, {} added, {} gone, {} changed{columns}",
        thousands(*rows),
        thousands(*added),
        thousands(*gone),
        thousands(*changed)
    )
}

fn describe(example: &Example) -> String {
    let key = columns(&example.key);
    match (&example.old, &example.new) {
        (None, Some(new)) => format!("+ {key}: {}", columns(new)),
        (Some(old), None) => format!("- {key}: {}", columns(old)),
        (old, new) => {
            let side = |value: &Option<Columns>| value.as_ref().map_or(String::new(), columns);
            format!("~ {key}: {} -> {}", side(old), side(new))
        }
    }
}

/// Since which event a row differs: `differs since event 12 (OrderPaid, 2026-11-29T07:00:00+00:00), which is not in it`
fn describe_since(since: &Since) -> String {
    let event = |EventAt { id, event_type, created_at }: &EventAt| {
        format!("event {} ({event_type}, {created_at})", thousands(*id))
    };
    let found = match (&since.event, &since.last) {
        (Some(first), _) if since.later == 0 => {
            format!("differs since {}: what that did is missing", event(first))
        }
        (Some(first), _) => format!(
            "differs since {}: what that and {} later ones did is missing",
            event(first),
            thousands(since.later)
        ),
        (None, None) => "no event has made this row".to_owned(),
        (None, Some(last)) => format!(
            "none of its {} changes has made the row so; the last one was {}",
            thousands(since.changes),
            event(last)
        ),
    };
    let changed = since.handlers_changed_at.map_or(String::new(), |position| {
        format!("; the handlers have changed after event {}", thousands(position))
    });
    found + &changed
}

/// The columns of a row: `id = 7, title = "x"`.
fn columns(columns: &Columns) -> String {
    columns.iter().map(|(name, value)| format!("{name} = {value}")).collect::<Vec<_>>().join(", ")
}
