//! A version is given up while somebody works on it.

use super::*;

/// Has the change of the tables' schemas wait for an advisory lock, also where locks are waited for briefly.
const HOLD: &str = "
    create function hold() returns event_trigger language plpgsql as $$ begin
      perform set_config('lock_timeout', '0', true), pg_advisory_xact_lock_shared(4711)
        where current_query() like '%-- move_tables%';
    end $$;
    create event trigger hold on ddl_command_end when tag in ('ALTER TABLE') execute function hold()";

async fn hold(fixture: &Fixture) -> sqlx::PgConnection {
    let mut holder = sqlx::PgConnection::connect(&fixture.db.url).await.unwrap();
    sqlx::raw_sql("select pg_advisory_lock(4711)").execute(&mut holder).await.unwrap();
    holder
}

/// Waits until so many sessions wait for a lock in a statement with these words.
async fn waits(fixture: &Fixture, words: &str, count: i64) {
    let query = format!(
        "select count(*) >= {count} from pg_stat_activity
         where datname = current_database() and wait_event_type = 'Lock' and query like '%{words}%'"
    );
    eventually(words, async || (fixture.fact(&query).await == "true").then_some(())).await;
}

#[tokio::test]
async fn what_an_operator_does_while_a_version_goes_live_is_done_to_that_version_or_refused() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.run(HOLD).await;
    fixture.declare(2, WIDER);
    let holder = hold(&fixture).await;
    let release = async {
        waits(&fixture, "-- move_tables", 1).await;
        let released = async {
            waits(&fixture, "pause_processor", 1).await;
            waits(&fixture, "reset_processor", 1).await;
            holder.close().await.unwrap();
        };
        let (pause, reset) = (
            fixture.espctl(&["pause", "orders"]),
            fixture.espctl(&["reset", "orders", "--to", "2", "--yes"]),
        );
        let (paused, reset, ()) = tokio::join!(pause, reset, released);
        (paused, reset)
    };
    let (rebuilt, (paused, reset)) = tokio::join!(fixture.espctl(&["rebuild", "orders", "--yes"]), release);
    assert!(rebuilt.printed().contains("version 2 of orders is live"));
    let said = paused.printed();
    assert!(said.starts_with("orders paused"), "{said}");
    assert_eq!(
        fixture
            .fact("select version || ' ' || (paused_at is not null) from espd.trackers where name = 'orders'")
            .await,
        "2 true"
    );
    let said = reset.complained(1);
    assert!(said.contains("another version of orders has gone live meanwhile"), "{said}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_version_that_goes_live_meanwhile_is_not_said_to_be_given_up() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.run(HOLD).await;
    fixture.declare(2, WIDER);
    let holder = hold(&fixture).await;
    let waits = async |statement: &str| waits(&fixture, &format!("-- {statement}"), 1).await;
    let release = async {
        // In the middle of the exchange, with both versions locked.
        waits("move_tables").await;
        let given_up = async {
            waits("drop_version").await;
            holder.close().await.unwrap();
        };
        tokio::join!(fixture.espctl(&["rebuild", "abort", "orders"]), given_up).0
    };
    let (rebuilt, given_up) = tokio::join!(fixture.espctl(&["rebuild", "orders", "--yes"]), release);
    assert!(rebuilt.printed().contains("version 2 of orders is live"));
    let said = given_up.complained(1);
    assert!(said.contains("version 2 of orders has gone live meanwhile"), "{said}");
    assert_eq!(fixture.state().await, "live");
    let log = fixture.fact("select string_agg(action, ' ' order by id) from espd.operator_log").await;
    assert_eq!(log, "rebuild go_live");
    assert_eq!(fixture.beside().await, "orders$1|public_orders_v1");
    daemon.stop().await;
}

#[tokio::test]
async fn whoever_builds_a_version_that_is_given_up_leaves_nothing_of_it_behind() {
    let (fixture, daemon) = Fixture::running().await;
    // A batch takes longer than it is between two notes of how far it is.
    fixture.declare(
        2,
        (WIDER.0, "perform pg_sleep(0.3); insert into orders values (event.id, event.id % 3, 'a', 0)"),
    );
    let give_up = async {
        let batch = "select count(*) > 0 from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'";
        eventually("a batch", async || (fixture.fact(batch).await == "true").then_some(())).await;
        fixture.espctl(&["rebuild", "abort", "orders"]).await
    };
    let (rebuilt, given_up) = tokio::join!(fixture.espctl(&["rebuild", "orders", "--yes"]), give_up);
    assert_eq!(given_up.printed(), "version 2 of orders was given up\n");
    assert!(rebuilt.code == Some(1) && !rebuilt.stderr.contains("panicked"), "{rebuilt:?}");
    assert_eq!(fixture.state().await, "aborted");
    assert_eq!(fixture.beside().await, "|");
    assert_eq!(fixture.fact("select count(*) from espd.build_progress").await, "0");
    daemon.stop().await;
}

#[tokio::test]
async fn who_deletes_an_aggregate_is_told_which_versions_beside_the_serving_one_have_its_rows() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.declare(2, WIDER);
    fixture.espctl(&["rebuild", "orders", "--yes", "--go-live", "swap"]).await.printed();
    fixture.declare(3, FIRST);
    fixture.rebuild_without_answer().await;
    append_typed(&fixture.db.pool, "B", 1).await;
    let delete = async |event_type: &str, more: &[&str]| {
        let find = format!("select min(aggregate_id::text) from espd.events where type = '{event_type}'");
        let aggregate = fixture.fact(&find).await;
        let delete = ["delete-aggregate", &aggregate, "--why", "court order 12/27", "--yes"];
        fixture.espctl(&[&delete, more].concat()).await.printed()
    };
    let told = delete("A", &[]).await;
    for part in [
        "version 1 of orders, which is kept in schema public_orders_v1",
        "`espctl rebuild drop orders` drops",
        "version 3 of orders, which is built in schema public_orders_next",
        "`espctl rebuild abort orders` gives it up",
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }
    let json: serde_json::Value = serde_json::from_str(&delete("A", &["--json"]).await).unwrap();
    assert_eq!(
        json["versions"][0],
        serde_json::json!({ "processor": "orders", "version": 1, "schema": "public_orders_v1", "is_former": true })
    );
    let told = delete("B", &[]).await;
    assert!(!told.contains("of orders"), "no version has handled it: {told}");

    fixture.espctl(&["rebuild", "abort", "orders"]).await.printed();
    fixture.espctl(&["rebuild", "drop", "orders", "--yes"]).await.printed();
    let told = delete("A", &[]).await;
    assert!(told.contains("projector orders") && !told.contains("of orders"), "{told}");
    daemon.stop().await;
}
