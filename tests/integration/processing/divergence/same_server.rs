//! The events go back in the database of the projections, under a running daemon.

use super::{ALL, LISTED, NOTES, declare_all, diverges, execute, numbers, range};
use crate::support;
use crate::support::facts::{append, eventually, reaches};
use crate::support::program::Installation;
use crate::support::receiver::{Receiver, Reply};

#[tokio::test]
async fn a_tail_that_is_deleted_stops_every_processor_until_an_operator_decides() {
    let db = support::database().await;
    let receiver = Receiver::start(|_| Reply::Status(200)).await;
    let installation = Installation::new(&db.url, "[admin]\nlisten = '127.0.0.1:0'\n");
    declare_all(&installation, &receiver);
    let daemon = installation.start_daemon();
    for last in [5, 11, 20] {
        append(&db.pool, last - numbers(&db.pool, "select count(*) from espd.events").await[0]).await;
        for name in ALL {
            reaches(&db.pool, name, last).await;
        }
    }

    let go_back = "delete from espd.events where id > 11; select setval('espd.events_id_seq', 11)";
    execute(&db.pool, go_back).await;
    for name in ALL {
        let status = diverges(&installation, name).await;
        let diverged = &status["diverged"];
        assert_eq!((&diverged["last_common"], &diverged["head"]), (&11.into(), &11.into()), "{status}");
        assert_eq!(
            (&diverged["kind"], &diverged["event_id"]),
            (&"event_gone".into(), &20.into()),
            "{status}"
        );
    }
    let table = installation.espctl(&["status", "notes"]).await.printed();
    assert!(table.contains("Event 11 is the last one that is known to be as it was"), "{table}");
    assert!(table.contains("events 12 to 20 is not undone"), "{table}");
    assert!(table.contains("`espctl reset notes --to 11`"), "{table}");

    let doctor = installation.espctl(&["doctor"]).await;
    let is_told = doctor.stdout.contains("the event store is not the one that they have followed");
    assert!(doctor.code == Some(1) && is_told, "{doctor:?}");

    // Nothing is skipped and nothing repeated, also after a restart.
    append(&db.pool, 12).await;
    daemon.stop().await;
    let daemon = installation.start_daemon();
    for name in ALL {
        let complaint = installation.espctl(&["wait", name, "--timeout", "60s"]).await.complained(65);
        assert!(complaint.contains("last one"), "{complaint}");
        assert_eq!(diverges(&installation, name).await["position"], 20);
        let complaint = installation.espctl(&["resume", name]).await.complained(1);
        assert!(complaint.contains("--accept-history"), "{complaint}");
        installation.espctl(&["retry", name]).await.complained(1);
    }
    let letter = "select espd.set_aside('notes', 1, 0, jsonb_build_object('event_id', id, 'event_uuid', uuid, 'event_type', type,
                    'aggregate_id', aggregate_id, 'message', 'no'), 1, false) from espd.events where id = 1";
    execute(&db.pool, letter).await;
    let said =
        installation.espctl(&["dead-letters", "retry", "notes", "--all", "--yes"]).await.complained(75);
    assert!(said.contains("another event store") && said.contains("`espctl status notes`"), "{said}");
    execute(&db.pool, "delete from espd.dead_letters").await;
    assert_eq!(numbers(&db.pool, NOTES).await, range(1, 20));
    assert_eq!(receiver.numbers().len(), 20);

    // Three operators decide in three ways.
    installation.espctl(&["reset", "notes", "--to", "11", "--yes"]).await.printed();
    installation.espctl(&["reset", "listed", "--yes"]).await.printed();
    let accepted = installation.espctl(&["resume", "hook", "--accept-history"]).await;
    assert!(accepted.stderr.contains("9 events beyond 11 are in the store now"), "{accepted:?}");
    assert_eq!(accepted.code, Some(0), "{accepted:?}");
    for name in ALL {
        installation.espctl(&["wait", name, "--timeout", "60s"]).await.printed();
    }
    assert_eq!(numbers(&db.pool, NOTES).await, [range(1, 20), range(12, 23)].concat());
    assert_eq!(numbers(&db.pool, LISTED).await, range(1, 23));
    eventually("three more", async || (receiver.numbers().len() == 23).then_some(())).await;
    let acts = "select count(*) from espd.operator_log where action in ('reset', 'accept_history')";
    assert_eq!(numbers(&db.pool, acts).await, [3]);
    daemon.stop().await;
}

#[tokio::test]
async fn a_webhook_that_is_set_back_sends_the_events_that_have_come_instead() {
    let db = support::database().await;
    // Event 2 keeps the position back, so that the later ones are done beyond it.
    let receiver =
        Receiver::start(|request| if request.n() == 2 { Reply::Status(500) } else { Reply::Status(200) })
            .await;
    let installation = Installation::new(&db.url, "");
    declare_all(&installation, &receiver);
    append(&db.pool, 4).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "hook", 1).await;
    let beyond = "select event_id from espd.deliveries where is_done order by 1";
    eventually("the later ones", async || (numbers(&db.pool, beyond).await == [3, 4]).then_some(())).await;
    // `truncate` would meet the daemon's looks in a deadlock now and then.
    execute(&db.pool, "delete from espd.events; select setval('espd.events_id_seq', 1, false)").await;
    let status = diverges(&installation, "hook").await;
    assert_eq!(status["diverged"]["last_common"], 0, "{status}");
    let new = "insert into espd.events (aggregate_id, type, version, body)
               select gen_random_uuid(), 'A', 1, jsonb_build_object('n', 10 + n) from generate_series(1, 4) as n";
    execute(&db.pool, new).await;
    installation.espctl(&["reset", "hook", "--to", "0", "--yes"]).await.printed();
    installation.espctl(&["wait", "hook", "--timeout", "60s"]).await.printed();
    let new = receiver.numbers().into_iter().filter(|n| *n > 10).collect::<Vec<_>>();
    assert_eq!(
        (new.len(), new.iter().sum::<i64>()),
        (4, 50),
        "what was done for others is not done for them"
    );
    daemon.stop().await;
}
