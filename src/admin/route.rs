//! Which path means what.

use hyper::{Method, StatusCode};

use super::answer::Refusal;
use crate::event::Position;

/// What a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route<'p> {
    /// Does the supervisor's loop turn?
    Livez,
    /// Can the daemon work?
    Readyz,
    Metrics,
    /// The status of all processors.
    Processors,
    /// The status of one.
    Processor(&'p str),
    Change(&'p str, Verb),
    /// Dead letters of all processors.
    DeadLetters,
    /// Those of one.
    DeadLettersOf(&'p str),
    /// One of them.
    DeadLetter(&'p str, Position),
    ChangeDeadLetters(&'p str, LetterVerb),
}

/// What operators do about dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LetterVerb {
    Retry,
    Discard,
}

impl LetterVerb {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry_dead_letters",
            Self::Discard => "discard_dead_letters",
        }
    }
}

/// What operators do to a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Pause,
    Resume,
    Retry,
    Reset,
}

impl Verb {
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
    pub(super) fn find(method: &Method, path: &'p str) -> Result<Self, Refusal> {
        let route = Self::of_path(path).ok_or_else(|| {
            let known = "there are /livez, /readyz, /metrics, /api/v1/processors, /api/v1/processors/NAME, \
                         /api/v1/dead-letters, /api/v1/processors/NAME/dead-letters, and for changes POST \
                         /api/v1/processors/NAME/pause, resume, retry, reset, dead-letters/retry and dead-letters/discard";
            Refusal::new(StatusCode::NOT_FOUND, "there is nothing at this path", known)
        })?;
        let changes = route.changes();
        let reads = *method == Method::GET || *method == Method::HEAD;
        let allowed = if changes { *method == Method::POST } else { reads };
        let needed = if changes { "POST" } else { "GET" };
        let refusal = || {
            let error = format!("{method} is not for this path");
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, error, format!("use {needed}"))
        };
        allowed.then_some(route).ok_or_else(refusal)
    }

    fn of_path(path: &'p str) -> Option<Self> {
        match path {
            "/livez" => return Some(Self::Livez),
            "/readyz" => return Some(Self::Readyz),
            "/metrics" => return Some(Self::Metrics),
            "/api/v1/processors" => return Some(Self::Processors),
            "/api/v1/dead-letters" => return Some(Self::DeadLetters),
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
            None => Verb::ALL
                .into_iter()
                .find(|known| known.as_str() == rest)
                .map(|verb| Self::Change(name, verb)),
            Some(("dead-letters", "retry")) => Some(Self::ChangeDeadLetters(name, LetterVerb::Retry)),
            Some(("dead-letters", "discard")) => Some(Self::ChangeDeadLetters(name, LetterVerb::Discard)),
            Some(("dead-letters", event)) => event.parse().ok().map(|id| Self::DeadLetter(name, id)),
            Some(_) => None,
        }
    }

    /// Whether whoever asks for it changes something.
    pub(super) fn changes(&self) -> bool {
        matches!(self, Self::Change(..) | Self::ChangeDeadLetters(..))
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
        assert_eq!(find(Method::GET, "/api/v1/processors"), Ok(Route::Processors));
        assert_eq!(find(Method::GET, "/api/v1/processors/a"), Ok(Route::Processor("a")));
        assert_eq!(find(Method::POST, "/api/v1/processors/a/reset"), Ok(Route::Change("a", Verb::Reset)));
        assert_eq!(find(Method::GET, "/api/v1/dead-letters"), Ok(Route::DeadLetters));
        let letters = |path: &'static str| find(Method::GET, path);
        assert_eq!(letters("/api/v1/processors/a/dead-letters"), Ok(Route::DeadLettersOf("a")));
        assert_eq!(letters("/api/v1/processors/a/dead-letters/7"), Ok(Route::DeadLetter("a", 7.into())));
        let discard = find(Method::POST, "/api/v1/processors/a/dead-letters/discard");
        assert_eq!(discard, Ok(Route::ChangeDeadLetters("a", LetterVerb::Discard)));
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
            (Method::GET, "/api/v1/processors/a/dead-letters/retry"),
            (Method::POST, "/api/v1/processors/a/dead-letters"),
        ] {
            assert_eq!(find(method, path).unwrap_err().status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        }
    }
}
