//! The connection that the calls of one caller share.

use sqlx::pool::PoolConnection;
use sqlx::{Connection as _, PgConnection, PgPool, Postgres};

use crate::store::{AppendError, Kept};

/// SQLSTATE of a statement that only a transaction can have.
const NO_TRANSACTION: &str = "25P01";

/// Refuses a connection on which no transaction is open. The driver knows of those that it has begun; of others the server is asked.
pub(super) async fn require_transaction(connection: &mut PgConnection) -> Result<(), AppendError> {
    if connection.is_in_transaction() {
        return Ok(());
    }
    let asking = sqlx::raw_sql("savepoint espd_append; release savepoint espd_append");
    match asking.execute(connection).await {
        Ok(_) => Ok(()),
        Err(error)
            if error.as_database_error().and_then(|it| it.code()).as_deref() == Some(NO_TRANSACTION) =>
        {
            let reason = "no transaction is open on the connection: begin one, or leave out `_in`".to_owned();
            Err(AppendError::Invalid { index: None, reason })
        }
        Err(error) => Err(error.into()),
    }
}

/// A connection of the pool: the one that is kept, or else another one, which is kept from then on.
pub(super) async fn acquire<'k>(
    pool: &PgPool,
    kept: &'k mut Kept,
) -> Result<&'k mut PgConnection, sqlx::Error> {
    if kept.get::<PoolConnection<Postgres>>().is_none() {
        kept.keep(pool.acquire().await?);
    }
    kept.get::<PoolConnection<Postgres>>()
        .map(|connection| &mut **connection)
        .ok_or(sqlx::Error::WorkerCrashed)
}
