//! What operators have decided is remembered, whatever daemons build in between; and what no daemon builds is not said to be built.

use super::*;
use crate::espctl::roles::Roles;

const CHANGED: (&str, &str) =
    ("n bigint, tenant text", "insert into orders values (event.id, event.id % 2, 'a')");
const SLOW: &str =
    "perform pg_sleep(1); insert into orders values (event.id, event.id % 3, 'a', 2 * event.id)";

const SETTINGS: &str = "[runner]\npoll_interval_max = '50ms'\n";

/// A daemon that builds, and has handled five events with version 1.
async fn building() -> (Fixture, Program) {
    let db = support::database().await;
    let installation = Installation::new(&db.url, SETTINGS);
    let fixture = Fixture { db, installation };
    fixture.declare(1, FIRST);
    append(&fixture.db.pool, 5).await;
    let daemon = fixture.installation.start_daemon();
    reaches(&fixture.db.pool, "orders", 5).await;
    (fixture, daemon)
}

/// Another configuration for the same databases.
fn beside(fixture: &Fixture, version: i32, what: (&str, &str), more: &str) -> Installation {
    let other = Installation::new(&fixture.db.url, SETTINGS);
    other.declare("orders", &with(version, what, more));
    other
}

fn with(version: i32, (columns, handler): (&str, &str), more: &str) -> String {
    declaration(version, columns, handler)
        .replace("[projector.tables]", &format!("{more}\n[projector.tables]"))
}

impl Fixture {
    async fn deploy(&self, version: i32, what: (&str, &str)) {
        self.declare(version, what);
        assert_eq!(self.espctl(&["reload"]).await.code, Some(0));
    }

    async fn comes_to(&self, query: &str, wanted: &str) {
        eventually(&format!("{query} is {wanted}"), async || {
            (self.fact(query).await == wanted).then_some(())
        })
        .await;
    }

    /// Who has built last was not seen for long.
    async fn leave_for_long(&self) {
        self.run("update espd.build_progress set updated_at = updated_at - interval '5 minutes'").await;
    }

    /// The daemon has looked since, and builds nothing.
    async fn is_left_alone(&self, daemon: &Program) {
        let looked = || daemon.logged("looked for versions to build");
        let before = looked().len();
        eventually("the daemon has looked", async || {
            let looked = looked();
            (looked.len() > before.max(1) && looked.last().unwrap()["wanted"] == 0).then_some(())
        })
        .await;
        assert_eq!(self.beside().await, "orders$2|public_orders_v2");
        assert_eq!(self.fact(SERVES).await, "1");
    }
}

const SERVES: &str = "select version from espd.trackers where name = 'orders'";
const LAST: &str = "select version || ' ' || state from espd.rebuilds where processor = 'orders'";
const WAITS: &str =
    "select coalesce(min(version), 0) from espd.build_progress where blocked_because is not null";

#[tokio::test]
async fn what_was_gone_back_from_is_not_built_again_whatever_was_built_in_between() {
    let (fixture, daemon) = building().await;
    fixture.deploy(2, WIDER).await;
    fixture.comes_to(SERVES, "2").await;
    fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    fixture.deploy(3, CHANGED).await;
    fixture.comes_to(WAITS, "3").await;

    fixture.declare(2, WIDER);
    let plan = fixture.espctl(&["plan"]).await.printed();
    assert!(plan.contains("version 2 has served and an operator has gone back from it"), "{plan}");
    assert_eq!(fixture.espctl(&["reload"]).await.code, Some(0));
    fixture.comes_to(LAST, "3 aborted").await;
    fixture.is_left_alone(&daemon).await;

    daemon
        .says("version 1 goes on: version 2 has served and an operator has gone back from it, so no daemon builds it again: raise \
               `version` once its handlers are corrected, or build it with `espctl rebuild orders`")
        .await;

    // The same of what he has given up.
    fixture.deploy(4, CHANGED).await;
    fixture.comes_to(WAITS, "4").await;
    fixture.espctl(&["rebuild", "abort", "orders"]).await.printed();
    fixture.deploy(5, CHANGED).await;
    fixture.comes_to(WAITS, "5").await;
    fixture.declare(4, CHANGED);
    let plan = fixture.espctl(&["plan"]).await.printed();
    assert!(plan.contains("version 4 was given up by an operator"), "{plan}");
    assert_eq!(fixture.espctl(&["reload"]).await.code, Some(0));
    fixture.comes_to(LAST, "5 aborted").await;
    fixture.is_left_alone(&daemon).await;

    // Until he builds it, or the version is raised.
    fixture.deploy(2, WIDER).await;
    fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    assert_eq!(fixture.fact(SERVES).await, "2");
    fixture.deploy(6, WIDER).await;
    fixture.comes_to(SERVES, "6").await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_daemon_that_is_left_over_does_not_undo_a_rollback_when_a_newer_one_is_killed() {
    let (fixture, daemon) = building().await;
    fixture
        .installation
        .declare("orders", &with(2, WIDER, "").replace("version = 2", "version = 2\napprove = 'always'"));
    assert_eq!(fixture.espctl(&["reload"]).await.code, Some(0));
    fixture.comes_to(SERVES, "2").await;
    fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();

    let newer = beside(&fixture, 3, (WIDER.0, SLOW), "");
    let mut second = newer.start_daemon();
    fixture.comes_to("select count(*) from espd.build_progress where version = 3", "1").await;
    second.kill().await;
    fixture.leave_for_long().await;
    fixture.comes_to(LAST, "3 aborted").await;
    fixture.is_left_alone(&daemon).await;
    daemon.stop().await;
}

#[tokio::test]
async fn what_a_killed_daemon_has_put_in_the_place_of_a_version_that_waited_is_given_up_for_that() {
    let (fixture, daemon) = building().await;
    let manual = with(2, WIDER, "").replace("version = 2", "version = 2\napprove = 'manual'");
    fixture.installation.declare("orders", &manual);
    assert_eq!(fixture.espctl(&["reload"]).await.code, Some(0));
    fixture.comes_to(WAITS, "2").await;

    let newer = beside(&fixture, 3, (WIDER.0, SLOW), "");
    let mut second = newer.start_daemon();
    fixture.comes_to("select count(*) from espd.build_progress where version = 3", "1").await;
    second.kill().await;
    assert_eq!(fixture.fact(LAST).await, "3 building");
    fixture.leave_for_long().await;
    fixture.comes_to(WAITS, "2").await;
    fixture.espctl(&["rebuild", "approve", "orders"]).await.printed();
    fixture.comes_to(SERVES, "2").await;
    daemon.stop().await;
}

#[tokio::test]
async fn the_version_before_is_found_whatever_was_built_and_given_up_since() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.declare(2, WIDER);
    fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    fixture.declare(3, FIRST);
    fixture.rebuild_without_answer().await;
    fixture.espctl(&["rebuild", "abort", "orders"]).await.printed();
    let said = fixture.espctl(&["rollback", "orders", "--yes"]).await.printed();
    assert!(said.contains("version 1 of orders is live"), "{said}");
    daemon.stop().await;
}

/// Processors of which no version is built beside another one, with `version = 1` in each.
fn unsuitable() -> Vec<(&'static str, String)> {
    let on = |table: &str, sql: &str| format!("[[{table}.on]]\nevents = ['A']\nsql = '{sql}'\n");
    vec![
        ("react", format!("[reactor]\nname = 'react'\nversion = 1\nstart = 'beginning'\n{}", on("reactor", "null;"))),
        (
            "marks",
            format!(
                "[reactor]\nname = 'marks'\nversion = 1\nstart = 'beginning'\n[reactor.tables]\nmarks = 'id bigint'\n{}",
                on("reactor", "insert into marks values (event.id)")
            ),
        ),
        ("bare", format!("[projector]\nname = 'bare'\nversion = 1\n{}", on("projector", "null;"))),
        (
            "sync",
            format!(
                "[projector]\nname = 'sync'\nversion = 1\nsynchronous = 'total_order'\n[projector.tables]\nsync = 'id bigint primary key'\n{}",
                on("projector", "insert into sync values (event.id)")
            ),
        ),
        (
            "prog",
            "[reactor]\nname = 'prog'\nversion = 1\nstart = 'beginning'\nevents = ['Never']\n\
             command = ['sh', '-c', '''read x; echo '{\"ready\":1}'; cat''']\n"
                .to_owned(),
        ),
        (
            "hook",
            "[reactor]\nname = 'hook'\nversion = 1\nevents = ['Never']\n[reactor.webhook]\nurl = 'http://127.0.0.1:1/'\nallow_private = true\n"
                .to_owned(),
        ),
    ]
}

#[tokio::test]
async fn what_is_never_built_beside_is_not_promised_to_be_and_told_what_helps() {
    let (fixture, daemon) = building().await;
    for (name, text) in unsuitable() {
        fixture.installation.declare(name, &text);
    }
    let reloaded = fixture.espctl(&["reload"]).await;
    assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
    for (name, _) in unsuitable() {
        let runs = format!(
            "select count(*) from espd.trackers as t join espd.declarations as d on d.processor = t.name where name = '{name}'"
        );
        fixture.comes_to(&runs, "1").await;
    }
    for name in ["react", "marks", "bare"] {
        reaches(&fixture.db.pool, name, 5).await;
    }
    fixture.comes_to("select synchronous is not null from espd.trackers where name = 'sync'", "true").await;

    for (name, text) in unsuitable() {
        fixture.installation.declare(name, &text.replace("version = 1", "version = 2"));
    }
    let plan = fixture.espctl(&["plan"]).await;
    assert_eq!(plan.code, Some(2), "{plan:?}");
    let check = fixture.espctl(&["check"]).await;
    assert_eq!(check.code, Some(0), "{check:?}");
    let told = |name: &str, text: &str, remedy: &str| {
        let lines: Vec<&str> = text.lines().filter(|line| line.contains(name)).collect();
        let text = lines.join("\n");
        assert!(
            text.contains(remedy) && !text.contains("builds version 2 beside") && !text.contains("--dry-run"),
            "{name}: {text}"
        );
    };
    let reset = |name: &str| format!("`espctl reset {name}` has version 2 take its place");
    for name in ["react", "marks", "bare", "prog", "hook"] {
        told(&format!("{name}: "), &plan.stdout, &reset(name));
        told(name, &format!("{}{}", check.stdout, check.stderr), &reset(name));
    }
    told("sync: ", &plan.stdout, "take `synchronous` out of its declaration");
    for (name, goes_on) in [("react", true), ("bare", true), ("sync", true), ("prog", false), ("hook", false)]
    {
        let line = plan.stdout.lines().find(|line| line.contains(&format!("{name}: "))).unwrap();
        assert_eq!(line.contains("version 1 goes on"), goes_on, "{line}");
        assert_eq!(line.starts_with('!'), !goes_on, "{line}");
    }

    assert_eq!(fixture.espctl(&["reload"]).await.code, Some(0));
    daemon.says("version 1 goes on, and nobody builds version 2, because only projectors with declared tables are built beside: `espctl reset bare` has version 2 take its place, and begin anew").await;
    for name in ["react", "marks", "bare", "prog", "hook"] {
        let status = eventually(name, async || {
            let status = fixture.installation.status(name).await;
            status["advice"].to_string().contains(&reset(name)).then_some(status)
        })
        .await;
        let said = status.to_string();
        assert!(!said.contains("espctl rebuild"), "{name}: {said}");
        assert_eq!(status["state"] == "failed", ["prog", "hook"].contains(&name), "{said}");
    }

    // What is advised helps.
    for name in ["react", "prog"] {
        fixture.espctl(&["reset", name, "--yes"]).await.printed();
        fixture.comes_to(&format!("select version from espd.trackers where name = '{name}'"), "2").await;
    }
    let older = |name: &str| unsuitable().into_iter().find(|(one, _)| *one == name).unwrap().1;
    fixture.installation.declare("react", &older("react"));
    assert_eq!(fixture.espctl(&["reload"]).await.code, Some(0));
    daemon
        .says("superseded by version 2: the processor is left to it. Declare that version, or `espctl reset react` has the declared one take its place")
        .await;
    let plan = fixture.espctl(&["plan"]).await.stdout;
    told("react: ", &plan, "`espctl reset react` has version 1 take its place");
    let refused = fixture.espctl(&["rollback", "react"]).await.complained(1);
    assert!(refused.contains("`espctl reset react`") && !refused.contains("merged"), "{refused}");

    let asynchronous = older("sync").replace("version = 1\nsynchronous = 'total_order'", "version = 2");
    fixture.installation.declare("sync", &asynchronous);
    let plan = fixture.espctl(&["plan"]).await.stdout;
    assert!(
        plan.contains("~ sync: version 1 goes on; `espctl rebuild sync` builds version 2 beside it"),
        "{plan}"
    );
    assert_eq!(fixture.espctl(&["reload"]).await.code, Some(0));
    fixture.comes_to("select version from espd.trackers where name = 'sync'", "2").await;
    append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "sync", 6).await;
    assert_eq!(fixture.fact("select count(*) from sync").await, "6");
    daemon.stop().await;
}

#[tokio::test]
async fn a_table_of_another_processor_is_seen_before_the_deploy() {
    let (fixture, daemon) = building().await;
    fixture.run("create table public.foreign_ones (id bigint)").await;
    let renamed = declaration(1, FIRST.0, FIRST.1).replace("name = 'orders'", "name = 'tiny'");
    std::fs::remove_file(fixture.installation.path().join("processors/orders.toml")).unwrap();
    fixture.installation.declare("tiny", &renamed);
    let told = async |begun: &str| {
        let plan = fixture.espctl(&["plan"]).await;
        let remedy = "`espctl rename orders tiny` hands it over with its position";
        assert_eq!(plan.code, Some(2), "{begun}: {plan:?}");
        assert!(
            plan.stdout.contains("! tiny: stops, because table public.orders belongs to orders"),
            "{begun}: {plan:?}"
        );
        assert!(plan.stdout.contains(remedy), "{begun}: {plan:?}");
        let check = fixture.espctl(&["check"]).await;
        assert!(check.code == Some(0) && check.stderr.contains(remedy), "{begun}: {check:?}");
    };
    told("before").await;
    let plan = fixture.espctl(&["plan"]).await.stdout;
    assert!(
        plan.contains("- orders: is not declared, so nobody with this configuration runs it (now "),
        "{plan}"
    );
    assert_eq!(fixture.espctl(&["reload"]).await.code, Some(0));
    fixture.comes_to("select failed_at is not null from espd.trackers where name = 'tiny'", "true").await;
    told("after").await;

    let taken = "[projector]\nname = 'other'\n[projector.tables]\nforeign_ones = 'id bigint'\n[[projector.on]]\nevents = ['A']\nsql = 'null;'\n";
    fixture.installation.declare("other", taken);
    let plan = fixture.espctl(&["plan"]).await.stdout;
    assert!(plan.contains("! other: stops, because table public.foreign_ones exists already"), "{plan}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_raised_version_that_needs_a_table_of_another_processor_is_not_said_to_be_built() {
    let (fixture, daemon) = building().await;
    fixture.installation.declare_notes("notes", "");
    assert_eq!(fixture.espctl(&["reload"]).await.code, Some(0));
    reaches(&fixture.db.pool, "notes", 5).await;
    let more = declaration(2, FIRST.0, FIRST.1)
        .replace("[projector.tables]", "[projector.tables]\nnotes = 'id bigint'");
    fixture.installation.declare("orders", &more);
    std::fs::remove_file(fixture.installation.path().join("processors/notes.toml")).unwrap();
    let plan = fixture.espctl(&["plan"]).await;
    assert!(
        plan.stdout.contains("orders: version 1 goes on; version 2 cannot be built beside it, because table public.notes belongs to notes"),
        "{plan:?}"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn plan_and_check_say_how_far_a_version_is_that_is_built_and_what_becomes_of_it() {
    let (fixture, daemon) = building().await;
    let manual = |version| with(version, WIDER, "approve = 'manual'");
    fixture.installation.declare("orders", &manual(2));
    assert_eq!(fixture.espctl(&["reload"]).await.code, Some(0));
    fixture.comes_to(WAITS, "2").await;

    let far = "version 2 beside it is built and waits: position 5 of 5 (100 %), 5 events handled";
    let because = "it is not live: its declaration says approve = \"manual\"";
    for command in ["plan", "check"] {
        let said = fixture.espctl(&[command]).await.printed();
        assert!(said.contains(far) && said.contains(because), "{command}: {said}");
        assert!(!said.contains("builds version 2"), "{command}: {said}");
    }
    // Another declaration gives it up, and so does the one of before.
    for (declared, goes_on) in
        [(manual(3), "builds version 3 beside it"), (declaration(1, FIRST.0, FIRST.1), "goes on")]
    {
        fixture.installation.declare("orders", &declared);
        let said = fixture.espctl(&["plan"]).await.printed();
        assert!(said.contains(goes_on), "{said}");
        let given_up = "version 2 beside it, which is built and waits: position 5 of 5";
        for command in ["plan", "check"] {
            let said = fixture.espctl(&[command]).await.printed();
            assert!(
                said.contains(given_up) && said.contains("is given up, with what was built"),
                "{command}: {said}"
            );
        }
    }
    // What is declared now serves, whatever was given up for it.
    assert_eq!(fixture.espctl(&["reload"]).await.code, Some(0));
    let watch = fixture.espctl(&["rebuild", "orders", "--watch"]).await.printed();
    let serves =
        "version 1 of orders is live, and nothing newer is declared (version 2 of orders was given up)\n";
    assert!(watch.ends_with(serves), "{watch}");
    assert_eq!(fixture.fact(LAST).await, "2 aborted");
    daemon.stop().await;
}

#[tokio::test]
async fn what_readers_would_miss_in_a_raised_version_is_said_before_it_is_built() {
    let (fixture, daemon) = building().await;
    let narrower = declaration(2, "n text", "insert into orders values (event.id, event.id % 3)");
    let elsewhere =
        narrower.replace("orders = 'id bigint primary key, n text'", "sales = 'id bigint primary key'");
    let elsewhere = elsewhere
        .replace("insert into orders values (event.id, event.id % 3)", "insert into sales values (event.id)");
    let elsewhere = elsewhere
        .lines()
        .filter(|line| !line.starts_with("ddl"))
        .map(|line| format!("{line}\n"))
        .collect::<String>();
    let keyed = narrower
        .replace("id bigint primary key, n text", "id bigint, n text, extra int, primary key (n, id)");
    for (declared, losses) in [
        (&elsewhere, "; once it is live, the table orders would be gone (kept in schema public_orders_v1)"),
        (
            &keyed,
            "; once it is live, orders would lack tenant, and the primary key of orders would be (n, id) instead of (id)",
        ),
    ] {
        fixture.installation.declare("orders", declared);
        for command in ["plan", "check"] {
            let said = fixture.espctl(&[command]).await.printed();
            assert!(said.contains(losses), "{command}: {said}");
        }
    }
    let said = fixture.espctl(&["rebuild", "orders", "--dry-run"]).await;
    let columns = "other columns, not compared: extra (new), tenant (gone), n (of another type); a prepared";
    assert!(said.code == Some(1) && said.stdout.contains(columns), "{said:?}");
    let key = "the primary key would be (n, id) instead of (id), so whole rows were compared";
    assert!(said.stdout.contains(key) && !said.stdout.contains("nothing differs"), "{said:?}");
    // Nor does it go live unasked where nothing else differs.
    fixture.installation.declare(
        "orders",
        &declaration(2, FIRST.0, FIRST.1).replace(
            "id bigint primary key, n bigint, tenant text",
            "id bigint, n bigint, tenant text, primary key (n, id)",
        ),
    );
    assert_eq!(fixture.espctl(&["reload"]).await.code, Some(0));
    let because = "select blocked_because from espd.build_progress";
    fixture.comes_to(because, "the primary key of orders would be (n, id) instead of (id)").await;
    daemon.stop().await;
}

/// A role of daemons without the right to make schemas.
#[tokio::test]
async fn the_right_to_build_versions_is_named_by_doctor_plan_check_and_status_with_the_grant() {
    let roles = Roles::create().await;
    let (daemon, _) = roles.login("espd_daemon").await;
    let name = &roles.db.name;
    execute(&roles.db.pool, &format!("revoke create on database {name} from espd_daemon")).await;
    daemon.declare("orders", &declaration(1, FIRST.0, FIRST.1));
    append(&roles.db.pool, 5).await;
    let running = daemon.start_daemon();
    reaches(&roles.db.pool, "orders", 5).await;
    let grant = format!("grant create on database {name} to espd_daemon;");
    let doctor = daemon.espctl(&["doctor"]).await;
    assert!(
        doctor.stdout.contains("makes no schemas, so no version of a projector is built beside")
            && doctor.stdout.contains(&grant),
        "{doctor:?}"
    );

    daemon.declare("orders", &declaration(2, WIDER.0, WIDER.1));
    let lacks = format!(
        "role espd_daemon may make no schemas in database {name}, and each version has one of its own: `{grant}`"
    );
    for command in ["plan", "check"] {
        let said = daemon.espctl(&[command]).await.printed();
        let cannot = format!("version 2 cannot be built beside it, because {lacks}");
        assert!(said.contains(&cannot), "{command}: {said}");
    }
    assert_eq!(daemon.espctl(&["reload"]).await.code, Some(0));
    let because = eventually("the build says why it does not begin", async || {
        let status = daemon.status("orders").await;
        status["rebuild"]["blocked_because"].as_str().map(str::to_owned)
    })
    .await;
    assert_eq!(because, format!("nothing was done: {lacks} gives it that right"));
    let refused = daemon.espctl(&["rebuild", "orders", "--dry-run"]).await.complained(1);
    assert!(refused.contains(&lacks), "{refused}");

    execute(&roles.db.pool, &grant).await;
    let doctor = daemon.espctl(&["doctor"]).await;
    assert!(doctor.stdout.contains("role espd_daemon may run processors"), "{doctor:?}");
    eventually("version 2 serves", async || (fact(&roles.db.pool, SERVES).await == "2").then_some(())).await;
    running.stop().await;
    // Any other right that is missing is told in the server's words, without the driver's, and as what it is.
    execute(&roles.db.pool, "revoke insert, update on espd.rebuilds from espd_daemon").await;
    daemon.declare("orders", &declaration(3, CHANGED.0, CHANGED.1));
    let refused = daemon.espctl(&["rebuild", "orders", "--yes"]).await.complained(1);
    let said = "error: permission denied for table rebuilds (a right that this role lacks: docs/roles.md says which role has it)";
    assert!(refused.contains(said), "{refused}");
}

#[tokio::test]
async fn only_rows_that_differ_are_a_difference() {
    let (fixture, daemon) = building().await;
    fixture.declare(2, WIDER);
    let said = fixture.espctl(&["rebuild", "orders", "--dry-run"]).await.printed();
    assert!(said.contains("other columns, not compared: twice"), "{said}");
    // Who reads a column that would be gone would see it.
    fixture.declare(2, ("n bigint", "insert into orders values (event.id, event.id % 3)"));
    fixture.espctl(&["rebuild", "orders", "--dry-run"]).await.complained(1);
    fixture.declare(2, CHANGED);
    fixture.espctl(&["rebuild", "orders", "--dry-run"]).await.complained(1);
    daemon.stop().await;
}

#[tokio::test]
async fn a_dry_run_names_what_a_swap_would_be_refused_for() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.run("create table lines (id bigint references orders (id))").await;
    fixture.declare(2, WIDER);
    let said = fixture.espctl(&["rebuild", "orders", "--dry-run"]).await;
    assert!(
        said.code == Some(0) && said.stderr.contains("warning: the tables of orders cannot be exchanged"),
        "{said:?}"
    );
    assert!(said.stderr.contains("lines"), "{said:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn who_gives_up_what_a_killed_verification_has_left_is_told_so() {
    let (fixture, daemon) = Fixture::running().await;
    let slow = "perform pg_sleep(1); insert into orders values (event.id, event.id % 3, 'a')";
    fixture.declare(1, (FIRST.0, slow));
    for (arguments, left) in [
        (&["verify", "orders"][..], "a verification of orders that was broken off"),
        (&["rebuild", "orders", "--dry-run"], "a dry run of orders that was broken off"),
    ] {
        let mut verify = Program::start(fixture.installation.espctl_command(arguments));
        fixture.comes_to("select count(*) from espd.trackers where strpos(name, '$') > 0", "1").await;
        verify.signal(Signal::SIGKILL);
        verify.ended().await;
        let said = fixture.espctl(&["rebuild", "abort", "orders"]).await.printed();
        assert_eq!(said, format!("what {left} has left was removed\n"));
        assert_eq!(fixture.beside().await, "|");
    }
    fixture.espctl(&["rebuild", "abort", "orders"]).await.complained(1);
    daemon.stop().await;
}

#[tokio::test]
async fn what_an_approval_leads_to_is_said_before_and_after() {
    let (fixture, daemon) = building().await;
    let remedy = "select remedy from espd.build_progress where tracker = 'orders$next'";
    fixture.deploy(2, CHANGED).await;
    fixture.comes_to(WAITS, "2").await;
    let told = fixture.fact(remedy).await;
    assert!(
        told.contains("after which no rollback leads back (`espctl rebuild orders --go-live swap` keeps the former ones)"),
        "{told}"
    );
    let said = fixture.espctl(&["rebuild", "approve", "orders"]).await.printed();
    assert!(said.contains("no rollback leads back"), "{said}");
    fixture.comes_to(SERVES, "2").await;

    fixture.deploy(3, (WIDER.0, "insert into orders values (event.id, 7, 'b', 1)")).await;
    fixture.comes_to(WAITS, "3").await;
    let told = fixture.fact(remedy).await;
    assert!(!told.contains("rollback"), "{told}");
    let said = fixture.espctl(&["rebuild", "approve", "orders"]).await.printed();
    assert!(said.contains("`espctl rollback orders` goes back"), "{said}");
    fixture.comes_to(SERVES, "3").await;

    // Who says no is told as well what a later yes means.
    fixture.declare(4, (WIDER.0, "insert into orders values (event.id, 8, 'b', 1)"));
    let said = fixture.rebuild_without_answer().await;
    assert!(said.contains("Version 4 of orders would be merged"), "{said}");
    let told = fixture.fact(remedy).await;
    assert!(told.contains("no rollback leads back"), "{told}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_rollback_that_cannot_be_says_what_can_be_done() {
    let (fixture, daemon) = Fixture::running().await;
    let fails = "insert into orders values (event.id, 1 / (6 - event.id), 'a')";
    fixture.declare(2, (FIRST.0, fails));
    fixture.espctl(&["rebuild", "orders", "--yes", "--go-live", "swap"]).await.printed();
    fixture.declare(3, WIDER);
    fixture.espctl(&["rebuild", "orders", "--yes", "--go-live", "swap"]).await.printed();
    fixture.espctl(&["reload"]).await.printed();
    append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "orders", 6).await;
    let refused = fixture.espctl(&["rollback", "orders", "--to", "3"]).await.complained(1);
    assert!(refused.contains("version 3 of orders serves already"), "{refused}");
    let refused = fixture.espctl(&["rollback", "orders", "--yes"]).await.complained(1);
    assert!(
        refused.contains("version 2 of orders fails at event 6 (A): division by zero [22012]. Version 3 serves as before; the handlers of version 2")
            && refused.contains("declare them, corrected, under a higher version instead"),
        "{refused}"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn a_question_is_not_asked_about_nothing_and_no_question_is_an_error() {
    let (fixture, daemon) = Fixture::running().await;
    let said = fixture.espctl(&["rebuild", "drop", "orders"]).await.printed();
    assert_eq!(said, "no former version is kept\n");
    fixture.declare(2, WIDER);
    fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    let asked = fixture.espctl(&["rebuild", "drop", "orders"]).await.complained(1);
    assert!(
        asked.starts_with("error: nothing was done: add --yes to do this without being asked:\nThis drops the former versions"),
        "{asked}"
    );
    assert_eq!(fixture.beside().await, "orders$1|public_orders_v1");
    daemon.stop().await;
}

#[tokio::test]
async fn what_has_never_run_cannot_be_verified() {
    let (fixture, daemon) = Fixture::running().await;
    // Its table belongs to somebody, so it is not made.
    fixture.run("create table public.lines (id bigint)").await;
    let text = "[projector]\nname = 'lines'\n[projector.tables]\nlines = 'id bigint primary key'\n\
        [[projector.on]]\nevents = ['A']\nsql = 'insert into lines values (event.id)'\n";
    fixture.installation.declare("lines", text);
    fixture.espctl(&["reload"]).await.printed();
    fixture.comes_to("select failed_at is not null from espd.trackers where name = 'lines'", "true").await;
    let refused = fixture.espctl(&["verify", "lines"]).await.complained(1);
    assert!(refused.contains("lines has no tables yet, so there is nothing to compare"), "{refused}");
    daemon.stop().await;
}
