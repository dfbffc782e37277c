//! The routes: what each method and path asks for.

use hyper::{Method, StatusCode};

use super::answer::ApiError;
use crate::event::Position;
use crate::processing::emission::EmissionChange;

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route<'p> {
    /// Whether the daemon is alive.
    Livez,
    /// Whether the daemon is ready.
    Readyz,
    Metrics,
    /// What the doctor finds.
    Doctor,
    /// The status of all processors.
    Processors,
    /// The status of one processor.
    Processor(&'p str),
    /// A wait for a processor.
    Wait(&'p str),
    Change(&'p str, ProcessorAction),
    /// The dead letters of all processors.
    DeadLetters,
    /// The dead letters of one processor.
    DeadLettersOf(&'p str),
    /// One dead letter.
    DeadLetter(&'p str, Position),
    ChangeDeadLetters(&'p str, DeadLetterAction),
    /// Events as they settle.
    Events,
    /// The pending emissions of all reactors.
    Emissions,
    /// The pending emissions of one reactor.
    EmissionsOf(&'p str),
    ChangeEmissions(&'p str, EmissionChange),
}

/// A change to dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeadLetterAction {
    Retry,
    Discard,
    /// Sets an event aside; later ones of its aggregate go on.
    Skip,
    /// Sets an event aside; later ones of its aggregate wait.
    Park,
}

impl DeadLetterAction {
    fn find(word: &str) -> Option<Self> {
        match word {
            "retry" => Some(Self::Retry),
            "discard" => Some(Self::Discard),
            "skip" => Some(Self::Skip),
            "park" => Some(Self::Park),
            _ => None,
        }
    }
}

/// A change to a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProcessorAction {
    Pause,
    Resume,
    Retry,
    Reset,
}

impl ProcessorAction {
    const ALL: [Self; 4] = [Self::Pause, Self::Resume, Self::Retry, Self::Reset];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Retry => "retry",
            Self::Reset => "reset",
        }
    }
}

impl<'p> Route<'p> {
    pub(super) fn find(method: &Method, path: &'p str) -> Result<Self, ApiError> {
        let route = Self::of_path(path).ok_or_else(|| {
            let known = "there are /livez, /readyz, /metrics, /api/v1/doctor, /api/v1/processors, /api/v1/processors/NAME, \
                         /api/v1/processors/NAME/wait, \
                         /api/v1/dead-letters, /api/v1/processors/NAME/dead-letters, /api/v1/events, /api/v1/emissions, \
                         /api/v1/processors/NAME/emissions, and for changes POST /api/v1/processors/NAME/pause, resume, retry, \
                         reset, dead-letters/retry, discard, skip and park, emissions/cancel and emissions/retry";
            ApiError::new(StatusCode::NOT_FOUND, "there is nothing at this path", known)
        })?;
        let changes = route.changes();
        let reads = *method == Method::GET || *method == Method::HEAD;
        let allowed = if changes { *method == Method::POST } else { reads };
        let needed = if changes { "POST" } else { "GET" };
        let error = || {
            let message = format!("{method} is not allowed for this path");
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message, format!("use {needed}"))
        };
        allowed.then_some(route).ok_or_else(error)
    }

    fn of_path(path: &'p str) -> Option<Self> {
        match path {
            "/livez" => return Some(Self::Livez),
            "/readyz" => return Some(Self::Readyz),
            "/metrics" => return Some(Self::Metrics),
            "/api/v1/doctor" => return Some(Self::Doctor),
            "/api/v1/processors" => return Some(Self::Processors),
            "/api/v1/dead-letters" => return Some(Self::DeadLetters),
            "/api/v1/events" => return Some(Self::Events),
            "/api/v1/emissions" => return Some(Self::Emissions),
            _ => {}
        }
        let rest = path.strip_prefix("/api/v1/processors/")?;
        let (name, rest) = rest.split_once('/').map_or((rest, None), |(name, rest)| (name, Some(rest)));
        if name.is_empty() {
            return None;
        }
        let Some(rest) = rest else { return Some(Self::Processor(name)) };
        match rest.split_once('/') {
            None if rest == "dead-letters" => Some(Self::DeadLettersOf(name)),
            None if rest == "wait" => Some(Self::Wait(name)),
            None if rest == "emissions" => Some(Self::EmissionsOf(name)),
            None => ProcessorAction::ALL
                .into_iter()
                .find(|known| known.as_str() == rest)
                .map(|action| Self::Change(name, action)),
            Some(("emissions", "cancel")) => Some(Self::ChangeEmissions(name, EmissionChange::Cancel)),
            Some(("emissions", "retry")) => Some(Self::ChangeEmissions(name, EmissionChange::Retry)),
            Some(("dead-letters", word)) => DeadLetterAction::find(word)
                .map(|action| Self::ChangeDeadLetters(name, action))
                .or_else(|| word.parse().ok().map(|id| Self::DeadLetter(name, id))),
            Some(_) => None,
        }
    }

    /// Whether the request changes something.
    pub(super) fn changes(&self) -> bool {
        matches!(self, Self::Change(..) | Self::ChangeDeadLetters(..) | Self::ChangeEmissions(..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_and_a_method_have_one_meaning() {
        let find = |method: Method, path| Route::find(&method, path);
        assert_eq!(find(Method::GET, "/livez"), Ok(Route::Livez));
        assert_eq!(find(Method::HEAD, "/readyz"), Ok(Route::Readyz));
        assert_eq!(find(Method::GET, "/api/v1/doctor"), Ok(Route::Doctor));
        assert_eq!(find(Method::GET, "/api/v1/processors"), Ok(Route::Processors));
        assert_eq!(find(Method::GET, "/api/v1/processors/a"), Ok(Route::Processor("a")));
        assert_eq!(
            find(Method::POST, "/api/v1/processors/a/reset"),
            Ok(Route::Change("a", ProcessorAction::Reset))
        );
        assert_eq!(find(Method::GET, "/api/v1/dead-letters"), Ok(Route::DeadLetters));
        let get = |path: &'static str| find(Method::GET, path);
        assert_eq!(get("/api/v1/processors/a/dead-letters"), Ok(Route::DeadLettersOf("a")));
        assert_eq!(get("/api/v1/processors/a/dead-letters/7"), Ok(Route::DeadLetter("a", 7.into())));
        let discard = find(Method::POST, "/api/v1/processors/a/dead-letters/discard");
        assert_eq!(discard, Ok(Route::ChangeDeadLetters("a", DeadLetterAction::Discard)));
        assert_eq!(get("/api/v1/events"), Ok(Route::Events));
        assert_eq!(get("/api/v1/processors/a/wait"), Ok(Route::Wait("a")));
        assert_eq!(get("/api/v1/emissions"), Ok(Route::Emissions));
        assert_eq!(get("/api/v1/processors/a/emissions"), Ok(Route::EmissionsOf("a")));
        let cancel = find(Method::POST, "/api/v1/processors/a/emissions/cancel");
        assert_eq!(cancel, Ok(Route::ChangeEmissions("a", EmissionChange::Cancel)));
        for path in [
            "/",
            "",
            "/livez/",
            "/api/v1/processors/",
            "/api/v1/processors//pause",
            "/api/v1/processors/a/b",
            "/api/v1/processors/a/dead-letters/",
            "/api/v1/processors/a/dead-letters/b",
            "/api/v1/processors/a/dead-letters/7/retry",
            "/api/v1/processors/a/letters/7",
        ] {
            assert_eq!(find(Method::GET, path).unwrap_err().status, StatusCode::NOT_FOUND, "{path}");
        }
        for (method, path) in [
            (Method::GET, "/api/v1/processors/a/pause"),
            (Method::PUT, "/api/v1/processors/a/pause"),
            (Method::POST, "/api/v1/processors/a"),
            (Method::POST, "/livez"),
            (Method::POST, "/api/v1/doctor"),
            (Method::GET, "/api/v1/processors/a/dead-letters/retry"),
            (Method::POST, "/api/v1/processors/a/dead-letters"),
        ] {
            assert_eq!(find(method, path).unwrap_err().status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        }
    }
}
