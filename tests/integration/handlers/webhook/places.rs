//! Where a webhook must not connect to.

use super::{append, declare_at, installation, shows};
use crate::support;
use crate::support::receiver::{Receiver, Reply};

/// Ways to write addresses that are not of the public internet. All of them are refused before anything runs.
const SPELLINGS: [&str; 34] = [
    "http://127.0.0.1/",
    "http://127.1/",
    "http://127.0.1/",
    "http://0177.0.0.1/",
    "http://0x7f.0.0.1/",
    "http://0x7f000001/",
    "http://2130706433/",
    "http://017700000001/",
    "http://127.0.0.1./",
    "http://[::1]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::127.0.0.1]/",
    "http://[64:ff9b::127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[2002:7f00:1::]/",
    "http://0.0.0.0/",
    "http://0/",
    "http://[::]/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://0xa9fea9fe/",
    "http://[fe80::1]/",
    "http://[fc00::1]/",
    "http://[fd00:ec2::254]/",
    "http://224.0.0.1/",
    "http://[ff02::1]/",
    "http://example.org@127.0.0.1/",
    "http://１２７.０.０.１/",
    "http://127。0。0。1/",
];

#[tokio::test]
async fn an_address_that_is_not_public_is_refused_however_it_is_written() {
    let db = support::database().await;
    let installation = installation(&db);
    for url in SPELLINGS {
        declare_at(&installation, url, "", "allow_http = true", "");
        let complaint = installation.espctl(&["check"]).await.complained(64);
        assert!(complaint.contains("is not on the public internet"), "{url}: {complaint}");
        assert!(complaint.contains("allow_private = true"), "{url}: {complaint}");
    }
    for url in
        ["http://93.184.215.14/", "http://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]/", "http://example.org/"]
    {
        declare_at(&installation, url, "", "allow_http = true", "");
        assert_eq!(installation.espctl(&["config", "show"]).await.code, Some(0), "{url}");
    }
}

/// A name says nothing about where it leads to; the address that it stands for is judged when it is connected to.
#[tokio::test]
async fn a_name_that_leads_to_a_private_address_is_not_connected_to() {
    let db = support::database().await;
    let receiver = Receiver::start(|_| Reply::Status(200)).await;
    let installation = installation(&db);
    let url = format!("http://localhost:{}/", receiver.address.port());
    declare_at(&installation, &url, "", "allow_http = true", "max_attempts = 1\non_failure = 'skip'\n");
    append(&db.pool, &[(1, 1)]).await;
    let daemon = installation.start_daemon();
    let status =
        shows(&installation, "the outage", |status| status["outage"]["tries"].as_i64() > Some(1)).await;
    let message = status["outage"]["message"].as_str().unwrap();
    assert!(message.contains("is not an address on the public internet"), "{message}");
    assert_eq!((receiver.connections(), status["attempts"].as_i64()), (0, Some(0)));
    daemon.stop().await;
}
