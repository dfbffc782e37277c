//! `[admin]`: the endpoint for probes, metrics and operators.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use crate::config::reader::tree::{Section, Value};

/// Where the endpoint listens by default.
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 4680);

/// What precedes the path of a Unix socket.
const UNIX_PREFIX: &str = "unix:";

/// Characters of a token; 32 hexadecimal digits are 128 bits.
const TOKEN_LENGTH: std::ops::RangeInclusive<usize> = 32..=512;

/// `[admin]`; without the section there is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminSettings {
    /// Where it listens.
    pub listen: Listen,
    /// Lets its bearer read. Every client needs it where it is set; required on addresses beyond loopback.
    pub read_token: Option<Token>,
    /// Lets its bearer read and change. Without it, no client changes anything through the endpoint.
    pub operator_token: Option<Token>,
    /// Host names that clients may use for the endpoint, besides its own address and those of loopback.
    pub allowed_hosts: Vec<String>,
}

impl Default for AdminSettings {
    fn default() -> Self {
        let listen = Listen::Tcp(DEFAULT_LISTEN);
        Self { listen, read_token: None, operator_token: None, allowed_hosts: Vec::new() }
    }
}

/// Where the endpoint listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// An address and a port; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A socket in the file system, for the user that runs the daemon.
    Unix(PathBuf),
}

impl Listen {
    /// Whether only this machine's processes can reach it.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Unix(_) => true,
        }
    }

    fn parse(words: &str) -> Option<Self> {
        match words.strip_prefix(UNIX_PREFIX) {
            Some(path) => path.starts_with('/').then(|| Self::Unix(path.into())),
            None => words.parse().ok().map(Self::Tcp),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "{UNIX_PREFIX}{}", path.display()),
        }
    }
}

/// A secret that a client sends to prove what it may do. Neither `Debug` nor `config show` shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Accepts 32 to 512 visible ASCII characters.
    pub fn new(token: impl Into<String>) -> Option<Self> {
        let token = token.into();
        let fits = TOKEN_LENGTH.contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then_some(Self(token))
    }

    /// The token itself, to compare with; not to be shown.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

impl AdminSettings {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let default = Self::default();
        let listen = section.value("listen");
        let settings = Self {
            listen: listen.and_then(|words| read_listen(&words)).unwrap_or(default.listen),
            read_token: section.value("read_token").and_then(|token| read_token(&token)),
            operator_token: section.value("operator_token").and_then(|token| read_token(&token)),
            allowed_hosts: section
                .value("allowed_hosts")
                .and_then(|hosts| read_hosts(&hosts))
                .unwrap_or_default(),
        };
        refuse_open_access(section, &settings);
        settings
    }
}

/// An address that other machines can reach needs a token, and the two tokens have to differ.
fn refuse_open_access(section: &Section<'_>, settings: &AdminSettings) {
    let written = section.value("read_token").or_else(|| section.value("operator_token"));
    if let (Some(listen), None, false) = (section.value("listen"), written, settings.listen.is_local()) {
        listen.location.report(
            format!("{} can be reached from other machines, and there is no token", settings.listen),
            "add read_token = \"${file:/path}\", or listen on 127.0.0.1 or unix:/path",
        );
    }
    if let (Some(same), Some(token)) = (section.value("operator_token"), &settings.operator_token)
        && settings.read_token.as_ref() == Some(token)
    {
        same.location.report(
            "`operator_token` is the same as `read_token`",
            "a client that may only read must not know it: make another one",
        );
    }
}

fn read_listen(value: &Value<'_>) -> Option<Listen> {
    let listen = Listen::parse(&value.text()?);
    if listen.is_none() {
        value.location.report(
            format!("{} is not an address to listen on", value.as_written()),
            "write an address and a port like \"127.0.0.1:4680\" or \"[::1]:4680\", or \"unix:/absolute/path\"",
        );
    }
    listen
}

/// Reads a token. It is never shown, not even when it is wrong.
fn read_token(value: &Value<'_>) -> Option<Token> {
    let token = Token::new(value.text()?);
    if token.is_none() {
        value.location.report(
            "the token is not 32 to 512 visible ASCII characters",
            "make one with `openssl rand -hex 32` in a file, and name that: \"${file:/path}\"",
        );
    }
    token
}

fn read_hosts(value: &Value<'_>) -> Option<Vec<String>> {
    let advice = "write names without ports, like [\"espd.example.org\"]";
    let mut hosts = Vec::new();
    for item in value.items(advice)? {
        let Some(host) = item.text().map(|host| host.to_ascii_lowercase()) else { continue };
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if host.is_empty() || !host.chars().all(is_part) {
            item.location.report(format!("{} is not the name of a host", item.as_written()), advice);
        } else {
            hosts.push(host);
        }
    }
    Some(hosts)
}
