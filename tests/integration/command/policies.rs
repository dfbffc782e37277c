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
    let letters: Vec<(String, i64, i32)> =
        sqlx::query_as("select processor, event_id, attempts from espd.dead_letters order by processor")
            .fetch_all(&db.pool)
            .await
            .unwrap();
    let letter = |name: &str| (name.to_owned(), ids[499], 3);
    assert_eq!(letters, [letter("parked"), letter("skipped")]);

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
