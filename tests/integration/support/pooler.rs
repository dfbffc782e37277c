//! A real pgbouncer, in transaction mode if nothing else is asked for. Tests with one are ignored unless asked for.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::unistd::{Pid, User};
use sqlx::{Connection as _, PgConnection, Row as _};
use tempfile::TempDir;

use super::Database;
use super::facts::eventually;

/// A session of the server that a client of the pooler keeps to itself.
pub struct Occupied {
    pub pid: i32,
    client: PgConnection,
}

impl Occupied {
    /// Gives the session back.
    pub async fn free(mut self) {
        sqlx::raw_sql("rollback").execute(&mut self.client).await.unwrap();
        self.client.close().await.unwrap();
    }
}

/// A pgbouncer before the server of some databases. It ends with this value.
pub struct Pooler {
    process: Child,
    port: u16,
    folder: TempDir,
    settings: String,
}

/// What makes it a pooler that espd works through, as the documents have it.
const SETTINGS: &str = "pool_mode = transaction\ndefault_pool_size = 2\nserver_round_robin = 1\n\
                        ignore_startup_parameters = extra_float_digits\n";

/// The database that [`Pooler::alias_url`] leads to, whatever that is at the moment.
const ALIAS: &str = "shop";

impl Pooler {
    /// Starts it, with two connections per database to the server.
    pub async fn start(db: &Database) -> Self {
        Self::start_with(db, SETTINGS).await
    }

    /// As [`Self::start`], with other lines of its configuration.
    pub async fn start_with(db: &Database, settings: &str) -> Self {
        let places = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/usr/local/bin/pgbouncer"];
        let Some(binary) = places.into_iter().find(|place| Path::new(place).exists()) else {
            panic!("this machine has no pgbouncer (apt-get install pgbouncer)");
        };
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        configure(&folder, port, settings, db);
        let mut command = Command::new(binary);
        command.arg("-q").arg(folder.path().join("pgbouncer.ini"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // It refuses to be root.
        if let (true, Some(user)) = (nix::unistd::geteuid().is_root(), User::from_name("postgres").unwrap()) {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        let pooler = Self { process: command.spawn().unwrap(), port, folder, settings: settings.to_owned() };
        eventually("the pooler", async || std::net::TcpStream::connect(("127.0.0.1", port)).ok()).await;
        pooler
    }

    /// Leads the alias to another database, as after a failover. Clients keep their connections.
    pub fn repoint(&self, db: &Database) {
        configure(&self.folder, self.port, &self.settings, db);
        let pid = Pid::from_raw(self.process.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
    }

    /// The way to the database that the pooler was last pointed to.
    pub fn alias_url(&self) -> String {
        format!("postgres://anybody@127.0.0.1:{}/{ALIAS}?sslmode=disable", self.port)
    }

    /// The way to a database through the pooler.
    pub fn url(&self, db: &Database) -> String {
        format!("postgres://anybody@127.0.0.1:{}/{}?sslmode=disable", self.port, db.name)
    }

    /// Takes a session of the server, other than `not`, until the answer is freed: others get the session that is left.
    pub async fn occupy(&self, db: &Database, not: Option<i32>) -> Occupied {
        let first = self.begin(db).await;
        if Some(first.pid) != not {
            return first;
        }
        // While the first one holds the session that is not wanted, there is only the other one.
        let second = self.begin(db).await;
        first.free().await;
        second
    }

    async fn begin(&self, db: &Database) -> Occupied {
        let mut client = PgConnection::connect(&self.url(db)).await.unwrap();
        sqlx::raw_sql("begin").execute(&mut client).await.unwrap();
        let row = sqlx::raw_sql("select pg_backend_pid() as pid").fetch_one(&mut client).await.unwrap();
        Occupied { pid: row.get("pid"), client }
    }
}

fn configure(folder: &TempDir, port: u16, settings: &str, db: &Database) {
    let (login, place) = db.url.strip_prefix("postgres://").unwrap().split_once('@').unwrap();
    let (host, rest) = place.split_once("?host=").unwrap();
    let socket = rest.split('&').next().unwrap().replace("%2F", "/");
    let server_port = host.split_once(':').map_or("5432", |(_, rest)| rest.split('/').next().unwrap());
    let server = format!("host={socket} port={server_port} user={login}");
    let text = format!(
        "[databases]\n{ALIAS} = dbname={} {server}\n* = {server}\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n{settings}",
        db.name
    );
    std::fs::write(folder.path().join("pgbouncer.ini"), text).unwrap();
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
