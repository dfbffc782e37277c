//! A build waits while the server lacks disk, or the database is larger than it may be; the old version serves and follows.

use super::*;

pub(super) async fn rests(fixture: &Fixture, because: &str) {
    eventually("the build rests", async || {
        let status = fixture.installation.status("orders").await;
        let told = status["rebuild"]["rests_because"].as_str().unwrap_or_default().to_owned();
        told.contains(because).then_some(())
    })
    .await;
}

async fn building(settings: &str) -> (Fixture, Program) {
    let db = support::database().await;
    let settings = format!("[runner]\npoll_interval_max = '50ms'\n{settings}");
    let fixture = Fixture { installation: Installation::new(&db.url, &settings), db };
    fixture.declare(1, FIRST);
    append(&fixture.db.pool, 5).await;
    let daemon = fixture.installation.start_daemon();
    reaches(&fixture.db.pool, "orders", 5).await;
    (fixture, daemon)
}

async fn goes_live(fixture: &Fixture) {
    eventually("version 2 serves", async || {
        let version = fixture.fact("select version from espd.trackers where name = 'orders'").await;
        (version == "2").then_some(())
    })
    .await;
    assert_eq!(fixture.fact("select array_agg(twice order by id) from orders").await, "{2,4,6,8,10,12}");
}

#[tokio::test]
async fn a_build_waits_while_the_disk_is_full_and_the_old_version_serves_on() {
    let (fixture, daemon) = building("").await;
    fixture.run("create table public.disk (is_full boolean); insert into disk values (true)").await;
    let handler = "if event.id = 3 and (select is_full from public.disk) then raise using errcode = '53100', \
        message = 'could not extend file: No space left on device'; end if; \
        insert into orders values (event.id, event.id % 3, 'a', 2 * event.id)";
    fixture.declare(2, (WIDER.0, handler));
    let outcome = fixture.espctl(&["reload"]).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    rests(
        &fixture,
        "the disk of the database server is full: could not extend file: No space left on device",
    )
    .await;
    let watch = fixture.espctl(&["status"]).await.printed();
    assert!(watch.contains("rests, because the disk of the database server is full"), "{watch}");
    append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "orders", 6).await;
    assert_eq!(fixture.fact("select version || ' ' || (select count(*) from orders) from espd.trackers where name = 'orders'").await, "1 6");
    fixture.run("update disk set is_full = false").await;
    goes_live(&fixture).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_build_waits_while_the_database_is_larger_than_it_may_be() {
    let (fixture, daemon) = building("[rebuild]\ndatabase_size_max = '1MiB'\n").await;
    fixture.declare(2, WIDER);
    let outcome = fixture.espctl(&["reload"]).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    rests(&fixture, ", and `database_size_max` in [rebuild] is 1 MiB").await;
    append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "orders", 6).await;
    assert_eq!(fixture.fact("select count(*) from public_orders_next.orders").await, "0");
    let path = fixture.installation.path().join("espd.toml");
    let text = std::fs::read_to_string(&path).unwrap().replace("1MiB", "1024GiB");
    std::fs::write(&path, text).unwrap();
    let outcome = fixture.espctl(&["reload"]).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    goes_live(&fixture).await;
    daemon.stop().await;
}
