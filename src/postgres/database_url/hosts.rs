//! Takes a URL apart: one way to connect for each of its hosts.

use std::path::PathBuf;
use std::str::FromStr as _;

use percent_encoding::percent_decode_str;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

use super::InvalidDatabaseUrl;
use super::environment::{self, LookUp};
use super::parameters::Parameters;
use crate::postgres::connector::{Connector, Hosts};

/// The parts of a URL around its hosts, which are more than one where libpq allows it.
pub(super) struct Places<'u> {
    /// Up to the hosts: scheme, user and password.
    before: &'u str,
    hosts: &'u str,
    /// From the path on.
    after: &'u str,
}

impl<'u> Places<'u> {
    pub(super) fn split(url: &'u str) -> Option<Self> {
        let start = url.find("://")? + 3;
        let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |length| start + length);
        let hosts = url[start..end].rfind('@').map_or(start, |at| start + at + 1);
        Some(Self { before: &url[..hosts], hosts: &url[hosts..end], after: &url[end..] })
    }

    /// A URL of the usual form.
    pub(super) fn with_first_host(&self) -> String {
        format!("{}{}{}", self.before, self.first(), self.after)
    }

    fn first(&self) -> &'u str {
        self.hosts.split(',').next().unwrap_or_default()
    }

    /// The other hosts put back into what has become of [`Self::with_first_host`].
    pub(super) fn with_all_hosts(&self, url: &str) -> String {
        match Places::split(url).filter(|_| self.hosts.contains(',')) {
            Some(shown) => format!("{}{}{}", shown.before, self.hosts, shown.after),
            None => url.to_owned(),
        }
    }
}

/// A host, or the folder of a socket, and its port; what is not given is as the environment has it.
type Place = (Option<String>, Option<u16>);

/// Reads a URL, with the defaults of the environment.
pub(super) fn read(url: &str, variable: LookUp<'_>) -> Result<Connector, InvalidDatabaseUrl> {
    let places = Places::split(url).ok_or_else(no_scheme)?;
    let mut base = Url::parse(&places.with_first_host())
        .map_err(|error| InvalidDatabaseUrl::because(error.to_string()))?;
    if !matches!(base.scheme(), "postgres" | "postgresql") || !base.has_authority() {
        return Err(no_scheme());
    }
    environment::refuse_ignored(variable)?;
    let pairs: Vec<_> = base.query_pairs().into_owned().collect();
    let parameters = Parameters::read(with_default_attributes(pairs, variable).into_iter())?;
    let found = list_places(&places, &parameters)?;
    // The driver looks up the password of the host that it reads in a parameter.
    let has_host = base.has_host();
    if has_host {
        base.set_host(Some("localhost")).map_err(|error| InvalidDatabaseUrl::because(error.to_string()))?;
        let _ = base.set_port(None);
    }
    let tls = Tls::read(&parameters, variable)?;
    let mut options = Vec::new();
    for place in found {
        options.push(tls.apply(connect_options(&base, &parameters, place)?));
    }
    Ok(Connector::new(Hosts {
        files: options.first().map(|options| tls.files(options)).unwrap_or_default(),
        options,
        needed: parameters.needed,
        timeout: parameters.timeout,
        has_session_options: parameters.has_session_options || variable("PGOPTIONS").is_some(),
    }))
}

fn no_scheme() -> InvalidDatabaseUrl {
    InvalidDatabaseUrl::because("it does not begin with `postgres://`")
}

/// libpq takes these from the environment; a parameter of the URL comes later and wins.
fn with_default_attributes(pairs: Vec<(String, String)>, variable: LookUp<'_>) -> Vec<(String, String)> {
    let defaults =
        [("target_session_attrs", "PGTARGETSESSIONATTRS"), ("connect_timeout", "PGCONNECT_TIMEOUT")];
    let defaults = defaults.into_iter().filter_map(|(key, name)| {
        variable(name).filter(|value| !value.is_empty()).map(|value| (key.to_owned(), value))
    });
    defaults.chain(pairs).collect()
}

/// Every host with its port. Parameters win over what stands before the path.
fn list_places(places: &Places<'_>, parameters: &Parameters) -> Result<Vec<Place>, InvalidDatabaseUrl> {
    let mut found = Vec::new();
    for host in places.hosts.split(',') {
        found.push(read_place(host)?);
    }
    if let Some(hosts) = &parameters.hosts {
        let given: Vec<String> = hosts.split(',').map(str::to_owned).collect();
        let ports: Vec<Option<u16>> = found.iter().map(|(_, port)| *port).collect();
        let port = |index: usize| if ports.len() == given.len() { ports[index] } else { ports[0] };
        found = (0..given.len()).map(|index| (Some(given[index].clone()), port(index))).collect();
    }
    if let Some(ports) = &parameters.ports {
        set_ports(&mut found, ports)?;
    }
    Ok(found)
}

fn read_place(text: &str) -> Result<Place, InvalidDatabaseUrl> {
    let end_of_address = text.rfind(']').map_or(0, |end| end + 1);
    let (host, port) = match text[end_of_address..].find(':') {
        Some(colon) => (&text[..end_of_address + colon], Some(&text[end_of_address + colon + 1..])),
        None => (text, None),
    };
    let host = percent_decode_str(host)
        .decode_utf8()
        .map_err(|_| InvalidDatabaseUrl::because("a host is not UTF-8"))?;
    let port = port.filter(|port| !port.is_empty()).map(read_port).transpose()?;
    Ok(((!host.is_empty()).then(|| host.into_owned()), port))
}

fn read_port(text: &str) -> Result<u16, InvalidDatabaseUrl> {
    text.parse().map_err(|_| InvalidDatabaseUrl::because("a port is a number from 1 to 65535"))
}

fn set_ports(places: &mut [Place], ports: &str) -> Result<(), InvalidDatabaseUrl> {
    let ports = ports.split(',').map(read_port).collect::<Result<Vec<_>, _>>()?;
    if ports.len() != 1 && ports.len() != places.len() {
        let reason = format!("there are {} ports for {} hosts", ports.len(), places.len());
        return Err(InvalidDatabaseUrl::because(reason));
    }
    for (place, port) in places.iter_mut().zip(ports.iter().cycle()) {
        place.1 = Some(*port);
    }
    Ok(())
}

fn connect_options(
    base: &Url,
    parameters: &Parameters,
    (host, port): Place,
) -> Result<PgConnectOptions, InvalidDatabaseUrl> {
    let mut url = base.clone();
    let place = [("host", host), ("port", port.map(|port| port.to_string()))];
    let place = place.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    let pairs: Vec<_> = parameters.passed.iter().cloned().chain(place).collect();
    url.set_query(None);
    if !pairs.is_empty() {
        url.query_pairs_mut().extend_pairs(pairs);
    }
    // The driver's message is about one parameter and does not repeat the URL.
    PgConnectOptions::from_str(url.as_str()).map_err(|error| InvalidDatabaseUrl::because(error.to_string()))
}

/// How the connection is encrypted, as libpq understands it.
struct Tls {
    mode: PgSslMode,
    root: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
}

impl Tls {
    fn read(parameters: &Parameters, variable: LookUp<'_>) -> Result<Self, InvalidDatabaseUrl> {
        let or = |given: &Option<String>, name| given.clone().or_else(|| variable(name));
        let mode = or(&parameters.ssl_mode, "PGSSLMODE");
        let mode = mode.map(|mode| {
            mode.parse().map_err(|_| {
                InvalidDatabaseUrl::because(
                    "`sslmode` may be disable, allow, prefer, require, verify-ca or verify-full",
                )
            })
        });
        let (mode, root) = (mode.transpose()?, or(&parameters.root, "PGSSLROOTCERT"));
        let (certificate, key) = (or(&parameters.certificate, "PGSSLCERT"), or(&parameters.key, "PGSSLKEY"));
        if certificate.is_some() != key.is_some() {
            return Err(InvalidDatabaseUrl::because(
                "`sslcert` and `sslkey` are given together or not at all",
            ));
        }
        let (mode, root) = settle_trust(mode, root)?;
        Ok(Self { mode, root, certificate, key })
    }

    fn apply(&self, options: PgConnectOptions) -> PgConnectOptions {
        // Servers offer no TLS over a socket, which libpq does not ask for there.
        if is_over_socket(&options) {
            return options.ssl_mode(PgSslMode::Disable);
        }
        let mut options = options.ssl_mode(self.mode);
        if let Some(root) = &self.root {
            options = if is_pem(root) {
                options.ssl_root_cert_from_pem(root.clone().into_bytes())
            } else {
                options.ssl_root_cert(root)
            };
        }
        if let (Some(certificate), Some(key)) = (&self.certificate, &self.key) {
            options = options.ssl_client_cert(certificate).ssl_client_key(key);
        }
        options
    }

    /// The files that have to be there. A socket needs none.
    fn files(&self, options: &PgConnectOptions) -> Vec<(&'static str, PathBuf)> {
        if is_over_socket(options) || matches!(self.mode, PgSslMode::Disable | PgSslMode::Allow) {
            return Vec::new();
        }
        let verifies = matches!(self.mode, PgSslMode::VerifyCa | PgSslMode::VerifyFull);
        let root = self.root.as_ref().filter(|root| verifies && !is_pem(root));
        let files =
            [("sslrootcert", root), ("sslcert", self.certificate.as_ref()), ("sslkey", self.key.as_ref())];
        files.into_iter().filter_map(|(key, file)| Some((key, PathBuf::from(file?)))).collect()
    }
}

fn is_over_socket(options: &PgConnectOptions) -> bool {
    options.get_socket().is_some() || options.get_host().starts_with('/')
}

/// A variable may hold a certificate itself.
fn is_pem(text: &str) -> bool {
    text.contains("-----BEGIN")
}

/// With an authority to trust, `require` means `verify-ca`; `system` stands for the authorities of the system, which are
/// of use only if the name is verified.
fn settle_trust(
    mode: Option<PgSslMode>,
    root: Option<String>,
) -> Result<(PgSslMode, Option<String>), InvalidDatabaseUrl> {
    match (mode, root) {
        (None | Some(PgSslMode::VerifyFull), Some(root)) if root == "system" => {
            Ok((PgSslMode::VerifyFull, None))
        }
        (Some(_), Some(root)) if root == "system" => {
            Err(InvalidDatabaseUrl::because("`sslrootcert=system` needs `sslmode=verify-full`"))
        }
        (Some(PgSslMode::Require), Some(root)) => Ok((PgSslMode::VerifyCa, Some(root))),
        (mode, root) => Ok((mode.unwrap_or_default(), root)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(url: &str) -> Vec<String> {
        let connector = read(url, &|_| None).unwrap();
        connector
            .options_of_hosts()
            .iter()
            .map(|options| match options.get_socket() {
                Some(folder) => format!("{}:{}", folder.display(), options.get_port()),
                None => format!("{}:{}", options.get_host(), options.get_port()),
            })
            .collect()
    }

    #[test]
    fn every_host_is_found() {
        for (url, expected) in [
            ("postgres://jo@one/d", vec!["one:5432"]),
            ("postgres://jo:p%40@one:1,two:2/d", vec!["one:1", "two:2"]),
            ("postgres://one,two:2,[::1]:3/d", vec!["one:5432", "two:2", "[::1]:3"]),
            ("postgres://jo@%2Frun%2Fpg:1,two/d", vec!["/run/pg:1", "two:5432"]),
            ("postgres:///d?host=one,two&port=1", vec!["one:1", "two:1"]),
            ("postgres://jo@x/d?host=/a,/b&port=1,2", vec!["/a:1", "/b:2"]),
            ("postgres://jo@localhost:7/d?host=/a", vec!["/a:7"]),
        ] {
            assert_eq!(places(url), expected, "{url}");
        }
        for url in ["postgres://a,b:port/d", "postgres:///d?host=a,b&port=1,2,3", "a,b"] {
            assert!(read(url, &|_| None).is_err(), "{url}");
        }
    }

    #[test]
    fn user_and_database_are_those_of_every_host() {
        let connector = read("postgres://jo:pw@one,two:2/shop?application_name=x", &|_| None).unwrap();
        for options in connector.options_of_hosts() {
            assert_eq!((options.get_username(), options.get_database()), ("jo", Some("shop")));
        }
    }

    #[test]
    fn an_authority_to_trust_is_verified_as_libpq_does() {
        let mode = |parameters: &str| {
            let url = format!("postgres://h/d?{parameters}");
            read(&url, &|_| None).map(|read| format!("{:?}", read.options_of_hosts()[0].get_ssl_mode()))
        };
        for (parameters, expected) in [
            ("sslmode=require", "Require"),
            ("sslmode=require&sslrootcert=/ca.pem", "VerifyCa"),
            ("sslmode=verify-full&sslrootcert=/ca.pem", "VerifyFull"),
            ("sslrootcert=/ca.pem", "Prefer"),
            ("sslrootcert=system", "VerifyFull"),
        ] {
            assert_eq!(mode(parameters).as_deref(), Ok(expected), "{parameters}");
        }
        assert_eq!(
            mode("host=/run/postgresql&sslmode=verify-full").as_deref(),
            Ok("Disable"),
            "over a socket"
        );
        for parameters in ["sslmode=require&sslrootcert=system", "sslcert=/a", "sslmode=maybe"] {
            assert!(mode(parameters).is_err(), "{parameters}");
        }
    }
}
