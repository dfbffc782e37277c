//! Finds declared event types that were never stored, which may be misspelt.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sqlx::{AssertSqlSafe, PgPool};

use crate::config::nearest;
use crate::diagnostic::Diagnostic;
use crate::postgres::server_mark;
use crate::processing::declaration::{Handling, ProcessorDeclaration, SourceText};
use crate::store::layout::Layout;

/// How many ids at the head of the store are looked through for types that exist.
const SAMPLE: i64 = 10_000;

/// How long the store may be searched for one event of a type.
const PATIENCE: Duration = Duration::from_secs(5);

/// A warning for each declared type that no event of the store has, with the stored types that may be meant. If the store is
/// empty or too large to be searched, there is none.
pub(crate) async fn find_unknown_types(
    events: &PgPool,
    layout: &Layout,
    processors: &[ProcessorDeclaration],
) -> Result<Vec<Diagnostic>, sqlx::Error> {
    let declared = declared_types(processors);
    if declared.is_empty() {
        return Ok(Vec::new());
    }
    let stored = Stored::read(events, layout, declared.keys().copied().collect()).await?;
    let mut found = Vec::new();
    for (name, places) in declared {
        if !stored.lacks(name) {
            continue;
        }
        for place in places {
            let message = format!("no event of type {} was ever stored", shown(name));
            let warning = Diagnostic::in_source(place, 0, message).into_warning();
            found.push(warning.with_advice(stored.advise(name)));
        }
    }
    Ok(found)
}

/// The declared types, each with the places of what handles them.
fn declared_types(processors: &[ProcessorDeclaration]) -> BTreeMap<&str, Vec<&SourceText>> {
    let mut declared: BTreeMap<&str, Vec<&SourceText>> = BTreeMap::new();
    for processor in processors {
        let program = match &processor.handling {
            Handling::Program(program) => Some((&program.events, &program.place)),
            _ => None,
        };
        let handlers = processor.handlers().iter().map(|handler| (&handler.events, &handler.sql));
        for (events, place) in handlers.chain(program) {
            for name in events.types().into_iter().flatten() {
                declared.entry(name).or_default().push(place);
            }
        }
    }
    declared
}

/// What is known of the types in a store.
struct Stored {
    /// Types of which there are events.
    known: BTreeSet<String>,
    /// Types of which there are none.
    missing: BTreeSet<String>,
}

impl Stored {
    /// Looks for events of these types: first near the head, then everywhere, as long as that does not take long.
    async fn read(events: &PgPool, layout: &Layout, names: Vec<&str>) -> Result<Self, sqlx::Error> {
        let mut transaction = events.begin_with(server_mark::begin(None)).await?;
        let limit = format!("set local statement_timeout = {}", PATIENCE.as_millis());
        sqlx::raw_sql(AssertSqlSafe(limit)).execute(&mut *transaction).await?;
        let sample = format!(
            "-- list_recent_types
             select distinct e.type from {source} as e where e.id > (select max(id) from {table}) - {SAMPLE}",
            source = layout.source(),
            table = layout.events_table()
        );
        let known: Vec<String> =
            sqlx::query_scalar(AssertSqlSafe(sample)).persistent(false).fetch_all(&mut *transaction).await?;
        let mut stored = Self { known: known.into_iter().collect(), missing: BTreeSet::new() };
        if stored.known.is_empty() {
            return Ok(stored);
        }
        let search = format!(
            "-- list_missing_types
             select name from unnest($1::text[]) as name
             where not exists (select from {} as e where e.type = name)",
            layout.source()
        );
        let unseen: Vec<&str> = names.into_iter().filter(|name| !stored.known.contains(*name)).collect();
        let missing = sqlx::query_scalar(AssertSqlSafe(search)).persistent(false).bind(&unseen);
        match missing.fetch_all(&mut *transaction).await {
            Ok(missing) => {
                stored.missing = missing.into_iter().collect();
                let found = unseen.into_iter().filter(|name| !stored.missing.contains(*name));
                stored.known.extend(found.map(str::to_owned).collect::<Vec<_>>());
                Ok(stored)
            }
            // The store is large, and nothing can be said.
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("57014") => Ok(stored),
            Err(error) => Err(error),
        }
    }

    fn lacks(&self, name: &str) -> bool {
        self.missing.contains(name)
    }

    fn advise(&self, name: &str) -> String {
        let as_written = |known: &&String| known.eq_ignore_ascii_case(name);
        let meant = self.known.iter().find(as_written).map(String::as_str);
        match meant.or_else(|| nearest(name, self.known.iter().map(String::as_str))) {
            Some(known) => format!("did you mean {}? If the type is new, all is well", shown(known)),
            None => "if the type is new, all is well".to_owned(),
        }
    }
}

/// A type as people read it.
fn shown(name: &str) -> String {
    let is_plain = name.chars().all(|c| c.is_alphanumeric() || "._-:/".contains(c));
    if is_plain && !name.is_empty() { name.to_owned() } else { format!("{name:?}") }
}
