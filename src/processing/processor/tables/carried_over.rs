//! What others have made on tables that are dropped, until it is made again on the new ones.

use sqlx::{AssertSqlSafe, PgConnection};
use tracing::warn;

use super::Tables;
use super::dependents::{self, Dropped, Replaced};
use crate::postgres::quote::quote_literal;
use crate::processing::processor::ProcessorError;

impl Tables<'_> {
    /// Makes again on the tables of [`Self::create`] what others had made on those that were dropped.
    pub(crate) async fn restore(
        &self,
        connection: &mut PgConnection,
        dropped: &Dropped,
    ) -> Result<Replaced, sqlx::Error> {
        let now = dependents::list(connection, &self.schema, &self.declaration.name).await?;
        dropped.restore(connection, &now).await
    }

    /// Keeps what others had made on the dropped tables until [`Self::create`]. With `is_required`, the processor then waits
    /// for an operator where something cannot be made again.
    pub(crate) async fn keep(
        &self,
        connection: &mut PgConnection,
        dropped: &Dropped,
        is_required: bool,
    ) -> Result<Replaced, sqlx::Error> {
        let (later, replaced) = dropped.divide();
        if later.is_empty() {
            return Ok(replaced);
        }
        let items: Vec<&str> = later.iter().map(|dependent| dependent.item.as_str()).collect();
        let statements: Vec<Option<&str>> =
            later.iter().map(|dependent| dependent.statement.as_deref()).collect();
        let statement = format!(
            "-- keep_for_later
             with former as (delete from {schema}.carried_over where processor = $1 returning place)
             insert into {schema}.carried_over (processor, place, item, statement, is_required)
             select $1, place + coalesce((select max(place) from former), 0), item, statement, $4
             from unnest($2::text[], $3::text[]) with ordinality as later (item, statement, place)",
            schema = self.schema
        );
        sqlx::query(AssertSqlSafe(statement))
            .persistent(false)
            .bind(&self.declaration.name)
            .bind(items)
            .bind(statements)
            .bind(is_required)
            .execute(connection)
            .await?;
        Ok(replaced)
    }

    /// Makes again what [`Self::keep`] has kept. `made`: what is there.
    pub(super) async fn carry_over_kept(
        &self,
        connection: &mut PgConnection,
        made: &[String],
    ) -> Result<(), ProcessorError> {
        let (schema, name) = (&self.schema, &self.declaration.name);
        let statement = format!(
            "-- take_kept
             with kept as (delete from {schema}.carried_over where processor = $1 returning *)
             select item, statement, is_required from kept order by place"
        );
        let kept: Vec<(String, String, bool)> = sqlx::query_as(AssertSqlSafe(statement))
            .persistent(false)
            .bind(name)
            .fetch_all(&mut *connection)
            .await?;
        for (item, statement, is_required) in kept {
            let is_right = ["grant ", "revoke ", "do "].iter().any(|word| statement.starts_with(word));
            if made.contains(&item) && !is_right {
                continue;
            }
            match dependents::attempt(connection, &statement).await? {
                Some(reason) if is_required => {
                    return Err(ProcessorError::Blocked(format!(
                        "{item} cannot be made again on the new tables of {name}: {reason}. Declare the tables so that it \
                         can, or give it up: delete from {schema}.carried_over where processor = {} and item = {}",
                        quote_literal(name),
                        quote_literal(&item)
                    )));
                }
                Some(reason) => {
                    warn!(processor = name, item, reason, "could not be carried over to the new tables")
                }
                None => {}
            }
        }
        Ok(())
    }
}
