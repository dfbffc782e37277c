//! Reads `isolation`: whom a processor shares a worker with.

use crate::config::reader::key::nearest;
use crate::config::reader::scalars::advise_name;
use crate::config::reader::tree::Value;
use crate::postgres::name::is_name;
use crate::processing::declaration::Isolation;

/// What `isolation` accepts everywhere.
const ISOLATIONS: [(&str, Isolation); 2] = [("process", Isolation::Process), ("task", Isolation::Task)];

const ADVISE_ISOLATION: &str = "write \"process\", \"task\", or \"group:NAME\" with a name of your own";

/// The isolation of all processors that do not say otherwise.
pub(crate) fn read_default_isolation(value: &Value<'_>) -> Option<Isolation> {
    let word = value.text()?;
    let isolation = find(&word);
    if isolation.is_none() {
        let advice =
            "write \"process\" or \"task\"; a group is named by its processors: isolation = \"group:NAME\"";
        value.location.report(format!("unknown isolation {}", value.as_written()), advice);
    }
    isolation
}

/// The isolation of one processor.
pub(crate) fn read_isolation(value: &Value<'_>) -> Option<Isolation> {
    let word = value.text()?;
    if let Some(name) = word.strip_prefix("group:") {
        if is_name(name) {
            return Some(Isolation::Group(name.to_owned()));
        }
        let message = format!("{} is not a name for a group", value.as_written());
        value.location.report(message, advise_name(name));
        return None;
    }
    let isolation = find(&word);
    if isolation.is_none() {
        let guess = nearest(&word, ISOLATIONS.iter().map(|(name, _)| *name));
        let guess = guess.map(|name| format!("did you mean \"{name}\"? ")).unwrap_or_default();
        value.location.report(
            format!("unknown isolation {}", value.as_written()),
            format!("{guess}{ADVISE_ISOLATION}"),
        );
    }
    isolation
}

fn find(word: &str) -> Option<Isolation> {
    ISOLATIONS.iter().find(|(name, _)| *name == word).map(|(_, isolation)| isolation.clone())
}
