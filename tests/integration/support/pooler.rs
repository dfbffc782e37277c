//! A real pgbouncer in transaction mode, where the machine has one.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::unistd::User;
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
    _folder: TempDir,
}

impl Pooler {
    /// Starts it, with two connections per database to the server. `None`: there is no pgbouncer here, which is said.
    pub async fn start(db: &Database) -> Option<Self> {
        let places = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/usr/local/bin/pgbouncer"];
        let Some(binary) = places.into_iter().find(|place| Path::new(place).exists()) else {
            eprintln!("LEFT OUT: this machine has no pgbouncer (apt-get install pgbouncer)");
            return None;
        };
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let (role, place) = db.url.strip_prefix("postgres://").unwrap().split_once('@').unwrap();
        let (host, socket) = place.split_once("?host=").unwrap();
        let server_port = host.split_once(':').map_or("5432", |(_, rest)| rest.split('/').next().unwrap());
        let file = folder.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host={} port={server_port} user={role}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = transaction\ndefault_pool_size = 2\nserver_round_robin = 1\n\
             ignore_startup_parameters = extra_float_digits\n",
            socket.replace("%2F", "/")
        );
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(binary);
        command.arg("-q").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // It refuses to be root.
        if let (true, Some(user)) = (nix::unistd::geteuid().is_root(), User::from_name("postgres").unwrap()) {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        let pooler = Self { process: command.spawn().unwrap(), port, _folder: folder };
        eventually("the pooler", async || std::net::TcpStream::connect(("127.0.0.1", port)).ok()).await;
        Some(pooler)
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

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
