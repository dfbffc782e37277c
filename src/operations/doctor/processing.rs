//! The database of the projections: espd's own tables, the privileges of the role, and whether trackers and declarations
//! match.

use sqlx::{PgPool, Row as _};

use super::Finding;
use crate::config::Config;
use crate::diagnostic::Diagnostic;
use crate::handlers::sql::find_owned_by_others;
use crate::operations::databases::Databases;
use crate::operations::other_role::find_other_role;
use crate::operations::unstored_events::find_unknown_types;
use crate::postgres::error::chain;
use crate::postgres::sqlstate::is_missing_right;
use crate::processing::declaration::{ProcessorDeclaration, Unsuitable};
use crate::processing::emission::{PendingEmissions, PendingOfReactor};
use crate::processing::rebuild::{LacksSchemas, Unverified, list_unverified};
use crate::processing::tracker::{FormerVersions, TrackerRow, Trackers};
use crate::schema;

pub(super) async fn examine(databases: &Databases, config: &Config) -> anyhow::Result<Vec<Finding>> {
    let layout = &databases.layout;
    let described =
        schema::describe_processing(&databases.projections, layout.schema(), layout.names()).await;
    let mut findings = match described {
        Ok(version) => vec![Finding::ok("processing_schema", version)],
        Err(error) => {
            return Ok(vec![Finding::failure("processing_schema", chain(&error), error.remedy())]);
        }
    };
    findings.extend(privileges(databases, config).await?);
    findings.extend(ownership(databases, config).await?);
    let trackers = Trackers::of(layout).list(&databases.projections, None).await?;
    let former = list_former(databases).await?;
    findings.extend(processors(config, &trackers, &former));
    findings.extend(event_types(databases, config).await?);
    findings.extend(verification(databases, config).await?);
    let pending = PendingEmissions::of(layout).count_by_reactor(&databases.projections).await?;
    findings.extend(emissions(config, &pending));
    Ok(findings)
}

/// What others own of the processors that this role is to run: the statements for all of them at once.
async fn ownership(databases: &Databases, config: &Config) -> anyhow::Result<Option<Finding>> {
    let Databases { layout, projections, .. } = databases;
    if find_other_role(projections).await?.is_some() {
        return Ok(None);
    }
    let mut connection = projections.acquire().await?;
    let (mut messages, mut statements) = (Vec::new(), Vec::new());
    for declaration in &config.processors {
        if let Some(found) = find_owned_by_others(&mut connection, layout.schema(), declaration).await? {
            messages.push(format!("{} cannot run: {}", declaration.name, found.describe()));
            statements.push(found.statements());
        }
    }
    let finding = || {
        let remedy = format!("as a superuser: {}", statements.join(" "));
        Finding::failure("ownership", messages.join("; "), remedy)
    };
    Ok((!messages.is_empty()).then(finding))
}

/// The privileges that running processors requires beyond reading events.
async fn privileges(databases: &Databases, config: &Config) -> anyhow::Result<Vec<Finding>> {
    let Databases { layout, projections, scope, .. } = databases;
    if let Some(role) = find_other_role(projections).await? {
        let message = format!(
            "as {role}, which is not a member of espd_daemon: the privileges that running processors requires are not checked"
        );
        return Ok(vec![Finding::ok("privileges", message)]);
    }
    let row = sqlx::query(MISSING_PRIVILEGES)
        .bind(layout.schema())
        .bind(&scope.schema)
        .bind(&layout.names().tracker_table)
        .fetch_one(projections)
        .await?;
    let (role, missing): (String, Vec<String>) = (row.try_get("role")?, row.try_get("missing")?);
    if missing.is_empty() {
        return Ok(vec![right_to_build(projections, config, &role).await?]);
    }
    let finding = |grant: &String| {
        let message = format!("role {role} lacks a privilege that running processors requires");
        Finding::failure("privileges", message, format!("{grant} to {role};"))
    };
    Ok(missing.iter().map(finding).collect())
}

/// The role, and what is to be granted to it. The parameters are the schema of the trackers, that of the projections, and the table of
/// trackers.
const MISSING_PRIVILEGES: &str = "
        -- list_missing_privileges
        select quote_ident(current_user) as role, array_remove(array[
          case when not has_schema_privilege($1, 'create') then format('grant usage, create on schema %I', $1) end,
          case when not has_table_privilege(format('%I.%I', $1, $3), 'insert')
               or not has_table_privilege(format('%I.%I', $1, $3), 'update')
               or not has_table_privilege(format('%I.%I', $1, $3), 'select')
               then format('grant select, insert, update on %I.%I', $1, $3) end,
          case when not has_table_privilege(format('%I.projection_tables', $1), 'insert')
               or not has_table_privilege(format('%I.projection_tables', $1), 'delete')
               or not has_table_privilege(format('%I.declarations', $1), 'insert')
               or not has_table_privilege(format('%I.declarations', $1), 'delete')
               then format('grant select, insert, update, delete on %1$I.projection_tables, %1$I.declarations', $1) end,
          case when not has_table_privilege(format('%I.witnesses', $1), 'insert')
               or not has_table_privilege(format('%I.witnesses', $1), 'update')
               or not has_table_privilege(format('%I.witnesses', $1), 'delete')
               then format('grant select, insert, update, delete on %I.witnesses', $1) end,
          case when not has_table_privilege(format('%I.carried_over', $1), 'insert')
               or not has_table_privilege(format('%I.carried_over', $1), 'delete')
               or not has_table_privilege(format('%I.reload_requests', $1), 'update')
               or not has_table_privilege(format('%I.reload_requests', $1), 'delete')
               then format('grant select, insert, update, delete on %1$I.carried_over, %1$I.reload_requests', $1) end,
          case when to_regnamespace(quote_ident($2)) is null
               and not has_database_privilege(current_database(), 'create')
               then format('create schema %I; grant usage, create on schema %I', $2, $2)
               when not coalesce(has_schema_privilege(to_regnamespace(quote_ident($2))::oid, 'create'), true)
               then format('grant usage, create on schema %I', $2) end
        ], null) as missing";

/// Whether a role that may run processors may also build versions beside those that serve, where a daemon would.
async fn right_to_build(projections: &PgPool, config: &Config, role: &str) -> anyhow::Result<Finding> {
    let lacks = match builds_versions(config) {
        true => LacksSchemas::find(&mut *projections.acquire().await?).await?,
        false => None,
    };
    Ok(match lacks {
        None => Finding::ok("privileges", format!("role {role} may run processors")),
        Some(lacks) => {
            let message = format!(
                "role {} may run processors, and makes no schemas, so no version of a projector is built beside the one that serves",
                lacks.role()
            );
            Finding::warning("privileges", message, lacks.grant())
        }
    })
}

/// Whether daemons with this configuration build a version as soon as one is raised.
fn builds_versions(config: &Config) -> bool {
    let can_be_built =
        |one: &ProcessorDeclaration| Unsuitable::find(one, one.synchronous.is_some()).is_none();
    config.rebuild.parallelism > 0 && config.processors.iter().any(can_be_built)
}

/// Declared event types that the store has no event of.
async fn event_types(databases: &Databases, config: &Config) -> anyhow::Result<Vec<Finding>> {
    let unknown = find_unknown_types(&databases.events, &databases.layout, &config.processors).await?;
    let finding = |warning: &Diagnostic| {
        let place = warning.line.map_or_else(String::new, |line| format!("{}:{line}: ", warning.file));
        let remedy = warning.advice.clone().unwrap_or_default();
        Finding::warning("event_types", format!("{place}{}", warning.message), remedy)
    };
    Ok(unknown.iter().map(finding).collect())
}

/// The projectors that daemons do not verify slice by slice, though they shall.
async fn verification(databases: &Databases, config: &Config) -> anyhow::Result<Vec<Finding>> {
    if config.verify.share <= 0.0 {
        return Ok(Vec::new());
    }
    let schema = databases.layout.quoted_schema();
    let found = match list_unverified(&databases.projections, &schema).await {
        Err(error) if is_missing_right(&error) => Vec::new(),
        found => found?,
    };
    let is_declared = |found: &Unverified| config.processors.iter().any(|one| one.name == found.processor);
    let finding = |Unverified { processor, because, lasting, .. }: Unverified| {
        let message = format!("`[verify]` does not verify {processor}: {because}");
        let remedy = match lasting {
            true => {
                format!("`espctl verify {processor}` verifies all of its rows, as often as somebody runs it")
            }
            false => "correct this; the daemon tries again by itself, at least once in an hour".to_owned(),
        };
        Finding::warning("verification", message, remedy)
    };
    Ok(found.into_iter().filter(is_declared).map(finding).collect())
}

/// What reactors have emitted that nobody moves into the event store any more.
fn emissions(config: &Config, pending: &[PendingOfReactor]) -> Vec<Finding> {
    let is_declared = |name: &str| {
        let mut declared = config.processors.iter().filter(|declaration| declaration.name == name);
        declared
            .any(|declaration| declaration.reactor.as_ref().is_some_and(|reactor| !reactor.emits.is_empty()))
    };
    // Without a configuration file nothing is declared.
    let orphans = pending.iter().filter(|one| !config.files.is_empty() && !is_declared(&one.reactor));
    let finding = |PendingOfReactor { reactor, pending }: &PendingOfReactor| {
        let message = format!(
            "{pending} emissions of {reactor} are pending, and no reactor of this name that emits is declared"
        );
        let remedy = format!("declare it again; or `espctl emissions cancel {reactor} --all` removes them");
        Finding::warning("emissions", message, remedy)
    };
    orphans.map(finding).collect()
}

async fn list_former(databases: &Databases) -> Result<FormerVersions, sqlx::Error> {
    let mut connection = databases.projections.acquire().await?;
    Trackers::of(&databases.layout).list_former(&mut connection, None).await
}

/// Processors without a tracker, trackers without a processor, and versions that differ.
fn processors(config: &Config, trackers: &[TrackerRow], former: &FormerVersions) -> Vec<Finding> {
    let mut findings = Vec::new();
    for declaration in &config.processors {
        let named = || trackers.iter().filter(|tracker| tracker.name == declaration.name);
        let declared = named().find(|tracker| tracker.version == declaration.version);
        findings.extend(compare(declaration, declared.or_else(|| named().next()), former));
    }
    // Without a configuration file nothing is declared, so a tracker without a declaration says nothing.
    let undeclared = trackers.iter().filter(|_| !config.files.is_empty());
    for tracker in undeclared {
        if !config.processors.iter().any(|declaration| declaration.name == tracker.name) {
            let message =
                format!("{} has a tracker at {} and is not declared", tracker.name, tracker.position);
            let remedy =
                format!("declare it; or, if it is no longer needed, run `espctl drop {}`", tracker.name);
            findings.push(Finding::warning("processors", message, remedy));
        }
    }
    if findings.is_empty() {
        let message = format!("{} are declared, and all have run", config.processors.len());
        findings.push(Finding::ok("processors", message));
    }
    findings
}

fn compare(
    declaration: &ProcessorDeclaration,
    tracker: Option<&TrackerRow>,
    former: &FormerVersions,
) -> Option<Finding> {
    let ProcessorDeclaration { name, version, .. } = declaration;
    let Some(tracker) = tracker else {
        let message = format!("{name} is declared and has never run on this database");
        return Some(Finding::warning("processors", message, "start `espd run` with this configuration"));
    };
    (tracker.version != *version).then(|| {
        let message = format!(
            "the tables of {name} have version {}, and version {version} is declared",
            tracker.version
        );
        if tracker.version < *version {
            let unsuitable = Unsuitable::find_deployed(declaration, tracker.synchronous.is_some());
            let remedy = unsuitable.map(|unsuitable| {
                format!("{}: {}", unsuitable.because(name), unsuitable.remedy(name, *version))
            });
            let built = || format!(
                "`espctl rebuild {name}` builds version {version} beside it and lets it go live, `espctl reset {name} --in-place` \
                 drops and rebuilds the tables"
            );
            return Finding::warning("processors", message, remedy.unwrap_or_else(built));
        }
        let back = match Unsuitable::find(declaration, false) {
            Some(_) => format!("`espctl reset {name}` has version {version} begin anew"),
            None => former.rollback(name, *version).map_or_else(
                || format!("its handlers under a higher version: version {version} is not kept"),
                |rollback| format!("{rollback} goes back"),
            ),
        };
        let remedy = format!("declare version {}, or {back}", tracker.version);
        Finding::failure("processors", message, remedy)
    })
}
