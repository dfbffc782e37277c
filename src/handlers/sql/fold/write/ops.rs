//! The rows of `ops`: one for each statement that an event meets.
//!
//! Few statements look at each event of the batch one after another. Of many, the one that an event meets is found by the
//! event's type first, so that an event costs about the same however many there are.

use super::{Op, RANKS_MAX, Writer, code, join};
use crate::handlers::sql::event_source::literals;
use crate::handlers::sql::fold::statement::{Change, Kind, Statement};
use crate::handlers::sql::fold::table::Column;
use crate::postgres::quote::quote_literal;

/// Statements of one rank from which on they are chosen by the type of the event.
const CROWD: usize = 8;

/// What a row consists of, each with its name.
pub(super) type Fields = Vec<(String, String)>;

impl Writer<'_> {
    pub(super) fn ops(&self) -> String {
        let ranks = (0..RANKS_MAX).map(|rank| self.ops.iter().filter(move |op| op.rank == rank));
        let branches = ranks.flat_map(|rank| self.branches(&rank.collect::<Vec<_>>()));
        format!(
            "ops{0} as (\n  select * from (\n{1}\n  offset 0) as o where o.ok is true and (o.h not in (0, 5) or {2})\n)",
            self.number,
            join(branches, "\n  union all\n"),
            join(self.keys().into_iter().map(|key| format!("o.{key} is not null")), " and ")
        )
    }

    /// Rows for the statements of one rank: no event meets two of them.
    fn branches(&self, ops: &[&Op]) -> Vec<String> {
        let types: Option<Vec<&[String]>> = ops.iter().map(|op| op.types.as_deref()).collect();
        match types {
            Some(types) if types.len() >= CROWD => vec![self.chosen(ops, &types)],
            _ => ops.iter().map(|op| self.branch(op)).collect(),
        }
    }

    /// A row for each event that meets the statement.
    fn branch(&self, op: &Op) -> String {
        let types = op
            .types
            .as_ref()
            .map_or(String::new(), |types| format!(" and event.type in ({})", literals(types)));
        format!(
            "    select {}\n    from batch as event where (select g.go from gate as g){types}",
            written(self.fields(op))
        )
    }

    /// A row for each event that meets one of the statements; `types` are theirs.
    fn chosen(&self, ops: &[&Op], types: &[&[String]]) -> String {
        let place = place_of(types);
        let rows: Vec<Fields> = ops.iter().map(|op| self.fields(op)).collect();
        let names = rows.first().into_iter().flatten().map(|(_, name)| name.clone()).enumerate();
        let fields = names.map(|(at, name)| {
            let values: Vec<&str> = rows.iter().map(|row| row[at].0.as_str()).collect();
            (choice(0, &values), name)
        });
        // `offset 0` has the place computed once for an event.
        format!(
            "    select {}\n    from (\n      select event.*, {place} as espd_place\n      \
             from batch as event where (select g.go from gate as g) offset 0\n    ) as event where event.espd_place is not null",
            written(fields.collect())
        )
    }

    /// What the row of an event that meets the statement consists of.
    pub(super) fn fields(&self, op: &Op) -> Fields {
        let statement = &op.statement;
        let source = if matches!(statement.kind, Kind::Update | Kind::Delete) {
            &statement.key
        } else {
            &statement.values
        };
        let mut fields: Fields = self
            .table
            .key()
            .enumerate()
            .map(|(place, column)| {
                let value =
                    source.iter().find(|(name, _)| *name == column.name).map_or("null", |(_, value)| value);
                (format!("({value})::{}", column.cast()), format!("k{}", place + 1))
            })
            .collect();
        fields.push((format!("event.id * {RANKS_MAX} + {}", op.rank), "seq".to_owned()));
        fields.push((code(statement.kind).to_string(), "h".to_owned()));
        let conditions = statement.conditions.iter().map(|condition| format!("(({condition}) is true)"));
        let ok = join(conditions, " and ");
        fields.push((if ok.is_empty() { "true".to_owned() } else { ok }, "ok".to_owned()));
        for (place, column) in self.numbered() {
            fields.extend(self.values(statement, place, column));
        }
        fields
    }

    /// The fields of a column: what it is born with, what it is set to later, whether it is, and what is added to it.
    fn values(&self, statement: &Statement, place: usize, column: &Column) -> Fields {
        let null = format!("null::{}", column.cast());
        let cast = |value: &str| format!("({value})::{}", column.cast());
        let inserts = matches!(statement.kind, Kind::Insert | Kind::InsertNew | Kind::Upsert);
        let written =
            statement.values.iter().find(|(name, _)| *name == column.name).map(|(_, value)| cast(value));
        // What is not constant has been refused before.
        let born = if inserts {
            written.clone().unwrap_or_else(|| column.constant_default().unwrap_or_else(|_| null.clone()))
        } else {
            null.clone()
        };
        let change = statement.sets.iter().find(|(name, _)| *name == column.name).map(|(_, change)| change);
        let (value, is_set, sum) = match change {
            None => (null, "false".to_owned(), None),
            Some(Change::To(value)) => (cast(value), "true".to_owned(), None),
            Some(Change::When { condition, value }) => {
                let checked = || cast(&format!("case when {condition} then {value} end"));
                let value = if self.asks_before { cast(value) } else { checked() };
                (value, format!("(({condition}) is true)"), None)
            }
            Some(Change::Present(value)) => (cast(value), format!("(({value}) is not null)"), None),
            Some(Change::Excluded) => (born.clone(), "true".to_owned(), None),
            Some(Change::Add { value, negative }) => {
                (null, "false".to_owned(), Some((value.clone(), *negative)))
            }
            Some(Change::AddExcluded { negative }) => {
                (null, "false".to_owned(), Some((born.clone(), *negative)))
            }
        };
        if !self.is_stepwise {
            let (value, is_set) = if inserts { (born, "true".to_owned()) } else { (value, is_set) };
            return vec![(value, format!("v{place}")), (is_set, format!("s{place}"))];
        }
        let mut fields =
            vec![(born, format!("i{place}")), (value, format!("u{place}")), (is_set, format!("us{place}"))];
        if self.is_summed(column) {
            fields.push((sum.is_some().to_string(), format!("x{place}")));
            let added = match sum {
                None => "null::numeric".to_owned(),
                Some((value, negative)) => {
                    format!("{}(({value})::bigint)::numeric", if negative { "-" } else { "" })
                }
            };
            fields.push((added, format!("d{place}")));
        }
        fields
    }
}

/// The place of the statement that an event meets, where each meets one.
pub(super) fn place(ops: &[Op]) -> String {
    let types: Option<Vec<&[String]>> = ops.iter().map(|op| op.types.as_deref()).collect();
    match types {
        Some(types) if types.len() >= CROWD => place_of(&types),
        Some(types) if types.len() > 1 => {
            let when = |(place, types): (usize, &&[String])| {
                format!("when event.type in ({}) then {place} ", literals(types.iter()))
            };
            format!("case {}end", join(types.iter().enumerate().map(when), ""))
        }
        _ => "0".to_owned(),
    }
}

/// The place of the statement with the event's type among its types.
fn place_of(types: &[&[String]]) -> String {
    let each = |(place, types): (usize, &&[String])| {
        types.iter().map(|name| (name.clone(), place.into())).collect::<Vec<_>>()
    };
    let places = types.iter().enumerate().flat_map(each).collect::<serde_json::Map<_, _>>();
    let places = quote_literal(&serde_json::Value::Object(places).to_string());
    format!("({places}::jsonb ->> event.type::text)::integer")
}

fn written(fields: Fields) -> String {
    join(fields.into_iter().map(|(value, name)| format!("{value} as {name}")), ",\n      ")
}

/// An expression that is the value of the event's place, found by halving; `from` is the place of the first value. Where all are
/// equal, there is nothing to choose.
pub(super) fn choice(from: usize, values: &[&str]) -> String {
    match values {
        [] => "null".to_owned(),
        [first, rest @ ..] if rest.iter().all(|value| value == first) => (*first).to_owned(),
        _ => {
            let (below, above) = values.split_at(values.len() / 2);
            let middle = from + below.len();
            format!(
                "case when event.espd_place < {middle} then {} else {} end",
                choice(from, below),
                choice(middle, above)
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_chosen_by_halving_unless_all_are_equal() {
        assert_eq!(choice(0, &["1", "1", "1"]), "1");
        assert_eq!(choice(0, &["a", "b", "b"]), "case when event.espd_place < 1 then a else b end");
        let values: Vec<String> = (0..400).map(|place| place.to_string()).collect();
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        let text = choice(0, &values);
        assert_eq!(text.matches("case when").count(), 399);
    }
}
