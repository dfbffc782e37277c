//! What a deploy of a configuration would do to the processors of a database.

mod raised;

use std::fmt;

use serde::Serialize;
use sqlx::PgConnection;

use crate::config::Config;
use crate::event::Position;
use crate::handlers::sql::{OwnedByOthers, find_owned_by_others};
use crate::operations::databases::Databases;
use crate::operations::other_role::refuse_other_role;
use crate::postgres::quote::quote_identifier;
use crate::processing::declaration::{
    HandledEvents, Handling, OnHandlerChange, ProcessorDeclaration, ProcessorKind, Start, Unsuitable,
};
use crate::processing::processor::{
    Fit, HandledBy, describe_missing, find_foreign_table, foresee_fit, list_missing,
};
use crate::processing::rebuild::{LacksSchemas, LeftOut, list_left_out};
use crate::processing::tracker::{TrackerRow, Trackers};
use raised::{Standing, describe_published, find_lost_ways_back, list_losses, list_standing};

/// What would become of one processor. The field names are an interface: `espctl plan --json` prints them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Planned {
    /// Name of the processor.
    pub(crate) processor: String,
    /// What happens to it.
    pub(crate) action: Action,
    /// The same in words, with what to do about it.
    pub(crate) description: String,
    /// Whether it has run on this database, so that there is something to lose.
    #[serde(skip)]
    pub(crate) has_run: bool,
}

/// What happens to a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Action {
    /// It stops until an operator acts.
    Stop,
    /// Its tables are emptied and filled again.
    Empty,
    /// A newer version serves, which this configuration leaves alone.
    Supersede,
    /// No daemon with this configuration runs it.
    Leave,
    /// Its version goes on until a newer one was built beside it.
    Rebuild,
    /// Its tables are altered, and it goes on.
    Alter,
    /// Later events are handled by other handlers.
    Change,
    /// It runs for the first time.
    Start,
    /// Nothing changes.
    Keep,
}

impl Action {
    /// Whether something that works now would not work afterwards.
    pub(crate) fn loses(self) -> bool {
        matches!(self, Self::Stop | Self::Empty | Self::Supersede | Self::Leave)
    }

    /// The mark in front of the line.
    fn mark(self) -> char {
        match self {
            Self::Stop | Self::Empty | Self::Supersede => '!',
            Self::Leave => '-',
            Self::Rebuild | Self::Alter | Self::Change => '~',
            Self::Start => '+',
            Self::Keep => ' ',
        }
    }
}

impl Planned {
    /// As people read it, without the mark.
    pub(super) fn in_words(&self) -> String {
        format!("{}: {}", self.processor, self.description)
    }
}

/// As people read it.
impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.action.mark(), self.in_words())
    }
}

/// What is known of a processor that is declared.
#[derive(Debug)]
pub(super) struct Known<'k> {
    pub(super) declaration: &'k ProcessorDeclaration,
    pub(super) tracker: Option<&'k TrackerRow>,
    /// Its tables that somebody has dropped or renamed.
    pub(super) missing: Vec<String>,
    /// How its tables fit, if they are of the declared version.
    pub(super) fit: Fit,
    /// Whether other handlers have handled its events.
    pub(super) other_handlers: bool,
    /// Why no daemon builds the declared version.
    pub(super) left_out: Option<LeftOut>,
    /// Why nobody can make the declared tables: one of them is not the processor's.
    pub(super) foreign: Option<String>,
    /// What whoever reads the tables would miss in a higher version, or has to know of it.
    pub(super) losses: Vec<String>,
    /// What an exchange of the tables would need of those who subscribe to them.
    pub(super) published: Option<String>,
    /// The former versions of others that nobody goes back to once its tables are made.
    lost_ways_back: Option<String>,
    /// Whether daemons with this configuration build raised versions.
    daemons_build: bool,
    /// What others own of it, without which the role that asks could not run it.
    pub(super) owned_by_others: Option<OwnedByOthers>,
    /// The right without which nobody builds a higher version.
    pub(super) lacks: Option<LacksSchemas>,
    /// The version that is there beside the serving one, and whether it is the declared one.
    pub(super) standing: Option<(Standing, bool)>,
    /// Whether the events are in another database than the projections.
    is_elsewhere: bool,
}

impl Known<'_> {
    /// Why the declared version cannot be built beside the one that serves.
    pub(super) fn unsuitable(&self) -> Option<Unsuitable> {
        let is_synchronous = self.tracker.is_some_and(|tracker| tracker.synchronous.is_some());
        Unsuitable::find_deployed(self.declaration, is_synchronous)
    }

    /// What whoever reads the tables would miss once the declared version is live, behind another part of a sentence.
    pub(super) fn describe_losses(&self) -> String {
        let losses = if self.losses.is_empty() {
            String::new()
        } else {
            format!("; once it is live, {}", self.losses.join(", and "))
        };
        self.published.iter().fold(losses, |losses, published| format!("{losses}; {published}"))
    }

    /// What becomes of a version that is there beside the serving one, where that is not declared any more, or in another way.
    pub(super) fn describe_given_up(&self) -> Option<String> {
        let (standing, is_declared) = self.standing.as_ref()?;
        let serves = self.tracker?.version;
        let is_wanted = self.declaration.version > serves && *is_declared;
        (!is_wanted && self.declaration.version >= serves)
            .then(|| standing.describe_end(self.declaration.version))
    }

    /// What becomes of a version while a higher one is declared: a function in the database of the events goes on; a program was
    /// replaced.
    fn goes_on(&self) -> bool {
        matches!(self.declaration.handling, Handling::Sql(_)) && !self.is_elsewhere
    }
}

/// What a deploy of this configuration would do, what would be lost first.
///
/// # Errors
/// A database does not answer.
///
/// # Errors
/// The database does not answer, or the role that asks is not the daemon's: what others own would be in its way, and not in the daemon's.
pub(crate) async fn plan(config: &Config, databases: &Databases) -> anyhow::Result<Vec<Planned>> {
    refuse_other_role(&databases.projections, "what becomes of the processors").await?;
    let trackers = list_trackers(databases).await?;
    let known = look(config, databases, &trackers).await?;
    Ok(foretell(config, &known, &trackers))
}

/// Where the processors are that have run.
pub(super) async fn list_trackers(databases: &Databases) -> Result<Vec<TrackerRow>, sqlx::Error> {
    Trackers::of(&databases.layout).list(&databases.projections, None).await
}

/// What is known of the declared processors.
pub(super) async fn look<'k>(
    config: &'k Config,
    databases: &Databases,
    trackers: &'k [TrackerRow],
) -> Result<Vec<Known<'k>>, sqlx::Error> {
    let mut connection = databases.projections.acquire().await?;
    let raised = list_raised(config, trackers);
    let left_out = list_left_out(&mut connection, (&databases.layout, &config.upcasts), &raised).await?;
    let lacks = if raised.is_empty() { None } else { LacksSchemas::find_of_daemon(&mut connection).await? };
    let mut standing = list_standing(&mut connection, databases).await?;
    let mut missing = list_missing(&mut connection, &quote_identifier(databases.layout.schema())).await?;
    let mut known = Vec::new();
    for declaration in &config.processors {
        let left_out = left_out.get(&declaration.name).copied();
        let tracker = trackers.iter().find(|tracker| tracker.name == declaration.name);
        let handlers = noted(declaration, config);
        let fit = foresee(config, databases, &mut connection, declaration, tracker).await?;
        let other_handlers = tracker
            .zip(handlers.as_deref())
            .is_some_and(|(tracker, handlers)| tracker.was_handled_by_other(handlers));
        let missing = missing.remove(&declaration.name).unwrap_or_default();
        let foreign = find_foreign(databases, &mut connection, declaration, tracker).await?;
        let owned_by_others =
            find_owned_by_others(&mut connection, databases.layout.schema(), declaration).await?;
        let is_elsewhere = config.direct_projections_url().is_some();
        let is_raised = tracker.filter(|tracker| tracker.version < declaration.version);
        let losses = match is_raised {
            Some(tracker) => list_losses(&mut connection, databases, declaration, tracker).await?,
            None => Vec::new(),
        };
        let published = match is_raised {
            Some(_) => describe_published(&mut connection, databases, declaration).await?,
            None => None,
        };
        let lost_ways_back = match tracker {
            None => find_lost_ways_back(&mut connection, databases, declaration).await?,
            Some(_) => None,
        };
        let lacks = lacks.clone().filter(|_| is_raised.is_some());
        let standing = standing.remove(&declaration.name).map(|standing| {
            let is_declared = standing.is_of(declaration, config);
            (standing, is_declared)
        });
        known.push(Known {
            declaration,
            tracker,
            missing,
            fit,
            other_handlers,
            left_out,
            foreign,
            losses,
            published,
            lost_ways_back,
            daemons_build: config.rebuild.parallelism > 0,
            owned_by_others,
            lacks,
            standing,
            is_elsewhere,
        });
    }
    Ok(known)
}

/// The fingerprint of what would handle the events. What only a program knows that is not this one is not known here.
fn noted(declaration: &ProcessorDeclaration, config: &Config) -> Option<String> {
    let is_unknown =
        declaration.handling == Handling::Native(HandledEvents::All) && declaration.tables.is_empty();
    if is_unknown { None } else { declaration.noted_fingerprint(&config.upcasts) }
}

/// What a deploy would do with what is known, what would be lost first.
pub(super) fn foretell(config: &Config, known: &[Known<'_>], trackers: &[TrackerRow]) -> Vec<Planned> {
    let is_gone = |tracker: &&TrackerRow| !config.processors.iter().any(|one| one.name == tracker.name);
    let gone = trackers.iter().filter(is_gone).map(leave);
    let mut planned: Vec<Planned> = known.iter().map(describe).chain(gone).collect();
    planned.sort_by(|one, other| (one.action, &one.processor).cmp(&(other.action, &other.processor)));
    planned
}

/// The declarations of a higher version than the one that serves.
fn list_raised<'c>(config: &'c Config, trackers: &[TrackerRow]) -> Vec<&'c ProcessorDeclaration> {
    let is_raised = |declaration: &&ProcessorDeclaration| {
        trackers.iter().any(|row| row.name == declaration.name && row.version < declaration.version)
    };
    config.processors.iter().filter(is_raised).collect()
}

fn leave(tracker: &TrackerRow) -> Planned {
    let TrackerRow { name, position, .. } = tracker;
    // One with another configuration, or with the one that this is to replace.
    let owner = tracker.owner_label.as_ref().filter(|_| tracker.owned);
    let nobody = owner.map_or_else(
        || "nobody runs it any more".to_owned(),
        |owner| format!("nobody with this configuration runs it (now {owner} does)"),
    );
    Planned {
        processor: name.clone(),
        has_run: true,
        action: Action::Leave,
        description: format!(
            "is not declared, so {nobody}; its tables and its position {position} stay: `espctl drop {name}` removes them"
        ),
    }
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

fn describe(known: &Known<'_>) -> Planned {
    let Known { declaration, tracker, foreign, .. } = known;
    let is_raised = tracker.is_some_and(|tracker| tracker.version < declaration.version);
    let (action, description) = match (&known.owned_by_others, tracker, foreign) {
        (Some(found), ..) => {
            (Action::Stop, format!("stops, because {}: {}", found.describe(), found.remedy()))
        }
        (None, _, Some(foreign)) if !is_raised => (Action::Stop, format!("stops, because {foreign}")),
        (None, None, _) => {
            let lost = known.lost_ways_back.iter().map(|lost| format!("; {lost}")).collect::<String>();
            (Action::Start, describe_start(declaration) + &lost)
        }
        (None, Some(tracker), _) => describe_known(known, tracker),
    };
    let description = match known.describe_given_up() {
        Some(end) => format!("{description}; {end}"),
        None => description,
    };
    Planned { processor: declaration.name.clone(), action, description, has_run: tracker.is_some() }
}

fn describe_known(known: &Known<'_>, tracker: &TrackerRow) -> (Action, String) {
    let ProcessorDeclaration { name, version, .. } = known.declaration;
    let serves = tracker.version;
    match &known.fit {
        _ if !known.missing.is_empty() => {
            let why = describe_missing(name, &known.missing.join(", "));
            (Action::Stop, format!("stops, because {why}"))
        }
        _ if *version < serves => {
            let back = match known.unsuitable() {
                Some(_) => {
                    format!("`espctl reset {name}` has version {version} take its place, which begins anew")
                }
                None => format!("`espctl rollback {name}` goes back, where version {version} is kept"),
            };
            let description = format!(
                "version {serves} serves and is left alone, nobody with this configuration runs it: declare it, or {back}"
            );
            (Action::Supersede, description)
        }
        _ if *version > serves => describe_raised(known, serves),
        Fit::Other(reason) => {
            let because =
                reason.as_ref().map_or(String::new(), |reason| format!(" (a replay is needed: {reason})"));
            let remedy = match known.unsuitable() {
                Some(_) => format!(
                    "take the change back, or `espctl reset {name} --in-place` drops and rebuilds them"
                ),
                None => format!("raise `version` and run `espctl rebuild {name}`, or take the change back"),
            };
            let description = format!("stops, because its tables have changed{because}: {remedy}");
            (Action::Stop, description)
        }
        Fit::Refused { alteration, error } => {
            let description = format!(
                "stops, because the database refuses what its tables need ({alteration}): {error}; correct the change, or take it back"
            );
            (Action::Stop, description)
        }
        Fit::ToBeAltered(alteration) if !alteration.is_empty() => {
            (Action::Alter, format!("{alteration}; no replay"))
        }
        _ if known.other_handlers => describe_handler_change(known, tracker),
        fit => (Action::Keep, describe_kept(fit)),
    }
}

/// What becomes of a version that is higher than the one that serves.
fn describe_raised(known: &Known<'_>, serves: i32) -> (Action, String) {
    let ProcessorDeclaration { name, version, approve, .. } = known.declaration;
    let meanwhile = describe_meanwhile(known, serves);
    let by_operator = if known.goes_on() { Action::Keep } else { Action::Stop };
    if let Some(unsuitable) = known.unsuitable() {
        let (because, remedy) = (unsuitable.because(name), unsuitable.remedy(name, *version));
        return (
            by_operator,
            format!("{meanwhile}; nobody builds version {version}, because {because}: {remedy}"),
        );
    }
    if let Some(left_out) = known.left_out {
        return (by_operator, format!("{meanwhile}; {}", left_out.describe(name, *version)));
    }
    if let Some(foreign) = &known.foreign {
        return (
            by_operator,
            format!("{meanwhile}; version {version} cannot be built beside it, because {foreign}"),
        );
    }
    if let Some(lacks) = &known.lacks {
        return (
            by_operator,
            format!("{meanwhile}; version {version} cannot be built beside it, because {lacks}"),
        );
    }
    let losses = known.describe_losses();
    let (or_daemon, who) = if known.daemons_build {
        (", or a daemon does by itself", format!("approve = \"{approve}\""))
    } else {
        ("", "parallelism = 0: no daemon does".to_owned())
    };
    let description = match &known.standing {
        Some((standing, true)) if known.daemons_build => {
            format!("{meanwhile}; {} ({who}){losses}", standing.describe())
        }
        Some((standing, true)) => format!(
            "{meanwhile}; {}; `espctl rebuild {name}` goes on with it ({who}){losses}",
            standing.describe()
        ),
        _ => format!(
            "{meanwhile}; `espctl rebuild {name}` builds version {version} beside it{or_daemon} ({who}), and --dry-run shows what would \
             change{losses}"
        ),
    };
    (Action::Rebuild, description)
}

/// What the serving version does while a higher one is declared.
fn describe_meanwhile(known: &Known<'_>, serves: i32) -> String {
    let is_sql = matches!(known.declaration.handling, Handling::Sql(_));
    match (known.goes_on(), known.unsuitable()) {
        (true, _) => format!("version {serves} goes on"),
        (false, Some(_)) => format!("stops at version {serves}"),
        (false, None) => format!(
            "version {serves} stays as it is, and is not followed, because its {}",
            if is_sql { "events are in another database" } else { "program is replaced" }
        ),
    }
}

fn describe_handler_change(known: &Known<'_>, tracker: &TrackerRow) -> (Action, String) {
    let ProcessorDeclaration { name, on_handler_change, .. } = known.declaration;
    let is_built_beside = known.unsuitable().is_none();
    let is_native = matches!(known.declaration.handling, Handling::Native(_));
    match on_handler_change {
        OnHandlerChange::Warn if is_native => {
            let anew = match known.declaration.kind() {
                ProcessorKind::Projector => {
                    format!("; `espctl reset {name}` has all of them handled as they are read now")
                }
                ProcessorKind::Reactor => String::new(),
            };
            (
                Action::Change,
                format!(
                    "reads old events by other upcasts from position {} on; earlier ones stay as they were handled, or passed over{anew}",
                    tracker.position
                ),
            )
        }
        OnHandlerChange::Refuse => (
            Action::Stop,
            "stops, because its handlers have changed (on_handler_change = \"refuse\")".to_owned(),
        ),
        OnHandlerChange::Rebuild => (
            Action::Empty,
            format!(
                "its handlers have changed: its tables are emptied and filled again (on_handler_change = \"rebuild\"){}",
                if is_built_beside { "; with a raised `version` they would be built beside" } else { "" }
            ),
        ),
        OnHandlerChange::Warn if known.declaration.kind() == ProcessorKind::Reactor => (
            Action::Change,
            format!(
                "other handlers from position {} on; what the former ones have done for earlier events stays done",
                tracker.position
            ),
        ),
        OnHandlerChange::Warn if !is_built_beside => (
            Action::Change,
            format!(
                "other handlers from position {} on; `espctl reset {name}` has these begin anew, in place",
                tracker.position
            ),
        ),
        OnHandlerChange::Warn => (
            Action::Change,
            format!(
                "other handlers from position {} on; `espctl rebuild {name}` brings the rows of earlier events to what these \
                 handlers make of them",
                tracker.position
            ),
        ),
    }
}

fn describe_kept(fit: &Fit) -> String {
    match fit {
        Fit::AlteredSince(alteration) => {
            format!(
                "goes on, and leaves alone what a newer declaration has done: it {}",
                alteration.in_the_past()
            )
        }
        _ => "goes on, nothing changes".to_owned(),
    }
}

fn describe_start(declaration: &ProcessorDeclaration) -> String {
    let from = match declaration.start() {
        Start::Beginning => "the first event".to_owned(),
        Start::Now => "the events that come then".to_owned(),
        Start::Position(position) => format!("position {position}"),
        Start::Time(time) => time.to_rfc3339(),
    };
    let tables = declaration.table_names();
    let makes = match (declaration.kind(), tables.as_slice()) {
        (_, []) => String::new(),
        (ProcessorKind::Projector | ProcessorKind::Reactor, tables) => {
            format!(" and makes {}", tables.join(", "))
        }
    };
    format!("runs for the first time, from {from} on{makes}")
}
