//! Projectors whose events a program handles: built beside by a program of their own, compared, swapped.

use super::*;

/// Writes a row for each event, with what `argv` says to multiply its id by, and the name that it was told.
const PROGRAM: &str = r#"
import json, sys

factor = int(sys.argv[1])
hello = json.loads(sys.stdin.readline())["hello"]

def say(message):
    print(json.dumps(message))

say({"ready": 1})
sys.stdout.flush()
for line in sys.stdin:
    batch = json.loads(line)
    for event in batch["events"]:
        row = {"id": event["id"], "product": factor * event["id"]}
        if "told" in hello["tables"]["orders"]["columns"]:
            row["told"] = hello["processor"]
        say({"done": event["id"], "actions": [{"upsert": "orders", "row": row}]})
    say({"end": batch["batch"]})
    sys.stdout.flush()
"#;

fn declare(installation: &Installation, version: i32, factor: i32, more: &str) {
    let text = format!(
        "[projector]\nname = 'orders'\nversion = {version}\nevents = ['A']\ncommand = ['python3', 'orders.py', '{factor}']\n\
         command_environment = {{ TOKEN = 'not for everybody' }}\nddl = ['create function orders_twice(n bigint) returns bigint language sql as $$ select 2 * n $$']\n\
         [projector.tables]\norders = 'id bigint primary key, product bigint{more}'\n"
    );
    installation.declare("orders", &text);
}

async fn running(config: &str) -> (Fixture, Program) {
    let db = support::database().await;
    let installation = Installation::new(&db.url, &format!("[runner]\npoll_interval_max = '50ms'\n{config}"));
    std::fs::write(installation.path().join("processors/orders.py"), PROGRAM).unwrap();
    let fixture = Fixture { db, installation };
    declare(&fixture.installation, 1, 1, "");
    append(&fixture.db.pool, 5).await;
    let daemon = fixture.installation.start_daemon();
    reaches(&fixture.db.pool, "orders", 5).await;
    (fixture, daemon)
}

#[tokio::test]
async fn a_raised_version_of_a_program_is_built_beside_and_the_former_one_serves_what_it_has_meanwhile() {
    let (fixture, daemon) = running("").await;
    // Something differs, so the version waits for an operator.
    declare(&fixture.installation, 2, 2, ", told text");
    let plan = fixture.espctl(&["plan"]).await.printed();
    assert!(plan.contains("~ orders: version 1 stays as it is, and is not followed"), "{plan}");
    let outcome = fixture.espctl(&["reload"]).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    eventually("the version is compared", async || (fixture.state().await == "differs").then_some(())).await;
    append(&fixture.db.pool, 1).await;
    assert_eq!(fixture.fact("select array_agg(product order by id) from orders").await, "{1,2,3,4,5}");
    let said = fixture.espctl(&["rebuild", "approve", "orders"]).await.printed();
    assert!(said.starts_with("version 2 of orders goes live"), "{said}");
    // It goes live, and a worker goes on with it.
    reaches(&fixture.db.pool, "orders", 6).await;
    assert_eq!(fixture.fact("select array_agg(product order by id) from orders").await, "{2,4,6,8,10,12}");
    assert_eq!(fixture.fact("select string_agg(distinct told, ' ') from orders").await, "orders");
    assert_eq!(
        fixture
            .fact(
                "select count(*) from espd.declarations where declared::text ~ 'not for everybody|orders.py'"
            )
            .await,
        "0"
    );

    // The program of version 1 is not in the database.
    let said = fixture.espctl(&["rollback", "orders"]).await.complained(1);
    assert!(said.contains("declare version 1 again"), "{said}");
    declare(&fixture.installation, 1, 1, "");
    let said = fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    assert!(said.contains("version 1 of orders is live"), "{said}");
    let outcome = fixture.espctl(&["reload"]).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "orders", 7).await;
    assert_eq!(fixture.fact("select array_agg(product order by id) from orders").await, "{1,2,3,4,5,6,7}");
    daemon.stop().await;
}

#[tokio::test]
async fn the_tables_of_a_program_are_verified_and_a_program_that_fails_keeps_its_version_from_going_live() {
    let (fixture, daemon) = running("[rebuild]\nparallelism = 0\n").await;
    let said = fixture.espctl(&["verify", "orders"]).await.printed();
    assert!(said.contains("nothing differs, 5 rows were compared"), "{said}");
    fixture.run("update orders set product = 42 where id = 3").await;
    let said = fixture.espctl(&["verify", "orders"]).await;
    assert!(said.stdout.contains("id = 3: product = 42 -> product = 3"), "{said:?}");
    assert_eq!(said.code, Some(1), "{said:?}");
    let said = fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    assert!(said.contains("1 rows of its tables were changed"), "{said}");
    assert_eq!(fixture.fact("select product from orders where id = 3").await, "3");

    let script = fixture.installation.path().join("processors/orders.py");
    std::fs::write(script, PROGRAM.replace("factor * event", "factor / 0 * event")).unwrap();
    declare(&fixture.installation, 2, 2, ", told text");
    let said = fixture.espctl(&["rebuild", "orders", "--yes"]).await.complained(1);
    assert!(said.contains("fails at event 1 (A)") && said.contains("division by zero"), "{said}");
    assert_eq!(fixture.fact("select array_agg(product order by id) from orders").await, "{1,2,3,4,5}");
    daemon.stop().await;
}
