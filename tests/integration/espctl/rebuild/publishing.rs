//! Tables that a publication has: whoever subscribes to them is told what an exchange of the tables needs, and that is enough.

use super::*;

const SWAP: [&str; 5] = ["rebuild", "orders", "--go-live", "swap", "--yes"];

#[tokio::test]
async fn whoever_exchanges_tables_is_told_of_their_publications_before() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.run("create publication outside for table public.orders").await;
    fixture.declare(2, WIDER);
    let told = "publication outside has orders: if the tables change places";
    let plan = fixture.espctl(&["plan"]).await.stdout;
    assert!(plan.contains(told), "{plan}");
    let dry = fixture.espctl(&["rebuild", "orders", "--dry-run"]).await;
    assert!(dry.stderr.contains(told), "{dry:?}");
    let asked = fixture.rebuild_without_answer().await;
    assert!(asked.contains(told), "{asked}");
    let approved = fixture.espctl(&["rebuild", "approve", "orders"]).await;
    assert!(approved.code == Some(0) && approved.stderr.contains(told), "{approved:?}");
    // Here no daemon does that.
    assert!(approved.stdout.contains("`espctl rebuild orders` does"), "{approved:?}");
    // What stands already is told of as well.
    let swapped = fixture.espctl(&SWAP).await;
    assert!(swapped.code == Some(0) && swapped.stderr.contains(told), "{swapped:?}");
    let back = fixture.espctl(&["rollback", "orders", "--yes"]).await;
    assert!(back.code == Some(0) && back.stderr.contains(told), "{back:?}");
    // Nothing is to be done where nothing is published.
    fixture.run("drop publication outside").await;
    let forth = fixture.espctl(&["rollback", "orders", "--yes"]).await;
    assert!(forth.code == Some(0) && !forth.stderr.contains("publication"), "{forth:?}");
    daemon.stop().await;
}

/// A database that subscribes to the table of orders.
struct Subscriber {
    pool: PgPool,
}

impl Subscriber {
    async fn subscribe(server: &espd::embedded::EmbeddedPostgres, fixture: &Fixture) -> Self {
        server.create_database("reader", None).await.unwrap();
        let pool = PgPool::connect(&server.url("reader")).await.unwrap();
        execute(&pool, "create table orders (id bigint primary key, n bigint, tenant text)").await;
        fixture.run("create publication outside for table public.orders").await;
        // Within one server, a subscription cannot make its slot itself.
        fixture.run("select pg_create_logical_replication_slot('reader', 'pgoutput')").await;
        let subscribe = format!(
            "create subscription reader connection '{}' publication outside with (create_slot = false, slot_name = 'reader')",
            fixture.db.url
        );
        execute(&pool, &subscribe).await;
        Self { pool }
    }

    async fn refresh(&self) {
        execute(&self.pool, "alter subscription reader refresh publication").await;
    }

    /// The same rows as the publisher has.
    async fn agrees_with(&self, fixture: &Fixture) {
        let rows = "select md5(string_agg(concat_ws(' ', id, n, tenant), ';' order by id)) from orders";
        let wanted = fixture.fact(rows).await;
        eventually("the subscriber has the same rows", async || {
            (fact(&self.pool, rows).await == wanted).then_some(())
        })
        .await;
    }
}

/// The steps of docs/rebuild.md.
#[tokio::test]
async fn a_subscriber_has_the_rows_of_the_new_version_after_the_steps_that_are_documented() {
    let server = support::server_with(&[("wal_level", "logical")]).await;
    let db = support::database_on(&server).await;
    let settings = "[runner]\npoll_interval_max = '50ms'\n[rebuild]\nparallelism = 0\n";
    let fixture = Fixture { installation: Installation::new(&db.url, settings), db };
    fixture.declare(1, FIRST);
    append(&fixture.db.pool, 5).await;
    let daemon = fixture.installation.start_daemon();
    reaches(&fixture.db.pool, "orders", 5).await;
    let subscriber = Subscriber::subscribe(&server, &fixture).await;
    subscriber.agrees_with(&fixture).await;

    fixture.declare(2, ("n bigint, tenant text", "insert into orders values (event.id, event.id % 7, 'b')"));
    fixture.espctl(&SWAP).await.printed();
    fixture.espctl(&["reload"]).await.printed();
    subscriber.refresh().await;
    append(&fixture.db.pool, 1).await;
    eventually("new rows come without any step", async || {
        (fact(&subscriber.pool, "select count(*) from orders").await == "6").then_some(())
    })
    .await;
    assert_eq!(
        fact(&subscriber.pool, "select count(*) from orders where tenant = 'b'").await,
        "1",
        "and only those"
    );

    fixture.run("alter publication outside drop table public.orders").await;
    subscriber.refresh().await;
    execute(&subscriber.pool, "truncate orders").await;
    fixture.run("alter publication outside add table public.orders").await;
    subscriber.refresh().await;
    subscriber.agrees_with(&fixture).await;
    assert_eq!(fact(&subscriber.pool, "select count(*) from orders where tenant = 'b'").await, "6");
    // A merge needs nothing.
    fixture.declare(3, ("n bigint, tenant text", "insert into orders values (event.id, event.id % 7, 'c')"));
    fixture.espctl(&["rebuild", "orders", "--go-live", "merge", "--yes"]).await.printed();
    subscriber.agrees_with(&fixture).await;
    daemon.stop().await;
    execute(
        &subscriber.pool,
        "alter subscription reader disable; alter subscription reader set (slot_name = none)",
    )
    .await;
    execute(&subscriber.pool, "drop subscription reader").await;
}
