//! Which declared versions no daemon builds, because an operator has decided so.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, PgConnection};

use super::{Rebuilds, State};
use crate::postgres::sqlstate::is_missing_right;
use crate::processing::declaration::ProcessorDeclaration;
use crate::processing::processor::fingerprint;
use crate::store::layout::Layout;

/// What an operator has decided about a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeftOut {
    /// It served, and he has put an older one in its place.
    GoneBack,
    /// He has given it up while it was built.
    GivenUp,
}

impl LeftOut {
    /// Why the version is not built, and what to do, as one sentence without its full stop.
    pub(crate) fn describe(self, name: &str, version: i32) -> String {
        match self {
            Self::GoneBack => format!(
                "version {version} has served and an operator has gone back from it, so no daemon builds it again: raise `version` once \
                 its handlers are corrected, or build it with `espctl rebuild {name}`"
            ),
            Self::GivenUp => format!(
                "version {version} was given up by an operator, so no daemon builds it unless its declaration changes; `espctl rebuild \
                 {name}` builds it"
            ),
        }
    }
}

/// Those of the `raised` versions that no daemon builds, by the names of their projectors: versions that are declared and higher than
/// the one that serves. Whoever may not see why sees none. Nothing is asked where none is raised, which is so nearly always.
///
/// # Errors
/// The database does not answer.
pub(crate) async fn list_left_out(
    connection: &mut PgConnection,
    layout: &Layout,
    raised: &[&ProcessorDeclaration],
) -> Result<BTreeMap<String, LeftOut>, sqlx::Error> {
    if raised.is_empty() {
        return Ok(BTreeMap::new());
    }
    match list(connection, layout, raised).await {
        Err(error) if is_missing_right(&error) => Ok(BTreeMap::new()),
        listed => listed,
    }
}

async fn list(
    connection: &mut PgConnection,
    layout: &Layout,
    raised: &[&ProcessorDeclaration],
) -> Result<BTreeMap<String, LeftOut>, sqlx::Error> {
    let schema = layout.quoted_schema();
    let gone_back = list_gone_back(connection, &schema).await?;
    let rebuilds = Rebuilds::new(&schema);
    let mut left_out = BTreeMap::new();
    for declaration in raised {
        let (name, version) = (&declaration.name, declaration.version);
        let handlers = declaration.handler_fingerprint(layout.upcasts()).unwrap_or_default();
        if gone_back.iter().any(|(processor, gone)| processor == name && *gone == version) {
            left_out.insert(name.clone(), LeftOut::GoneBack);
        } else if let Some(row) = rebuilds.find(&mut *connection, name).await?
            && row.state() == State::Aborted
            && (row.version, row.fingerprint) == (version, whole_fingerprint(declaration, &handlers))
        {
            left_out.insert(name.clone(), LeftOut::GivenUp);
        }
    }
    Ok(left_out)
}

/// The versions that an older one was put in place of, and that have not served again since, with the names of their projectors.
pub(crate) async fn list_gone_back(
    connection: &mut PgConnection,
    schema: &str,
) -> Result<Vec<(String, i32)>, sqlx::Error> {
    let statement = format!(
        "-- list_gone_back
         select distinct back.processor, (back.detail ->> 'from_version')::integer
         from {schema}.operator_log as back
         where back.action = 'go_live'
           and (back.detail ->> 'from_version')::integer > (back.detail ->> 'version')::integer
           and not exists (select from {schema}.operator_log as later
             where later.processor = back.processor and later.id > back.id
               and (later.action = 'drop'
                    or later.action = 'go_live' and later.detail -> 'version' = back.detail -> 'from_version'))"
    );
    sqlx::query_as(AssertSqlSafe(statement)).persistent(false).fetch_all(connection).await
}

/// All that a version is declared by: its tables, and the fingerprint of its handlers.
pub(crate) fn whole_fingerprint(declaration: &ProcessorDeclaration, handlers: &str) -> String {
    format!("{} {handlers}", fingerprint(declaration))
}
