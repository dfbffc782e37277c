//! What keeps a former version from serving again: another event store, and other handlers than those that have made its rows.

use super::*;

#[tokio::test]
async fn nobody_is_told_to_go_back_to_a_version_that_is_not_kept() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.declare(2, WIDER);
    fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    let kept = "superseded by version 2: the processor is left to it. Declare that version, or go back with `espctl rollback orders`";
    daemon.says(kept).await;
    fixture.declare(1, FIRST);
    let doctor = fixture.espctl(&["doctor"]).await.stdout;
    assert!(doctor.contains("`espctl rollback orders` goes back"), "{doctor}");
    let remedy = async || {
        let status = fixture.installation.status("orders").await;
        let advice = status["advice"].as_array().unwrap().iter().find(|one| one["topic"] == "other_version");
        advice.unwrap()["remedy"].as_str().unwrap().to_owned()
    };
    assert!(remedy().await.contains("or go back with `espctl rollback orders`."));
    fixture.espctl(&["rebuild", "drop", "orders", "--yes"]).await.printed();
    daemon.stop().await;
    let daemon = fixture.installation.start_daemon();
    let gone = "superseded by version 2: the processor is left to it. Declare that version, or its handlers under a higher version: \
                version 1 is not kept";
    daemon.says(gone).await;
    let (told, doctor) = (remedy().await, fixture.espctl(&["doctor"]).await.stdout);
    assert!(told.contains("version 1 is not kept") && !told.contains("rollback"), "{told}");
    assert!(doctor.contains("version 1 is not kept") && !doctor.contains("rollback"), "{doctor}");
    fixture.espctl(&["rollback", "orders", "--yes"]).await.complained(1);
    daemon.stop().await;
}

#[tokio::test]
async fn a_version_that_has_followed_another_store_does_not_serve_again() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.declare(2, WIDER);
    fixture.espctl(&["rebuild", "orders", "--yes", "--go-live", "swap"]).await.printed();
    daemon.stop().await;
    fixture.run("delete from espd.events where id > 2; select setval('espd.events_id_seq', 2)").await;
    let refused = async |behind: &str| {
        fixture.declare(1, FIRST);
        let said = fixture.espctl(&["rollback", "orders", "--yes"]).await.complained(1);
        for part in [
            "version 1 of orders cannot serve again",
            "that it has followed",
            behind,
            "under a higher version",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!said.contains("abort"), "{said}");
        assert_eq!(fixture.fact("select version from espd.trackers where name = 'orders'").await, "2");
    };
    // What serves follows the store as it is.
    fixture.declare(2, WIDER);
    fixture.espctl(&["reset", "orders", "--yes"]).await.printed();
    let daemon = fixture.installation.start_daemon();
    reaches(&fixture.db.pool, "orders", 2).await;
    refused("last id 2").await;
    append(&fixture.db.pool, 3).await;
    reaches(&fixture.db.pool, "orders", 5).await;
    refused("is another event now (last id 5)").await;
    append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "orders", 6).await;
    refused("is another event now (last id 6)").await;
    daemon.stop().await;
}

/// A version reads old events as it was made to, whatever a later one has declared.
#[tokio::test]
async fn a_former_version_handles_what_has_come_since_through_its_own_upcasts() {
    let (fixture, daemon) = Fixture::running().await;
    daemon.stop().await;
    let path = fixture.installation.path().join("espd.toml");
    let settings = std::fs::read_to_string(&path).unwrap();
    let upcast =
        "[[upcast]]\nevents = ['A']\ntype = 'B'\nbody = \"jsonb_build_object('other', event.body->'n')\"\n";
    std::fs::write(&path, format!("{settings}\n{upcast}")).unwrap();
    let second = declaration(2, WIDER.0, WIDER.1).replace("events = ['A']", "events = ['B']");
    fixture.installation.declare("orders", &second);
    let daemon = fixture.installation.start_daemon();
    append(&fixture.db.pool, 2).await;
    reaches(&fixture.db.pool, "orders", 7).await;
    let equal = "orders: nothing differs, 7 rows were compared\n";
    assert_eq!(fixture.espctl(&["verify", "orders"]).await.printed(), equal, "the first version serves");

    fixture.espctl(&["rebuild", "orders", "--yes", "--go-live", "swap"]).await.printed();
    append(&fixture.db.pool, 3).await;
    reaches(&fixture.db.pool, "orders", 10).await;
    assert_eq!(fixture.fact("select count(*) from orders").await, "10");
    fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    assert_eq!(fixture.fact("select count(*) from orders").await, "10", "what has come since is there");
    append(&fixture.db.pool, 2).await;
    reaches(&fixture.db.pool, "orders", 12).await;
    assert_eq!(fixture.fact("select count(*) from orders").await, "12");
    let said = fixture.espctl(&["verify", "orders"]).await.printed();
    assert_eq!(said, "orders: nothing differs, 12 rows were compared\n");
    daemon.stop().await;
}

/// Nor has what SQL means changed for it.
#[tokio::test]
async fn a_former_version_handles_what_has_come_since_under_its_own_settings() {
    let (fixture, daemon) = Fixture::running().await;
    let hour = "extract(hour from timestamptz '2026-01-01 12:00Z')::bigint";
    let handlers = ["", ", 0"].map(|more| format!("insert into orders values (event.id, {hour}, 'a'{more})"));
    fixture.declare(2, (WIDER.0, &handlers[1]));
    fixture.espctl(&["rebuild", "orders", "--yes", "--go-live", "swap"]).await.printed();
    fixture.espctl(&["reload"]).await.printed();
    append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "orders", 6).await;
    daemon.stop().await;

    let path = fixture.installation.path().join("espd.toml");
    let settings = std::fs::read_to_string(&path).unwrap();
    let elsewhere = "[projections]\nsettings = { TimeZone = 'Asia/Tokyo' }\n";
    std::fs::write(&path, format!("{settings}\n{elsewhere}")).unwrap();
    fixture.declare(3, (FIRST.0, &handlers[0]));
    let daemon = fixture.installation.start_daemon();
    fixture.espctl(&["verify", "orders"]).await.printed();
    fixture.espctl(&["rebuild", "orders", "--yes", "--go-live", "swap"]).await.printed();
    append(&fixture.db.pool, 2).await;
    reaches(&fixture.db.pool, "orders", 8).await;
    let hours = "select string_agg(distinct n::text, ' ' order by n::text) from orders";
    assert_eq!(fixture.fact(hours).await, "21");
    fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    assert_eq!(fixture.fact(hours).await, "12");
    assert_eq!(fixture.fact("select count(*) from orders").await, "8");
    fixture.espctl(&["verify", "orders"]).await.printed();
    daemon.stop().await;
}

#[tokio::test]
async fn a_materialized_view_that_goes_live_shows_what_the_tables_have() {
    let (fixture, daemon) = Fixture::running().await;
    let with_view = |version: i32, columns: &str, handler: &str| {
        let view =
            "create materialized view totals as select count(*) as n from orders', 'create index orders_n";
        declaration(version, columns, handler).replace("create index orders_n", view)
    };
    fixture.installation.declare("orders", &with_view(2, WIDER.0, WIDER.1));
    fixture.espctl(&["rebuild", "orders", "--yes", "--go-live", "swap"]).await.printed();
    assert_eq!(fixture.fact("select n from totals").await, "5");
    fixture.espctl(&["reload"]).await.printed();
    fixture.installation.declare("orders", &with_view(3, FIRST.0, FIRST.1));
    append(&fixture.db.pool, 2).await;
    reaches(&fixture.db.pool, "orders", 7).await;
    fixture.espctl(&["rebuild", "orders", "--yes", "--go-live", "swap"]).await.printed();
    assert_eq!(fixture.fact("select n from totals").await, "7");
    fixture.espctl(&["reload"]).await.printed();
    append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "orders", 8).await;
    fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    assert_eq!(fixture.fact("select n from totals").await, "8", "it has stood still since it served");
    daemon.stop().await;
}

#[tokio::test]
async fn a_rollback_is_not_told_to_merge() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.declare(2, WIDER);
    fixture.espctl(&["rebuild", "orders", "--yes", "--go-live", "swap"]).await.printed();
    fixture.run("alter table orders add constraint positive check (id > 0)").await;
    let said = fixture.espctl(&["rollback", "orders", "--yes"]).await.complained(1);
    assert!(said.contains("constraint positive") && said.contains("Drop it before"), "{said}");
    assert!(!said.contains("--go-live"), "{said}");
    fixture.run("alter table orders drop constraint positive").await;
    fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    daemon.stop().await;
}

#[tokio::test]
async fn tables_in_another_schema_than_the_configured_one_stop_the_processor_and_stay_where_they_are() {
    let (fixture, daemon) = Fixture::running().await;
    daemon.stop().await;
    let path = fixture.installation.path().join("espd.toml");
    let settings = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{settings}\n[projections]\nschema = 'other'\n")).unwrap();
    let moved = "are in schema public, and `schema` in [projections] is other";
    let plan = fixture.espctl(&["plan"]).await;
    assert!(plan.code == Some(2) && plan.stdout.contains(moved), "{plan:?}");
    for arguments in [["verify", "orders"].as_slice(), &["rollback", "orders", "--yes"]] {
        let said = fixture.espctl(arguments).await.complained(1);
        assert!(said.contains(moved), "{said}");
    }
    let daemon = fixture.installation.start_daemon();
    eventually("the reason", async || {
        let error = fixture.fact("select last_error::text from espd.trackers where name = 'orders'").await;
        error.contains("are in schema public").then_some(())
    })
    .await;
    daemon.stop().await;
    std::fs::write(&path, settings).unwrap();
    let daemon = fixture.installation.start_daemon();
    fixture.espctl(&["retry", "orders"]).await;
    append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "orders", 6).await;
    assert_eq!(fixture.fact("select count(*) from public.orders").await, "6");
    daemon.stop().await;
}

#[tokio::test]
async fn a_table_of_another_processor_is_not_to_be_dropped_for_a_new_version() {
    let (fixture, daemon) = Fixture::running().await;
    let payments = |version: i32, table: &str| {
        format!(
            "[projector]\nname = 'payments'\nversion = {version}\n[projector.tables]\n{table} = 'id bigint primary key'\n\
             [[projector.on]]\nevents = ['P']\nsql = 'insert into {table} values (event.id)'\n"
        )
    };
    fixture.installation.declare("payments", &payments(1, "payments"));
    fixture.espctl(&["reload"]).await.printed();
    append_typed(&fixture.db.pool, "P", 1).await;
    reaches(&fixture.db.pool, "payments", 6).await;
    // The two would exchange their tables.
    fixture.installation.declare("payments", &payments(2, "orders"));
    let exchanged = declaration(2, FIRST.0, FIRST.1).replace("orders = 'id", "payments = 'id");
    let exchanged = exchanged.replace("on orders", "on payments").replace("from orders", "from payments");
    fixture.installation.declare("orders", &exchanged.replace("insert into orders", "insert into payments"));
    let said = fixture.espctl(&["rebuild", "orders", "--yes"]).await;
    let said = said.stdout + &said.stderr;
    assert!(said.contains("belongs to payments") && !said.contains("drop or rename"), "{said}");
    daemon.stop().await;
}

const PROGRAM: &str = r#"
import json, sys
mark = "MARK"
sys.stdin.readline()
def say(message):
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
say({"ready": 1})
for line in sys.stdin:
    batch = json.loads(line)
    for event in batch["events"]:
        say({"done": event["id"], "actions": [{"upsert": "orders", "row": {"id": event["id"], "mark": mark}}]})
    say({"end": batch["batch"]})
"#;

fn declare_program(fixture: &Fixture, version: i32, mark: &str, then: &str) {
    std::fs::write(fixture.installation.path().join("processors/orders.py"), PROGRAM.replace("MARK", mark))
        .unwrap();
    let text = format!(
        "[projector]\nname = 'orders'\nversion = {version}\nevents = ['A']\ncommand = ['python3', 'orders.py']\n\
         on_handler_change = '{then}'\n[projector.tables]\norders = 'id bigint primary key, mark text'\n"
    );
    fixture.installation.declare("orders", &text);
}

#[tokio::test]
async fn another_program_than_that_of_a_former_version_is_refused_or_told_as_elsewhere() {
    let db = support::database().await;
    let runner = "[runner]\npoll_interval_max = '50ms'\n[rebuild]\nparallelism = 0\n";
    let fixture = Fixture { installation: Installation::new(&db.url, runner), db };
    declare_program(&fixture, 1, "first", "refuse");
    append(&fixture.db.pool, 5).await;
    let daemon = fixture.installation.start_daemon();
    reaches(&fixture.db.pool, "orders", 5).await;
    daemon.stop().await;
    declare_program(&fixture, 2, "second", "refuse");
    fixture.espctl(&["rebuild", "orders", "--yes", "--go-live", "swap"]).await.printed();
    append(&fixture.db.pool, 1).await;

    for (then, part) in [("refuse", "deploy those again"), ("rebuild", "`espctl reset orders`")] {
        declare_program(&fixture, 1, "third", then);
        let said = fixture.espctl(&["rollback", "orders", "--yes"]).await.complained(1);
        assert!(
            said.contains(
                "the handlers of version 1 of orders are not those that have handled the events up to 5"
            ) && said.contains(part),
            "{said}"
        );
        assert_eq!(fixture.fact("select string_agg(distinct mark, ' ') from orders").await, "second");
    }
    declare_program(&fixture, 1, "third", "warn");
    fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    let status = fixture.installation.status("orders").await;
    assert_eq!(status["handler_change"]["position"], 5, "{status}");
    let marks = "select string_agg(mark, ' ' order by id) from orders";
    let daemon = fixture.installation.start_daemon();
    reaches(&fixture.db.pool, "orders", 6).await;
    assert_eq!(fixture.fact(marks).await, "first first first first first third");
    let status = fixture.espctl(&["status", "orders"]).await.printed();
    assert!(status.contains("The handlers of orders have changed"), "{status}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_version_whose_name_of_a_table_another_has_taken_does_not_serve_again_and_that_is_said_before() {
    let (fixture, daemon) = Fixture::running().await;
    let renamed = declaration(2, WIDER.0, WIDER.1).replace("orders_n on orders", "orders_n on sales");
    let renamed = renamed.replace("from orders", "from sales").replace("into orders", "into sales");
    fixture.installation.declare("orders", &renamed.replace("\norders = ", "\nsales = "));
    fixture.espctl(&["rebuild", "orders", "--yes", "--go-live", "swap"]).await.printed();
    fixture.installation.declare(
        "others",
        "[projector]\nname = 'others'\n[projector.tables]\norders = 'id bigint primary key'\n\
         [[projector.on]]\nevents = ['A']\nsql = 'insert into orders values (event.id)'\n",
    );
    let plan = fixture.espctl(&["plan"]).await.stdout;
    let lost = "version 1 of orders has a table orders as well, which is kept, and no rollback leads to it after that";
    assert!(plan.contains(lost), "{plan}");
    fixture.espctl(&["reload"]).await.printed();
    reaches(&fixture.db.pool, "others", 5).await;
    let said = fixture.espctl(&["rollback", "orders", "--yes"]).await.complained(1);
    let why = "its table orders has no place in schema public: projector others has made a table orders of its own there meanwhile";
    assert!(said.contains(why) && said.contains("declare that of others under another name"), "{said}");
    assert_eq!(fixture.fact("select count(*) from orders").await, "5");
    daemon.stop().await;
}
