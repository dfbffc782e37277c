//! URLs: keys that espd does not know, several hosts, certificates that are not there.

use std::process::Stdio;
use std::time::Duration;

use espd::Config;
use espd::event::NewEvent;
use espd::store::{EventStore as _, PostgresEventStore};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::admin::endpoint;
use crate::support::facts::{append, eventually, reaches};
use crate::support::program::Installation;
use crate::support::proxy::Proxy;
use crate::support::{self, Database};

#[tokio::test]
async fn a_key_that_is_not_known_is_refused_with_the_nearest() {
    for (key, words) in [
        ("sslmoed=verify-full", ["`sslmoed`", "`sslmode`"]),
        ("channel_binding=require", ["`channel_binding`", "verify-full"]),
        ("service=shop", ["`service`", "host"]),
        ("target_session_attrs=standby", ["`target_session_attrs`", "read-write"]),
    ] {
        let installation = Installation::new(&format!("postgres://jo:hush-hush@127.0.0.1:1/d?{key}"), "");
        let complaint = installation.espctl(&["status"]).await.complained(64);
        assert!(words.iter().all(|word| complaint.contains(word)), "{complaint}");
        assert!(!complaint.contains("hush-hush"), "{complaint}");
    }
}

#[tokio::test]
async fn a_variable_that_the_driver_ignores_is_refused() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    for (variable, value) in [
        ("PGSERVICE", "shop"),
        ("PGCHANNELBINDING", "require"),
        ("PGREQUIREAUTH", "scram-sha-256"),
        ("PGSSLMODE", "verify_full"),
    ] {
        let mut command = installation.espctl_command(&["status"]);
        let output = command.env(variable, value).output().unwrap();
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{variable}: {complaint}");
        assert!(complaint.contains(variable), "{complaint}");
    }
}

/// A database behind two ways, and a URL that names both.
async fn two_hosts(db: &Database) -> (Proxy, Proxy, String) {
    let (first, second) = (Proxy::start(&db.url).await, Proxy::start(&db.url).await);
    let host = |proxy: &Proxy| {
        let url = proxy.url();
        url.split_once('@').unwrap().1.split_once('/').unwrap().0.to_owned()
    };
    let url = format!(
        "postgres://espd@{},{}/{}?sslmode=disable&target_session_attrs=read-write",
        host(&first),
        host(&second),
        db.name
    );
    (first, second, url)
}

fn declare(installation: &Installation, version: i32) {
    let text = format!(
        "[projector]\nname = 'notes'\nversion = {version}\n[projector.tables]\nnotes = 'event_id bigint primary key'\n\
         [[projector.on]]\nevents = ['A']\nsql = 'insert into notes values (event.id)'\n"
    );
    installation.declare("notes", &text);
}

fn close(proxy: &Proxy) {
    proxy.refuse(true);
    proxy.reset();
}

#[tokio::test]
async fn the_next_host_is_used_when_one_is_gone() {
    let db = support::database().await;
    let (first, second, url) = two_hosts(&db).await;
    let settings = "[runner]\npoll_interval_max = '50ms'\n[admin]\nlisten = '127.0.0.1:0'\n";
    let installation = Installation::new(&url, settings);
    declare(&installation, 1);
    let daemon = installation.start_daemon();
    let client = endpoint(&daemon).await;
    let last = append(&db.pool, 5).await;
    reaches(&db.pool, "notes", last).await;
    let is_ready = async || (client.get("/readyz").await.status == 200).then_some(());
    eventually("readiness", is_ready).await;
    let looked_at = second.tally().accepted;
    close(&first);
    let last = append(&db.pool, 5).await;
    reaches(&db.pool, "notes", last).await;
    assert!(second.tally().accepted > looked_at);
    assert_eq!(installation.status("notes").await["position"], last);
    // So does whatever else the daemon does: the endpoint, and what builds versions.
    eventually("readiness at the second host", is_ready).await;
    let processors = client.get("/api/v1/processors").await.json(200);
    assert_eq!(processors[0]["position"], last, "{processors}");
    declare(&installation, 2);
    installation.espctl(&["reload"]).await.printed();
    eventually("version 2 serves", async || {
        (installation.status("notes").await["version"] == 2).then_some(())
    })
    .await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_store_of_an_application_finds_the_host_that_is_there() {
    let db = support::database().await;
    let (first, second, url) = two_hosts(&db).await;
    close(&first);
    let installation = Installation::new(&url, "");
    let config = Config::load(&installation.path().join("espd.toml")).unwrap();
    let store = PostgresEventStore::from_config(&config).unwrap();
    let appends = async || {
        let body = RawValue::from_string("{}".to_owned()).unwrap();
        store.append(&[NewEvent::new(Uuid::new_v4(), "Noted", body)]).await.ok()
    };
    eventually("an append through the second host", appends).await;
    first.refuse(false);
    close(&second);
    eventually("an append through the first host", appends).await;
}

#[tokio::test]
async fn a_host_that_cannot_write_is_passed_over() {
    let db = support::database().await;
    let standby = support::server_with(&[("default_transaction_read_only", "on")]).await;
    let socket = |url: &str| url.split_once("?host=").unwrap().1.to_owned();
    let url = format!("{},{}&target_session_attrs=read-write", standby.url(&db.name), socket(&db.url));
    let installation = Installation::new(&url, "");
    installation.declare_notes("notes", "");
    installation.espctl(&["check"]).await.printed();
    let daemon = installation.start_daemon();
    let last = append(&db.pool, 5).await;
    reaches(&db.pool, "notes", last).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_certificate_that_is_not_there_is_named_with_its_key() {
    let db = support::database().await;
    let proxy = Proxy::start(&db.url).await;
    for key in ["sslrootcert", "sslcert", "sslkey"] {
        let others = if key == "sslrootcert" { "" } else { "&sslcert=/etc/hostname&sslkey=/etc/hostname" };
        let url =
            format!("{}{others}&{key}=/nowhere/root.crt", proxy.url().replace("=disable", "=verify-full"));
        let complaint = Installation::new(&url, "").espctl(&["status"]).await.complained(1);
        assert!(complaint.contains(key) && complaint.contains("/nowhere/root.crt"), "{complaint}");
    }
}

#[tokio::test]
async fn few_file_descriptors_are_an_error_and_no_panic() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    installation.declare_notes("notes", "");
    for program in [env!("CARGO_BIN_EXE_espd"), env!("CARGO_BIN_EXE_espctl")] {
        let verb = if program.ends_with("espd") { "run" } else { "status" };
        for files in 4..14 {
            let mut command = tokio::process::Command::new("sh");
            command.arg("-c").arg(format!("ulimit -n {files}; exec {program} {verb}"));
            command.env("ESPD_CONFIG", installation.path().join("espd.toml")).env_remove("RUST_LOG");
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
            let child = command.spawn().unwrap();
            // A daemon may wait for more of them; what it must not do is panic.
            let ended = tokio::time::timeout(Duration::from_secs(1), child.wait_with_output()).await;
            let Ok(Ok(output)) = ended else { continue };
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(
                !said.contains("panicked") && output.status.code() != Some(101),
                "{verb} {files}: {said}"
            );
        }
    }
}
