//! Single rows of a table in two versions.

use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::pair::{Pair, row_text};
use super::{Columns, compare_alike};
use crate::postgres::quote::quote_identifier;
use crate::postgres::server_mark;

/// Reads single rows of a table in two versions, as they are compared.
pub(crate) struct RowReader(Pair);

impl RowReader {
    /// `old` and `new` are the schemas of the versions.
    pub(crate) async fn of(
        connection: &mut PgConnection,
        table: &str,
        schemas: (&str, &str),
    ) -> Result<Self, sqlx::Error> {
        Pair::of(connection, table, schemas, None).await.map(Self)
    }

    /// The row of this key in the old table.
    pub(crate) async fn read_old(
        &self,
        connection: &mut PgConnection,
        key: &Columns,
    ) -> Result<Option<String>, sqlx::Error> {
        self.read(connection, &self.0.old, key).await
    }

    /// The row of this key in the new table.
    pub(crate) async fn read_new(
        &self,
        connection: &mut PgConnection,
        key: &Columns,
    ) -> Result<Option<String>, sqlx::Error> {
        self.read(connection, &self.0.new, key).await
    }

    async fn read(
        &self,
        connection: &mut PgConnection,
        table: &str,
        key: &Columns,
    ) -> Result<Option<String>, sqlx::Error> {
        let mut transaction = connection.begin_with(server_mark::begin(None)).await?;
        compare_alike(&mut transaction).await?;
        let is_it = self.0.key.iter().map(|column| {
            // In a form that the index of the key serves.
            let column = quote_identifier(column);
            format!("t.{column} = (jsonb_populate_record(null::{table}, $1)).{column}")
        });
        let statement = format!(
            "-- read_row\nselect {} from {table} as t where {}",
            row_text("t", &self.0.columns),
            is_it.collect::<Vec<_>>().join(" and ")
        );
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).bind(Json(key));
        let row = query.fetch_optional(&mut *transaction).await?;
        transaction.rollback().await?;
        Ok(row)
    }
}
