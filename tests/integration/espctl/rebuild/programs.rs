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
    let (fixture, daemon) = running("[hooks]\non_failure = ['sh', '-c', 'cat >> failures']\n").await;
    // Something differs, so the version waits for an operator.
    declare(&fixture.installation, 2, 2, ", told text");
    let plan = fixture.espctl(&["plan"]).await.printed();
    assert!(plan.contains("~ orders: version 1 stays as it is, and is not followed"), "{plan}");
    let outcome = fixture.espctl(&["reload"]).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    eventually("the version is compared", async || (fixture.state().await == "differs").then_some(())).await;
    is_awaited(&fixture, &daemon).await;
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

/// Requires that the projector waits for the version that is built, and that nothing of it is told as a failure.
async fn is_awaited(fixture: &Fixture, daemon: &Program) {
    let status = eventually("it waits", async || {
        Some(fixture.installation.status("orders").await).filter(|status| status["state"] == "waiting")
    })
    .await;
    assert!(status["last_error"].is_null(), "{status}");
    assert!(!status["advice"].to_string().contains("espctl retry"), "{status}");
    daemon.says("waits until version 2, which is built beside version 1, is live: `espctl status orders` shows how far it is").await;
    let errors: Vec<_> = daemon.log().into_iter().filter(|line| line["level"] == "ERROR").collect();
    assert!(errors.is_empty(), "{errors:?}");
    assert!(!fixture.installation.path().join("failures").exists());
    let doctor = fixture.espctl(&["doctor"]).await;
    assert!(
        !doctor.stdout.contains("FAILURE  running") && !doctor.stdout.contains("orders stopped"),
        "{doctor:?}"
    );
}

#[tokio::test]
async fn while_a_version_of_a_program_is_built_the_one_that_serves_waits_for_it() {
    let (fixture, daemon) = running("[hooks]\non_failure = ['sh', '-c', 'cat >> failures']\n").await;
    let slow = PROGRAM
        .replace("    for event in batch", "    __import__('time').sleep(600)\n    for event in batch");
    std::fs::write(fixture.installation.path().join("processors/orders.py"), &slow).unwrap();
    declare(&fixture.installation, 2, 2, "");
    assert_eq!(fixture.espctl(&["reload"]).await.code, Some(0));
    eventually("it is built", async || (fixture.state().await == "building").then_some(())).await;
    is_awaited(&fixture, &daemon).await;
    let said = fixture.espctl(&["status"]).await.printed();
    assert!(
        said.contains("orders waits for version 2: version 1 serves what it has, because its handlers are not declared any more. Version 2 handles events (by "),
        "{said}"
    );

    // What an operator has given up is awaited no less, and told; and the former program goes on when it is there again.
    std::fs::write(fixture.installation.path().join("processors/orders.py"), PROGRAM).unwrap();
    declare(&fixture.installation, 3, 2, "");
    assert_eq!(fixture.espctl(&["reload"]).await.code, Some(0));
    let waits = "select string_agg(version || ' ' || state, ', ') from espd.rebuilds";
    eventually("it differs", async || (fixture.fact(waits).await == "3 differs").then_some(())).await;
    fixture.espctl(&["rebuild", "abort", "orders"]).await.printed();
    let said = fixture.espctl(&["status"]).await.printed();
    assert!(said.contains("Version 3 was given up by an operator"), "{said}");
    declare(&fixture.installation, 1, 1, "");
    assert_eq!(fixture.espctl(&["reload"]).await.code, Some(0));
    append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "orders", 6).await;
    eventually("it is live again", async || {
        (fixture.installation.status("orders").await["state"] == "live").then_some(())
    })
    .await;
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
