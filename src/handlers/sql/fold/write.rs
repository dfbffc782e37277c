//! Writes the part of a folded batch that concerns one table, as CTEs of one statement.
//!
//! `ops` (in the module of that name) has a row for each statement that an event meets: the key, its place in the order, what
//! it does, the values. All of an event's expressions are evaluated, also those of rows that turn out not to exist: an error
//! more sends the batch to the loop, an error less would be a wrong result. `keys` has the net effect for each key, `final` the row that it is on.
//!
//! There are three forms. Where a table is only inserted into, updated and deleted from, values are known without knowing which
//! rows exist (`plain`). Where a statement depends on the row that is there, by a conflict or a sum, each statement's
//! effect is determined first (`stepwise`). Where each event meets one plain statement on the only table, it is read once (`single`).

mod ops;
mod single;

use super::statement::{Change, Kind, Statement};
use super::table::{Column, Table};
use crate::postgres::quote::{quote_identifier, quote_literal};

pub(super) use self::single::write as write_single;

/// A statement with the events that meet it, and its place among those that the same event meets.
#[derive(Debug, Clone)]
pub(super) struct Op {
    pub(super) statement: Statement,
    /// `None`: all events.
    pub(super) types: Option<Vec<String>>,
    pub(super) rank: usize,
}

/// The CTEs of a table, and what they end in.
#[derive(Clone)]
pub(super) struct Written {
    pub(super) ctes: String,
    /// An expression that is false unless the batch has to be left to the loop.
    pub(super) doubt: String,
}

/// Most statements that one event may meet on one table: the order has five bits for them.
pub(super) const RANKS_MAX: usize = 32;

/// The numbers of what a statement does, in three bits. An update has none.
const fn code(kind: Kind) -> u8 {
    match kind {
        Kind::Update => 0,
        Kind::Insert => 1,
        Kind::InsertNew => 2,
        Kind::Upsert => 3,
        Kind::Delete => 5,
    }
}

/// What one table's part is written with.
struct Writer<'t> {
    table: &'t Table,
    ops: &'t [Op],
    /// Distinguishes the names of this table's CTEs.
    number: usize,
    /// The columns that some statement sets, without those of the key.
    columns: Vec<&'t Column>,
    is_stepwise: bool,
    /// Whether a value is only computed where it is set.
    asks_before: bool,
}

pub(super) fn write(table: &Table, ops: &[Op], number: usize) -> Written {
    let writer = Writer::new(table, ops, number);
    let (ctes, alive) = if writer.is_stepwise { writer.stepwise() } else { writer.plain() };
    writer.apply(&ctes, alive, "true")
}

fn is_sum(change: &Change) -> bool {
    matches!(change, Change::Add { .. } | Change::AddExcluded { .. })
}

fn join(parts: impl IntoIterator<Item = String>, by: &str) -> String {
    parts.into_iter().collect::<Vec<_>>().join(by)
}

/// `or` over conditions, each of which may be unknown.
fn any(conditions: &[String]) -> String {
    if conditions.is_empty() { "false".to_owned() } else { format!("({}) is true", conditions.join(" or ")) }
}

impl<'t> Writer<'t> {
    fn new(table: &'t Table, ops: &'t [Op], number: usize) -> Self {
        let sets = |column: &Column| {
            ops.iter().any(|Op { statement, .. }| {
                statement.values.iter().any(|(name, _)| *name == column.name)
                    || statement.sets.iter().any(|(name, _)| *name == column.name)
            })
        };
        let columns = table.columns.iter().filter(|column| !column.is_key && sets(column)).collect();
        let is_stepwise = ops.iter().any(|Op { statement, .. }| {
            matches!(statement.kind, Kind::InsertNew | Kind::Upsert)
                || statement.sets.iter().any(|(_, change)| is_sum(change))
        });
        Self { table, ops, number, columns, is_stepwise, asks_before: false }
    }
}

impl Writer<'_> {
    /// The names of the key's columns in the CTEs.
    fn keys(&self) -> Vec<String> {
        (1..=self.table.key().count()).map(|place| format!("k{place}")).collect()
    }

    fn key_list(&self) -> String {
        self.keys().join(", ")
    }

    fn numbered(&self) -> impl Iterator<Item = (usize, &Column)> {
        self.columns.iter().enumerate().map(|(place, column)| (place + 1, *column))
    }

    /// Whether some statement adds to the column.
    fn is_summed(&self, column: &Column) -> bool {
        self.ops
            .iter()
            .any(|op| op.statement.sets.iter().any(|(name, change)| *name == column.name && is_sum(change)))
    }

    fn has(&self, kinds: &[Kind]) -> bool {
        self.ops.iter().any(|op| kinds.contains(&op.statement.kind))
    }

    /// The row of the table that a key stands for.
    fn lookup(&self, of: &str, condition: &str) -> String {
        let summed = self.numbered().filter(|(_, column)| self.is_summed(column));
        let olds =
            summed.map(|(place, column)| format!(", t.{} as o{place}", quote_identifier(&column.name)));
        let olds = join(olds, "");
        let same = self
            .table
            .key()
            .zip(self.keys())
            .map(|(column, key)| format!("t.{} = {of}.{key}", quote_identifier(&column.name)));
        format!(
            "left join lateral (select t.ctid as tid{olds} from {} as t where {} and {condition} limit 1) as t on true",
            self.table.qualified,
            join(same, " and ")
        )
    }

    /// What is wrong with a value, so that the loop has to say it.
    fn doubts_of(column: &Column, value: &str) -> Vec<String> {
        let null = column.is_required.then(|| format!("{value} is null"));
        null.into_iter().chain(column.doubt(value)).collect()
    }

    /// Conditions under which a key cannot be inserted.
    fn doubts_of_key(&self) -> Vec<String> {
        let keys = self.table.key().zip(self.keys());
        keys.flat_map(|(column, key)| {
            [format!("{key} is null")].into_iter().chain(column.doubt(&key)).collect::<Vec<_>>()
        })
        .collect()
    }

    fn windowless(&self, from: &str, fields: &str) -> String {
        format!(
            "keys{0} as (\n  select {1}, {fields}\n  from (select * from {from} order by {1}, seq) as o group by {1}\n)",
            self.number,
            self.key_list()
        )
    }

    /// Returns the CTEs up to `final`, and what a row of it has to be alive.
    fn plain(&self) -> (String, &'static str) {
        let mut fields = vec!["string_agg(case h when 1 then 'I' when 5 then 'D' end, '') as h".to_owned()];
        let mut bad = self.doubts_of_key();
        for (place, column) in self.numbered() {
            fields.push(format!("array_agg(v{place}) filter (where s{place}) as v{place}"));
            let doubts = Self::doubts_of(column, &format!("v{place}"));
            bad.extend(doubts.iter().map(|doubt| format!("s{place} and {doubt}")));
        }
        // A key of an update or a delete is not null, and may be as long as it likes.
        let of_key = bad.drain(..self.doubts_of_key().len()).collect::<Vec<_>>();
        bad.push(format!("h = 1 and {}", any(&of_key)));
        fields.push(format!("bool_or({}) as bad", any(&bad)));
        let keys = self.windowless(&format!("ops{}", self.number), &fields.join(",\n    "));
        let last = self.numbered().map(|(place, _)| {
            format!(", f.v{place} is not null as s{place}, f.v{place}[cardinality(f.v{place})] as v{place}")
        });
        let keys_list = join(self.keys().into_iter().map(|key| format!("f.{key}")), ", ");
        let finals = format!(
            "final{n} as materialized (\n  select {keys_list}, t.tid, right(f.h, 1) = 'I' as born,\n    \
             case when f.h is null then t.tid is not null else right(f.h, 1) = 'I' end as alive,\n    \
             f.bad or f.h like '%II%' or left(f.h, 1) = 'I' and t.tid is not null as doubt{last}\n  \
             from keys{n} as f {lookup}\n)",
            n = self.number,
            last = join(last, ""),
            lookup = self.lookup("f", "f.h is distinct from 'I'"),
        );
        (format!("{},\n{keys},\n{finals}", self.ops()), "true")
    }

    /// Likewise, where effects depend on rows.
    fn stepwise(&self) -> (String, &'static str) {
        let n = self.number;
        let keys = self.key_list();
        let before = format!(
            "before{n} as (\n  select o.*, max(case when h > 0 then seq * 8 + h end) over (partition by {keys} order by seq\n    \
             rows between unbounded preceding and 1 preceding) & 7 as prev\n  from ops{n} as o\n)"
        );
        let states = format!(
            "states{n} as (\n  select p.*, t.*, case when p.prev is null then t.tid is not null else p.prev <> 5 end as was\n  \
             from before{n} as p {}\n)",
            self.lookup("p", "p.prev is null")
        );
        let (effects, marked) = (self.effects(), self.marked());
        let (fields, last) = self.net();
        let keys_cte = self.windowless(&format!("marked{n}"), &fields.join(",\n    "));
        let keys_list = join(self.keys().into_iter().map(|key| format!("f.{key}")), ", ");
        let finals = format!(
            "final{n} as materialized (\n  select {keys_list}, f.tid, f.born is true as born,\n    \
             case when f.last is null then f.tid is not null else f.last <> 5 end as alive{}\n  from keys{n} as f\n)",
            join(last, "")
        );
        let ctes = [self.ops(), before, states, effects, marked, keys_cte, finals].join(",\n");
        (ctes, "f.changed")
    }

    fn effects(&self) -> String {
        let birth = "(h in (1, 2, 3) and not was)";
        let mut bad =
            vec!["h = 1 and was".to_owned(), format!("h in (1, 2, 3) and {}", any(&self.doubts_of_key()))];
        let mut fields = vec![self.key_list(), "seq, h, tid, was".to_owned(), format!("{birth} as birth")];
        for (place, column) in self.numbered() {
            fields.push(format!("case when {birth} then i{place} else u{place} end as v{place}"));
            fields.push(format!("({birth} or was and h in (0, 3) and us{place}) as s{place}"));
            let born = Self::doubts_of(column, &format!("i{place}"));
            bad.extend(born.iter().map(|doubt| format!("h in (1, 2, 3) and {doubt}")));
            let set = Self::doubts_of(column, &format!("u{place}"));
            bad.extend(set.iter().map(|doubt| format!("us{place} and {doubt}")));
            if self.is_summed(column) {
                fields.push(format!("(was and h in (0, 3) and x{place}) as x{place}, d{place}, o{place}"));
                bad.extend(column.is_required.then(|| format!("x{place} and d{place} is null")));
            }
        }
        fields.push(format!("{} as bad", any(&bad)));
        format!(
            "effects{0} as (\n  select {1}\n  from states{0} as o\n)",
            self.number,
            fields.join(",\n    ")
        )
    }

    /// With the place of the last time that a sum was set to a value.
    fn marked(&self) -> String {
        let summed = self.numbered().filter(|(_, column)| self.is_summed(column));
        let fields = summed.map(|(place, _)| {
            format!(", max(seq) filter (where s{place}) over (partition by {}) as at{place}", self.key_list())
        });
        format!("marked{0} as (\n  select e.*{1} from effects{0} as e\n)", self.number, join(fields, ""))
    }

    /// The fields of `keys` where effects depend on rows, and those of `final`.
    fn net(&self) -> (Vec<String>, Vec<String>) {
        let mut fields = vec![
            "max(case when h > 0 then seq * 8 + h end) & 7 as last".to_owned(),
            "(array_agg(tid) filter (where tid is not null))[1] as tid".to_owned(),
            "bool_or(birth) as born".to_owned(),
            "bool_or(bad) as bad".to_owned(),
        ];
        let (mut last, mut changed) = (Vec::new(), vec!["f.born".to_owned()]);
        let mut bad = vec!["f.bad".to_owned()];
        for (place, column) in self.numbered() {
            fields.push(format!("array_agg(v{place}) filter (where s{place}) as v{place}"));
            last.push(format!(
                ", f.v{place} is not null as s{place}, f.v{place}[cardinality(f.v{place})] as v{place}"
            ));
            changed.push(format!("f.v{place} is not null"));
            if self.is_summed(column) {
                let after = format!("x{place} and (at{place} is null or seq > at{place})");
                fields.push(format!("coalesce(bool_or(x{place}), false) as y{place}"));
                fields.push(format!("coalesce(sum(d{place}) filter (where {after}), 0) as a{place}"));
                fields.push(format!(
                    "coalesce(bool_or(d{place} is null) filter (where {after}), false) as n{place}"
                ));
                fields.push(format!("coalesce(sum(abs(d{place})) filter (where x{place}), 0) as z{place}"));
                fields.push(format!(
                    "coalesce(max(abs(v{place}::numeric)) filter (where s{place}), 0) as m{place}"
                ));
                fields.push(format!("coalesce(max(abs(o{place}::numeric)), 0) as o{place}"));
                last.push(format!(", f.y{place}, f.a{place}, f.n{place}"));
                // Whatever came in between, it was in range if all of it together is.
                bad.push(format!("f.y{place} and f.o{place} + f.m{place} + f.z{place} > {}", column.most()));
                changed.push(format!("f.y{place}"));
            }
        }
        last.push(format!(", ({}) is true as changed", changed.join(" or ")));
        last.push(format!(", ({}) is true as doubt", bad.join(" or ")));
        (fields, last)
    }

    /// The value of a column in the row that is written; `old`: what it has in a row that is there.
    fn value(&self, place: usize, column: &Column, old: Option<&str>) -> String {
        let base = match old {
            Some(old) => format!("case when f.s{place} then f.v{place} else {old} end"),
            None => format!("f.v{place}"),
        };
        if !self.is_summed(column) {
            return base;
        }
        format!(
            "case when not f.y{place} then {base} when f.n{place} then null else (({base}) + f.a{place})::{} end",
            column.full_type
        )
    }

    /// The statements that write the net effect, each row by one of them, if the condition `go` holds.
    fn apply(&self, ctes: &str, changed: &str, go: &str) -> Written {
        let (n, table) = (self.number, &self.table.qualified);
        let gone = "f.tid is not null and not f.alive";
        let kept = format!("f.tid is not null and f.alive and {changed}");
        let new = "f.tid is null and f.alive";
        let mut text = ctes.to_owned();
        let (mut expected, mut written) = (Vec::new(), Vec::new());
        let mut counted = |name: &str, condition: &str| {
            expected.push(format!("count(*) filter (where {condition})"));
            written.push(format!("(select count(*) from {name}{n})"));
        };
        if self.has(&[Kind::Delete]) {
            text += &format!(
                ",\ngone{n} as (\n  delete from {table} as t using final{n} as f where t.ctid = f.tid and {gone} and {go} returning 1\n)"
            );
            counted("gone", gone);
        }
        let updates = self.updates();
        if !updates.is_empty() {
            text += &format!(
                ",\nkept{n} as (\n  update {table} as t set {}\n  from final{n} as f where t.ctid = f.tid and {kept} and {go} returning 1\n)",
                updates.join(",\n    ")
            );
            counted("kept", &kept);
        }
        if self.has(&[Kind::Insert, Kind::InsertNew, Kind::Upsert]) {
            let keys = self
                .table
                .key()
                .zip(self.keys())
                .map(|(column, key)| (quote_identifier(&column.name), format!("f.{key}")));
            let values = self
                .numbered()
                .map(|(place, column)| (quote_identifier(&column.name), self.value(place, column, None)));
            let (names, values): (Vec<_>, Vec<_>) = keys.chain(values).unzip();
            text += &format!(
                ",\nnew{n} as (\n  insert into {table} ({})\n  select {}\n  from final{n} as f where {new} and {go} returning 1\n)",
                names.join(", "),
                values.join(",\n    ")
            );
            counted("new", new);
        }
        let doubt = format!(
            "(select count(*) filter (where f.doubt) <> 0 or ({}) <> ({}) from final{n} as f)",
            expected.join(", "),
            written.join(", ")
        );
        Written { ctes: text, doubt }
    }

    /// What an update sets.
    fn updates(&self) -> Vec<String> {
        let mut sets = Vec::new();
        let updates = self.has(&[Kind::Update, Kind::Upsert]);
        let comes_again =
            self.has(&[Kind::Delete]) && self.has(&[Kind::Insert, Kind::InsertNew, Kind::Upsert]);
        for (place, column) in self.numbered().filter(|_| updates || comes_again) {
            let name = quote_identifier(&column.name);
            sets.push(format!("{name} = {}", self.value(place, column, Some(&format!("t.{name}")))));
        }
        // A row that was removed and comes again has nothing of what it was.
        let is_set = |column: &Column| self.columns.iter().any(|set| set.name == column.name);
        for column in
            self.table.columns.iter().filter(|column| comes_again && !column.is_key && !is_set(column))
        {
            let name = quote_identifier(&column.name);
            let value = column.constant_default().unwrap_or_else(|_| "null".to_owned());
            sets.push(format!("{name} = case when f.born then {value} else t.{name} end"));
        }
        sets
    }
}

/// A condition that is true while the catalog says of a table what it has said when the function was made.
pub(super) fn unchanged(table: &Table) -> String {
    format!(
        "exists (select from pg_catalog.pg_class as c where c.oid = {} and {} = {})",
        table.oid,
        super::table::FINGERPRINT,
        quote_literal(&table.fingerprint)
    )
}
