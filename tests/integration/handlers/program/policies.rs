//! A poison event in the middle of a thousand, under each policy.

use super::{SETTINGS, counted, declare_counting, events, heal};
use crate::support;
use crate::support::facts::{append, eventually, position, reaches};
use crate::support::program::Installation;

#[tokio::test]
async fn the_others_are_there_whatever_becomes_of_a_poison_event() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, &format!("{SETTINGS}[runner]\nisolation = 'task'\n"));
    let policies = [
        ("parked", "park", "gives_up"),
        ("skipped", "skip", "crashes_unflushed"),
        ("stopped", "stop", "no_json"),
    ];
    for (name, policy, mode) in policies {
        let retry = format!("retry = {{ max_attempts = 3, on_failure = '{policy}' }}");
        declare_counting(&installation, name, mode, &retry);
    }
    append(&db.pool, 1_000).await;
    let ids = events(&db.pool).await;
    let others: Vec<i64> = ids.iter().copied().filter(|id| *id != ids[499]).collect();
    let daemon = installation.start_daemon();

    for name in ["parked", "skipped"] {
        reaches(&db.pool, name, ids[999]).await;
        assert_eq!(counted(&db.pool, name).await, others, "{name}");
    }
    let dead_letters: Vec<(String, i64, i32)> =
        sqlx::query_as("select processor, event_id, attempts from espd.dead_letters order by processor")
            .fetch_all(&db.pool)
            .await
            .unwrap();
    let dead_letter = |name: &str| (name.to_owned(), ids[499], 3);
    assert_eq!(dead_letters, [dead_letter("parked"), dead_letter("skipped")]);

    let handled = "select handled from espd.trackers where name in ('parked', 'skipped')";
    let handled: Vec<i64> = sqlx::query_scalar(handled).fetch_all(&db.pool).await.unwrap();
    assert_eq!(handled, [1_000, 1_000], "what is set aside counts as well");

    eventually("the stop", async || {
        (installation.status("stopped").await["state"] == "failed").then_some(())
    })
    .await;
    assert_eq!(position(&db.pool, "stopped").await, ids[499] - 1);
    assert_eq!(counted(&db.pool, "stopped").await, ids[..499]);

    // A dead letter is handled by itself, wherever the position is.
    heal(&installation);
    sqlx::query("update espd.dead_letters set retry_requested_at = now() where processor = 'parked'")
        .execute(&db.pool)
        .await
        .unwrap();
    eventually("the dead letter", async || {
        let query = sqlx::query_scalar("select count(*) from espd.dead_letters where processor = 'parked'");
        let left: i64 = query.fetch_one(&db.pool).await.unwrap();
        (left == 0).then_some(())
    })
    .await;
    let mut all = others.clone();
    all.push(ids[499]);
    assert_eq!(counted(&db.pool, "parked").await, all);
    installation.espctl(&["retry", "stopped"]).await.printed();
    reaches(&db.pool, "stopped", ids[999]).await;
    assert_eq!(counted(&db.pool, "stopped").await, ids);
    daemon.stop().await;
}

#[tokio::test]
async fn a_retry_and_a_resumption_run_the_current_program() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, SETTINGS);
    let worker = |said: &str| {
        format!(
            "import sys, json\nprint(json.dumps({{'ready': 1}}), flush=True)\nsys.stdin.readline()\n\
             for line in sys.stdin:\n    batch = json.loads(line)\n    for event in batch['events']:\n        {said}\n\
             \x20       print(json.dumps({{'done': event['id'], 'actions': [{{'upsert': 'said', 'row': \
             {{'event_id': event['id'], 'version': version}}}}]}}))\n    print(json.dumps({{'end': batch['batch']}}), flush=True)\n"
        )
    };
    let file = installation.path().join("processors/said.py");
    let fails = "version = 1\n        assert event['body']['n'] != 2, 'two'";
    std::fs::write(&file, worker(fails)).unwrap();
    installation.declare(
        "said",
        "[projector]\nname = 'said'\nevents = ['A']\ncommand = ['python3', 'said.py']\n\
         retry = { max_attempts = 1, on_failure = 'skip' }\n[projector.tables]\n\
         said = 'event_id bigint primary key, version int'\n",
    );
    let last = append(&db.pool, 3).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "said", last).await;
    std::fs::write(&file, worker("version = 2")).unwrap();
    let said = installation.espctl(&["dead-letters", "retry", "said", "--all", "--yes"]).await.printed();
    assert!(said.contains("1 dead letter of said handled"), "{said}");
    std::fs::write(&file, worker("version = 3")).unwrap();
    installation.espctl(&["pause", "said"]).await.printed();
    eventually("the pause", async || (installation.status("said").await["state"] == "paused").then_some(()))
        .await;
    daemon.says("paused").await;
    installation.espctl(&["resume", "said"]).await.printed();
    let last = append(&db.pool, 1).await;
    reaches(&db.pool, "said", last).await;
    let versions: Vec<i32> =
        sqlx::query_scalar("select version from said order by event_id").fetch_all(&db.pool).await.unwrap();
    assert_eq!(versions, [1, 2, 1, 3]);
    daemon.stop().await;
}
