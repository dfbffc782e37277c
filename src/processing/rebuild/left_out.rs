//! Which declared versions no daemon builds, because an operator has decided so.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, PgConnection};

use super::{Rebuilds, State};
use crate::postgres::sqlstate::is_missing_right;
use crate::processing::declaration::ProcessorDeclaration;
use crate::processing::processor::fingerprint;
use crate::store::layout::Layout;
use crate::store::upcast::Upcast;

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
/// the one that serves, with old events read through the upcasts. Whoever may not see why sees none. Nothing is asked where none is
/// raised, which is so nearly always.
///
/// # Errors
/// The database does not answer.
pub(crate) async fn list_left_out(
    connection: &mut PgConnection,
    (layout, upcasts): (&Layout, &[Upcast]),
    raised: &[&ProcessorDeclaration],
) -> Result<BTreeMap<String, LeftOut>, sqlx::Error> {
    if raised.is_empty() {
        return Ok(BTreeMap::new());
    }
    match list(connection, (layout, upcasts), raised).await {
        Err(error) if is_missing_right(&error) => Ok(BTreeMap::new()),
        listed => listed,
    }
}

async fn list(
    connection: &mut PgConnection,
    (layout, upcasts): (&Layout, &[Upcast]),
    raised: &[&ProcessorDeclaration],
) -> Result<BTreeMap<String, LeftOut>, sqlx::Error> {
    let schema = layout.quoted_schema();
    let decided = DecidedAgainst::read(connection, &schema).await?;
    let rebuilds = Rebuilds::new(&schema);
    let mut left_out = BTreeMap::new();
    for declaration in raised {
        let (name, version) = (&declaration.name, declaration.version);
        let handlers = declaration.handler_fingerprint(upcasts).unwrap_or_default();
        let fingerprint = whole_fingerprint(declaration, &handlers);
        if let Some(decision) = decided.find(name, version, &fingerprint) {
            left_out.insert(name.clone(), decision);
        } else if let Some(row) = rebuilds.find(&mut *connection, name).await?
            && row.state() == State::Aborted
            && (row.version, row.fingerprint) == (version, fingerprint)
        {
            left_out.insert(name.clone(), LeftOut::GivenUp);
        }
    }
    Ok(left_out)
}

/// The versions that operators have decided against, as their log says: it remembers whatever was built since.
#[derive(Debug)]
pub(crate) struct DecidedAgainst {
    /// Of each the projector, the version and, where just one declaration was given up, its fingerprint.
    found: Vec<(String, i32, Option<String>)>,
}

impl DecidedAgainst {
    /// Reads which versions have served until an older one was put in their place, and have not served again; and which declarations
    /// were given up, of whose version none was begun since. `schema` is quoted.
    pub(crate) async fn read(connection: &mut PgConnection, schema: &str) -> Result<Self, sqlx::Error> {
        let statement = format!(
            "-- list_decided_against
             with acts as (
               select processor, id, action, detail ->> 'fingerprint' as fingerprint,
                 (detail ->> 'version')::integer as version, (detail ->> 'from_version')::integer as from_version
               from {schema}.operator_log where action in ('go_live', 'rebuild', 'abort_rebuild', 'drop')
             ), back as (
               select processor, id, version, from_version from acts where action = 'go_live' and from_version > version
             ), left_behind as (
               select processor, id, from_version as version from back
               union all
               -- Who goes back over several versions has gone back from each of them.
               select s.processor, b.id, s.version from back as b join acts as s on s.processor = b.processor and s.id < b.id
               where s.action = 'go_live' and s.version > b.version and s.version < b.from_version
             )
             select distinct l.processor, l.version, null::text from left_behind as l
             where not exists (select from acts as later where later.processor = l.processor and later.id > l.id
               and (later.action = 'drop' or later.action = 'go_live' and later.version = l.version))
             union all
             select distinct a.processor, a.version, a.fingerprint from acts as a
             where a.action = 'abort_rebuild' and a.fingerprint is not null
               and not exists (select from acts as later where later.processor = a.processor and later.id > a.id
                 and (later.action = 'drop' or later.action in ('go_live', 'rebuild') and later.version = a.version))"
        );
        let query = sqlx::query_as(AssertSqlSafe(statement)).persistent(false);
        Ok(Self { found: query.fetch_all(connection).await? })
    }

    /// What was decided about a version as it is declared; `None`: nothing.
    pub(crate) fn find(&self, name: &str, version: i32, fingerprint: &str) -> Option<LeftOut> {
        let of_version =
            self.found.iter().filter(|(processor, found, _)| processor == name && *found == version);
        let decisions = of_version.filter_map(|(_, _, given_up)| match given_up {
            None => Some(LeftOut::GoneBack),
            Some(given_up) => (given_up == fingerprint).then_some(LeftOut::GivenUp),
        });
        decisions.min_by_key(|decision| *decision == LeftOut::GivenUp)
    }
}

/// All that a version is declared by: its tables, and the fingerprint of its handlers.
pub(crate) fn whole_fingerprint(declaration: &ProcessorDeclaration, handlers: &str) -> String {
    format!("{} {handlers}", fingerprint(declaration))
}
