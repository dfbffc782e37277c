//! What a version that is declared higher than the one that serves would change for whoever reads the tables, and how far the one is
//! that is built already.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, PgConnection};

use crate::config::Config;
use crate::operations::databases::Databases;
use crate::operations::rebuild::publications;
use crate::operations::status::{RebuildStatus, list_builds};
use crate::postgres::sqlstate::is_missing_right;
use crate::processing::alteration::{own_columns, primary_key};
use crate::processing::declaration::ProcessorDeclaration;
use crate::processing::rebuild::{
    Beside, ChangedKey, RebuildRow, Rebuilds, describe_lost, find_declared, list_lost, whole_fingerprint,
};
use crate::processing::tracker::TrackerRow;

/// A version that is there beside the serving one, and is to go live.
#[derive(Debug)]
pub(in crate::operations) struct Standing {
    status: RebuildStatus,
    row: Option<RebuildRow>,
}

/// The versions that are to go live, by the names of their projectors. Whoever may not see them sees none.
pub(super) async fn list_standing(
    connection: &mut PgConnection,
    databases: &Databases,
) -> Result<BTreeMap<String, Standing>, sqlx::Error> {
    let layout = &databases.layout;
    let rebuilds = Rebuilds::new(&layout.quoted_schema());
    let mut standing = BTreeMap::new();
    for (name, status) in list_builds(&mut *connection, layout).await? {
        let row = match rebuilds.find(&mut *connection, &name).await {
            Err(error) if is_missing_right(&error) => None,
            found => found?,
        };
        let row = row.filter(|row| row.version == status.version && row.state().is_under_way());
        standing.insert(name, Standing { status, row });
    }
    Ok(standing)
}

impl Standing {
    /// Whether it is built from this declaration. What could not be begun is not known to be from another one.
    pub(in crate::operations) fn is_of(&self, declaration: &ProcessorDeclaration, config: &Config) -> bool {
        let handlers = declaration.handler_fingerprint(&config.upcasts);
        self.status.version == declaration.version
            && self
                .row
                .as_ref()
                .zip(handlers)
                .is_none_or(|(row, handlers)| row.fingerprint == whole_fingerprint(declaration, &handlers))
    }

    /// How far it is, and what keeps it, as a part of a sentence that begins with the version.
    pub(in crate::operations) fn describe(&self) -> String {
        let RebuildStatus { version, blocked_because, .. } = &self.status;
        let far = format!("version {version} beside it {}", self.status.describe());
        let is_approved = self.row.as_ref().is_some_and(|row| row.is_approved);
        match blocked_because {
            Some(_) if is_approved => format!("{far}; an operator has approved it"),
            Some(because) => format!("{far}; it is not live: {because}"),
            None => far,
        }
    }

    /// What becomes of it where something else is declared, of this version.
    pub(in crate::operations) fn describe_end(&self, declared: i32) -> String {
        let RebuildStatus { version, builder, .. } = &self.status;
        let end = match &self.row {
            Some(row) if !row.automatic => format!("is left to {}, who has begun it", row.started_by),
            _ if declared > *version => "is given up, with what was built".to_owned(),
            _ => format!(
                "is given up, with what was built, once {builder} follows this configuration or {}",
                if declared == *version { "has ended" } else { "nobody has worked on it for long" }
            ),
        };
        format!("version {} beside it, which {}, {end}", self.status.version, self.status.describe())
    }
}

/// What whoever reads the tables of the serving version would miss, or has to know of the declared one, each as a part of a sentence.
pub(super) async fn list_losses(
    connection: &mut PgConnection,
    databases: &Databases,
    declaration: &ProcessorDeclaration,
    tracker: &TrackerRow,
) -> Result<Vec<String>, sqlx::Error> {
    let (name, serves) = (&declaration.name, tracker.version);
    let schema = databases.layout.quoted_schema();
    let former = find_declared(connection, &schema, name, serves).await?;
    let kept = Beside::Archived(serves).schema(&databases.scope.schema, name);
    Ok(former.map(|former| compare(&former, declaration, &kept)).unwrap_or_default())
}

/// The former versions that have tables of these names and that nobody goes back to once others have made them, as a part of a sentence.
pub(super) async fn find_lost_ways_back(
    connection: &mut PgConnection,
    databases: &Databases,
    declaration: &ProcessorDeclaration,
) -> Result<Option<String>, sqlx::Error> {
    let statement = format!(
        "-- find_lost_ways_back
         select string_agg(format('version %s of %s has a table %s as well', f.version, split_part(f.processor, '$', 1), f.table_name),
           ', ' order by f.processor, f.table_name)
         from {}.projection_tables as f
         where f.processor ~ '[$][0-9]+$' and split_part(f.processor, '$', 1) <> $1 and f.table_name = any ($2)",
        databases.layout.quoted_schema()
    );
    let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
    let found: Option<String> =
        query.bind(&declaration.name).bind(declaration.table_names()).fetch_one(connection).await?;
    Ok(found.map(|found| format!("{found}, which is kept, and no rollback leads to it after that")))
}

/// What an exchange of the tables would need of those who subscribe to them.
pub(super) async fn describe_published(
    connection: &mut PgConnection,
    databases: &Databases,
    declaration: &ProcessorDeclaration,
) -> Result<Option<String>, sqlx::Error> {
    publications::describe(connection, &databases.scope.schema, &declaration.table_names()).await
}

/// As [`list_losses`]: `kept` is the schema of the former tables.
fn compare(former: &ProcessorDeclaration, present: &ProcessorDeclaration, kept: &str) -> Vec<String> {
    let mut losses = Vec::new();
    for table in &former.tables {
        let name = &table.name;
        let Some(after) = present.tables.iter().find(|other| other.name == *name) else {
            losses.push(format!("the table {name} would be gone (kept in schema {kept})"));
            continue;
        };
        if let (Some(columns), Some(present)) = (own_columns(table), own_columns(after)) {
            let gone: Vec<String> = columns.into_iter().filter(|column| !present.contains(column)).collect();
            if !gone.is_empty() {
                losses.push(format!("{name} would lack {}", gone.join(", ")));
            }
        }
        if let (Some(key), Some(present)) = (primary_key(table), primary_key(after))
            && key != present
        {
            let changed = ChangedKey { old: key, new: present };
            losses.push(format!("the primary key of {name} would be {changed}"));
        }
    }
    losses.extend(list_lost(&former.ddl, &present.ddl).iter().map(|statement| describe_lost(statement)));
    losses
}
