//! `espd probe`: asks the endpoint of a running daemon, for container images without an HTTP client.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::ValueEnum;

use crate::config::{AdminSettings, Config, Listen};
use crate::process::exit_code::Exit;

/// How long connecting, and reading the answer, may take.
const PATIENCE: Duration = Duration::from_secs(4);

/// The most bytes of an answer that are read.
const ANSWER_BYTES: u64 = 64 * 1024;

/// What to ask.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Question {
    /// Is the daemon alive?
    Livez,
    /// Is the daemon ready?
    Readyz,
}

/// Prints the answer.
///
/// # Errors
/// There is no answer, or its status is not 200.
pub(crate) fn run(config: &Config, question: Question) -> anyhow::Result<()> {
    let settings = config.admin.as_ref().ok_or_else(|| {
        Exit::configuration("the configuration has no [admin] section, so the daemon has no endpoint to ask")
    })?;
    let path = match question {
        Question::Livez => "/livez",
        Question::Readyz => "/readyz",
    };
    let answer =
        ask(settings, path).with_context(|| format!("the daemon at {} does not answer", settings.listen))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not complete")?;
    if head.split(' ').nth(1) != Some("200") {
        bail!("{path}: {}", body.trim_end());
    }
    // A closed pipe says nothing about the daemon.
    let _ = writeln!(std::io::stdout(), "{}", body.trim_end());
    Ok(())
}

fn ask(settings: &AdminSettings, path: &str) -> std::io::Result<String> {
    match &settings.listen {
        Listen::Tcp(address) => {
            let stream = TcpStream::connect_timeout(&reachable(*address), PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            exchange(stream, settings, path)
        }
        Listen::Unix(socket) => {
            let stream = UnixStream::connect::<&Path>(socket)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            exchange(stream, settings, path)
        }
    }
}

fn exchange(mut stream: impl Read + Write, settings: &AdminSettings, path: &str) -> std::io::Result<String> {
    let token = settings.read_token.as_ref().or(settings.operator_token.as_ref());
    let authorization =
        token.map_or_else(String::new, |token| format!("Authorization: Bearer {}\r\n", token.expose()));
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n{authorization}\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES).read_to_string(&mut answer)?;
    Ok(answer)
}

/// Replaces "all addresses" by loopback, which is one of them and can be connected to.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}
