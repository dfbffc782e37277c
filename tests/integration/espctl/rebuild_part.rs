//! The rows of some aggregates alone: verified, explained, and computed anew beside live traffic.

mod all_the_time;

use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};

use crate::support;
use crate::support::Database;
use crate::support::facts::{eventually, reaches};
use crate::support::program::{Installation, Program};

/// One row for each aggregate, with the number and the sum of its events.
const HANDLERS: &str = "[[projector.on]]\nevents = ['Opened']\n\
    sql = 'insert into accounts values (event.aggregate_id, 0, 0) on conflict (id) do nothing'\n\
    [[projector.on]]\nevents = ['Paid']\n\
    sql = \"update accounts set payments = payments + 1, total = total + (event.body->>'n')::bigint where id = event.aggregate_id\"\n";

fn declaration(head: &str, handlers: &str) -> String {
    format!(
        "[projector]\nname = 'accounts'\n{head}\n\
         [projector.tables]\naccounts = 'id uuid primary key, payments bigint not null, total bigint not null'\n{handlers}"
    )
}

struct Fixture {
    projections: PgPool,
    installation: Installation,
    _databases: Vec<Database>,
}

/// The id of an aggregate, by its number.
fn id(number: i64) -> String {
    format!("{number:08}-0000-4000-8000-000000000000")
}

impl Fixture {
    /// Five accounts with three payments each, on events 1 to 20: first all are opened, then they are paid in turn.
    async fn running(elsewhere: bool) -> (Self, Program) {
        let events = support::database().await;
        let mut settings = "[runner]\npoll_interval_max = '50ms'\n".to_owned();
        let (events_url, events_pool) = (events.url.clone(), events.pool.clone());
        let mut databases = vec![events];
        if elsewhere {
            let projections = support::database().await;
            settings.push_str(&format!("[projections]\nurl = '{}'\n", projections.url));
            databases.push(projections);
        }
        let projections = databases[databases.len() - 1].pool.clone();
        let installation = Installation::new(&events_url, &settings);
        installation.declare("accounts", &declaration("", HANDLERS));
        execute(
            &events_pool,
            "insert into espd.events (aggregate_id, type, version, body, created_at)
             select (lpad(((n - 1) % 5 + 1)::text, 8, '0') || '-0000-4000-8000-000000000000')::uuid,
                    case when n <= 5 then 'Opened' else 'Paid' end, (n - 1) / 5 + 1, jsonb_build_object('n', n),
                    '2026-01-01Z'::timestamptz + n * interval '1 hour'
             from generate_series(1, 20) as n order by n",
        )
        .await;
        let daemon = installation.start_daemon();
        reaches(&projections, "accounts", 20).await;
        (Self { projections, installation, _databases: databases }, daemon)
    }

    async fn run(&self, sql: &str) {
        execute(&self.projections, sql).await;
    }

    async fn fact(&self, query: &str) -> String {
        let query = format!("select ({query})::text");
        let fact: Option<String> =
            sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&self.projections).await.unwrap();
        fact.unwrap_or_default()
    }

    /// What is left of versions beside the serving one.
    async fn beside(&self) -> String {
        self.fact(
            "select (select count(*) from espd.trackers where strpos(name, '$') > 0) +
                    (select count(*) from pg_namespace where nspname like 'public\\_%')",
        )
        .await
    }
}

async fn execute(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.unwrap();
}

#[tokio::test]
async fn a_part_is_verified_by_aggregate_time_and_sample() {
    for elsewhere in [false, true] {
        let (fixture, daemon) = Fixture::running(elsewhere).await;
        fixture.run(&format!("update accounts set total = 1 where id = '{}'", id(3))).await;
        fixture.run(&format!("delete from accounts where id = '{}'", id(5))).await;
        fixture.run("insert into accounts values (gen_random_uuid(), 1, 1)").await;
        let verify = async |arguments: &[&str]| {
            let arguments: Vec<&str> =
                ["verify", "accounts"].into_iter().chain(arguments.iter().copied()).collect();
            fixture.installation.espctl(&arguments).await
        };
        let (one, three) = (id(1), id(3));
        let said = verify(&["--aggregate", &one, "--aggregate", &id(2)]).await.printed();
        assert_eq!(said, "accounts: nothing differs, 2 rows were compared\n");
        let outcome = verify(&["--aggregate", &one, "--aggregate", &three]).await;
        assert!(
            outcome.code == Some(1)
                && outcome.stdout.contains("of 2 rows, 0 added, 0 gone, 1 changed (total in 1)"),
            "{outcome:?}"
        );
        // Event 20 is of account 5 alone.
        let outcome = verify(&["--since", "2026-01-01T20:00:00Z"]).await;
        assert!(outcome.stdout.contains("of 0 rows, 1 added, 0 gone, 0 changed"), "{outcome:?}");
        let outcome = verify(&["--sample", "100%"]).await;
        assert!(outcome.stdout.contains("of 5 rows, 1 added, 1 gone, 1 changed"), "{outcome:?}");
        let refused = verify(&["--aggregate", &one, "--aggregate", &id(9)]).await.complained(1);
        let expected = format!("aggregate {} has no events, and accounts has no row of it", id(9));
        assert!(refused.contains(&expected), "{refused}");
        // Whose events are gone has a row still.
        fixture.run(&format!("insert into accounts values ('{}', 1, 1)", id(9))).await;
        let outcome = verify(&["--aggregate", &id(9)]).await;
        assert!(outcome.stdout.contains("of 1 rows, 0 added, 1 gone, 0 changed"), "{outcome:?}");
        fixture.run(&format!("delete from accounts where id = '{}'", id(9))).await;
        let outcome = verify(&["--sample", "0.0001"]).await;
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert_eq!(fixture.beside().await, "0", "nothing is left");
        daemon.stop().await;
    }
}

#[tokio::test]
async fn verify_says_since_which_event_a_row_differs() {
    let (fixture, daemon) = Fixture::running(false).await;
    // As after event 8, as never, and gone.
    fixture.run(&format!("update accounts set payments = 1, total = 8 where id = '{}'", id(3))).await;
    fixture.run(&format!("update accounts set total = 1 where id = '{}'", id(4))).await;
    fixture.run(&format!("delete from accounts where id = '{}'", id(5))).await;
    let outcome = fixture.installation.espctl(&["verify", "accounts"]).await;
    for text in [
        "differs since event 13 (Paid, 2026-01-01T13:00:00+00:00): what that and 1 later ones did is missing",
        "none of its 4 changes has made the row so; the last one was event 19 (Paid,",
        "differs since event 5 (Opened, 2026-01-01T05:00:00+00:00): what that and 3 later ones did is missing",
    ] {
        assert!(outcome.code == Some(1) && outcome.stdout.contains(text), "{text}: {outcome:?}");
    }
    // Handlers that have changed are told as well.
    fixture
        .installation
        .declare("accounts", &declaration("", &HANDLERS.replace("payments + 1", "payments + 2")));
    fixture.installation.espctl(&["reload"]).await.printed();
    eventually("the change is noted", async || {
        let changed = "select handler_change is not null from espd.trackers where name = 'accounts'";
        (fixture.fact(changed).await == "true").then_some(())
    })
    .await;
    let outcome = fixture.installation.espctl(&["verify", "accounts", "--aggregate", &id(1), "--json"]).await;
    let found: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let since = &found["tables"][0]["examples"][0]["since"];
    assert_eq!(
        (since["changes"].as_i64(), since["handlers_changed_at"].as_i64()),
        (Some(4), Some(20)),
        "{found}"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn rows_of_some_aggregates_are_replaced_beside_live_traffic() {
    let (fixture, daemon) = Fixture::running(false).await;
    fixture.run("update accounts set total = 1").await;
    let three = id(3);
    let dry = fixture.installation.espctl(&["rebuild", "accounts", "--aggregate", &three, "--dry-run"]).await;
    assert!(dry.code == Some(1) && dry.stdout.contains("total = 1 -> total = 39"), "{dry:?}");
    let said = fixture.installation.espctl(&["rebuild", "accounts", "--aggregate", &three]).await;
    assert!(said.code == Some(1) && said.stderr.contains("error: nothing was done: add --yes"), "{said:?}");
    assert_eq!(fixture.fact("select sum(total) from accounts").await, "5");
    let said =
        fixture.installation.espctl(&["rebuild", "accounts", "--aggregate", &three, "--yes"]).await.printed();
    assert!(said.contains("1 rows of accounts were changed"), "{said}");
    assert_eq!(fixture.fact("select array_agg(total order by id) from accounts").await, "{1,1,39,1,1}");
    // By time, and by type: these are all of them.
    fixture
        .installation
        .espctl(&["rebuild", "accounts", "--since", "2026-01-01T19:00:00Z", "--yes"])
        .await
        .printed();
    assert_eq!(fixture.fact("select array_agg(total order by id) from accounts").await, "{1,1,39,42,45}");
    fixture.installation.espctl(&["rebuild", "accounts", "--type", "Paid", "--yes"]).await.printed();
    assert_eq!(fixture.fact("select array_agg(total order by id) from accounts").await, "{33,36,39,42,45}");
    let unknown = id(9);
    let arguments = ["rebuild", "accounts", "--aggregate", &unknown, "--yes"];
    let refused = fixture.installation.espctl(&arguments).await.complained(1);
    assert!(refused.contains("its id may be mistyped"), "{refused}");
    let refused = fixture.installation.espctl(&["rebuild", "accounts", "--type", "Never", "--yes"]).await;
    assert!(refused.stderr.contains("no aggregate has such events"), "{refused:?}");
    // The daemon goes on where it was, and what was done is recorded.
    fixture
        .run(&format!("insert into espd.events (aggregate_id, type, version, body) values ('{three}', 'Paid', 5, '{{\"n\": 1}}')"))
        .await;
    reaches(&fixture.projections, "accounts", 21).await;
    assert_eq!(fixture.fact(&format!("select total from accounts where id = '{three}'")).await, "40");
    assert_eq!(
        fixture.fact("select detail -> 'aggregates' from espd.operator_log where action = 'rebuild' order by id limit 1").await,
        format!("[\"{three}\"]")
    );
    assert_eq!(fixture.beside().await, "0", "nothing is left");
    daemon.stop().await;
}

#[tokio::test]
async fn the_daemon_verifies_slices_and_says_which_rows_differ() {
    let (fixture, daemon) = Fixture::running(false).await;
    daemon.stop().await;
    let said = fixture.installation.espctl(&["status", "accounts", "--json"]).await.printed();
    let status: Value = serde_json::from_str(&said).unwrap();
    assert!(status.to_string().contains("\"verification\":null"), "off unless declared: {said}");
    fixture.run(&format!("update accounts set total = 1 where id = '{}'", id(3))).await;
    let path = fixture.installation.path().join("espd.toml");
    let settings = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{settings}\n[verify]\nshare = 1.0\n")).unwrap();
    let daemon = fixture.installation.start_daemon();
    let told = daemon.says("rows are not what their events say: `espctl verify accounts` shows them").await;
    assert!(told["level"] == "ERROR" && told["differing"] == 1, "{told}");
    assert!(told["keys"].as_str().unwrap().contains(&id(3)), "{told}");
    let status = fixture.installation.espctl(&["status", "accounts"]).await.printed();
    assert!(status.contains("1 row of accounts is not what its events say."), "{status}");
    let found = "select found::text from espd.verifications where processor = 'accounts' and aggregates = 5 and compared_rows = 5";
    assert!(fixture.fact(found).await.contains(&id(3)));
    // The next round finds it in order again.
    fixture.installation.espctl(&["rebuild", "accounts", "--aggregate", &id(3), "--yes"]).await.printed();
    fixture.run("update espd.verifications set verified_at = verified_at - interval '2 days'").await;
    let cleared = "select differing_rows || ' ' || (found is null) from espd.verifications";
    eventually("it is forgotten", async || (fixture.fact(cleared).await == "0 true").then_some(())).await;
    eventually("nothing is left", async || (fixture.beside().await == "0").then_some(())).await;
    daemon.stop().await;
}

/// The payments of each account.
const LEDGER: &str = r#"
import json, sys

def say(message):
    print(json.dumps(message))
    sys.stdout.flush()

def paid(event):
    id = event["aggregate_id"]
    say({"read": "ledger", "key": {"id": id}})
    row = json.loads(sys.stdin.readline())["row"] or {"id": id, "total": 0}
    row["total"] += event["body"]["n"]
    return {"upsert": "ledger", "row": row}

json.loads(sys.stdin.readline())
say({"ready": 1})
for line in sys.stdin:
    batch = json.loads(line)
    for event in batch["events"]:
        actions = [paid(event)]
        say({"done": event["id"], "actions": actions})
    say({"end": batch["batch"]})
"#;

#[tokio::test]
async fn slices_of_what_a_program_writes_are_verified_where_the_column_of_the_aggregate_is_declared() {
    let (fixture, daemon) = Fixture::running(false).await;
    daemon.stop().await;
    std::fs::write(fixture.installation.path().join("processors/ledger.py"), LEDGER).unwrap();
    let declare = |more: &str| {
        let declaration = format!(
            "[projector]\nname = 'ledger'\nevents = ['Paid']\ncommand = ['python3', 'ledger.py']\n{more}\n\
             [projector.tables]\nledger = 'id uuid primary key, total bigint not null'\n"
        );
        fixture.installation.declare("ledger", &declaration);
    };
    let path = fixture.installation.path().join("espd.toml");
    let settings = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{settings}\n[verify]\nshare = 1.0\n")).unwrap();
    // Nobody but the author knows which rows a program writes.
    declare("");
    let daemon = fixture.installation.start_daemon();
    reaches(&fixture.projections, "ledger", 20).await;
    daemon.says("verified a slice: the rows are what their events say").await;
    assert_eq!(fixture.fact("select string_agg(processor, ' ') from espd.verifications").await, "accounts");
    daemon.stop().await;

    fixture.run(&format!("update ledger set total = 1 where id = '{}'", id(3))).await;
    declare("aggregate_column = 'id'");
    let daemon = fixture.installation.start_daemon();
    let told = daemon.says("rows are not what their events say: `espctl verify ledger` shows them").await;
    assert!(told["differing"] == 1 && told["rows"] == 5, "{told}");
    assert!(told["keys"].as_str().unwrap().contains(&id(3)), "{told}");
    assert_eq!(fixture.beside().await, "0", "nothing is left");
    daemon.stop().await;
}

#[tokio::test]
async fn old_events_are_read_as_new_ones_by_verify() {
    let (fixture, daemon) = Fixture::running(false).await;
    daemon.stop().await;
    let path = fixture.installation.path().join("espd.toml");
    let settings = std::fs::read_to_string(&path).unwrap();
    let upcast = "[[upcast]]\nevents = ['Billed']\ntype = 'Paid'\nbody = \"jsonb_build_object('n', event.body->'amount')\"\n";
    std::fs::write(&path, format!("{settings}\n{upcast}")).unwrap();
    let daemon = fixture.installation.start_daemon();
    let billed = format!(
        "insert into espd.events (aggregate_id, type, version, body) values ('{}', 'Billed', 5, '{{\"amount\": 7}}')",
        id(1)
    );
    fixture.run(&billed).await;
    reaches(&fixture.projections, "accounts", 21).await;
    assert_eq!(fixture.fact(&format!("select total from accounts where id = '{}'", id(1))).await, "40");
    for arguments in [vec!["verify", "accounts"], vec!["verify", "accounts", "--sample", "100"]] {
        let said = fixture.installation.espctl(&arguments).await.printed();
        assert_eq!(said, "accounts: nothing differs, 5 rows were compared\n");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_part_is_refused_where_rows_belong_to_no_single_aggregate() {
    let (fixture, daemon) = Fixture::running(false).await;
    let loops = "[[projector.on]]\nevents = ['Opened', 'Paid']\nsql = '''\n\
        if event.version > 0 then insert into accounts values (event.aggregate_id, 0, 0) on conflict do nothing; end if;\n\
        update accounts set payments = payments + 1 where id = event.aggregate_id\n'''\n";
    fixture.installation.declare("accounts", &declaration("version = 1", loops));
    let one = id(1);
    let verify = ["verify", "accounts", "--aggregate", one.as_str()];
    let refused = fixture.installation.espctl(&verify).await;
    assert!(
        refused.code == Some(1)
            && refused.stderr.contains("cannot be told apart: handler 1 cannot be read")
            && refused.stderr.contains("declare `aggregate_column`"),
        "{refused:?}"
    );
    // Declared, it is believed, and seen where it is wrong.
    fixture.installation.declare("accounts", &declaration("aggregate_column = 'id'", loops));
    let outcome = fixture.installation.espctl(&verify).await;
    assert!(outcome.stdout.contains("of 1 rows, 0 added, 0 gone, 1 changed"), "{outcome:?}");
    fixture.installation.declare("accounts", &declaration("aggregate_column = 'nothing'", loops));
    let refused = fixture.installation.espctl(&verify).await;
    assert!(refused.stderr.contains("table accounts has no column nothing"), "{refused:?}");
    let wrong =
        loops.replace("where id = event.aggregate_id", ", id = event.uuid where id = event.aggregate_id");
    fixture.installation.declare("accounts", &declaration("aggregate_column = 'id'", &wrong));
    let refused = fixture.installation.espctl(&verify).await;
    assert!(
        refused.stderr.contains("have written rows of accounts in which id is another one"),
        "{refused:?}"
    );
    assert_eq!(fixture.beside().await, "0", "nothing is left");
    daemon.stop().await;
}

#[tokio::test]
async fn a_part_is_refused_where_rows_of_different_aggregates_depend_on_each_other() {
    let (fixture, daemon) = Fixture::running(false).await;
    fixture.run("update accounts set total = -1").await;
    let one = id(1);
    for (column, reason) in [
        ("parent uuid references accounts (id)", "may refer to rows of other aggregates"),
        ("name text unique", "is over rows of all aggregates"),
        ("number bigint generated always as identity", "gets a number in the order of all events"),
    ] {
        let declared = declaration("", HANDLERS).replace("not null'\n", &format!("not null, {column}'\n"));
        fixture.installation.declare("accounts", &declared);
        fixture.run(&format!("alter table accounts add {column}")).await;
        let part = fixture.installation.espctl(&["verify", "accounts", "--aggregate", one.as_str()]).await;
        assert!(
            part.stderr.contains("cannot be told apart: ") && part.stderr.contains(reason),
            "{column}: {part:?}"
        );
        assert_eq!(part.code, Some(1));
        // The whole is compared, and says why it is not known since when rows differ.
        let whole = fixture.installation.espctl(&["verify", "accounts"]).await;
        assert!(whole.stdout.contains("of 5 rows, 0 added, 0 gone, 5 changed"), "{whole:?}");
        assert!(format!("{}{}", whole.stdout, whole.stderr).contains(reason), "{whole:?}");
        assert_eq!(fixture.beside().await, "0", "nothing is left");
        let (name, _) = column.split_once(' ').unwrap();
        fixture.run(&format!("alter table accounts drop {name}")).await;
    }
    daemon.stop().await;
}
