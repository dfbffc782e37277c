//! Decides which requests are allowed: by token, `Host` and `Origin`.
//!
//! Any web page can make its reader's browser send requests to the endpoint. The browser always sends the `Host` that
//! it believes to talk to and the `Origin` of the page, so both have to be the endpoint's own.

use std::net::IpAddr;

use hyper::header::{AUTHORIZATION, HOST, HeaderName, HeaderValue, ORIGIN};
use hyper::{HeaderMap, StatusCode};
use subtle::ConstantTimeEq as _;

use super::answer::ApiError;
use super::route::Route;
use crate::config::{AdminSettings, Token};

/// The header in which browsers say how the page and the target of a request are related.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What a client may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Permission {
    /// Learn that the daemon is alive and ready.
    Probe,
    /// See everything.
    Read,
    /// Change things.
    Operate,
}

impl Permission {
    /// The permission that a route requires.
    fn needed(route: &Route<'_>) -> Self {
        match route {
            Route::Livez | Route::Readyz => Self::Probe,
            route if route.changes() => Self::Operate,
            _ => Self::Read,
        }
    }
}

/// Who may do what, according to the newest configuration that has had a section `[admin]`. What it has taken back does not
/// return: where the section is gone, and the endpoint listens until the next start, the settings of before go on to count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Access {
    /// The newest settings, with the address that the endpoint really listens on.
    settings: AdminSettings,
    /// Whether everything can be seen without a token.
    is_open: bool,
}

impl Access {
    pub(super) fn new(settings: &AdminSettings) -> Self {
        let is_open = settings.read_token.is_none() && settings.listen.is_local();
        Self { settings: settings.clone(), is_open }
    }

    /// Follows the section of a configuration that was read again; `None`: it has none.
    pub(super) fn follow(&mut self, present: Option<&AdminSettings>) {
        let Some(present) = present else { return };
        let listen = self.settings.listen.clone();
        // Without a token, settings are made for the address that they name, which may be harder to reach than this one.
        let is_made_for_it = present.listen == listen;
        let settings = AdminSettings { listen, ..present.clone() };
        let is_open = Self::new(&settings).is_open && (is_made_for_it || self.is_open);
        *self = Self { settings, is_open };
    }
}

/// Allows a request, or says why not. `local` is the address that the client has connected to; `None` for a socket in
/// the file system.
pub(super) fn admit(
    access: &Access,
    local: Option<IpAddr>,
    headers: &HeaderMap,
    route: &Route<'_>,
) -> Result<Permission, ApiError> {
    let Access { settings, is_open } = access;
    if let Some(local) = local {
        refuse_foreign_host(settings, local, headers)?;
    }
    refuse_foreign_origin(headers)?;
    let shown = headers.get(AUTHORIZATION).map(|value| bearer_token(value).unwrap_or_default());
    let has = match shown {
        Some(shown) => recognise(settings, shown),
        None if *is_open => Some(Permission::Read),
        None => Some(Permission::Probe),
    };
    decide(settings, has, shown.is_some(), Permission::needed(route))
}

fn decide(
    settings: &AdminSettings,
    has: Option<Permission>,
    shown: bool,
    needed: Permission,
) -> Result<Permission, ApiError> {
    // A probe is answered whatever token it shows; only the details depend on the token.
    let passes = if needed == Permission::Probe { Some(has.unwrap_or(needed)) } else { has };
    if let Some(has) = passes.filter(|has| *has >= needed) {
        return Ok(has);
    }
    if needed == Permission::Operate && settings.operator_token.is_none() {
        let remedy = "set operator_token under [admin], or use `espctl`";
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "changes are not allowed through this endpoint",
            remedy,
        ));
    }
    let (token, remedy) = match needed {
        Permission::Operate => {
            ("the operator's token", "send `Authorization: Bearer` and the operator_token")
        }
        _ => ("a token", "send `Authorization: Bearer` and the read_token"),
    };
    Err(match (has, shown) {
        (None, _) => ApiError::new(StatusCode::UNAUTHORIZED, "the token is unknown", remedy),
        (Some(_), false) => ApiError::new(StatusCode::UNAUTHORIZED, format!("this needs {token}"), remedy),
        (Some(_), true) => ApiError::new(StatusCode::FORBIDDEN, format!("this needs {token}"), remedy),
    })
}

/// The permission that a token gives; `None`: the token is unknown.
fn recognise(settings: &AdminSettings, shown: &[u8]) -> Option<Permission> {
    let is = |token: &Option<Token>| {
        token.as_ref().is_some_and(|token| bool::from(token.expose().as_bytes().ct_eq(shown)))
    };
    let (operator, reader) = (is(&settings.operator_token), is(&settings.read_token));
    if operator { Some(Permission::Operate) } else { reader.then_some(Permission::Read) }
}

fn bearer_token(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = value.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}

/// Refuses a `Host` that is not the endpoint's own: with a DNS name that it lets point here, a page of another site gets
/// past the browser (DNS rebinding).
fn refuse_foreign_host(settings: &AdminSettings, local: IpAddr, headers: &HeaderMap) -> Result<(), ApiError> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = match (hosts.next().map(|host| host.to_str().unwrap_or_default()), hosts.next()) {
        (Some(host), None) => host_name(host),
        _ => {
            return Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "there is not exactly one `Host` header",
                "send one",
            ));
        }
    };
    let is_address = match host.parse::<IpAddr>() {
        Ok(address) => address.is_loopback() || address == local,
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    };
    if is_address || settings.allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(host)) {
        return Ok(());
    }
    let remedy = "use the endpoint's address, or add the name to allowed_hosts under [admin]";
    Err(ApiError::new(StatusCode::FORBIDDEN, "this `Host` is not the endpoint's own", remedy))
}

/// The host of `host:port`, without the brackets of an IPv6 address.
fn host_name(host: &str) -> &str {
    if let Some((address, _)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return address;
    }
    host.split_once(':').map_or(host, |(name, _)| name)
}

fn refuse_foreign_origin(headers: &HeaderMap) -> Result<(), ApiError> {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let is_ours = |origin: &HeaderValue| {
        let origin = origin.to_str().unwrap_or_default();
        let origin = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        origin.is_some_and(|origin| origin.eq_ignore_ascii_case(host))
    };
    let is_related = |site: &HeaderValue| *site == "same-origin" || *site == "none";
    if headers.get_all(ORIGIN).iter().all(is_ours) && headers.get_all(FETCH_SITE).iter().all(is_related) {
        return Ok(());
    }
    let remedy = "send the request from outside a browser, or from a page of this endpoint";
    Err(ApiError::new(StatusCode::FORBIDDEN, "the request comes from a page of another site", remedy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::route::ProcessorAction;
    use crate::config::Listen;

    const READ: &str = "0123456789abcdef0123456789abcdef";
    const OPERATE: &str = "fedcba9876543210fedcba9876543210";
    const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 7));

    fn settings(listen: &str, tokens: [Option<&str>; 2]) -> AdminSettings {
        let [read_token, operator_token] = tokens.map(|token| token.and_then(Token::new));
        let listen = Listen::Tcp(listen.parse().unwrap());
        AdminSettings { listen, read_token, operator_token, allowed_hosts: vec!["espd.example.org".into()] }
    }

    fn ask(settings: &AdminSettings, headers: &[(&'static str, &str)], route: Route<'_>) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        ask_with(&Access::new(settings), &map, &route)
    }

    fn ask_with(access: &Access, headers: &HeaderMap, route: &Route<'_>) -> u16 {
        admit(access, Some(LOCAL), headers, route).map_or_else(|error| error.status.as_u16(), |_| 200)
    }

    #[test]
    fn tokens_open_what_they_are_for() {
        let change = Route::Change("a", ProcessorAction::Pause);
        let bearer = |token: &str| format!("Bearer {token}");
        let (read, operate) = (bearer(READ), bearer(OPERATE));
        let (wrong, basic) = (bearer("0123456789abcdef0123456789abcdee"), format!("Basic {READ}"));
        let inside = "127.0.0.1:1";
        for (listen, tokens, shown, [probe, see, operating]) in [
            (inside, [None, None], None, [200, 200, 403]),
            (inside, [None, None], Some(&read), [200, 401, 403]),
            (inside, [None, Some(OPERATE)], None, [200, 200, 401]),
            (inside, [None, Some(OPERATE)], Some(&operate), [200, 200, 200]),
            (inside, [Some(READ), None], None, [200, 401, 403]),
            (inside, [Some(READ), None], Some(&read), [200, 200, 403]),
            ("0.0.0.0:1", [Some(READ), Some(OPERATE)], None, [200, 401, 401]),
            ("0.0.0.0:1", [Some(READ), Some(OPERATE)], Some(&read), [200, 200, 403]),
            ("0.0.0.0:1", [Some(READ), Some(OPERATE)], Some(&operate), [200, 200, 200]),
            ("0.0.0.0:1", [Some(READ), Some(OPERATE)], Some(&wrong), [200, 401, 401]),
            ("0.0.0.0:1", [Some(READ), Some(OPERATE)], Some(&basic), [200, 401, 401]),
            ("0.0.0.0:1", [None, Some(OPERATE)], None, [200, 401, 401]),
        ] {
            let settings = settings(listen, tokens);
            let mut headers = vec![("host", "localhost")];
            headers.extend(shown.map(|shown| ("authorization", shown.as_str())));
            let answers =
                [Route::Readyz, Route::Metrics, change].map(|route| ask(&settings, &headers, route));
            assert_eq!(answers, [probe, see, operating], "{listen} {tokens:?} {shown:?}");
        }
    }

    /// What was taken back stays so, whatever becomes of the section; and settings for a socket open no other address.
    #[test]
    fn the_newest_settings_count_also_where_they_are_gone() {
        let inside = "127.0.0.1:1";
        let ask = |access: &Access, token: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.append(HOST, HeaderValue::from_static("localhost"));
            if let Some(token) = token {
                headers.append(AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}")).unwrap());
            }
            let change = Route::Change("a", ProcessorAction::Pause);
            [Route::Metrics, change].map(|route| ask_with(access, &headers, &route))
        };
        let mut access = Access::new(&settings(inside, [None, Some(OPERATE)]));
        assert_eq!([ask(&access, None), ask(&access, Some(OPERATE))], [[200, 401], [200, 200]]);
        let newer = OPERATE.replace('f', "e");
        access.follow(Some(&settings(inside, [Some(READ), Some(&newer)])));
        for _ in 0..2 {
            assert_eq!([ask(&access, None), ask(&access, Some(OPERATE))], [[401, 401], [401, 401]]);
            assert_eq!([ask(&access, Some(READ)), ask(&access, Some(&newer))], [[200, 403], [200, 200]]);
            access.follow(None);
        }

        // The permissions of a socket's file protect no port.
        let socket =
            AdminSettings { listen: Listen::Unix("/run/espd".into()), ..settings(inside, [None, None]) };
        access.follow(Some(&socket));
        access.follow(None);
        assert_eq!([ask(&access, None), ask(&access, Some(READ))], [[401, 403], [401, 403]]);
        access.follow(Some(&settings(inside, [None, None])));
        assert_eq!(ask(&access, None), [200, 403]);
        access.follow(Some(&socket));
        assert_eq!(ask(&access, None), [200, 403]);
    }

    #[test]
    fn a_foreign_host_is_refused() {
        let settings = settings("127.0.0.1:1", [None, None]);
        for (hosts, status) in [
            (&["localhost"][..], 200),
            (&["LOCALHOST:4680"], 200),
            (&["127.0.0.1:4680"], 200),
            (&["[::1]:4680"], 200),
            (&["10.0.0.7:4680"], 200),
            (&["espd.example.org:80"], 200),
            (&["10.0.0.8:4680"], 403),
            (&["attacker.example.org:4680"], 403),
            (&["localhost.attacker.example.org"], 403),
            (&["xespd.example.org"], 403),
            (&[""], 403),
            (&[], 400),
            (&["localhost", "localhost"], 400),
        ] {
            let headers: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            assert_eq!(ask(&settings, &headers, Route::Livez), status, "{hosts:?}");
        }
    }

    #[test]
    fn a_page_of_another_site_is_refused() {
        let settings = settings("127.0.0.1:1", [None, None]);
        for (header, value, status) in [
            ("origin", "http://localhost:4680", 200),
            ("origin", "https://localhost:4680", 200),
            ("origin", "http://localhost:1", 403),
            ("origin", "http://localhost", 403),
            ("origin", "https://attacker.example.org", 403),
            ("origin", "null", 403),
            ("origin", "", 403),
            ("sec-fetch-site", "same-origin", 200),
            ("sec-fetch-site", "none", 200),
            ("sec-fetch-site", "same-site", 403),
            ("sec-fetch-site", "cross-site", 403),
        ] {
            let headers = [("host", "localhost:4680"), (header, value)];
            assert_eq!(ask(&settings, &headers, Route::Metrics), status, "{header}: {value}");
        }
    }
}
