//! `[[event]]` of the configuration: whether it is right, whether the store has been told of it, and telling the store.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use sqlx::{PgExecutor, PgPool};

use crate::diagnostic::{Diagnostic, render_all};
use crate::operations::databases::Databases;
use crate::postgres::literal::simple;
use crate::postgres::quote::quote_literal;
use crate::postgres::server_mark;
use crate::postgres::sqlstate::{describe, is_infrastructure_error};
use crate::process::exit_code::Exit;
use crate::store::declared_event::{DeclaredEvent, EventSchemas, StoredSchema, are_same, patterns};
use crate::store::layout::Layout;

/// How what is declared of a type differs from what the store has been told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Difference {
    /// The store has not been told of the type.
    New,
    /// The store has been told something else.
    Changed,
    /// The store has been told, by another configuration or an earlier one.
    NotDeclared,
}

impl Difference {
    /// The word for people.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Changed => "changed",
            Self::NotDeclared => "not declared here",
        }
    }
}

/// Whether a store of this layout is told what is declared.
pub(crate) fn are_told(layout: &Layout) -> bool {
    EventSchemas::of(layout).is_some()
}

/// The types whose schemas differ, in the order of the configuration; those that are not declared in it come last.
pub(crate) async fn compare(
    events: impl PgExecutor<'_>,
    layout: &Layout,
    declared: &[DeclaredEvent],
) -> Result<Vec<(String, Difference)>, sqlx::Error> {
    let Some(schemas) = EventSchemas::of(layout) else { return Ok(Vec::new()) };
    let stored = schemas.list(events).await?;
    let difference = |event: &DeclaredEvent| match stored.get(&event.event_type) {
        None => Some(Difference::New),
        Some(StoredSchema { schema, is_checked }) => {
            (!are_same(schema, &event.text) || *is_checked != event.is_checked).then_some(Difference::Changed)
        }
    };
    let mut found: Vec<_> =
        declared.iter().filter_map(|event| Some((event.event_type.clone(), difference(event)?))).collect();
    let names: BTreeSet<&String> = declared.iter().map(|event| &event.event_type).collect();
    let others = stored.keys().filter(|name| !names.contains(name));
    found.extend(others.map(|name| (name.clone(), Difference::NotDeclared)));
    Ok(found)
}

/// Tells the store what is declared, in one transaction, and has it forget other types if `forget_others`. Returns how the
/// store differed before.
pub(crate) async fn apply(
    databases: &Databases,
    declared: &[DeclaredEvent],
    forget_others: bool,
) -> Result<Vec<(String, Difference)>, sqlx::Error> {
    let Some(schemas) = EventSchemas::of(&databases.layout) else { return Ok(Vec::new()) };
    let mut transaction = databases.events.begin_with(server_mark::begin(None)).await?;
    let differences = compare(&mut *transaction, &databases.layout, declared).await?;
    for (name, difference) in &differences {
        match declared.iter().find(|event| event.event_type == *name) {
            Some(event) => schemas.declare(&mut *transaction, event).await?,
            None if forget_others && *difference == Difference::NotDeclared => {
                schemas.forget(&mut *transaction, name).await?;
            }
            None => {}
        }
    }
    transaction.commit().await?;
    Ok(differences)
}

/// What a migration says of the declared events: nothing where there are none.
pub(crate) async fn apply_after_migration(
    databases: &Databases,
    declared: &[DeclaredEvent],
) -> anyhow::Result<Option<String>> {
    if declared.is_empty() {
        return Ok(None);
    }
    require_right(databases, declared).await?;
    let changed = apply(databases, declared, false).await?;
    let of = |wanted| changed.iter().filter(|(_, difference)| *difference == wanted).count();
    let (new, changed) = (of(Difference::New), of(Difference::Changed));
    Ok(Some(format!("event schemas: {} declared, {new} new, {changed} changed", declared.len())))
}

/// The mistakes that only the store knows: patterns that PostgreSQL cannot read, and a check where espd does not append.
pub(crate) async fn find_mistakes(
    events: &PgPool,
    layout: &Layout,
    declared: &[DeclaredEvent],
) -> Result<Vec<Diagnostic>, sqlx::Error> {
    let mut found = Vec::new();
    for event in declared {
        if event.is_checked && !are_told(layout) {
            let message = format!("{} cannot be checked when it is appended", event.event_type);
            let advice = "espd does not append to a store of this layout: write check = \"report\"";
            found.push(Diagnostic::in_source(&event.place, 0, message).with_advice(advice));
        }
        for pattern in patterns(&event.schema) {
            found.extend(try_pattern(events, event, pattern).await?);
        }
    }
    Ok(found)
}

async fn try_pattern(
    events: &PgPool,
    event: &DeclaredEvent,
    pattern: &str,
) -> Result<Option<Diagnostic>, sqlx::Error> {
    let statement = format!("-- try_pattern\nselect '' ~ {}", quote_literal(pattern));
    match simple(statement).execute(events).await {
        Ok(_) => Ok(None),
        Err(error) if is_infrastructure_error(&error) => Err(error),
        Err(error) => {
            let message = format!("PostgreSQL cannot read the pattern {pattern}: {}", describe(&error));
            let advice = "write a regular expression of PostgreSQL: docs/event-schemas.md";
            Ok(Some(Diagnostic::in_source(&event.place, 0, message).with_advice(advice)))
        }
    }
}

/// Refuses declarations that [`find_mistakes`] finds wrong.
pub(crate) async fn require_right(databases: &Databases, declared: &[DeclaredEvent]) -> anyhow::Result<()> {
    let mistakes = find_mistakes(&databases.events, &databases.layout, declared).await?;
    if mistakes.is_empty() { Ok(()) } else { Err(Exit::configuration(render_all(&mistakes)).into()) }
}

/// What people have to know where the store has not been told what is declared.
pub(crate) fn note_differences(differences: &[(String, Difference)]) -> Option<String> {
    let untold: Vec<&str> = differences
        .iter()
        .filter(|(_, difference)| *difference != Difference::NotDeclared)
        .map(|(name, _)| name.as_str())
        .collect();
    (!untold.is_empty()).then(|| {
        format!(
            "the event store has not been told what is declared of {}: run `espctl schema apply`",
            untold.join(", ")
        )
    })
}

/// Adds to each schema of `by_type`, under `x-espd`, what is declared of the type and which of its newest events depart from
/// that, `sample` at most. Declared types without an event are added. `layout` has the upcasts, because a declaration is about
/// events as they are read now. What the configuration declares comes before what the store has been told.
pub(crate) async fn add_declared(
    by_type: &mut BTreeMap<String, Value>,
    events: &PgPool,
    layout: &Layout,
    declared: &[DeclaredEvent],
    only: Option<&str>,
    sample: i64,
) -> Result<(), sqlx::Error> {
    let schemas = EventSchemas::of(layout);
    let mut all = match &schemas {
        Some(schemas) => schemas.list(events).await?,
        None => BTreeMap::new(),
    };
    all.extend(declared.iter().map(|event| {
        let stored = StoredSchema { schema: event.text.clone(), is_checked: event.is_checked };
        (event.event_type.clone(), stored)
    }));
    all.retain(|name, _| only.is_none_or(|only| only == name));
    for (name, StoredSchema { schema, is_checked }) in all {
        let departures = match &schemas {
            Some(schemas) => {
                Some(schemas.find_departures(events, layout.source(), &name, &schema, sample).await?)
            }
            None => None,
        };
        let newest = departures.as_ref().and_then(|departures| departures.newest.as_ref());
        let newest = newest.map(|(id, departure)| json!({ "event": id, "departure": departure }));
        let of_type = by_type
            .entry(name.clone())
            .or_insert_with(|| json!({ "title": name, "x-espd": { "origin": "declared", "events": 0 } }));
        of_type["x-espd"]["declared"] = json!({
            "schema": serde_json::from_str(&schema).unwrap_or(Value::String(schema)),
            "check": if is_checked { "append" } else { "report" },
            "looked_at": departures.as_ref().map(|departures| departures.looked_at),
            "departing": departures.map(|departures| departures.count),
            "newest_departing": newest,
        });
    }
    Ok(())
}
