//! The findings of the doctor over HTTP.

use serde_json::{Value, json};

use super::{OPERATE, READ, refused, running};

const DOCTOR: &str = "/api/v1/doctor";

/// The levels of the findings of one check.
fn levels(examination: &Value, check: &str) -> Vec<Value> {
    let findings = examination["findings"].as_array().unwrap();
    findings.iter().filter(|found| found["check"] == check).map(|found| found["level"].clone()).collect()
}

#[tokio::test]
async fn the_findings_are_those_of_espctl() {
    let (_db, installation, daemon, client) = running("").await;
    let examination = client.get(DOCTOR).await.json(200);
    assert!(examination["examined_at"].is_string(), "{examination}");
    let of_espctl: Value =
        serde_json::from_str(&installation.espctl(&["doctor", "--json"]).await.stdout).unwrap();
    let checks = |findings: &Value| -> Vec<(Value, Value)> {
        let findings = findings.as_array().unwrap();
        findings.iter().map(|found| (found["check"].clone(), found["level"].clone())).collect()
    };
    assert_eq!(checks(&examination["findings"]), checks(&of_espctl));
    daemon.stop().await;
}

#[tokio::test]
async fn requests_in_quick_succession_share_one_examination() {
    let (db, _installation, daemon, client) = running("").await;
    let get = || client.get(DOCTOR);
    let (first, second, third) = tokio::join!(get(), get(), get());
    let first = first.json(200);
    assert_eq!((&first, &first), (&second.json(200), &third.json(200)));
    assert_eq!(levels(&first, "triggers"), [json!("ok")], "{first}");
    let trigger = "create function noisy() returns trigger language plpgsql as 'begin return new; end';
                   create trigger noisy after insert on espd.events for each row execute function noisy()";
    sqlx::raw_sql(trigger).execute(&db.pool).await.unwrap();
    assert_eq!(client.get(DOCTOR).await.json(200), first);
    let later = crate::support::facts::eventually("another examination", async || {
        let later = client.get(DOCTOR).await.json(200);
        (later["examined_at"] != first["examined_at"]).then_some(later)
    })
    .await;
    assert_eq!(levels(&later, "triggers"), [json!("warning")], "{later}");
    daemon.stop().await;
}

#[tokio::test]
async fn the_doctor_answers_readers_only() {
    let tokens = format!("read_token = '{READ}'\noperator_token = '{OPERATE}'");
    let (_db, _installation, daemon, client) = running(&tokens).await;
    refused(&client.get(DOCTOR).await.json(401), "this needs a token");
    client.get_with(DOCTOR, &format!("Authorization: Bearer {READ}\r\n")).await.json(200);
    refused(&client.post(DOCTOR, OPERATE, "").await.json(405), "not allowed for this path");
    daemon.stop().await;
}
