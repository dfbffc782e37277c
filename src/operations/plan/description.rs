//! What becomes of a declared processor, in words.

use super::known::Known;
use super::{Action, Planned};
use crate::processing::declaration::{Handling, OnHandlerChange, ProcessorDeclaration, ProcessorKind, Start};
use crate::processing::processor::{Fit, describe_missing};
use crate::processing::tracker::TrackerRow;

/// What a deploy makes of a processor.
pub(super) fn describe(known: &Known<'_>) -> Planned {
    let Known { declaration, tracker, foreign, .. } = known;
    let is_raised = tracker.is_some_and(|tracker| tracker.version < declaration.version);
    let (action, description) = match (&known.owned_by_others, tracker, foreign) {
        (Some(found), ..) => {
            (Action::Stop, format!("stops, because {}: {}", found.describe(), found.remedy()))
        }
        (None, _, Some(foreign)) if !is_raised && known.moved.is_none() => {
            (Action::Stop, format!("stops, because {foreign}"))
        }
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
        _ if known.moved.is_some() => {
            let why = known.moved.as_deref().unwrap_or_default();
            (Action::Stop, format!("stops, because {why}"))
        }
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
