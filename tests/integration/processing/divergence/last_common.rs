//! The last common event is one that the processor itself has read as it is: what others have read of the store that has taken the
//! place of the former one proves nothing.

use serde_json::Value;

use super::{execute, numbers};
use crate::support;
use crate::support::facts::{append, append_typed, eventually, reaches};
use crate::support::program::Installation;

/// Each batch is one event, so each event is a witness.
const RUNNER: &str = "[runner]\npoll_interval_max = '50ms'\nbatch_size = 1\nbatch_size_max = 1\n";

fn reactor(name: &str) -> String {
    format!(
        "[reactor]\nname = '{name}'\nemits = ['Noted']\nstart = 'beginning'\n\
         [[reactor.on]]\nevents = ['A']\nsql = '''perform espd.emit('Noted', event.aggregate_id, jsonb_build_object('of', event.id, 'by', '{name}'))'''\n"
    )
}

/// A projector, a reactor that is paused, and one that no daemon runs any more, all at the same event, in a store that has lost all
/// events behind 10 and was written to since.
async fn gone_back() -> (support::Database, Installation) {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "");
    for name in ["paused", "absent"] {
        installation.declare(name, &reactor(name));
    }
    let daemon = installation.start_daemon();
    append(&db.pool, 2).await;
    let emitted = "select count(*) from espd.events where type = 'Noted'";
    eventually("both have emitted", async || (numbers(&db.pool, emitted).await == [4]).then_some(())).await;
    let all = ["notes", "paused", "absent"];
    // The emitted events are read as well, so each stands at these.
    for last in [6, 10, 20] {
        let missing = last - numbers(&db.pool, "select max(id) from espd.events").await[0];
        if missing > 0 {
            append_typed(&db.pool, "B", missing).await;
        }
        for name in all {
            reaches(&db.pool, name, last).await;
        }
    }
    for name in ["paused", "notes"] {
        installation.espctl(&["pause", name]).await.printed();
    }
    daemon.stop().await;
    std::fs::remove_file(installation.path().join("processors/absent.toml")).unwrap();
    execute(&db.pool, "delete from espd.events where id > 10; select setval('espd.events_id_seq', 10)").await;
    append(&db.pool, 15).await;
    (db, installation)
}

async fn last_common(installation: &Installation, name: &str) -> Value {
    let status = installation.status(name).await;
    assert_eq!(status["state"], "diverged", "{status}");
    status["diverged"]["last_common"].clone()
}

#[tokio::test]
async fn what_a_projector_reads_of_the_new_store_is_no_common_event_of_others() {
    let (db, installation) = gone_back().await;
    for name in ["notes", "paused", "absent"] {
        assert_eq!(last_common(&installation, name).await, 10, "{name}");
    }
    let daemon = installation.start_daemon();
    installation.espctl(&["reset", "notes", "--yes"]).await.printed();
    installation.espctl(&["resume", "notes"]).await.printed();
    installation.espctl(&["wait", "notes", "--timeout", "60s"]).await.printed();
    for name in ["paused", "absent"] {
        assert_eq!(last_common(&installation, name).await, 10, "{name}");
    }
    let status = installation.espctl(&["status", "paused"]).await.printed();
    assert!(status.contains("Event 10 is the last one that is known to be as it was"), "{status}");

    // Each acts for the events that are there now, and repeats nothing.
    installation.declare("absent", &reactor("absent"));
    installation.espctl(&["reload"]).await.printed();
    for name in ["paused", "absent"] {
        installation.espctl(&["reset", name, "--yes"]).await.printed();
        installation.espctl(&["resume", name]).await;
        installation.espctl(&["wait", name, "--timeout", "60s"]).await.printed();
    }
    let of_new =
        "select count(*) from espd.events where type = 'Noted' and (body->>'of')::bigint between 11 and 25";
    eventually("the effects", async || (numbers(&db.pool, of_new).await == [30]).then_some(())).await;
    let of_old = "select count(*) from espd.events where type = 'Noted' and (body->>'of')::bigint <= 2";
    assert_eq!(numbers(&db.pool, of_old).await, [4]);
    daemon.stop().await;
}

/// A daemon has recorded how the store differs, and then it goes back further.
#[tokio::test]
async fn a_store_that_goes_back_once_more_has_less_in_common() {
    let (db, installation) = gone_back().await;
    let daemon = installation.start_daemon();
    installation.espctl(&["resume", "paused"]).await;
    let recorded = "select (diverged->>'last_common')::bigint from espd.trackers where name = 'paused' and diverged is not null";
    eventually("it is recorded", async || (numbers(&db.pool, recorded).await == [10]).then_some(())).await;
    execute(&db.pool, "delete from espd.events where id > 6; select setval('espd.events_id_seq', 6)").await;
    append(&db.pool, 20).await;
    let common = last_common(&installation, "paused").await;
    assert!(common.as_i64().is_some_and(|common| common <= 6), "{common}");
    installation.espctl(&["reset", "paused", "--yes"]).await.printed();
    installation.espctl(&["resume", "paused"]).await;
    installation.espctl(&["wait", "paused", "--timeout", "60s"]).await.printed();
    let of_new = "select count(*) from espd.events where type = 'Noted' and body->>'by' = 'paused' and (body->>'of')::bigint between 7 and 26";
    eventually("the effects", async || (numbers(&db.pool, of_new).await == [20]).then_some(())).await;
    daemon.stop().await;
}
