//! Finds out whether the triggers of a synchronous projector have met every event: whoever disables or drops one inserts events that
//! nobody handles.
//!
//! The SQL functions of `migrations/processing/0040_unseen_events.sql` have the rule; batches ask them as well.

use sqlx::PgConnection;

use crate::postgres::literal::fetch_optional;
use crate::processing::tracker::ProcessorKey;
use crate::store::layout::Layout;

/// Why the triggers of a synchronous projector may not have met every event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnmetTriggers {
    /// One is not there.
    Missing,
    /// One does not run, at least in some sessions.
    Disabled,
    /// All are there, and were disabled or missing meanwhile.
    Changed,
    /// They came with a dump of another database, together with the rows. That is no reason, and it is recorded.
    Restored,
}

impl UnmetTriggers {
    /// Asks the database of the events, which has the tracker as well; `None`: they have met every event.
    pub(crate) async fn find(
        events: &mut PgConnection,
        layout: &Layout,
        key: &ProcessorKey,
    ) -> Result<Option<Self>, sqlx::Error> {
        let statement = format!(
            "-- find_unmet_triggers\nselect {}.find_unmet_triggers({})",
            layout.quoted_schema(),
            key.arguments()
        );
        let row: Option<(Option<String>,)> = fetch_optional(events, statement).await?;
        Ok(row.and_then(|(found,)| found).map(|found| match found.as_str() {
            "missing" => Self::Missing,
            "disabled" => Self::Disabled,
            "restored" => Self::Restored,
            _ => Self::Changed,
        }))
    }
}
