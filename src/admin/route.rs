//! Which path means what.

use hyper::{Method, StatusCode};

use super::answer::Refusal;

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
            let known = "there are /livez, /readyz, /metrics, /api/v1/processors, /api/v1/processors/NAME, and for \
                         changes POST /api/v1/processors/NAME/pause, resume, retry and reset";
            Refusal::new(StatusCode::NOT_FOUND, "there is nothing at this path", known)
        })?;
        let allowed = match route {
            Self::Change(..) => *method == Method::POST,
            _ => *method == Method::GET || *method == Method::HEAD,
        };
        let needed = if matches!(route, Self::Change(..)) { "POST" } else { "GET" };
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
            _ => {}
        }
        let rest = path.strip_prefix("/api/v1/processors/")?;
        match rest.split_once('/') {
            None => (!rest.is_empty()).then_some(Self::Processor(rest)),
            Some((name, verb)) => {
                let verb = Verb::ALL.into_iter().find(|known| known.as_str() == verb)?;
                (!name.is_empty()).then_some(Self::Change(name, verb))
            }
        }
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
        for path in
            ["/", "", "/livez/", "/api/v1/processors/", "/api/v1/processors//pause", "/api/v1/processors/a/b"]
        {
            assert_eq!(find(Method::GET, path).unwrap_err().status, StatusCode::NOT_FOUND, "{path}");
        }
        for (method, path) in [
            (Method::GET, "/api/v1/processors/a/pause"),
            (Method::PUT, "/api/v1/processors/a/pause"),
            (Method::POST, "/api/v1/processors/a"),
            (Method::POST, "/livez"),
        ] {
            assert_eq!(find(method, path).unwrap_err().status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        }
    }
}
