//! One poison event in the middle of a batch of a thousand: for each kind of processor and each policy, what is done
//! with the others and what operators are told.

use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support;
use crate::support::facts::{append, eventually, reaches};
use crate::support::program::Installation;

const POLICIES: [&str; 4] = ["retry", "stop", "park", "skip"];
const KINDS: [&str; 2] = ["projector", "reactor"];

/// The event that cannot be handled, in a batch of a thousand.
const POISON: i64 = 500;
const EVENTS: i64 = 1_000;

/// A processor of each kind that notes events, fails with the poison, and has one policy; a reactor answers as well.
fn declare(installation: &Installation, kind: &str, policy: &str) -> String {
    let name = format!("{policy}_{kind}");
    let attempts = if policy == "retry" { "" } else { "max_attempts = 2\n" };
    let (emits, emit) = match kind {
        "reactor" => (
            "emits = ['Answered']\nstart = 'beginning'\nversion = 1\n",
            format!("perform espd.emit('Answered', event.aggregate_id, jsonb_build_object('by', '{name}'));"),
        ),
        _ => ("", String::new()),
    };
    installation.declare(
        &name,
        &format!(
            "[{kind}]\nname = '{name}'\nisolation = 'task'\n{emits}\
             [{kind}.retry]\ninitial = '100ms'\nmax = '100ms'\njitter = 0.0\non_failure = '{policy}'\n{attempts}\
             [{kind}.tables]\n{name} = 'event_id bigint primary key'\n\
             [[{kind}.on]]\nevents = ['A']\nsql = '''\n\
             if (event.body->>'n')::bigint = 0 then raise 'poison'; end if;\n{emit}\n\
             insert into {name} (event_id) values (event.id)'''\n"
        ),
    );
    name
}

async fn count(pool: &PgPool, table: &str) -> i64 {
    let query = sqlx::AssertSqlSafe(format!("select count(*) from {table}"));
    sqlx::query_scalar(query).fetch_one(pool).await.unwrap()
}

async fn answers(pool: &PgPool, name: &str) -> i64 {
    let query = "select count(*) from espd.events where type = 'Answered' and body->>'by' = $1";
    sqlx::query_scalar(query).bind(name).fetch_one(pool).await.unwrap()
}

/// What a processor of this policy is like once it has met the poison: state, position, notes, dead letters.
fn expected(policy: &str) -> (&'static str, i64, i64, i64) {
    match policy {
        "retry" => ("retrying", POISON - 1, POISON - 1, 0),
        "stop" => ("failed", POISON - 1, POISON - 1, 0),
        _ => ("live", EVENTS, EVENTS - 1, 1),
    }
}

#[tokio::test]
async fn a_poison_event_is_dealt_with_as_the_policy_says_and_the_other_999_are_there() {
    let db = support::database().await;
    let installation =
        Installation::new(&db.url, "[runner]\npoll_interval_max = '50ms'\nbatch_time = '1m'\n");
    assert_eq!(append(&db.pool, EVENTS).await, EVENTS);
    sqlx::query("update espd.events set body = '{\"n\": 0}' where id = $1")
        .bind(POISON)
        .execute(&db.pool)
        .await
        .unwrap();
    for kind in KINDS {
        for policy in POLICIES {
            declare(&installation, kind, policy);
        }
    }
    let daemon = installation.start_daemon();
    for kind in KINDS {
        for policy in POLICIES {
            let name = format!("{policy}_{kind}");
            let (state, position, notes, dead_letters) = expected(policy);
            let status = eventually(&format!("{name}, {state}"), async || {
                let status = installation.status(&name).await;
                let there = status["state"] == state || dead_letters == 1 && status["dead_letters"] == 1;
                (there && status["position"].as_i64() >= Some(position)).then_some(status)
            })
            .await;
            assert_eq!(
                (&status["dead_letters"], &status["kind"]),
                (&json!(dead_letters), &json!(kind)),
                "{status}"
            );
            assert_eq!(count(&db.pool, &name).await, notes, "{name}");
            assert_eq!(answers(&db.pool, &name).await, if kind == "reactor" { notes } else { 0 }, "{name}");
            if dead_letters == 0 {
                assert_eq!(
                    (&status["last_error"]["event_id"], &status["position"]),
                    (&json!(POISON), &json!(position))
                );
                assert_eq!(status["oldest_dead_letter_at"], Value::Null);
            } else {
                assert_eq!(
                    (&status["last_error"], &status["attempts"]),
                    (&Value::Null, &json!(0)),
                    "{status}"
                );
                assert!(status["oldest_dead_letter_at"].is_string(), "{status}");
            }
            told(&installation, &name, policy).await;
        }
    }
    fix(&installation, &db.pool).await;
    daemon.stop().await;
}

/// Requires that the tools say what the policy has done.
async fn told(installation: &Installation, name: &str, policy: &str) {
    let table = installation.espctl(&["status", name]).await.printed();
    let list = installation.espctl(&["dead-letters", "list", name]).await.printed();
    let listed = installation.espctl(&["dead-letters", "list", name, "--json"]).await.json();
    match policy {
        "retry" => {
            assert!(table.contains(&format!("{name} cannot handle event 500 (A): poison [P0001]")), "{table}")
        }
        "stop" => {
            assert!(
                table.contains("after 2 attempts. Events before this one are handled; later ones wait."),
                "{table}"
            );
            assert!(table.contains(&format!("Fix this, then run `espctl retry {name}`.")), "{table}");
        }
        _ => {
            assert!(
                table.contains(&format!("1 event of {name} was set aside as a dead letter.\n  The oldest ")),
                "{table}"
            );
            assert!(table.contains(&format!("`espctl dead-letters retry {name} --all`")), "{table}");
            assert!(list.contains("poison [P0001]") && list.contains("failed"), "{list}");
            let dead_letter = &listed[0];
            assert_eq!(
                (&dead_letter["event_id"], &dead_letter["reason"], &dead_letter["attempts"]),
                (&json!(500), &json!("failed"), &json!(2))
            );
            assert_eq!(
                (&dead_letter["blocks"], &dead_letter["processor"]),
                (&json!(policy == "park"), &json!(name))
            );
            assert_eq!(dead_letter["failure"]["sqlstate"], "P0001");
            assert!(
                dead_letter["failure"]["place"].as_str().unwrap().contains(&format!("{name}.toml:")),
                "{dead_letter}"
            );
        }
    }
    if ["retry", "stop"].contains(&policy) {
        assert_eq!((list.as_str(), &listed), ("no dead letters match\n", &json!([])));
    }
}

/// Fixes the cause; afterwards all processors have all events.
async fn fix(installation: &Installation, pool: &PgPool) {
    sqlx::query("update espd.events set body = '{\"n\": 1}' where id = $1")
        .bind(POISON)
        .execute(pool)
        .await
        .unwrap();
    for kind in KINDS {
        for policy in POLICIES {
            let name = format!("{policy}_{kind}");
            match policy {
                "stop" => drop(installation.espctl(&["retry", &name]).await.printed()),
                "retry" => {}
                _ => {
                    let said =
                        installation.espctl(&["dead-letters", "retry", &name, "--all"]).await.printed();
                    assert_eq!(said, format!("1 dead letter of {name} handled\n"));
                }
            }
            reaches(pool, &name, EVENTS).await;
            assert_eq!(count(pool, &name).await, EVENTS, "{name}");
            assert_eq!(answers(pool, &name).await, if kind == "reactor" { EVENTS } else { 0 }, "{name}");
            assert_eq!(installation.status(&name).await["dead_letters"], 0);
        }
    }
}
