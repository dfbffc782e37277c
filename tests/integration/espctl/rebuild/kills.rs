//! Whoever builds, verifies, swaps, merges or goes back is killed at any moment, and the server with everybody: one version serves,
//! complete, and nothing is left of any other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use espd::embedded::{EmbeddedPostgres, Options, StopMode};
use fastrand::Rng;
use sqlx::PgConnection;

use super::*;

/// How many kills there are in a long campaign, and of these how many restarts of the server.
const LONG: usize = 330;

/// Each so many kills, the server is restarted at once instead.
const RESTART_EACH: usize = 10;

const EVENTS: i64 = 300;

const COMMANDS: [&[&str]; 6] = [
    &["rebuild", "orders", "--yes", "--go-live", "swap"],
    &["verify", "orders"],
    &["rebuild", "orders", "--yes"],
    &["rollback", "orders", "--yes"],
    &["rebuild", "orders", "--dry-run"],
    &["rebuild", "orders", "--yes", "--go-live", "swap"],
];

/// What is waited for before the kill; without a phase, any time from the start on.
const PHASES: [Option<&str>; 6] =
    [None, Some("replaying"), Some("going_live"), Some("comparing"), Some("going_live"), None];

/// The longest time from the start, or from the phase on, to the kill.
const LONGEST: (Duration, Duration) = (Duration::from_millis(1_500), Duration::from_millis(150));

#[tokio::test]
async fn a_few_kills_at_any_moment_leave_one_complete_version_and_nothing_behind() {
    Campaign::run(8, 1).await;
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn hundreds_of_kills_leave_one_complete_version_and_nothing_behind_many_minutes_long() {
    Campaign::run(LONG, 2).await;
}

struct Campaign {
    fixture: Fixture,
    server: Option<EmbeddedPostgres>,
    daemon: Option<Program>,
    version: i32,
    rng: Rng,
    /// What was going on when somebody was killed.
    met: BTreeMap<String, usize>,
}

impl Campaign {
    async fn run(kills: usize, seed: u64) {
        let mut campaign = Self::begin(seed).await;
        let reader = Reader::start(campaign.fixture.db.url.clone());
        for number in 0..kills {
            append(&campaign.fixture.db.pool, 1).await;
            if number % RESTART_EACH == RESTART_EACH - 1 {
                campaign.crash_server(number).await;
            } else if number % 2 == 0 {
                campaign.kill_operator(number).await;
            } else {
                campaign.kill_daemon(number).await;
            }
            campaign.is_served(number).await;
        }
        reader.stop().await;
        println!("{kills} kills, met: {:#?}", campaign.met);
        campaign.end().await;
    }

    async fn begin(seed: u64) -> Self {
        // What was committed has to be there after a crash.
        let server = EmbeddedPostgres::start_temporary(Options::default()).await.unwrap();
        let db = support::database_on(&server).await;
        let installation = Installation::new(&db.url, "[runner]\npoll_interval_max = '50ms'\n");
        let fixture = Fixture { db, installation };
        let mut campaign = Self {
            fixture,
            server: Some(server),
            daemon: None,
            version: 1,
            rng: Rng::with_seed(seed),
            met: BTreeMap::new(),
        };
        campaign.declare();
        append(&campaign.fixture.db.pool, EVENTS).await;
        campaign.daemon = Some(campaign.fixture.installation.start_daemon());
        reaches(&campaign.fixture.db.pool, "orders", EVENTS).await;
        campaign
    }

    /// Each event takes a millisecond, so that there is something to break off.
    fn declare(&self) {
        let (columns, handler) = if self.version % 2 == 0 { WIDER } else { FIRST };
        let handler = format!("perform pg_sleep(0.001); {handler}");
        let text = declaration(self.version, columns, &handler);
        let text = text.replace("[projector.tables]", "approve = 'always'\n[projector.tables]");
        self.fixture.installation.declare("orders", &text);
    }

    /// Kills a command of an operator while the daemon goes on.
    async fn kill_operator(&mut self, number: usize) {
        let words = COMMANDS[number / 2 % COMMANDS.len()];
        let command = self.fixture.installation.espctl_command(words);
        let mut command = Program::start(command);
        self.wait_for_moment(number).await;
        self.note("espctl").await;
        command.signal(Signal::SIGKILL);
        command.ended().await;
        self.is_left_alone("espctl%").await;
    }

    /// Kills the daemon while it builds a raised version, and starts it again.
    async fn kill_daemon(&mut self, number: usize) {
        self.version += 1;
        self.declare();
        let mut daemon = self.daemon.take().unwrap();
        daemon.signal(Signal::SIGHUP);
        self.wait_for_moment(number).await;
        self.note("daemon").await;
        daemon.kill().await;
        self.is_left_alone("espd: rebuild%").await;
        self.daemon = Some(self.fixture.installation.start_daemon());
    }

    /// Has the server crash, with everybody at work.
    async fn crash_server(&mut self, number: usize) {
        let words = COMMANDS[number / RESTART_EACH % COMMANDS.len()];
        let mut command = Program::start(self.fixture.installation.espctl_command(words));
        self.wait_for_moment(number / RESTART_EACH).await;
        self.note("server").await;
        let server = self.server.take().unwrap();
        self.server = Some(server.restart(StopMode::Immediate).await.unwrap());
        command.ended().await;
    }

    async fn wait_for_moment(&mut self, number: usize) {
        let longest = match PHASES[number / 2 % PHASES.len()] {
            None => LONGEST.0,
            Some(phase) => {
                let query = format!("select count(*) > 0 from espd.build_progress where phase = '{phase}'");
                let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
                // It may be over already, or never come.
                while self.fixture.fact(&query).await == "false" && tokio::time::Instant::now() < deadline {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                LONGEST.1
            }
        };
        tokio::time::sleep(longest.mul_f64(self.rng.f64())).await;
    }

    /// Notes which statements are run for versions just now.
    async fn note(&mut self, victim: &str) {
        let query = "select coalesce((select string_agg(phase, ' ') from espd.build_progress), 'no build') || ': ' ||
              coalesce(string_agg(distinct substring(query from '^\\s*-- (\\w+)'), ' ' order by substring(query from '^\\s*-- (\\w+)')), 'nothing')
            from pg_stat_activity
            where datname = current_database() and (application_name like 'espctl%' or application_name like 'espd: re%') and state <> 'idle'";
        let met = self.fixture.fact(query).await;
        *self.met.entry(format!("{victim}: {met}")).or_default() += 1;
    }

    /// Waits until the sessions of whoever was killed have ended.
    async fn is_left_alone(&self, sessions: &str) {
        let query = format!(
            "select count(*) from pg_stat_activity where datname = current_database() and application_name like '{sessions}'"
        );
        eventually("the sessions end", async || (self.fixture.fact(&query).await == "0").then_some(())).await;
    }

    /// Requires that one version serves, with the rows of all events that it has handled.
    async fn is_served(&self, number: usize) {
        let serving = "select count(*) from espd.trackers where name = 'orders'";
        let served = eventually("the server answers", async || {
            sqlx::query_scalar::<_, i64>(serving).fetch_one(&self.fixture.db.pool).await.ok()
        });
        assert_eq!(served.await, 1, "after kill {number}");
        let complete = "select (select count(*) from orders)
            = (select count(*) from espd.events where id <= (select position from espd.trackers where name = 'orders'))";
        assert_eq!(self.fixture.fact(complete).await, "true", "after kill {number}");
    }

    /// Has the version that serves be the declared one, so that nobody builds another.
    async fn declare_what_serves(&mut self) {
        // What operators have left.
        self.fixture.espctl(&["rebuild", "abort", "orders"]).await;
        self.daemon.take().unwrap().stop().await;
        self.is_left_alone("espd: rebuild%").await;
        let serving = self.fixture.fact("select version from espd.trackers where name = 'orders'").await;
        self.version = serving.parse().unwrap();
        self.declare();
        self.daemon = Some(self.fixture.installation.start_daemon());
        let built = "select (select count(*) from espd.build_progress) + (select count(*) from espd.trackers where name = 'orders$next')";
        let is_over = async || (self.fixture.fact(built).await == "0").then_some(());
        eventually("the daemon gives up what it has built", is_over).await;
    }

    /// Lets the daemon finish, and looks at what is left.
    async fn end(mut self) {
        self.declare_what_serves().await;
        let fixture = &self.fixture;
        let head = append(&fixture.db.pool, 1).await;
        reaches(&fixture.db.pool, "orders", head).await;
        let rows = "select count(*) = (select count(*) from espd.events) and bool_and(n = id % 3) and min(id) = 1 from orders";
        assert_eq!(fixture.fact(rows).await, "true");
        let beside = fixture.beside().await;
        let (trackers, schemas) = beside.split_once('|').unwrap();
        assert_eq!(trackers.replace("orders$", "public_orders_v"), schemas, "{beside}");
        assert!(!beside.contains("next") && !beside.contains("check") && !beside.contains("dry"), "{beside}");
        fixture.espctl(&["rebuild", "drop", "orders", "--yes"]).await.printed();
        assert_eq!(fixture.beside().await, "|");
        let functions = "select coalesce(string_agg(proname, ' '), '') from pg_proc
            where pronamespace = 'espd'::regnamespace and strpos(proname, '$') > 0";
        assert_eq!(fixture.fact(functions).await, "");
        let orphans = "select (select count(*) from espd.declarations where strpos(processor, '$') > 0)
            + (select count(*) from espd.projection_tables where strpos(processor, '$') > 0)
            + (select count(*) from espd.dead_letters)";
        assert_eq!(fixture.fact(orphans).await, "0");
        self.daemon.take().unwrap().stop().await;
        self.fixture.db.pool.close().await;
        self.server.take().unwrap().stop().await;
    }
}

/// An application that reads all the time.
struct Reader {
    task: tokio::task::JoinHandle<()>,
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
}

impl Reader {
    fn start(url: String) -> Self {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let task = tokio::spawn(read(url, Arc::clone(&stop), Arc::clone(&answers)));
        Self { task, stop, answers }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        println!("a reader has got {} answers", self.answers.load(Ordering::Relaxed));
    }
}

/// No answer may have fewer rows than the one before, whatever happens.
async fn read(url: String, stop: Arc<AtomicBool>, answers: Arc<AtomicUsize>) {
    let mut most = EVENTS;
    while !stop.load(Ordering::Relaxed) {
        // A server that is down will be up again.
        let Ok(mut connection) = PgConnection::connect(&url).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            match sqlx::query_scalar::<_, i64>("select count(*) from orders").fetch_one(&mut connection).await
            {
                Ok(rows) => {
                    assert!(rows >= most, "{most} rows have become {rows}");
                    most = rows;
                    answers.fetch_add(1, Ordering::Relaxed);
                }
                Err(sqlx::Error::Database(error))
                    if !error.code().is_some_and(|code| code.starts_with("57")) =>
                {
                    panic!("a reader has met {error}");
                }
                Err(_) => break,
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}
