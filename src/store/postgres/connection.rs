//! The connection that the calls of one caller share.

use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, PgPool, Postgres};

use crate::store::Kept;

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
