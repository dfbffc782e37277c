//! What is known of the declared processors before a deploy.

use std::collections::BTreeMap;

use sqlx::PgConnection;

use super::raised::{Standing, describe_published, find_lost_ways_back, list_losses, list_standing};
use crate::config::Config;
use crate::event::Position;
use crate::handlers::sql::{OwnedByOthers, find_owned_by_others};
use crate::operations::databases::Databases;
use crate::postgres::quote::quote_identifier;
use crate::processing::declaration::{HandledEvents, Handling, ProcessorDeclaration, Unsuitable};
use crate::processing::processor::{
    Fit, HandledBy, describe_moved, find_foreign_table, foresee_fit, list_missing, list_moved,
};
use crate::processing::rebuild::{LacksSchemas, LeftOut, list_left_out};
use crate::processing::tracker::TrackerRow;

/// What is known of a processor that is declared.
#[derive(Debug)]
pub(in crate::operations) struct Known<'k> {
    pub(in crate::operations) declaration: &'k ProcessorDeclaration,
    pub(in crate::operations) tracker: Option<&'k TrackerRow>,
    /// Why its tables are not where the configuration has them.
    pub(in crate::operations) moved: Option<String>,
    /// Its tables that somebody has dropped or renamed.
    pub(in crate::operations) missing: Vec<String>,
    /// How its tables fit, if they are of the declared version.
    pub(in crate::operations) fit: Fit,
    /// Whether other handlers have handled its events.
    pub(in crate::operations) other_handlers: bool,
    /// Why no daemon builds the declared version.
    pub(in crate::operations) left_out: Option<LeftOut>,
    /// Why nobody can make the declared tables: one of them is not the processor's.
    pub(in crate::operations) foreign: Option<String>,
    /// What whoever reads the tables would miss in a higher version, or has to know of it.
    pub(in crate::operations) losses: Vec<String>,
    /// What an exchange of the tables would need of those who subscribe to them.
    pub(in crate::operations) published: Option<String>,
    /// The former versions of others that nobody goes back to once its tables are made.
    pub(super) lost_ways_back: Option<String>,
    /// Whether daemons with this configuration build raised versions.
    pub(super) daemons_build: bool,
    /// What others own of it, without which the role that asks could not run it.
    pub(in crate::operations) owned_by_others: Option<OwnedByOthers>,
    /// The right without which nobody builds a higher version.
    pub(in crate::operations) lacks: Option<LacksSchemas>,
    /// The version that is there beside the serving one, and whether it is the declared one.
    pub(in crate::operations) standing: Option<(Standing, bool)>,
    /// Whether the events are in another database than the projections.
    is_elsewhere: bool,
}

impl Known<'_> {
    /// Why the declared version cannot be built beside the one that serves.
    pub(in crate::operations) fn unsuitable(&self) -> Option<Unsuitable> {
        let is_synchronous = self.tracker.is_some_and(|tracker| tracker.synchronous.is_some());
        Unsuitable::find_deployed(self.declaration, is_synchronous)
    }

    /// What whoever reads the tables would miss once the declared version is live, behind another part of a sentence.
    pub(in crate::operations) fn describe_losses(&self) -> String {
        let losses = if self.losses.is_empty() {
            String::new()
        } else {
            format!("; once it is live, {}", self.losses.join(", and "))
        };
        self.published.iter().fold(losses, |losses, published| format!("{losses}; {published}"))
    }

    /// What becomes of a version that is there beside the serving one, where that is not declared any more, or in another way.
    pub(in crate::operations) fn describe_given_up(&self) -> Option<String> {
        let (standing, is_declared) = self.standing.as_ref()?;
        let serves = self.tracker?.version;
        let is_wanted = self.declaration.version > serves && *is_declared;
        (!is_wanted && self.declaration.version >= serves)
            .then(|| standing.describe_end(self.declaration.version))
    }

    /// What becomes of a version while a higher one is declared: a function in the database of the events goes on; a program was
    /// replaced.
    pub(super) fn goes_on(&self) -> bool {
        matches!(self.declaration.handling, Handling::Sql(_)) && !self.is_elsewhere
    }
}

/// What is known of the declared processors.
pub(in crate::operations) async fn look<'k>(
    config: &'k Config,
    databases: &Databases,
    trackers: &'k [TrackerRow],
) -> Result<Vec<Known<'k>>, sqlx::Error> {
    let mut connection = databases.projections.acquire().await?;
    let mut look = Look::begin(config, databases, &mut connection, trackers).await?;
    let mut known = Vec::new();
    for declaration in &config.processors {
        let tracker = trackers.iter().find(|tracker| tracker.name == declaration.name);
        known.push(look.at(&mut connection, declaration, tracker).await?);
    }
    Ok(known)
}

/// What is found out for all processors at once, by their names.
struct Look<'k> {
    config: &'k Config,
    databases: &'k Databases,
    left_out: BTreeMap<String, LeftOut>,
    moved: BTreeMap<String, String>,
    missing: BTreeMap<String, Vec<String>>,
    lacks: Option<LacksSchemas>,
    standing: BTreeMap<String, Standing>,
}

impl<'k> Look<'k> {
    async fn begin(
        config: &'k Config,
        databases: &'k Databases,
        connection: &mut PgConnection,
        trackers: &[TrackerRow],
    ) -> Result<Self, sqlx::Error> {
        let raised = list_raised(config, trackers);
        let layout = &databases.layout;
        Ok(Self {
            config,
            databases,
            left_out: list_left_out(connection, (layout, &config.upcasts), &raised).await?,
            moved: list_moved(connection, &quote_identifier(layout.schema()), &databases.scope.schema)
                .await?,
            missing: list_missing(connection, &quote_identifier(layout.schema())).await?,
            lacks: if raised.is_empty() { None } else { LacksSchemas::find_of_daemon(connection).await? },
            standing: list_standing(connection, databases).await?,
        })
    }

    async fn at<'d>(
        &mut self,
        connection: &mut PgConnection,
        declaration: &'d ProcessorDeclaration,
        tracker: Option<&'d TrackerRow>,
    ) -> Result<Known<'d>, sqlx::Error> {
        let Self { config, databases, .. } = *self;
        let handlers = noted(declaration, config);
        let is_raised = tracker.filter(|tracker| tracker.version < declaration.version);
        let (losses, published) = match is_raised {
            Some(tracker) => (
                list_losses(connection, databases, declaration, tracker).await?,
                describe_published(connection, databases, declaration).await?,
            ),
            None => (Vec::new(), None),
        };
        let lost_ways_back = match tracker {
            None => find_lost_ways_back(connection, databases, declaration).await?,
            Some(_) => None,
        };
        let standing = self.standing.remove(&declaration.name).map(|standing| {
            let is_declared = standing.is_of(declaration, config);
            (standing, is_declared)
        });
        Ok(Known {
            declaration,
            tracker,
            moved: self
                .moved
                .get(&declaration.name)
                .map(|is_in| describe_moved(&declaration.name, is_in, &databases.scope.schema)),
            missing: self.missing.remove(&declaration.name).unwrap_or_default(),
            fit: foresee(config, databases, connection, declaration, tracker).await?,
            other_handlers: tracker
                .zip(handlers.as_deref())
                .is_some_and(|(tracker, handlers)| tracker.was_handled_by_other(handlers)),
            left_out: self.left_out.get(&declaration.name).copied(),
            foreign: find_foreign(databases, connection, declaration, tracker).await?,
            losses,
            published,
            lost_ways_back,
            daemons_build: config.rebuild.parallelism > 0,
            owned_by_others: find_owned_by_others(connection, databases.layout.schema(), declaration).await?,
            lacks: self.lacks.clone().filter(|_| is_raised.is_some()),
            standing,
            is_elsewhere: config.direct_projections_url().is_some(),
        })
    }
}

/// The declarations of a higher version than the one that serves.
fn list_raised<'c>(config: &'c Config, trackers: &[TrackerRow]) -> Vec<&'c ProcessorDeclaration> {
    let is_raised = |declaration: &&ProcessorDeclaration| {
        trackers.iter().any(|row| row.name == declaration.name && row.version < declaration.version)
    };
    config.processors.iter().filter(is_raised).collect()
}

/// The fingerprint of what would handle the events. What only a program knows that is not this one is not known here.
fn noted(declaration: &ProcessorDeclaration, config: &Config) -> Option<String> {
    let is_unknown =
        declaration.handling == Handling::Native(HandledEvents::All) && declaration.tables.is_empty();
    if is_unknown { None } else { declaration.noted_fingerprint(&config.upcasts) }
}

/// How the tables of a processor fit what is declared. What a program declares is not known here.
async fn foresee(
    config: &Config,
    databases: &Databases,
    connection: &mut PgConnection,
    declaration: &ProcessorDeclaration,
    tracker: Option<&TrackerRow>,
) -> Result<Fit, sqlx::Error> {
    if declaration.handler_fingerprint(&config.upcasts).is_none() {
        return Ok(Fit::AsDeclared);
    }
    let handled_by = HandledBy {
        fingerprint: tracker.and_then(|tracker| tracker.handlers.as_deref()),
        position: tracker.map_or(Position::START, |tracker| tracker.position),
    };
    let (schema, scope) = (databases.layout.schema(), &databases.scope);
    foresee_fit(connection, schema, scope, declaration, &config.upcasts, handled_by).await
}

/// Why the tables of a declaration cannot be made that are still to be made; `None`: they can, or are there.
async fn find_foreign(
    databases: &Databases,
    connection: &mut PgConnection,
    declaration: &ProcessorDeclaration,
    tracker: Option<&TrackerRow>,
) -> Result<Option<String>, sqlx::Error> {
    if tracker.is_some_and(|tracker| tracker.version > declaration.version) {
        return Ok(None);
    }
    find_foreign_table(connection, databases.layout.schema(), &databases.scope, declaration).await
}
