//! The events that the serving version has set aside: a verification leaves them aside as well, so that it says of the other events
//! whether the rows are what they say.

use sqlx::{AssertSqlSafe, PgConnection};

use super::Part;
use crate::event::Position;
use crate::processing::tracker::ProcessorKey;

/// Which they were when the verification began.
#[derive(Debug, Default)]
pub(crate) struct LeftAside(Vec<Position>);

impl LeftAside {
    /// Makes the dead letters of the serving version dead letters of the one that verifies, as far as they are of its part. `schema`: the
    /// quoted schema of the trackers.
    pub(crate) async fn carry_over(
        connection: &mut PgConnection,
        schema: &str,
        (live, beside): (&ProcessorKey, &ProcessorKey),
        part: Option<&Part>,
    ) -> Result<Self, sqlx::Error> {
        let statement = format!(
            "-- carry_over_dead_letters
             insert into {schema}.dead_letters (processor, version, partition, event_id, event_uuid, event_type, aggregate_id, reason,
               blocks, failure, attempts, replaying)
             select $1, $2, 0, d.event_id, d.event_uuid, d.event_type, d.aggregate_id, d.reason, d.blocks, d.failure, d.attempts, true
             from {schema}.dead_letters as d where d.processor = $3 and d.version = $4 and {}
             on conflict do nothing returning event_id",
            of_part(part)
        );
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
        let query = query.bind(&beside.name).bind(beside.version).bind(&live.name).bind(live.version);
        Ok(Self(query.fetch_all(connection).await?))
    }

    /// Whether the serving version has handled some of them since, or has set others aside: then rows differ that do not say anything.
    pub(crate) async fn has_changed(
        &self,
        connection: &mut PgConnection,
        schema: &str,
        (live, beside): (&ProcessorKey, &ProcessorKey),
        part: Option<&Part>,
    ) -> Result<bool, sqlx::Error> {
        let statement = format!(
            "-- have_dead_letters_changed
             select exists (
               select from unnest($1::bigint[]) as former (event_id) where not exists (
                 select from {schema}.dead_letters as d
                 where d.processor = $2 and d.version = $3 and d.event_id = former.event_id)
             ) or exists (
               select from {schema}.dead_letters as d where d.processor = $2 and d.version = $3 and {} and not exists (
                 select from {schema}.dead_letters as n
                 where n.processor = $4 and n.version = $5 and n.event_id = d.event_id)
             )",
            of_part(part)
        );
        let former: Vec<i64> = self.0.iter().map(|position| position.get()).collect();
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).bind(former);
        let query = query.bind(&live.name).bind(live.version).bind(&beside.name).bind(beside.version);
        query.fetch_one(connection).await
    }
}

/// The condition on a dead letter `d`, whose aggregate is a text.
fn of_part(part: Option<&Part>) -> String {
    part.map_or_else(|| "true".to_owned(), |part| part.aggregates.condition("d.aggregate_id", false))
}
