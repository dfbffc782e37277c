//! The files for deployments agree with what the program does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use espd::internals::config::Config;

use crate::support;
use crate::support::facts::{eventually, reaches};
use crate::support::program::Installation;

fn committed(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The files in a ConfigMap: keys of `data` with blocks of text.
fn files_of_config_map(text: &str) -> BTreeMap<String, String> {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    let mut name = String::new();
    for line in text.lines().skip_while(|line| *line != "data:").skip(1) {
        match line.strip_prefix("    ") {
            Some(content) => *files.get_mut(&name).unwrap() += &format!("{content}\n"),
            None if line.is_empty() => *files.get_mut(&name).unwrap() += "\n",
            None => {
                name = line.trim().strip_suffix(": |").unwrap().to_owned();
                files.insert(name.clone(), String::new());
            }
        }
    }
    files
}

#[test]
fn the_configuration_in_the_config_map_is_sound() {
    let folder = tempfile::tempdir().unwrap();
    let deployment = committed("deploy/kubernetes/deployment.yaml");
    fs::create_dir(folder.path().join("processors")).unwrap();
    for (token, letter) in [("read_token", "r"), ("operator_token", "o")] {
        fs::write(folder.path().join(token), letter.repeat(32)).unwrap();
    }
    let files = files_of_config_map(&committed("deploy/kubernetes/configmap.yaml"));
    assert_eq!(files.len(), 2);
    for (name, text) in &files {
        let path = if name == "espd.toml" { name.clone() } else { format!("processors/{name}") };
        assert!(deployment.contains(&format!("{{key: {name}, path: {path}}}")), "{name} is not mounted");
        let text = text.replace("/etc/espd-secrets", &folder.path().display().to_string());
        fs::write(folder.path().join(path), text).unwrap();
    }
    let variable = |name: &str| (name == "DATABASE_URL").then(|| "postgres://h/d".to_owned());
    let config = Config::load_with(&folder.path().join("espd.toml"), &variable);
    let config = config.unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(config.processors.len(), 1);
    assert!(config.admin.unwrap().operator_token.is_some());
    let grace = seconds(&deployment, "terminationGracePeriodSeconds: ");
    assert!(grace >= config.runner.shutdown_timeout.as_secs() + 10, "{grace}");
}

#[test]
fn the_unit_gives_workers_the_time_to_end() {
    let unit = committed("systemd/espd.service");
    let stop = seconds(&unit, "TimeoutStopSec=");
    assert!(stop >= Config::default().runner.shutdown_timeout.as_secs() + 10, "{stop}");
    for line in [
        "Type=notify",
        "KillMode=mixed",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "RestartPreventExitStatus=64 70",
    ] {
        assert!(unit.lines().any(|written| written == line), "{line}");
    }
}

/// Programs that are shipped name functions in a backtrace, and carry no line tables of 63 MB.
#[test]
fn release_builds_have_symbols_and_no_debug_sections() {
    let manifest: toml::Table = committed("Cargo.toml").parse().unwrap();
    let release = manifest["profile"]["release"].as_table().unwrap();
    assert_eq!((release["debug"].as_bool(), release["strip"].as_str()), (Some(false), Some("debuginfo")));
}

/// The number behind `key`.
fn seconds(text: &str, key: &str) -> u64 {
    let (_, rest) = text.split_once(key).unwrap();
    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

#[tokio::test]
async fn every_metric_that_is_watched_or_documented_is_exported_and_the_other_way_round() {
    let db = support::database().await;
    let port = free_port();
    let admin = format!("[runner]\npoll_interval_max = '50ms'\n[admin]\nlisten = '127.0.0.1:{port}'\n");
    let installation = Installation::new(&db.url, &admin);
    installation.declare_notes("notes", "");
    assert!(installation.espd(&["probe"]).await.complained(1).contains("does not answer"));
    let daemon = installation.start_daemon();
    reaches(&db.pool, "notes", 0).await;
    eventually("readiness", async || {
        (installation.espd(&["probe", "readyz"]).await.code == Some(0)).then_some(())
    })
    .await;
    assert!(installation.espd(&["probe"]).await.printed().contains("\"live\": true"));

    let client = crate::admin::client::Client::new(&format!("http://127.0.0.1:{port}"));
    let text = client.get("/metrics").await.body;
    let exported: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let watched = committed("deploy/prometheus/alerts.yaml");
    for name in metric_names(&watched) {
        assert!(exported.contains(name), "an alert watches {name}, which is not exported");
    }
    assert_eq!(metric_names(&committed("docs/admin.md")), exported);
    daemon.stop().await;
}

#[test]
fn every_alert_says_what_to_do() {
    let text = committed("deploy/prometheus/alerts.yaml");
    let alerts: Vec<&str> = text.split("      - alert: ").skip(1).collect();
    assert_eq!(alerts.len(), 25);
    for alert in alerts {
        for part in ["expr: ", "severity: ", "summary: ", "description: "] {
            assert!(alert.contains(part), "{part}\n{alert}");
        }
    }
}

/// A Prometheus may scrape the daemons of several stores: what is right with one says nothing of the other.
#[test]
fn no_alert_mixes_stores() {
    let text = committed("deploy/prometheus/alerts.yaml");
    for alert in text.split("      - alert: ").skip(1) {
        let expression = alert.split("expr: ").nth(1).unwrap().split("        labels: ").next().unwrap();
        for aggregation in ["max", "min", "sum", "count"] {
            for (at, _) in expression.match_indices(&format!("{aggregation} ")) {
                assert!(expression[at..].starts_with(&format!("{aggregation} by (job")), "{alert}");
            }
            assert!(!expression.contains(&format!("{aggregation}(")), "{alert}");
        }
        for matching in expression.split("on (").skip(1) {
            assert!(matching.starts_with("job)"), "{alert}");
        }
    }
}

/// The names of metrics in a text.
fn metric_names(text: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_lowercase() || c == '_';
    text.split(|c| !is_part(c)).filter(|word| word.starts_with("espd_")).collect()
}

/// A port that no one listens on at the moment.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
