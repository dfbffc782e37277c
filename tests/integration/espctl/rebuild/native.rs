//! Projectors in Rust: built beside by the program that has them, which `tests/programs/versions.rs` is.

use std::path::PathBuf;
use std::process::Command;

use super::*;

/// The program, which cargo builds beside the tests.
fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.parent().and_then(std::path::Path::parent).unwrap().join("examples/versions")
}

/// One version of the program, with what its handlers do: see there.
pub(super) struct Version<'f> {
    fixture: &'f Fixture,
    program: PathBuf,
    environment: Vec<(&'static str, String)>,
}

impl Fixture {
    pub(super) fn version(&self, version: i32, factor: i64) -> Version<'_> {
        let effects = self.installation.path().join("effects").display().to_string();
        let environment =
            vec![("VERSION", version.to_string()), ("FACTOR", factor.to_string()), ("EFFECTS", effects)];
        Version { fixture: self, program: program(), environment }
    }

    /// What was done after commits, in order.
    fn effects(&self) -> String {
        let text = std::fs::read_to_string(self.installation.path().join("effects")).unwrap_or_default();
        text.lines().collect::<Vec<_>>().join(",")
    }

    async fn products(&self) -> String {
        self.fact("select array_agg(product order by id) from orders").await
    }

    async fn serving(&self, name: &str) -> String {
        self.fact(&format!("select version from espd.trackers where name = '{name}'")).await
    }
}

impl Version<'_> {
    pub(super) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.environment.push((name, value.to_owned()));
        self
    }

    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.fixture.installation.command(self.program.to_str().unwrap(), arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    pub(super) fn start(&self) -> Program {
        Program::start(self.command(&["run"]))
    }

    pub(super) async fn run(&self, arguments: &[&str]) -> Outcome {
        run(self.command(arguments), "").await
    }
}

/// Version 1 of the program has handled five events, and goes on.
async fn running(config: &str) -> (Fixture, Program) {
    let db = support::database().await;
    let settings = format!("[runner]\npoll_interval_max = '50ms'\n{config}");
    let fixture = Fixture { installation: Installation::new(&db.url, &settings), db };
    append(&fixture.db.pool, 5).await;
    let daemon = fixture.version(1, 1).start();
    for name in ["orders", "totals", "lengths"] {
        reaches(&fixture.db.pool, name, 5).await;
    }
    eventually("the effects", async || (fixture.effects() == "1,2,3,4,5").then_some(())).await;
    (fixture, daemon)
}

#[tokio::test]
async fn the_daemon_verifies_slices_of_what_rust_writes_and_says_which_rows_differ() {
    let (fixture, daemon) = running("").await;
    daemon.stop().await;
    fixture.run("update totals set events = 7 where id = (select min(id::text)::uuid from totals)").await;
    let path = fixture.installation.path().join("espd.toml");
    let settings = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{settings}\n[verify]\nshare = 1.0\n")).unwrap();
    let daemon = fixture.version(1, 1).with("KEYED", "yes").start();
    let told = daemon.says("rows are not what their events say: `versions verify totals` shows them").await;
    assert_eq!(told["differing"], 1, "{told}");
    assert_eq!(fixture.fact("select count(*) from espd.trackers where strpos(name, '$') > 0").await, "0");
    daemon.stop().await;
}

#[tokio::test]
async fn a_daemon_builds_raised_versions_in_rust_with_handlers_of_their_own_and_repeats_no_effect() {
    let (fixture, daemon) = running("").await;
    daemon.stop().await;
    let plan = fixture.version(2, 2).run(&["plan"]).await.printed();
    assert!(plan.contains("~ orders: version 1 stays as it is, and is not followed"), "{plan}");
    let second = fixture.version(2, 2);
    let daemon = second.start();
    // Something differs, so this one waits for an operator; the others do not.
    eventually("the version is compared", async || (fixture.state().await == "differs").then_some(())).await;
    let status = fixture.installation.status("orders").await;
    assert!(status["state"] == "waiting" && status["last_error"].is_null(), "{status}");
    for name in ["totals", "lengths"] {
        eventually(name, async || (fixture.serving(name).await == "2").then_some(())).await;
    }
    append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "lengths", 6).await;
    assert_eq!(fixture.products().await, "{1,2,3,4,5}");
    let said = second.run(&["rebuild", "approve", "orders"]).await.printed();
    assert!(said.starts_with("version 2 of orders goes live"), "{said}");
    // It goes live, and a worker goes on with it.
    reaches(&fixture.db.pool, "orders", 6).await;
    assert_eq!(fixture.products().await, "{2,4,6,8,10,12}");
    assert_eq!(fixture.fact("select array_agg(replaying order by id) from orders").await, "{t,t,t,t,t,f}");
    assert_eq!(fixture.fact("select array_agg(seen order by id) from orders").await, "{1,2,3,4,5,1}");
    eventually("the effect", async || (fixture.effects() == "1,2,3,4,5,6").then_some(())).await;
    assert_eq!(fixture.fact("select count(*) from espd.effects where processor like 'orders$%'").await, "0");

    // Its handlers are not in the database.
    let said = second.run(&["rollback", "orders"]).await.complained(1);
    assert!(said.contains("declare version 1 again"), "{said}");
    daemon.stop().await;
    let first = fixture.version(1, 1);
    let said = first.run(&["rollback", "orders", "--yes"]).await.printed();
    assert!(said.contains("version 1 of orders is live"), "{said}");
    let daemon = first.start();
    append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "orders", 7).await;
    assert_eq!(fixture.products().await, "{1,2,3,4,5,6,7}");
    eventually("the effect", async || (fixture.effects() == "1,2,3,4,5,6,7").then_some(())).await;
    daemon.stop().await;
}

#[tokio::test]
async fn tables_in_rust_are_verified_and_rebuilt_by_the_program_that_has_the_handlers_and_by_no_other() {
    let (fixture, daemon) = running("[rebuild]\nparallelism = 0\n").await;
    let first = fixture.version(1, 1);
    for name in ["orders", "totals", "lengths"] {
        let said = first.run(&["verify", name]).await.printed();
        assert!(said.contains("nothing differs, 5 rows were compared"), "{said}");
    }
    fixture.run("update orders set product = 42 where id = 3; update lengths set length = 7 where id = (select min(id::text)::uuid from lengths)").await;
    let said = first.run(&["verify", "orders"]).await;
    assert!(said.code == Some(1) && said.stdout.contains("id = 3: product = 42 -> product = 3"), "{said:?}");
    // Where the column of the aggregate is declared, it is known since when.
    let said = first.run(&["verify", "lengths"]).await;
    assert!(
        said.code == Some(1) && said.stdout.contains("none of its 1 changes has made the row so"),
        "{said:?}"
    );
    let said = fixture.version(2, 2).run(&["rebuild", "orders", "--dry-run"]).await;
    assert!(said.code == Some(1) && said.stdout.contains("5 changed"), "{said:?}");
    assert_eq!(fixture.beside().await, "|");

    // espd's own tool has no handlers in Rust.
    let said = fixture.espctl(&["rebuild", "orders"]).await.complained(1);
    assert!(
        said.contains("orders is not declared") && said.contains("as a command of the program that has it"),
        "{said}"
    );
    fixture.installation.declare("orders", "[projector]\nname = 'orders'\nnative = true\n");
    for arguments in [&["rebuild", "orders"], &["verify", "orders"], &["rollback", "orders"]] {
        let said = fixture.espctl(arguments).await.complained(1);
        assert!(
            said.contains("run this as a command of that program: `PROGRAM rebuild orders`")
                || arguments[0] == "rollback",
            "{said}"
        );
    }
    assert_eq!(fixture.products().await, "{1,2,42,4,5}");

    let said = first.run(&["rebuild", "orders", "--yes"]).await.printed();
    assert!(said.contains("1 rows of its tables were changed"), "{said}");
    assert_eq!(fixture.products().await, "{1,2,3,4,5}");
    fixture.run("update orders set product = 42 where id = 3").await;
    let done = first.run(&["reset", "orders", "--yes", "--json"]).await.json();
    assert_eq!((&done[0]["way"], &done[0]["changed_rows"]), (&"beside".into(), &1.into()), "{done}");
    assert_eq!(fixture.effects(), "1,2,3,4,5");
    let said = fixture.espctl(&["reset", "orders", "--yes"]).await;
    assert!(said.stderr.contains("orders is reset in place: the handlers of orders are in Rust"), "{said:?}");
    reaches(&fixture.db.pool, "orders", 5).await;
    // What was done after commits is not done again in a replay, in place or beside, and goes on behind it.
    append(&fixture.db.pool, 1).await;
    eventually("the next effect", async || fixture.effects().ends_with('6').then_some(())).await;
    assert_eq!(fixture.effects(), "1,2,3,4,5,6");
    let said = first.run(&["reset", "orders", "--yes", "--repeat-effects"]).await;
    assert!(
        said.stderr.contains("orders is reset in place: --repeat-effects has effects repeated"),
        "{said:?}"
    );
    eventually("all effects again", async || (fixture.effects() == "1,2,3,4,5,6,1,2,3,4,5,6").then_some(()))
        .await;
    daemon.stop().await;
}

#[tokio::test]
async fn handlers_in_rust_that_fail_or_reach_for_the_live_tables_keep_their_version_from_going_live() {
    let (fixture, daemon) = running("[rebuild]\nparallelism = 0\n").await;
    for (handler, wrong) in [
        ("writes live", "has written table public.orders"),
        ("reads live", "has read table public.orders of the version of orders that serves"),
        ("panics", "fails at event 3 (A): the handler has panicked: there is nothing to order"),
        ("fails", "fails at event 3 (A): this one cannot be ordered"),
    ] {
        let version = fixture.version(2, 3).with("HANDLER", handler);
        let said = version.run(&["rebuild", "orders", "--yes"]).await;
        assert!(said.code == Some(1) && said.stderr.contains(wrong), "{said:?}");
        assert_eq!(fixture.products().await, "{1,2,3,4,5}");
    }
    assert_eq!(
        fixture.fact("select array_agg(product order by id) from public_orders_next.orders").await,
        "{3,6}"
    );

    // A program that was changed does not go on with rows of the former one, and the same one does.
    let changed = fixture.installation.path().join("changed");
    std::fs::copy(program(), &changed).unwrap();
    let mut file = std::fs::OpenOptions::new().append(true).open(&changed).unwrap();
    std::io::Write::write_all(&mut file, b"changed").unwrap();
    drop(file);
    let corrected = Version { program: changed, ..fixture.version(2, 2) };
    let said = corrected.run(&["rebuild", "orders"]).await;
    assert!(said.code == Some(1) && said.stderr.contains("gives up version 2"), "{said:?}");
    let said = corrected.run(&["rebuild", "orders", "--yes"]).await;
    assert!(said.code == Some(0) && said.stderr.contains("goes on with version 2"), "{said:?}");
    assert_eq!(fixture.products().await, "{2,4,6,8,10}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_handler_that_blocks_its_thread_while_a_version_is_built_does_not_hold_up_the_daemon() {
    let (fixture, daemon) = running("").await;
    daemon.stop().await;
    let second = fixture.version(2, 2).with("HANDLER", "blocks");
    let daemon = second.start();
    let at_work = "select count(*) = 1 from pg_stat_activity where datname = current_database() and application_name = 'espd: rebuild' and state = 'idle in transaction'
                     and query = 'savepoint espd_savepoint' and state_change < clock_timestamp() - interval '1 second'";
    eventually("the build", async || (fixture.fact(at_work).await == "true").then_some(())).await;
    let outcome = second.run(&["reload"]).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    daemon.stop().await;
}
