//! `espctl drop` and `espctl rename`: a processor that is no longer wanted, or wanted under another name.

use sqlx::{AssertSqlSafe, PgPool};

use crate::support;
use crate::support::Database;
use crate::support::facts::{append, eventually, position, reaches};
use crate::support::program::Installation;

const RUNNER: &str = "[runner]\npoll_interval_max = '50ms'\n";

const SKIPPING: &str = "[projector.retry]\nmax_attempts = 1\non_failure = 'skip'\n\
     [[projector.on]]\nevents = ['A']\nsql = \"if event.id = 2 then raise 'no'; end if; insert into notes values (event.id)\"\n";

fn skipping(name: &str) -> String {
    format!("[projector]\nname = '{name}'\n[projector.tables]\nnotes = 'event_id bigint'\n{SKIPPING}")
}

async fn count(pool: &PgPool, from: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(format!("select count(*) from {from}"))).fetch_one(pool).await.unwrap()
}

/// A projector that has handled five events but for the second, which is a dead letter.
async fn handled() -> (Database, Installation) {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare("old", &skipping("old"));
    append(&db.pool, 5).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "old", 5).await;
    for verb in ["drop", "rename"] {
        let arguments =
            [&[verb, "old"][..], if verb == "drop" { &["--yes"] } else { &["new", "--yes"] }].concat();
        let complaint = installation.espctl(&arguments).await.complained(1);
        assert!(complaint.contains("is run by"), "{complaint}");
    }
    daemon.stop().await;
    (db, installation)
}

#[tokio::test]
async fn a_retired_processor_is_dropped_with_its_tables_after_a_question() {
    let (db, installation) = handled().await;
    installation.declare("old", &skipping("old").replace("'old'", "'other'").replace("notes", "others"));
    let question = installation.espctl(&["drop", "old"]).await.complained(1);
    for part in ["public.notes", "1 dead letter", "position 5", "nothing was done"] {
        assert!(question.contains(part), "{part}: {question}");
    }
    assert_eq!(count(&db.pool, "notes").await, 4);
    assert!(
        installation.espctl(&["drop", "oldest", "--yes"]).await.complained(1).contains("no processor oldest")
    );

    sqlx::raw_sql("create view public.strange as select * from notes").execute(&db.pool).await.unwrap();
    let complaint = installation.espctl(&["drop", "old", "--yes"]).await.complained(1);
    assert!(complaint.contains("view public.strange") && complaint.contains("--cascade"), "{complaint}");
    assert_eq!(count(&db.pool, "notes").await, 4);
    let said = installation.espctl(&["drop", "old", "--yes", "--cascade"]).await.printed();
    assert!(said.starts_with("old was dropped"), "{said}");

    assert_eq!(count(&db.pool, "pg_class where relname in ('notes', 'strange')").await, 0);
    assert_eq!(count(&db.pool, "pg_proc where proname like '%_old_v%'").await, 0);
    for table in [
        "trackers where name",
        "dead_letters where processor",
        "declarations where processor",
        "projection_tables where processor",
    ] {
        assert_eq!(count(&db.pool, &format!("espd.{table} = 'old'")).await, 0, "{table}");
    }
    assert_eq!(
        count(
            &db.pool,
            "espd.operator_log where action = 'drop' and processor = 'old' and from_position = 5"
        )
        .await,
        1
    );
    // It can be declared again, and begins anew.
    installation.declare("old", &skipping("old"));
    let daemon = installation.start_daemon();
    reaches(&db.pool, "old", 5).await;
    assert_eq!(count(&db.pool, "notes").await, 4);
    daemon.stop().await;
}

#[tokio::test]
async fn a_renamed_projector_goes_on_where_it_was_with_its_tables_and_dead_letters() {
    let (db, installation) = handled().await;
    append(&db.pool, 1).await;
    let taken = installation.espctl(&["rename", "old", "old", "--yes"]).await.complained(1);
    assert!(taken.contains("old"), "{taken}");
    assert_eq!(installation.espctl(&["rename", "old", "No Name", "--yes"]).await.code, Some(1));
    let said = installation.espctl(&["rename", "old", "new", "--yes"]).await.printed();
    assert!(said.contains("old is new now, at position 5"), "{said}");
    std::fs::remove_file(installation.path().join("processors/old.toml")).unwrap();
    installation.declare("new", &skipping("new").replace("event.id = 2", "false"));
    let daemon = installation.start_daemon();
    reaches(&db.pool, "new", 6).await;
    assert_eq!(count(&db.pool, "notes").await, 5, "nothing was handled again");
    installation.espctl(&["dead-letters", "retry", "new", "2", "--yes"]).await.printed();
    assert_eq!(count(&db.pool, "notes where event_id = 2").await, 1);
    assert_eq!(position(&db.pool, "old").await, 0);
    assert_eq!(count(&db.pool, "pg_proc where proname like '%_old_v%'").await, 0);
    assert_eq!(count(&db.pool, "espd.operator_log where action = 'rename' and processor = 'new'").await, 1);
    daemon.stop().await;
}

/// The daemon has the new name already, and its tracker, which has done nothing, gives way.
#[tokio::test]
async fn a_name_that_is_declared_before_the_renaming_is_no_obstacle() {
    let (db, installation) = handled().await;
    std::fs::remove_file(installation.path().join("processors/old.toml")).unwrap();
    installation.declare("new", &skipping("new"));
    let daemon = installation.start_daemon();
    eventually("it stops", async || {
        let status = installation.espctl(&["status", "new", "--json"]).await;
        status.stdout.contains("`espctl rename old new`").then_some(())
    })
    .await;
    let said = installation.espctl(&["rename", "old", "new", "--yes"]).await.printed();
    assert!(said.contains("old is new now, at position 5"), "{said}");
    append(&db.pool, 1).await;
    reaches(&db.pool, "new", 6).await;
    assert_eq!(count(&db.pool, "notes").await, 5, "nothing was handled again");
    assert_eq!(count(&db.pool, "espd.dead_letters where processor = 'new'").await, 1);
    // One that has done something is in the way.
    installation.declare("third", &skipping("third").replace("notes", "others"));
    installation.espctl(&["reload"]).await.printed();
    reaches(&db.pool, "third", 6).await;
    daemon.stop().await;
    let taken = installation.espctl(&["rename", "third", "new", "--yes"]).await.complained(1);
    assert!(taken.contains("there is a processor new already"), "{taken}");
}

#[tokio::test]
async fn a_reactor_keeps_its_name_because_the_identity_of_what_it_emits_follows_from_it() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare(
        "answers",
        "[reactor]\nname = 'answers'\nstart = 'beginning'\nemits = ['Answered']\n[[reactor.on]]\nevents = ['A']\n\
         sql = \"perform espd.emit('Answered', event.aggregate_id, '{}')\"\n",
    );
    append(&db.pool, 2).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "answers", 2).await;
    daemon.stop().await;
    let complaint = installation.espctl(&["rename", "answers", "replies", "--yes"]).await.complained(1);
    assert!(complaint.contains("emit again"), "{complaint}");
}
