//! A log that cannot be written costs log lines, never the daemon.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::support;
use crate::support::facts::{append, eventually, reaches, within};
use crate::support::program::Installation;

const RUNNER: &str = "[runner]\npoll_interval_max = '50ms'\n";

struct Daemon(Child);

impl Daemon {
    fn start(mut command: Command, stderr: impl Into<Stdio>) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().unwrap())
    }

    /// Asks it to stop, and requires that it does.
    async fn stop(mut self) {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM).unwrap();
        let ended =
            within(Duration::from_secs(20), "the end after SIGTERM", async || self.0.try_wait().unwrap());
        assert_eq!(ended.await.code(), Some(0));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An installation whose daemon logs far more than a pipe holds: each event makes a line of two kilobytes.
fn talkative(url: &str) -> Installation {
    let installation = Installation::without_database(&format!("[event_store]\nurl = '{url}'\n{RUNNER}"));
    let file = installation.path().join("espd.toml");
    let text = std::fs::read_to_string(&file).unwrap().replace("'info,espd=debug'", "'trace'");
    let socket = installation.path().join("admin.sock");
    std::fs::write(file, format!("{text}[admin]\nlisten = 'unix:{}'\n", socket.display())).unwrap();
    let noise = "raise notice '%', repeat('x', 2000);";
    installation.declare_notes("notes", noise).declare_notes("more", noise);
    installation
}

#[tokio::test]
async fn a_full_disk_does_not_end_the_daemon() {
    let db = support::database().await;
    let installation = talkative(&db.url);
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let daemon = Daemon::start(installation.espd_command(&["run"]), full);
    for _ in 0..3 {
        let last = append(&db.pool, 20).await;
        for name in ["notes", "more"] {
            reaches(&db.pool, name, last).await;
        }
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_reader_that_is_gone_does_not_end_the_daemon() {
    let db = support::database().await;
    let installation = talkative(&db.url);
    let (reader, writer) = std::io::pipe().unwrap();
    let daemon = Daemon::start(installation.espd_command(&["run"]), writer);
    let last = append(&db.pool, 20).await;
    reaches(&db.pool, "notes", last).await;
    drop(reader);
    let last = append(&db.pool, 20).await;
    for name in ["notes", "more"] {
        reaches(&db.pool, name, last).await;
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_reader_that_does_not_read_does_not_hold_the_daemon() {
    let db = support::database().await;
    let installation = talkative(&db.url);
    let (mut reader, writer) = std::io::pipe().unwrap();
    let daemon = Daemon::start(installation.espd_command(&["run"]), writer);
    // The pipe holds 64 KiB; what waits to be written is bounded, too.
    let counted = eventually("the lines lost, counted", async || {
        let last = append(&db.pool, 20).await;
        reaches(&db.pool, "notes", last).await;
        let metrics = metrics(&installation).await;
        let lost = metrics.lines().find_map(|line| line.strip_prefix("espd_log_lines_lost_total "))?;
        (lost.parse::<f64>().unwrap() > 0.0).then_some(metrics)
    });
    counted.await;
    // Who reads again is told how much is missing.
    let told = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = reader.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let last = append(&db.pool, 20).await;
    reaches(&db.pool, "notes", last).await;
    daemon.stop().await;
    let text = told.join().unwrap();
    assert!(text.contains("lines were lost"), "{}", text.len());
    // No line is cut in the middle.
    for line in text.lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
    }
}

async fn metrics(installation: &Installation) -> String {
    let mut stream = UnixStream::connect(installation.path().join("admin.sock")).await.unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// A disk that has room again gets what follows.
#[tokio::test]
async fn what_is_written_is_whole_lines_to_a_file() {
    let db = support::database().await;
    let installation = talkative(&db.url);
    let path = installation.path().join("log");
    let daemon = Daemon::start(installation.espd_command(&["run"]), File::create(&path).unwrap());
    let last = append(&db.pool, 20).await;
    reaches(&db.pool, "notes", last).await;
    daemon.stop().await;
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    assert!(text.contains("espd has stopped"), "the last line is written before the end");
}
