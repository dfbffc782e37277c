//! The part of a folded batch where all events that a projector handles meet one plain statement each, on one table.
//!
//! The events are read once, and kept nowhere: they are sorted by their keys, and what the statements say is computed as they are
//! summed up by key. How many events there were, and of how many bytes, is the sum of that. The general form has to know that
//! first, so it keeps the batch, reads it again for each statement, and sorts rows of all values: half as fast.

use super::ops::{choice, place};
use super::{Kind, Op, Table, Writer, Written, any, code, join};
use crate::handlers::sql::event_source::COLUMNS;
use crate::handlers::sql::fold::LEAST;

/// The CTEs of a projector that writes this table only, whose events are those of `events`; `None`: its statements need the
/// general form.
pub(in super::super) fn write(table: &Table, ops: &[Op], events: &str) -> Option<Written> {
    let writer = Writer { asks_before: true, ..Writer::new(table, ops, 0) };
    let is_single = |op: &Op| op.rank == 0 && op.statement.conditions.is_empty();
    let types_known = ops.len() == 1 || ops.iter().all(|op| op.types.is_some());
    (!writer.is_stepwise && types_known && ops.iter().all(is_single)).then(|| writer.single(events))
}

impl Writer<'_> {
    fn single(&self, events: &str) -> Written {
        let ctes = [self.sorted(events), self.summed(), self.net_of_single(), gate()];
        self.apply(&join(ctes, ",\n"), "true", "(select g.go from gate as g)")
    }

    /// The events with their keys and the place of the statement that they meet, those of a key in their order. The keys are computed
    /// below the sort: what the planner knew of them, as that one is constant or two are equal, it would leave out of the order, and
    /// sort again by the keys alone.
    fn sorted(&self, events: &str) -> String {
        let keys =
            self.rows().map(|fields| fields.into_iter().take(self.keys().len()).map(|(value, _)| value));
        let keys: Vec<Vec<String>> = keys.map(Iterator::collect).collect();
        let key = |at: usize| choice(0, &keys.iter().map(|row| row[at].as_str()).collect::<Vec<_>>());
        let keys = self.keys().into_iter().enumerate().map(|(at, name)| format!("{} as {name}", key(at)));
        let carried = COLUMNS.split(", ").filter(|column| self.is_used(column));
        let carried = carried.map(|column| format!("event.{column}"));
        format!(
            "sorted0 as (\n  select event.*\n  from (\n    select {}, event.espd_place\n    from (\n      select event.*, {} as espd_place\n      \
             from (\n        {events}\n      ) as event offset 0\n    ) as event offset 0\n  ) as event\n  order by {}, event.id\n)",
            join(keys.chain(carried), ", "),
            place(self.ops),
            self.key_list()
        )
    }

    /// Whether a field of `event` is needed behind the sort.
    fn is_used(&self, column: &str) -> bool {
        let is_read = |op: &Op| op.statement.text.to_lowercase().contains(column);
        ["id", "body"].contains(&column) || self.ops.iter().any(is_read)
    }

    /// The fields that each statement would have in `ops`.
    fn rows(&self) -> impl Iterator<Item = super::ops::Fields> {
        self.ops.iter().map(|op| self.fields(op))
    }

    /// What the events of a key come to. Values are computed for the events that set them.
    fn summed(&self) -> String {
        let happens: Vec<&str> = self.ops.iter().map(|op| letter(op.statement.kind)).collect();
        let mut fields = vec![
            format!("string_agg({}, '') as h", choice(0, &happens)),
            "count(*) as n, max(event.id) as last, sum(pg_column_size(event.body)) as bytes".to_owned(),
        ];
        // It is not: an event of another type is none of the batch.
        let mut bad = Vec::from_iter((self.ops.len() > 1).then(|| "event.espd_place is null".to_owned()));
        for (place, column) in self.numbered() {
            let (value, is_set) = self.chosen_value(place);
            fields.push(format!("array_agg({value}) filter (where {is_set}) as v{place}"));
            bad.extend(
                column.doubt(&format!("({value})")).iter().map(|doubt| format!("{is_set} and {doubt}")),
            );
        }
        fields.push(format!("bool_or({}) as bad", any(&bad)));
        format!(
            "keys0 as (\n  select {0}, {1}\n  from sorted0 as event group by {0}\n)",
            self.key_list(),
            join(fields, ",\n    ")
        )
    }

    /// What a column is set to by the statement that an event meets, and whether it is. Where it is not, the value does not matter.
    fn chosen_value(&self, place: usize) -> (String, String) {
        let at = self.keys().len() + 3 + (place - 1) * 2;
        let rows: Vec<_> =
            self.rows().map(|mut row| row.drain(at..at + 2).map(|(field, _)| field).collect()).collect();
        let is_set: Vec<&str> = rows.iter().map(|row: &Vec<String>| row[1].as_str()).collect();
        let some = rows.iter().find(|row| row[1] != "false").map_or("null", |row| row[0].as_str());
        let value = |row: &Vec<String>| if row[1] == "false" { some.to_owned() } else { row[0].clone() };
        let values: Vec<String> = rows.iter().map(value).collect();
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        (choice(0, &values), choice(0, &is_set))
    }

    /// As the plain form has it, with what the gate has to know.
    fn net_of_single(&self) -> String {
        let last = self.numbered().map(|(place, _)| {
            format!(", f.v{place} is not null as s{place}, f.v{place}[cardinality(f.v{place})] as v{place}")
        });
        let nulls = self.numbered().filter(|(_, column)| column.is_required);
        let nulls = nulls.map(|(place, _)| format!(" or (num_nulls(variadic f.v{place}) > 0) is true"));
        let keys_list = join(self.keys().into_iter().map(|key| format!("f.{key}")), ", ");
        format!(
            "final0 as materialized (\n  select {keys_list}, t.tid, right(f.h, 1) = 'I' as born, f.n, f.last, f.bytes,\n    \
             case when f.h is null then t.tid is not null else right(f.h, 1) = 'I' end as alive,\n    \
             f.bad or f.h like '%II%' or left(f.h, 1) = 'I' and t.tid is not null or f.h like '%I%' and {of_key}{nulls} as doubt{last}\n  \
             from keys0 as f {lookup}\n)",
            of_key = any(&self.doubts_of_key()),
            nulls = join(nulls, ""),
            last = join(last, ""),
            lookup = self.lookup("f", "f.h is distinct from 'I'"),
        )
    }
}

/// What happens to the row, as a text; null: it is there before and after, or not.
fn letter(kind: Kind) -> &'static str {
    match code(kind) {
        1 => "'I'",
        5 => "'D'",
        _ => "null::text",
    }
}

fn gate() -> String {
    format!(
        "gate as materialized (\n  select sums.*, sums.handled >= {LEAST} and sums.bytes < $8 as go, true as is_own\n  from (\n    \
         select coalesce(sum(f.n), 0)::bigint as handled, max(f.last) as last_id, coalesce(sum(f.bytes), 0)::bigint as bytes\n    \
         from final0 as f\n  ) as sums\n)"
    )
}
