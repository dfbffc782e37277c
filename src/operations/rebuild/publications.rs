//! Publications that the tables of a projector are in. Who subscribes to one keeps the rows of the former version after an exchange:
//! the server sends new changes of the new table under the name of the former one, and nobody copies what was there before.

use sqlx::PgConnection;

use super::Listener;
use crate::operations::operator::{Operator, OperatorError};

impl Operator<'_> {
    /// What an exchange of the tables would need of those who subscribe to them; `None`: nothing is published.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn describe_published(&self, name: &str) -> Result<Option<String>, OperatorError> {
        let mut connection = self.databases.projections.acquire().await?;
        let tables = self.list_tables(&mut connection, name).await?;
        Ok(describe(&mut connection, &self.databases.scope.schema, &tables).await?)
    }
}

/// As [`Operator::describe_published`], of these tables of a schema.
pub(in crate::operations) async fn describe(
    connection: &mut PgConnection,
    schema: &str,
    tables: &[String],
) -> Result<Option<String>, sqlx::Error> {
    let statement = "-- list_publications_of_tables
        select string_agg(distinct pubname::text, ', '), string_agg(distinct tablename::text, ', ')
        from pg_catalog.pg_publication_tables where schemaname = $1 and tablename = any ($2)";
    let query = sqlx::query_as(statement).persistent(false).bind(schema).bind(tables);
    let (publications, published): (Option<String>, Option<String>) = query.fetch_one(connection).await?;
    Ok(publications.zip(published).map(|(publications, published)| {
        format!(
            "publication {publications} has {published}: if the tables change places (a swap or a rollback; a merge needs nothing), \
             subscribers keep the rows of the former version, without any error, until these are copied anew, which `refresh publication` \
             alone does not do: docs/rebuild.md has the steps (\"Subscribers of a publication\")"
        )
    }))
}

/// Says so before a version goes live.
pub(super) async fn tell(
    connection: &mut PgConnection,
    (schema, tables): (&str, &[String]),
    listener: Listener<'_>,
) -> Result<(), sqlx::Error> {
    if let Some(told) = describe(connection, schema, tables).await? {
        (listener.note)(&told);
    }
    Ok(())
}
