//! Random declarations, and random events for them.

use std::collections::{HashMap, HashSet};

use fastrand::Rng;

#[derive(Clone)]
pub(super) struct Handler {
    pub(super) types: Vec<String>,
    pub(super) sql: String,
    /// What it does to the row of the event's key, by table: `b`irth, `d`eath or neither.
    effects: Vec<(usize, char)>,
}

/// A declaration, with what is known of the rows that it has by now.
pub(super) struct Case {
    pub(super) tables: Vec<(String, String)>,
    pub(super) handlers: Vec<Handler>,
    /// The types of its events.
    types: Vec<String>,
    rows: HashMap<usize, HashSet<String>>,
}

const TYPES: [&str; 6] = ["A", "B", "C", "D", "E", "F"];

/// Besides, where many handlers write one table.
const MORE_TYPES: [&str; 8] = ["G", "H", "I", "J\"", "K'", "L", "M \\n", "N"];

/// Keys: columns, and the expressions of their values.
const KEYS: [&[(&str, &str, &str)]; 5] = [
    &[("id", "uuid", "(event.body->>'k')::uuid")],
    &[("id", "text", "event.body->>'k'")],
    &[("id", "bigint", "(event.body->>'m')::bigint")],
    &[("id", "varchar(60)", "event.body->>'k'"), ("day", "date", "(event.body->>'d')::date")],
    &[("kind", "text", "event.body->>'l'"), ("id", "integer", "(event.body->>'m')::int")],
];

/// Columns, the expressions of their values, and whether a number is added to them.
const COLUMNS: [(&str, &str, &str, bool); 10] = [
    ("day_there", "date", "(event.created_at at time zone 'Asia/Tokyo')::date", false),
    ("title", "text", "event.body->>'t'", false),
    ("note", "text not null default 'none'", "coalesce(event.body->>'t', 'nothing')", false),
    ("n", "integer not null default 0", "(event.body->>'n')::int", true),
    ("big", "bigint", "(event.body->>'n')::bigint", true),
    ("small", "smallint default 7", "(event.body->>'n')::int", true),
    ("due", "date", "(event.body->>'d')::date", false),
    ("is_open", "boolean not null default true", "event.body ? 't'", false),
    ("amount", "numeric(10, 2)", "(event.body->>'n')::numeric * 1.005", false),
    ("short", "varchar(6)", "left(event.body->>'t', 7)", false),
];

const CONDITIONS: [&str; 3] =
    ["event.body ? 't'", "event.type <> 'B' or event.body->>'l' = 'x'", "(event.body->>'n')::int > 2"];

struct Table {
    name: String,
    key: &'static [(&'static str, &'static str, &'static str)],
    columns: Vec<(&'static str, &'static str, &'static str, bool)>,
}

fn some<'t, T>(dice: &mut Rng, all: &'t [T]) -> &'t T {
    &all[dice.usize(..all.len())]
}

impl Table {
    fn throw(dice: &mut Rng, number: usize) -> Self {
        let mut columns = COLUMNS.to_vec();
        dice.shuffle(&mut columns);
        columns.truncate(dice.usize(..6));
        Self { name: format!("{{p}}t{number}"), key: KEYS[dice.usize(..KEYS.len())], columns }
    }

    fn declaration(&self) -> String {
        let key = self.key.iter().map(|(name, kind, _)| format!("{name} {kind}"));
        let columns = self.columns.iter().map(|(name, kind, ..)| format!("{name} {kind}"));
        let names: Vec<&str> = self.key.iter().map(|(name, ..)| *name).collect();
        let end = format!("primary key ({})", names.join(", "));
        key.chain(columns).chain([end]).collect::<Vec<_>>().join(", ")
    }

    fn condition(&self, dice: &mut Rng) -> String {
        let key = self.key.iter().map(|(name, _, value)| format!("{name} = {value}"));
        let more = (dice.u8(..8) == 0).then(|| format!("({})", some(dice, &CONDITIONS)));
        key.chain(more).collect::<Vec<_>>().join(" and ")
    }

    /// An insert, and the columns that it names, or would.
    fn insert(&self, dice: &mut Rng) -> (String, Vec<&'static str>) {
        let (mut names, mut values) = (Vec::new(), Vec::new());
        for (name, _, value) in self.key {
            names.push(*name);
            values.push(*value);
        }
        // Without a list, values are for the first columns.
        let has_list = dice.u8(..4) > 0;
        for (name, _, value, is_number) in &self.columns {
            if dice.u8(..4) > 0 {
                names.push(name);
                values.push(if *is_number && dice.bool() { "1" } else { value });
            } else if !has_list {
                break;
            }
        }
        let list = if has_list { format!(" ({})", names.join(", ")) } else { String::new() };
        (format!("insert into {}{list} values ({})", self.name, values.join(", ")), names)
    }

    /// Some assignments; `None` if there is nothing to set.
    fn sets(&self, dice: &mut Rng, insert: Option<&[&str]>) -> Option<String> {
        let mut sets = Vec::new();
        for (name, _, value, is_number) in &self.columns {
            let table = &self.name;
            let is_excluded = insert.is_some_and(|names| names.contains(name));
            let own =
                if insert.is_some() || dice.bool() { format!("{table}.{name}") } else { (*name).to_owned() };
            let value = match dice.u8(..8) {
                0 | 1 => continue,
                2 => format!("case when {} then {value} else {own} end", some(dice, &CONDITIONS)),
                3 => format!("coalesce({value}, {own})"),
                4 | 5 if *is_number => format!("{own} {} (event.body->>'n')::int", some(dice, &["+", "-"])),
                6 if *is_number && is_excluded => format!("{own} + excluded.{name}"),
                5 | 6 if is_excluded => format!("excluded.{name}"),
                _ => (*value).to_owned(),
            };
            sets.push(format!("{name} = {value}"));
        }
        (!sets.is_empty()).then(|| sets.join(", "))
    }

    /// A statement, and what it does to the row. Some call the table otherwise.
    fn statement(&self, dice: &mut Rng, is_plain: bool) -> (String, char) {
        let (mut text, effect) = self.plain_statement(dice, is_plain);
        if dice.u8(..3) == 0 {
            text = text.replace(&format!("{}.", self.name), "x.");
            text = text.replacen(&self.name, &format!("{} as x", self.name), 1);
        }
        (text, effect)
    }

    fn plain_statement(&self, dice: &mut Rng, is_plain: bool) -> (String, char) {
        let kind = if is_plain { *some(dice, &[0, 3, 4]) } else { dice.u8(..5) };
        let key: Vec<&str> = self.key.iter().map(|(name, ..)| *name).collect();
        let key = key.join(", ");
        match kind {
            0 => (self.insert(dice).0, 'b'),
            1 => {
                let key = if dice.bool() { format!("({key}) ") } else { String::new() };
                (format!("{} on conflict {key}do nothing", self.insert(dice).0), 'u')
            }
            2 => {
                let (insert, names) = self.insert(dice);
                let action = match self.sets(dice, Some(&names)) {
                    Some(sets) => format!("do update set {sets}"),
                    None => "do nothing".to_owned(),
                };
                (format!("{insert} on conflict ({key}) {action}"), 'u')
            }
            3 => match self.sets(dice, None) {
                Some(sets) => {
                    (format!("update {} set {sets} where {}", self.name, self.condition(dice)), '-')
                }
                None => (self.insert(dice).0, 'b'),
            },
            _ => (format!("delete from {} where {}", self.name, self.condition(dice)), 'd'),
        }
    }
}

impl Handler {
    fn throw(dice: &mut Rng, tables: &[Table], types: &[String], is_plain: bool) -> Self {
        let (mut effects, mut statements) = (Vec::new(), Vec::new());
        for _ in 0..dice.usize(1..3) {
            let number = dice.usize(..tables.len());
            let (statement, effect) = tables[number].statement(dice, is_plain);
            effects.push((number, effect));
            statements.push(statement);
        }
        let mut types = types.to_vec();
        dice.shuffle(&mut types);
        types.truncate(dice.usize(1..3));
        if dice.u8(..12) == 0 {
            types = vec!["*".to_owned()];
        }
        Self { types, sql: statements.join(";\n"), effects }
    }
}

impl Case {
    pub(super) fn throw(dice: &mut Rng) -> Self {
        let tables: Vec<Table> = (0..dice.usize(1..4)).map(|number| Table::throw(dice, number)).collect();
        let is_plain = dice.bool();
        let mut types = TYPES.map(str::to_owned).to_vec();
        let mut handlers = Vec::new();
        if dice.u8(..3) == 0 {
            types.extend(MORE_TYPES.map(str::to_owned));
            for name in &types {
                let (sql, effect) = tables[0].statement(dice, is_plain);
                handlers.push(Handler { types: vec![name.clone()], sql, effects: vec![(0, effect)] });
            }
        }
        for _ in 0..dice.usize(2..8) {
            handlers.push(Handler::throw(dice, &tables, &types, is_plain));
        }
        let tables = tables.iter().map(|table| (table.name.clone(), table.declaration())).collect();
        Self { tables, handlers, types, rows: HashMap::new() }
    }

    /// Events with few keys; some of them fail.
    pub(super) fn stream(&mut self, dice: &mut Rng) -> Vec<(String, String)> {
        let keys = dice.u64(2..40);
        let (mut events, mut refused) = (Vec::new(), 0);
        while events.len() < 150 && refused < 400 {
            // Where all keys are taken, there are new ones.
            let key = if refused % 40 < 20 { dice.u64(..keys) } else { dice.u64(1_000..100_000) };
            let name = some(dice, &self.types).clone();
            if self.would_fail(&name, key) && dice.u16(..2_000) > 0 {
                refused += 1;
                continue;
            }
            refused = 0;
            self.note(&name, key);
            events.push((name, body(dice, key)));
        }
        events
    }

    fn effects(&self, name: &str) -> Vec<(usize, char)> {
        let meets = |handler: &&Handler| handler.types.iter().any(|other| other == name || other == "*");
        self.handlers.iter().filter(meets).flat_map(|handler| handler.effects.clone()).collect()
    }

    /// Whether a row would be inserted that is there, as far as that is known.
    fn would_fail(&self, name: &str, key: u64) -> bool {
        let mut rows = self.rows.clone();
        self.effects(name).into_iter().any(|(table, effect)| {
            let rows = rows.entry(table).or_default();
            match effect {
                'b' => !rows.insert(key.to_string()),
                'u' => {
                    rows.insert(key.to_string());
                    false
                }
                'd' => {
                    rows.remove(&key.to_string());
                    false
                }
                _ => false,
            }
        })
    }

    fn note(&mut self, name: &str, key: u64) {
        for (table, effect) in self.effects(name) {
            let rows = self.rows.entry(table).or_default();
            match effect {
                'b' | 'u' => _ = rows.insert(key.to_string()),
                'd' => _ = rows.remove(&key.to_string()),
                _ => {}
            }
        }
    }
}

fn body(dice: &mut Rng, key: u64) -> String {
    let mut body = serde_json::json!({
        "k": format!("00000000-0000-4000-8000-{key:012}"), "l": if key.is_multiple_of(2) { "x" } else { "y" }, "m": key,
        "d": format!("2026-01-{:02}", key % 28 + 1), "n": dice.i32(-9..20),
    });
    match dice.u16(..1_500) {
        0 => body["n"] = "poison".into(),
        1 => body["n"] = 2_147_483_000.into(),
        2 => body["k"] = serde_json::Value::Null,
        3 => body["d"] = "2026-02-30".into(),
        4 => body["n"] = serde_json::Value::Null,
        5 => body["n"] = (-32_760).into(),
        _ => {}
    }
    match dice.u8(..6) {
        0 => {}
        1 => body["t"] = serde_json::Value::Null,
        _ => body["t"] = format!("t{}", dice.u16(..1000)).into(),
    }
    body.to_string()
}
