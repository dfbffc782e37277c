//! The server that the tests of one process share.

use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};
use tokio::sync::OnceCell;

use crate::embedded::{EmbeddedPostgres, Error, Options};
use crate::postgres::quote::quote_identifier;
use crate::schema::{migrate_event_store, migrate_processing};

/// What the databases of tests are copies of.
const TEMPLATE: &str = "espd_testing";

/// The schema of espd's tables, which is the default.
pub(super) const SCHEMA: &str = "espd";

/// Creates a database and returns its URL.
pub(super) async fn create_database() -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let server = shared().await?;
    let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    server.create_database(&name, Some(TEMPLATE)).await?;
    Ok(server.url(&name))
}

/// Removes a database, with whoever is connected to it.
pub(super) async fn drop_database(name: &str) -> Result<(), sqlx::Error> {
    let server = shared().await.map_err(sqlx::Error::Configuration)?;
    let mut connection = PgConnection::connect(&server.url("postgres")).await?;
    let statement = format!("-- drop_database\ndrop database {} with (force)", quote_identifier(name));
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await?;
    connection.close().await
}

/// The server. It is never dropped, because the last test is not known: it ends with the process, however that ends.
async fn shared() -> Result<&'static EmbeddedPostgres, Box<dyn std::error::Error + Send + Sync>> {
    static SERVER: OnceCell<EmbeddedPostgres> = OnceCell::const_new();
    SERVER.get_or_try_init(start).await
}

async fn start() -> Result<EmbeddedPostgres, Box<dyn std::error::Error + Send + Sync>> {
    // A crash of the machine ends the tests too, so nothing has to reach the disk.
    let options = Options { durable: false, max_connections: 300, ..Options::default() };
    let server = EmbeddedPostgres::start_temporary(options).await?;
    server.create_database(TEMPLATE, None).await?;
    let pool = PgPool::connect(&server.url(TEMPLATE)).await.map_err(Error::from)?;
    migrate_event_store(&pool, SCHEMA).await?;
    migrate_processing(&pool, SCHEMA).await?;
    // A template that somebody is connected to cannot be copied.
    pool.close().await;
    Ok(server)
}
