//! What the tests stand on: one server for the test process, one fresh database for each test.
//!
//! `cargo test` runs all tests as threads of one process, so they share the server. Under cargo-nextest each test is
//! a process and starts a server of its own: half a second each, for which nothing has to be agreed on between
//! processes. Statics are never dropped, so the server ends as after any other death of its owner: the kernel
//! and the janitor (see `espd::embedded`) stop it and remove its folder.

#![allow(dead_code, reason = "for all tests, and not every one exists yet")]

pub mod certificates;
pub mod facts;
pub mod pooler;
pub mod program;
pub mod projectors;
pub mod proxy;
pub mod receiver;

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{OnceLock, mpsc};
use std::thread;

use espd::embedded::{EmbeddedPostgres, Options};
use espd::schema::{migrate_event_store, migrate_processing};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio::sync::OnceCell;

/// The schema that the migrations were applied to.
pub const SCHEMA: &str = "espd";

/// What every test's database is a copy of.
const TEMPLATE: &str = "espd_test_template";

/// A database of one test. Its pool belongs to the test's own runtime, so it is never shared between tests. It goes when the
/// test's thread has ended: all of them at once would be more than ten gigabytes.
pub struct Database {
    pub pool: PgPool,
    pub url: String,
    pub name: String,
}

/// A fresh database on the server that all tests share, with both sets of migrations in [`SCHEMA`].
pub async fn database() -> Database {
    database_like(Some(TEMPLATE)).await
}

/// As [`database`], with nothing in it.
pub async fn empty_database() -> Database {
    database_like(None).await
}

async fn database_like(template: Option<&str>) -> Database {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let server = shared_server().await;
    let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    server.create_database(&name, template).await.unwrap();
    let url = server.url(&name);
    DATABASES_OF_THE_TEST.with_borrow_mut(|databases| databases.0.push(url.clone()));
    let pool = PgPoolOptions::new().max_connections(20).connect_lazy(&url).unwrap();
    Database { pool, url, name }
}

thread_local! {
    static DATABASES_OF_THE_TEST: RefCell<Databases> = const { RefCell::new(Databases(Vec::new())) };
}

/// The URLs of databases, which are dropped with it.
struct Databases(Vec<String>);

impl Drop for Databases {
    fn drop(&mut self) {
        for url in self.0.drain(..) {
            // One that outlives the thread that drops goes with its server.
            let _ = abandoned_databases().send(url);
        }
    }
}

/// Takes the URLs of databases that nobody needs any more. A thread that ends cannot wait for their removal, so another does.
fn abandoned_databases() -> &'static mpsc::Sender<String> {
    static ABANDONED: OnceLock<mpsc::Sender<String>> = OnceLock::new();
    ABANDONED.get_or_init(|| {
        let (abandoned, urls) = mpsc::channel::<String>();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            for url in urls {
                // A prepared transaction keeps its database, until the server goes.
                let _ = runtime.block_on(drop_database(&url));
            }
        });
        abandoned
    })
}

async fn drop_database(url: &str) -> sqlx::Result<()> {
    let options: PgConnectOptions = url.parse()?;
    let statement = format!(r#"drop database "{}" with (force)"#, options.get_database().unwrap());
    let mut connection = PgConnection::connect_with(&options.database("postgres")).await?;
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await?;
    connection.close().await
}

/// A server for one test alone, which may restart it; no database is on it yet.
pub async fn server() -> EmbeddedPostgres {
    server_with(&[]).await
}

/// The database `shop` on a server of one test, with both sets of migrations in [`SCHEMA`].
pub async fn database_on(server: &EmbeddedPostgres) -> Database {
    let name = "shop".to_owned();
    server.create_database(&name, None).await.unwrap();
    let url = server.url(&name);
    let pool = PgPoolOptions::new().max_connections(20).connect_lazy(&url).unwrap();
    migrate_event_store(&pool, SCHEMA).await.unwrap();
    migrate_processing(&pool, SCHEMA).await.unwrap();
    Database { pool, url, name }
}

/// As [`server`], with settings of `postgresql.conf`.
pub async fn server_with(settings: &[(&str, &str)]) -> EmbeddedPostgres {
    let mut options = options();
    options.settings.extend(settings.iter().map(|(name, value)| (name.to_string(), value.to_string())));
    EmbeddedPostgres::start_temporary(options).await.unwrap()
}

/// A crash of the machine ends the test too, so nothing has to reach the disk. Some tests prepare transactions. Nobody looks
/// for garbage in hundreds of databases that live for seconds.
fn options() -> Options {
    let settings = [("max_prepared_transactions", "10"), ("autovacuum_naptime", "1d")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    Options { durable: false, max_connections: 300, settings, ..Options::default() }
}

async fn shared_server() -> &'static EmbeddedPostgres {
    static SERVER: OnceCell<EmbeddedPostgres> = OnceCell::const_new();
    SERVER
        .get_or_init(|| async {
            let server = EmbeddedPostgres::start_temporary(options()).await.unwrap();
            prepare_template(&server).await;
            server
        })
        .await
}

async fn prepare_template(server: &EmbeddedPostgres) {
    server.create_database(TEMPLATE, None).await.unwrap();
    let pool = PgPool::connect(&server.url(TEMPLATE)).await.unwrap();
    migrate_event_store(&pool, SCHEMA).await.unwrap();
    migrate_processing(&pool, SCHEMA).await.unwrap();
    // A template that somebody is connected to cannot be copied.
    pool.close().await;
}
