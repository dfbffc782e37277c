//! What systemd is told: its notification protocol, one datagram per message.
//!
//! Without systemd (or another service manager that speaks the protocol) every message is dropped. So is a message that
//! cannot be delivered: the daemon never waits for those who watch it.

use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Sends notifications to systemd, if that has started this process.
#[derive(Debug, Default)]
pub(crate) struct Systemd {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
    is_stopping: AtomicBool,
}

/// The environment variables that systemd sets for this process alone; its children must not see them.
pub(crate) const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

impl Systemd {
    /// Finds systemd by what it has written into the environment.
    pub(crate) fn from_environment() -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        Self::find(&variable).unwrap_or_else(|error| {
            tracing::warn!(%error, "could not reach the service manager");
            Self::default()
        })
    }

    fn find(variable: &dyn Fn(&str) -> Option<String>) -> io::Result<Self> {
        let Some(name) = variable(VARIABLES[0]).filter(|name| !name.is_empty()) else {
            return Ok(Self::default());
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let for_us = |pid: String| pid == std::process::id().to_string();
        let ours = variable(VARIABLES[2]).is_none_or(for_us);
        let interval = variable(VARIABLES[1]).and_then(|microseconds| microseconds.parse().ok());
        let watchdog = interval.filter(|interval| ours && *interval > 0).map(Duration::from_micros);
        Ok(Self { socket: Some((socket, address(&name)?)), watchdog, is_stopping: AtomicBool::new(false) })
    }

    /// How often [`Self::watchdog`] has to be called: twice as often as systemd demands. `None` if it demands nothing.
    pub(crate) fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|timeout| timeout / 2)
    }

    /// Says that the daemon is ready, and how it is, in one line for people.
    pub(crate) fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// Says how the daemon is, in one line for people.
    pub(crate) fn status(&self, status: &str) {
        self.send(&format!("STATUS={status}"));
    }

    /// Says that the start takes longer, and asks for this much time from now.
    pub(crate) fn starting(&self, time: Duration, status: &str) {
        self.send(&format!("EXTEND_TIMEOUT_USEC={}\nSTATUS={status}", time.as_micros()));
    }

    /// Says that the configuration is read again. [`Self::ready`] has to follow.
    pub(crate) fn reloading(&self) {
        let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return };
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", Duration::from(now).as_micros()));
    }

    /// Says that the daemon ends, once.
    pub(crate) fn stopping(&self) {
        if !self.is_stopping.swap(true, Ordering::Relaxed) {
            self.send("STOPPING=1");
        }
    }

    /// Says that the loop that calls this is alive.
    pub(crate) fn watchdog(&self) {
        if self.watchdog.is_some() {
            self.send("WATCHDOG=1");
        }
    }

    fn send(&self, message: &str) {
        let Some((socket, address)) = &self.socket else { return };
        if let Err(error) = socket.send_to_addr(message.as_bytes(), address) {
            tracing::debug!(%error, "could not tell the service manager");
        }
    }
}

/// Reads an address: a path, or `@` and an abstract name.
fn address(name: &str) -> io::Result<SocketAddr> {
    match name.strip_prefix('@') {
        None => SocketAddr::from_pathname(name),
        Some(name) => abstract_address(name),
    }
}

#[cfg(target_os = "linux")]
fn abstract_address(name: &str) -> io::Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt as _;

    SocketAddr::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn abstract_address(_name: &str) -> io::Result<SocketAddr> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn messages_arrive_at_paths_and_at_abstract_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify").display().to_string();
        let abstract_name = format!("@espd-test-{}", std::process::id());
        for name in [path, abstract_name] {
            let socket = UnixDatagram::bind_addr(&address(&name).unwrap()).unwrap();
            let variable = |wanted: &str| match wanted {
                "NOTIFY_SOCKET" => Some(name.clone()),
                "WATCHDOG_USEC" => Some("2000000".to_owned()),
                _ => None,
            };
            let systemd = Systemd::find(&variable).unwrap();
            assert_eq!(systemd.watchdog_interval(), Some(Duration::from_secs(1)));
            systemd.ready("1 worker");
            assert_eq!(receive(&socket), "READY=1\nSTATUS=1 worker");
            systemd.watchdog();
            assert_eq!(receive(&socket), "WATCHDOG=1");
            systemd.reloading();
            let reloading = receive(&socket);
            let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
            assert!(time.parse::<u64>().unwrap() > 0);
        }
    }

    #[test]
    fn the_watchdog_of_another_process_is_not_ours_and_a_missing_socket_is_no_error() {
        let variable = |wanted: &str| match wanted {
            "NOTIFY_SOCKET" => Some("/nowhere/at/all".to_owned()),
            "WATCHDOG_USEC" => Some("2000000".to_owned()),
            _ => Some("1".to_owned()),
        };
        let systemd = Systemd::find(&variable).unwrap();
        assert_eq!(systemd.watchdog_interval(), None);
        systemd.ready("no one listens");
        Systemd::find(&|_| None).unwrap().ready("no one listens");
    }
}
