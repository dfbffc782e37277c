//! What there is of versions beside those that serve. When all is over that is nothing but former versions, each complete.

use std::collections::BTreeSet;

use sqlx::PgConnection;

use crate::projectors::NAMES;

/// The versions in one database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beside {
    /// Names and versions of the trackers of projectors.
    pub trackers: Vec<(String, i32)>,
    /// Schemas with tables of versions.
    pub schemas: BTreeSet<String>,
    /// Functions of versions that do not serve.
    pub functions: Vec<String>,
    /// What somebody is said to be building.
    pub under_way: Vec<String>,
    /// Records that refer to no tracker.
    pub orphans: Vec<String>,
}

impl Beside {
    /// Reads what there is.
    pub async fn read(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let trackers = "-- list_trackers\nselect name, version from espd.trackers where kind = 'projector' order by 1, 2";
        let schemas =
            "-- list_schemas\nselect nspname::text from pg_namespace where nspname like 'public\\_%'";
        let functions = "-- list_functions
            select proname::text from pg_proc where pronamespace = 'espd'::regnamespace and strpos(proname, '$') > 0 order by 1";
        let under_way = "-- list_under_way
            select 'build_progress of ' || tracker from espd.build_progress
            union all
            select 'rebuild of ' || processor || ', ' || state from espd.rebuilds
            where state not in ('live', 'merged', 'aborted')";
        let orphans = "-- list_orphans
            select 'declaration of ' || d.processor || ' ' || d.version from espd.declarations as d
            where strpos(d.processor, '$') > 0 and not exists (select from espd.trackers as t where t.name = d.processor)
            union all
            select 'table of ' || p.processor from espd.projection_tables as p
            where strpos(p.processor, '$') > 0 and not exists (select from espd.trackers as t where t.name = p.processor)";
        Ok(Self {
            trackers: sqlx::query_as(trackers).fetch_all(&mut *connection).await?,
            schemas: sqlx::query_scalar(schemas).fetch_all(&mut *connection).await?.into_iter().collect(),
            functions: sqlx::query_scalar(functions).fetch_all(&mut *connection).await?,
            under_way: sqlx::query_scalar(under_way).fetch_all(&mut *connection).await?,
            orphans: sqlx::query_scalar(orphans).fetch_all(connection).await?,
        })
    }

    /// What is wrong with it, once nobody builds any more.
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints = self.under_way.clone();
        for name in NAMES {
            let serving: Vec<i32> =
                self.trackers.iter().filter(|(of, _)| of == name).map(|(_, version)| *version).collect();
            if serving.len() != 1 {
                complaints.push(format!("of {name} serve the versions {serving:?}"));
            }
        }
        let mut archives = BTreeSet::new();
        for (name, version) in self.trackers.iter().filter(|(name, _)| name.contains('$')) {
            match name.split_once('$') {
                Some((of, suffix)) if suffix == version.to_string() => {
                    archives.insert(format!("public_{of}_v{version}"));
                }
                _ => complaints.push(format!("a tracker {name}, version {version}")),
            }
        }
        complaints.extend(self.schemas.difference(&archives).map(|schema| format!("a schema {schema}")));
        complaints.extend(archives.difference(&self.schemas).map(|schema| format!("no schema {schema}")));
        let known = |function: &str| {
            self.trackers.iter().any(|(name, version)| function.ends_with(&format!("_{name}_v{version}")))
        };
        complaints.extend(
            self.functions.iter().filter(|name| !known(name)).map(|name| format!("a function {name}")),
        );
        complaints.extend(self.orphans.iter().cloned());
        complaints
    }
}
