//! Folded batches: where all handlers that a batch meets are plain statements on one row by its key, the batch is one statement
//! with the net effect on each row.
//!
//! The result is the loop's result. A handler counts only if everything in it is on an explicit list (`statement`, `expression`),
//! if the database confirms that PostgreSQL's own functions and operators are meant and that the tables have nothing that could
//! see the difference (`table`), and if it has accepted the statement itself. In a batch, any error or doubt sends all of it to
//! the loop, which also is who names a failing event.

mod deep_stack;
mod expression;
mod ownership;
mod probe;
mod statement;
mod table;
mod write;

use std::collections::BTreeMap;

use sqlx::PgConnection;

use self::deep_stack::on_deep_stack;
pub(crate) use self::ownership::{TableShape, find_aggregate_columns};
use self::probe::Probe;
use self::statement::Statement;
use self::table::Table;
use self::write::{Op, RANKS_MAX};
use super::event_source::{COLUMNS, EventSource, literals, mentions_deferrable, type_condition};
use super::gate::delimiter_of;
use super::template::Template;
use crate::postgres::lexer;
use crate::postgres::name::fitting;
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::postgres::sql_scope::SqlScope;
use crate::postgres::sqlstate::{describe, is_no_answer};
use crate::processing::declaration::{HandledEvents, Handler, ProcessorDeclaration};

/// A batch of fewer events is handled one by one: it takes no longer.
pub(super) const LEAST: usize = 32;

/// A batch of more events is large: what it sorts is given memory.
const LARGE: usize = 10_000;

/// Most statements on one table. Those that no event meets together are chosen by its type, so many cost little.
const STATEMENTS_MAX: usize = 1_000;

/// The longest texts of all statements on one table together, in bytes: they are one statement.
const STATEMENTS_TEXT_MAX: usize = 1 << 20;

/// The longest handler that is looked at, in bytes.
const TEXT_MAX: usize = 16 << 10;

/// What is known of a handler: its statements, or why it is not folded.
type Recognised = Result<Vec<Statement>, String>;

/// What the database has made of the handlers.
#[derive(Debug)]
pub(crate) struct Examined {
    /// For each handler in the order of the declaration, why it is not folded; `None`: it is.
    pub(crate) refusals: Vec<Option<String>>,
    /// The function that folds a batch.
    pub(super) create: String,
}

/// The name of the function that folds batches.
pub(crate) fn name_of(processor: &str, version: i32) -> String {
    fitting(format!("fold_{processor}_v{version}"))
}

/// The name of the function that folds batches of one share of the aggregates.
pub(super) fn share_name_of(processor: &str, version: i32, share: i32) -> String {
    fitting(format!("fold_{processor}_v{version}_share_{share}"))
}

/// Why no batch of the projector is folded, whatever its handlers are.
fn refuse_all(
    declaration: &ProcessorDeclaration,
    scope: &SqlScope,
    source: EventSource<'_>,
) -> Option<&'static str> {
    let is_declared_so = |name: &str, value: &str| scope.settings.get(name).is_some_and(|set| set != value);
    if !declaration.fold {
        Some("fold = false is declared")
    } else if declaration.reactor.is_some() {
        Some("reactors handle one event after another")
    } else if declaration.synchronous.is_some() {
        Some("the projector is synchronous")
    } else if matches!(source, EventSource::Arguments) {
        Some("the events are in another database")
    } else if mentions_deferrable(declaration) {
        Some("a constraint of its tables is deferrable")
    } else if scope.search_path.iter().chain([&scope.schema]).any(|schema| schema.starts_with("pg_")) {
        Some("search_path names a schema of PostgreSQL's own")
    } else if is_declared_so("standard_conforming_strings", "on")
        || is_declared_so("transform_null_equals", "off")
    {
        Some("a declared setting changes how SQL is read")
    } else {
        None
    }
}

/// Reads the handlers, without a database.
fn recognise(
    declaration: &ProcessorDeclaration,
    scope: &SqlScope,
    source: EventSource<'_>,
) -> Vec<Recognised> {
    let refusal = refuse_all(declaration, scope, source);
    let handlers = declaration.handlers();
    if let Some(refusal) = refusal {
        return vec![Err(refusal.to_owned()); handlers.len()];
    }
    let recognise =
        || handlers.iter().map(|handler| recognise_handler(declaration, handler, scope)).collect();
    on_deep_stack(recognise)
        .unwrap_or_else(|| vec![Err("its text could not be read".to_owned()); handlers.len()])
}

fn recognise_handler(declaration: &ProcessorDeclaration, handler: &Handler, scope: &SqlScope) -> Recognised {
    let text = &handler.sql.text;
    if text.len() > TEXT_MAX {
        return Err("its text is too long".to_owned());
    }
    let tokens = lexer::tokens(text).map_err(|unclosed| unclosed.to_string())?;
    let statements =
        lexer::statements(&tokens).map(|statement| statement::recognise(text, statement, &scope.schema));
    let statements: Vec<Statement> = statements.collect::<Result<_, _>>()?;
    let is_own = |name: &str| declaration.tables.iter().any(|table| table.name == name);
    match statements.iter().find(|statement| !is_own(&statement.table) || statement.table == "event") {
        Some(foreign) => Err(format!("{} is no table that the projector declares", foreign.table)),
        None if statements.is_empty() => Err("it has no statement".to_owned()),
        None => Ok(statements),
    }
}

/// Whether batches of the projector may be folded, as far as that is known without the database.
pub(super) fn is_worth_trying(
    declaration: &ProcessorDeclaration,
    scope: &SqlScope,
    source: EventSource<'_>,
) -> bool {
    let recognised = recognise(declaration, scope, source);
    let others_all = declaration.handlers().iter().zip(&recognised);
    let mut others_all = others_all.filter(|(_, found)| found.is_err());
    recognised.iter().any(Result::is_ok)
        && !others_all.any(|(handler, _)| handler.events == HandledEvents::All)
}

/// Asks the database about everything that handlers depend on, and writes the function of this name in the schema. Leaves nothing
/// behind: it is all done behind a savepoint.
pub(crate) async fn examine(
    connection: &mut PgConnection,
    declaration: &ProcessorDeclaration,
    (schema, name): (&str, &str),
    scope: &SqlScope,
    source: EventSource<'_>,
) -> Result<Examined, sqlx::Error> {
    let mut recognised = recognise(declaration, scope, source);
    let mut tables = BTreeMap::new();
    match ask(connection, declaration, scope, source, &mut recognised).await {
        Ok(known) => tables = known,
        Err(error) if is_no_answer(&error) => return Err(error),
        Err(error) => recognised.fill(Err(describe(&error))),
    }
    refuse_crowds(declaration, &mut recognised);
    refuse_beside_all(declaration, &mut recognised);
    let create = write_function(declaration, (schema, name), scope, source, &recognised, &tables);
    let refusals = recognised.into_iter().map(Result::err).collect();
    Ok(Examined { refusals, create })
}

/// Refuses the handlers that the database does not confirm; returns the tables.
async fn ask(
    connection: &mut PgConnection,
    declaration: &ProcessorDeclaration,
    scope: &SqlScope,
    source: EventSource<'_>,
    recognised: &mut [Recognised],
) -> Result<BTreeMap<String, Table>, sqlx::Error> {
    let mut tables = BTreeMap::new();
    if let EventSource::Table { source, .. } = source {
        let mut probe = Probe::open(connection, scope, source).await?;
        for table in &declaration.tables {
            if let Some(table) = probe.table(&table.name).await? {
                tables.insert(table.name.clone(), table);
            }
        }
        for found in recognised.iter_mut() {
            if let Ok(statements) = found {
                let refusal = match resolve(statements, &tables) {
                    Ok(()) => probe.refuse(statements, &tables).await?,
                    Err(refusal) => Some(refusal),
                };
                if let Some(refusal) = refusal {
                    *found = Err(refusal);
                }
            }
        }
        probe.close().await?;
    }
    Ok(tables)
}

/// Has what the author leaves to the tables named.
fn resolve(statements: &mut [Statement], tables: &BTreeMap<String, Table>) -> Result<(), String> {
    statements.iter_mut().try_for_each(|statement| match tables.get(&statement.table) {
        Some(table) => statement.resolve(table),
        None => Err(format!("{} does not exist yet", statement.table)),
    })
}

/// Refuses everything where a handler of all events is refused: every batch meets it.
fn refuse_beside_all(declaration: &ProcessorDeclaration, recognised: &mut [Recognised]) {
    let handlers = declaration.handlers().iter();
    let meets_all = handlers
        .zip(recognised.iter())
        .any(|(handler, found)| handler.events == HandledEvents::All && found.is_err());
    for found in recognised.iter_mut().filter(|found| meets_all && found.is_ok()) {
        *found = Err("every batch meets a handler of all events that is not folded".to_owned());
    }
}

/// Refuses what would make one statement too large.
fn refuse_crowds(declaration: &ProcessorDeclaration, recognised: &mut [Recognised]) {
    for table in &declaration.tables {
        let ops = ops_of(declaration, recognised, &table.name);
        let bytes: usize = ops.iter().map(|op| op.statement.text.len()).sum();
        if ops.len() > STATEMENTS_MAX
            || bytes > STATEMENTS_TEXT_MAX
            || ops.iter().any(|op| op.rank >= RANKS_MAX)
        {
            for found in recognised.iter_mut() {
                let writes =
                    |statements: &Vec<Statement>| statements.iter().any(|other| other.table == table.name);
                if found.as_ref().is_ok_and(writes) {
                    *found = Err(format!("too many statements write {}", table.name));
                }
            }
        }
    }
}

/// The statements on a table, each with its place among those that the same event meets.
fn ops_of(declaration: &ProcessorDeclaration, recognised: &[Recognised], table: &str) -> Vec<Op> {
    let mut ops: Vec<Op> = Vec::new();
    for (handler, found) in declaration.handlers().iter().zip(recognised) {
        let types =
            handler.events.types().map(|types| types.into_iter().map(str::to_owned).collect::<Vec<_>>());
        for statement in found.iter().flatten().filter(|statement| statement.table == table) {
            let meets = |other: &&Op| match (&types, &other.types) {
                (Some(these), Some(those)) => these.iter().any(|name| those.contains(name)),
                _ => true,
            };
            let rank = ops.iter().filter(meets).map(|other| other.rank + 1).max().unwrap_or(0);
            ops.push(Op { statement: statement.clone(), types: types.clone(), rank });
        }
    }
    ops
}

fn write_function(
    declaration: &ProcessorDeclaration,
    (schema, name): (&str, &str),
    scope: &SqlScope,
    source: EventSource<'_>,
    recognised: &[Recognised],
    tables: &BTreeMap<String, Table>,
) -> String {
    let mut template = Template::default();
    let used = used_columns(declaration, recognised);
    let others = declaration.handlers().iter().zip(recognised).filter(|(_, found)| found.is_err());
    let others: Vec<&str> = others.filter_map(|(handler, _)| handler.events.types()).flatten().collect();
    let events_read = read_events(declaration, source, &used);
    let (source, table) = match source {
        EventSource::Table { source, table, .. } => (source, table),
        EventSource::Arguments => ("", ""),
    };
    let written = tables.values().map(|table| (table, ops_of(declaration, recognised, &table.name)));
    let written: Vec<(&Table, Vec<Op>)> = written.filter(|(_, ops)| !ops.is_empty()).collect();
    let (mut ctes, mut doubts, mut unchanged) = (Vec::new(), Vec::new(), Vec::new());
    let single = match written.as_slice() {
        [(table, ops)] if others.is_empty() => write::write_single(table, ops, &events_read),
        _ => None,
    };
    template.conditions.extend((!written.is_empty()).then_some("foldable"));
    template.conditions.extend(single.is_some().then_some("measured"));
    if single.is_none() {
        ctes.push(read_batch(&events_read, &own_condition(&others)));
    }
    for (number, (table, ops)) in written.iter().enumerate() {
        let written = match &single {
            Some(single) => single.clone(),
            None => write::write(table, ops, number),
        };
        ctes.push(written.ctes);
        doubts.push(written.doubt);
        unchanged.push(write::unchanged(table));
    }
    template.values.extend([
        ("function", format!("{}.{}", quote_identifier(schema), quote_identifier(name))),
        ("search_path", scope.search_path()),
        ("source", source.to_owned()),
        ("table", quote_literal(table)),
        ("events", events_read),
        ("least", LEAST.to_string()),
        ("large", LARGE.to_string()),
        ("ctes", ctes.join(",\n")),
        ("doubts", doubts.join("\n    or ")),
        ("unchanged", unchanged.join("\n    and ")),
    ]);
    let text = template.fill(include_str!("fold/fold_batch.sql"));
    let delimiter = delimiter_of(&text);
    text.replace("$espd_body$", &delimiter)
}

/// That no event of a batch is of one of these types.
fn own_condition(others: &[&str]) -> String {
    if others.is_empty() {
        return "true".to_owned();
    }
    format!("not coalesce(bool_or(event.type in ({})), false)", literals(others.iter().copied()))
}

/// The batch, which is kept, and whether it is handled at all: `own` says that it has no event that is not for the fold.
fn read_batch(events: &str, own: &str) -> String {
    format!(
        "batch as materialized (\n      {events}\n    ),
    gate as materialized (
      select sums.*, sums.handled >= {LEAST} and sums.bytes < $8 and sums.is_own as go
      from (
        select count(*) as handled, max(event.id) as last_id, coalesce(sum(pg_column_size(event.body)), 0) as bytes,
          {own} as is_own
        from batch as event
      ) as sums
    )"
    )
}

/// The query of the events of a batch. A plan may compute fields before it sorts and cuts off, and what is behind the batch shall not
/// matter: where an event may be one that cannot be read, it is known first where the batch ends.
fn read_events(declaration: &ProcessorDeclaration, source: EventSource<'_>, used: &str) -> String {
    let EventSource::Table { source, table, may_be_unreadable, is_whole, .. } = source else {
        return String::new();
    };
    let of_types = type_condition(declaration.event_types());
    let cut_off = |from: &str, fields: &str| {
        format!(
            "select {fields} from {from} as e where e.id > $5 and e.id <= $6{of_types}\n      order by e.id limit $7"
        )
    };
    match (may_be_unreadable, is_whole) {
        (false, _) => cut_off(source, used),
        // The table occurs once in its source.
        (true, true) => {
            let stored = format!("({}) as stored", cut_off(table, "e.*"));
            format!("select {used} from {} as e", source.replacen(table, &stored, 1))
        }
        (true, false) => format!(
            "select {used} from {source} as e where e.id > $5 and e.id <= (select max(e.id) from (\n      {}\n      ) as e){of_types}",
            cut_off(source, "e.id")
        ),
    }
}

/// The fields of `event` that are read.
fn used_columns(declaration: &ProcessorDeclaration, recognised: &[Recognised]) -> String {
    let handlers = declaration.handlers().iter().zip(recognised).filter(|(_, found)| found.is_ok());
    let texts: Vec<String> = handlers.map(|(handler, _)| handler.sql.text.to_lowercase()).collect();
    let is_used = |column: &&str| {
        ["id", "uuid", "type", "body"].contains(column) || texts.iter().any(|text| text.contains(column))
    };
    COLUMNS.split(", ").filter(is_used).collect::<Vec<_>>().join(", ")
}
