//! Operators remove and rename trackers with these statements. Each statement also records who did it.

use sqlx::{AssertSqlSafe, PgConnection};

use super::{ProcessorKey, Trackers};
use crate::postgres::quote::quote_literal;

impl Trackers {
    /// Removes a tracker with everything that refers to it. Returns whether there was one.
    pub(crate) async fn remove(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        operator: &str,
    ) -> Result<bool, sqlx::Error> {
        let statement = format!(
            "-- remove_processor
             with dead_letters as (delete from {schema}.dead_letters where {is_processor}),
               deliveries as (delete from {schema}.deliveries where {is_processor}),
               signs_of_life as (delete from {schema}.signs_of_life where {is_tracker}),
               emissions as (
                 delete from {schema}.emissions where reactor = {name} and partition = {partition}
               ),
               carried_over as (delete from {schema}.carried_over where processor = {name}),
               removed as (
                 delete from {schema}.trackers where {is_tracker} returning name, partition, position
               )
             insert into {schema}.operator_log (operator, action, processor, partition, from_position, to_position)
             select $1, 'drop', name, partition, position, position from removed",
            schema = self.schema,
            is_processor = key.is_processor(),
            is_tracker = key.is_tracker(),
            name = quote_literal(&key.name),
            partition = key.partition,
        );
        let query = sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(operator);
        Ok(query.execute(connection).await?.rows_affected() > 0)
    }

    /// Gives a tracker, and everything that refers to it, another name; ends every claim. Returns `false`, and does nothing,
    /// if the name is taken.
    pub(crate) async fn rename(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        new: &str,
        operator: &str,
    ) -> Result<bool, sqlx::Error> {
        let taken =
            format!("-- find_name\nselect exists (select from {}.trackers where name = $1)", self.schema);
        let taken: bool = sqlx::query_scalar(AssertSqlSafe(taken))
            .persistent(false)
            .bind(new)
            .fetch_one(&mut *connection)
            .await?;
        if taken {
            return Ok(false);
        }
        let renamed = |table: &str, column: &str, condition: &str| {
            format!("{table} as (update {}.{table} set {column} = $2 where {condition})", self.schema)
        };
        let (is_processor, name) = (key.is_processor(), quote_literal(&key.name));
        let of_name = format!("processor = {name}");
        let statement = format!(
            "-- rename_processor
             with {}, {}, {}, {}, {}, {},
               signs_of_life as (delete from {schema}.signs_of_life where {is_tracker}),
               renamed as (
                 update {schema}.trackers set name = $2, epoch = epoch + 1, owner = null, owner_label = null, lease_until = null
                 where {is_tracker}
                 returning partition, position
               )
             insert into {schema}.operator_log (operator, action, processor, partition, from_position, to_position)
             select $1, 'rename', $2, partition, position, position from renamed",
            renamed("dead_letters", "processor", &is_processor),
            renamed("deliveries", "processor", &is_processor),
            renamed("witnesses", "processor", &is_processor),
            renamed("declarations", "processor", &of_name),
            renamed("projection_tables", "processor", &of_name),
            renamed("carried_over", "processor", &of_name),
            schema = self.schema,
            is_tracker = key.is_tracker(),
        );
        let query = sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(operator).bind(new);
        Ok(query.execute(connection).await?.rows_affected() > 0)
    }
}
