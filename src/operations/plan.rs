//! What a deploy of a configuration would do to the processors of a database.

mod description;
mod known;
mod raised;

use std::fmt;

use serde::Serialize;

use crate::config::Config;
use crate::operations::databases::Databases;
use crate::operations::other_role::refuse_other_role;
use crate::processing::tracker::{TrackerRow, Trackers};
use description::describe;
pub(super) use known::{Known, look};

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

/// What a deploy of this configuration would do, what would be lost first.
///
/// # Errors
/// A database does not answer, or the role that asks is not the daemon's: what others own would be in its way, and not in the daemon's.
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

/// What a deploy would do with what is known, what would be lost first.
pub(super) fn foretell(config: &Config, known: &[Known<'_>], trackers: &[TrackerRow]) -> Vec<Planned> {
    let is_gone = |tracker: &&TrackerRow| !config.processors.iter().any(|one| one.name == tracker.name);
    let gone = trackers.iter().filter(is_gone).map(leave);
    let mut planned: Vec<Planned> = known.iter().map(describe).chain(gone).collect();
    planned.sort_by(|one, other| (one.action, &one.processor).cmp(&(other.action, &other.processor)));
    planned
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
