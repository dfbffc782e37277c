//! Beginning transactions on connections of a pool.

use sqlx::{PgPool, Postgres, SqlSafeStr, Transaction};

/// Begins a transaction. Whoever stops waiting for it leaves nothing behind.
///
/// With the driver's own `begin` he may: if its future is dropped before the server has answered, the pool gets the connection back
/// within a transaction that nobody knows of. Statements of others on it seem to be done, and are not committed. So the transaction
/// is begun by a task of its own, which rolls it back if nobody waits any more.
pub(crate) async fn begin(
    pool: &PgPool,
    statement: impl SqlSafeStr + Send + 'static,
) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
    let pool = pool.clone();
    match tokio::spawn(async move { pool.begin_with(statement).await }).await {
        Ok(begun) => begun,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime ends.
        Err(_) => Err(sqlx::Error::WorkerCrashed),
    }
}
