//! The embedded PostgreSQL server: its folder, the user that it runs as, and that it never outlives its owner.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use espd::embedded::{EmbeddedPostgres, Error, Options, StopMode, find_binaries};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use sqlx::{Connection, PgConnection};

use crate::support;

#[tokio::test]
async fn each_test_has_a_database_of_its_own() {
    let (one, other) = (support::database().await, support::database().await);
    assert_ne!(one.name, other.name);
    sqlx::raw_sql("create table mine (id int)").execute(&one.pool).await.unwrap();
    let elsewhere: Option<String> =
        sqlx::query_scalar("select to_regclass('mine')::text").fetch_one(&other.pool).await.unwrap();
    assert_eq!(elsewhere, None);
}

#[tokio::test]
async fn a_test_database_has_the_migrations() {
    let database = support::database().await;
    espd::schema::check_event_store(&database.pool, support::SCHEMA).await.unwrap();
    espd::schema::check_processing(&database.pool, support::SCHEMA).await.unwrap();
}

#[tokio::test]
async fn starts_as_root_and_as_an_ordinary_user() {
    let server = support::server().await;
    assert_eq!(ask(&server, "select current_user::text").await, "espd");
    server.stop().await;
    if !geteuid().is_root() {
        eprintln!("not root: only an ordinary user's half of this test has run");
        return;
    }
    let nobody = 65534;
    let status =
        this_test("starts_as_root_and_as_an_ordinary_user").uid(nobody).gid(nobody).status().unwrap();
    assert!(status.success(), "the ordinary user's half failed");
}

#[tokio::test]
async fn nothing_listens_on_the_network_and_settings_reach_the_server() {
    let server = support::server_with(&[("work_mem", "5MB")]).await;
    for (setting, value) in [("listen_addresses", ""), ("fsync", "off"), ("work_mem", "5MB")] {
        assert_eq!(ask(&server, &format!("select current_setting('{setting}')")).await, value, "{setting}");
    }
}

#[tokio::test]
async fn a_stopped_temporary_server_leaves_nothing_behind() {
    let stopped = support::server().await;
    let folder = stopped.folder().to_owned();
    stopped.stop().await;
    assert!(!folder.exists());

    let dropped = support::server().await;
    let (folder, pid) = (dropped.folder().to_owned(), dropped.pid());
    drop(dropped);
    assert!(!folder.exists());
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn a_persistent_folder_keeps_its_data() {
    let home = Home::new();
    let folder = home.0.path().join("100% \"odd\" & named");
    let server = EmbeddedPostgres::start_at(&folder, Options::default()).await.unwrap();
    assert_eq!(ask(&server, "select current_setting('fsync')").await, "on");
    server.create_database("an \"odd\" name/?", None).await.unwrap();
    server.stop().await;
    assert!(folder.join("data").is_dir());

    let again = EmbeddedPostgres::start_at(&folder, Options::default()).await.unwrap();
    let mut connection = PgConnection::connect(&again.url("an \"odd\" name/?")).await.unwrap();
    connection.ping().await.unwrap();
}

#[tokio::test]
async fn psql_takes_the_url() {
    let home = Home::new();
    let server = EmbeddedPostgres::start_at(&home.0.path().join("a b"), Options::default()).await.unwrap();
    let beside = find_binaries().unwrap().initdb().canonicalize().unwrap().with_file_name("psql");
    // A folder that `ESPD_PG_BIN` names may have the server alone; psql talks to every version of it.
    let psql = if beside.is_file() { beside } else { "psql".into() };
    let output = Command::new(psql)
        .args(["-Atc", "select current_user", &server.url("postgres")])
        .env("PGPORT", "1")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "espd\n", "{output:?}");
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_is_no_obstacle() {
    let home = Home::new();
    let folder = home.0.path().join("long".repeat(30));
    let server = EmbeddedPostgres::start_at(&folder, Options::default()).await.unwrap();
    assert_eq!(ask(&server, "select 'here'").await, "here");
}

#[tokio::test]
async fn a_folder_in_use_is_refused() {
    let home = Home::new();
    let server = EmbeddedPostgres::start_at(home.0.path(), Options::default()).await.unwrap();
    let second = EmbeddedPostgres::start_at(home.0.path(), Options::default()).await;
    assert!(matches!(second, Err(Error::Locked { .. })), "{second:?}");
    assert_eq!(ask(&server, "select 'unharmed'").await, "unharmed");
}

#[tokio::test]
async fn a_server_started_by_hand_is_left_alone() {
    let home = Home::new();
    let server = EmbeddedPostgres::start_at(home.0.path(), Options::default()).await.unwrap();
    // Without the lock, it is nobody's.
    fs::remove_file(home.0.path().join("espd.lock")).unwrap();
    let impatient = Options { start_timeout: Duration::from_millis(50), ..Options::default() };
    let second = EmbeddedPostgres::start_at(home.0.path(), impatient).await;
    let Err(Error::ForeignServer { pid, .. }) = second else { panic!("{second:?}") };
    assert_eq!(pid, server.pid());
    assert_eq!(ask(&server, "select 'unharmed'").await, "unharmed");
}

#[tokio::test]
async fn leftovers_of_a_crash_are_no_obstacle() {
    let home = Home::new();
    let unfinished = home.0.path().join("data.unfinished");
    fs::create_dir(&unfinished).unwrap();
    fs::write(unfinished.join("PG_VERSION"), "15").unwrap();
    let server = EmbeddedPostgres::start_at(home.0.path(), Options::default()).await.unwrap();
    server.stop().await;

    // The id in the leftover file belongs to another server of the same user by now.
    let other = support::server().await;
    let leftover = home.0.path().join("data/postmaster.pid");
    fs::write(&leftover, format!("{}\n", other.pid())).unwrap();
    let server = EmbeddedPostgres::start_at(home.0.path(), Options::default()).await.unwrap();
    assert_eq!(ask(&server, "select 'back'").await, "back");
    assert!(is_alive(other.pid()));
}

#[tokio::test]
async fn a_restarted_server_has_the_same_url_and_all_that_was_committed() {
    let mut server = support::server().await;
    let (url, mut pid) = (server.url("postgres"), server.pid());
    ask(&server, "create table kept (id int)").await;
    for mode in [StopMode::Fast, StopMode::Immediate] {
        let mut before = PgConnection::connect(&url).await.unwrap();
        ask(&server, "insert into kept values (1)").await;
        server = server.restart(mode).await.unwrap();
        before.ping().await.unwrap_err();
        assert_ne!(server.pid(), pid);
        pid = server.pid();
    }
    assert_eq!(server.url("postgres"), url);
    assert_eq!(ask(&server, "select count(*)::text from kept").await, "2");
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    let settings = vec![("work_mem".to_owned(), "plenty".to_owned())];
    let failed = EmbeddedPostgres::start_temporary(Options { settings, ..Options::default() }).await;
    let Err(Error::Ended { log, .. }) = failed else { panic!("{failed:?}") };
    assert!(log.contains("work_mem"), "{log}");
}

#[tokio::test]
async fn a_folder_that_the_unprivileged_user_cannot_reach_is_named() {
    if !geteuid().is_root() {
        eprintln!("not root: the server runs as this user, who reaches its own folders");
        return;
    }
    let home = Home::new();
    fs::set_permissions(home.0.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let failed = EmbeddedPostgres::start_at(&home.0.path().join("inside"), Options::default()).await;
    let Err(Error::Unreachable { barrier, .. }) = failed else { panic!("{failed:?}") };
    assert_eq!(barrier, home.0.path().canonicalize().unwrap());
}

#[tokio::test]
async fn nothing_outlives_an_owner_that_is_killed() {
    if is_the_owner() {
        return own_a_server(support::server().await).await;
    }
    let owner = Owner::start("nothing_outlives_an_owner_that_is_killed");
    owner.kill();
    wait_until("the server is gone", || !is_alive(owner.server));
    wait_until("the folder is gone", || !owner.folder.exists());
}

/// The janitor would do it too, so it has to die first.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_kernel_ends_the_server_when_the_janitor_is_dead_as_well() {
    if is_the_owner() {
        return own_a_server(support::server().await).await;
    }
    let owner = Owner::start("the_kernel_ends_the_server_when_the_janitor_is_dead_as_well");
    let janitor = children_of(owner.process.id()).into_iter().find(|pid| *pid != owner.server).unwrap();
    kill(Pid::from_raw(janitor.cast_signed()), Signal::SIGKILL).unwrap();
    owner.kill();
    wait_until("the server is gone", || !is_alive(owner.server));
    fs::remove_dir_all(&owner.folder).unwrap();
}

/// A folder for a server that another user can reach as well.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self(home)
    }
}

/// What the first column of the first row says, in a connection of its own.
async fn ask(server: &EmbeddedPostgres, statement: &str) -> String {
    let mut connection = PgConnection::connect(&server.url("postgres")).await.unwrap();
    let answer = sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).fetch_optional(&mut connection).await;
    answer.unwrap().unwrap_or_default()
}

/// This very program, told to run one test of this file. Its path may be closed to other users, its link in procfs
/// is not.
fn this_test(name: &str) -> Command {
    let itself =
        if cfg!(target_os = "linux") { "/proc/self/exe".into() } else { std::env::current_exe().unwrap() };
    let mut command = Command::new(itself);
    command.args(["--exact", &format!("embedded::{name}"), "--nocapture"]).current_dir("/");
    command
}

const OWNER_VARIABLE: &str = "ESPD_TEST_OWNER";

/// Whether this process is to own a server and be killed, rather than to test.
fn is_the_owner() -> bool {
    std::env::var_os(OWNER_VARIABLE).is_some()
}

async fn own_a_server(server: EmbeddedPostgres) {
    println!("\nowned {} {}", server.pid(), server.folder().display());
    std::future::pending::<()>().await;
}

/// Another process that owns a server.
struct Owner {
    process: Child,
    server: u32,
    folder: PathBuf,
}

impl Owner {
    fn start(test: &str) -> Self {
        let mut process = this_test(test).env(OWNER_VARIABLE, "1").stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let line = output.lines().map(Result::unwrap).find(|line| line.starts_with("owned ")).unwrap();
        let [_, server, folder] = line.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        assert!(is_alive(server.parse().unwrap()) && Path::new(folder).exists());
        Self { process, server: server.parse().unwrap(), folder: folder.into() }
    }

    fn kill(&self) {
        kill(Pid::from_raw(self.process.id().cast_signed()), Signal::SIGKILL).unwrap();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.process.kill();
        self.process.wait().unwrap();
    }
}

/// Whether the process still does something; one that has ended and is not waited for does not.
#[cfg(target_os = "linux")]
fn is_alive(pid: u32) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state != "Z")
}

#[cfg(not(target_os = "linux"))]
fn is_alive(pid: u32) -> bool {
    kill(Pid::from_raw(pid.cast_signed()), None).is_ok()
}

#[cfg(target_os = "linux")]
fn children_of(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap();
    let ids = processes.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    ids.filter(|id| state_and_parent(*id).is_some_and(|(_, its)| its == parent.to_string())).collect()
}

#[cfg(target_os = "linux")]
fn state_and_parent(pid: u32) -> Option<(String, String)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything, the fields after it do not.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').map(str::to_owned);
    Some((fields.next()?, fields.next()?))
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
