//! Which events a version has set aside that the serving one has not: its rows lack them, and may lack later events of their
//! aggregates.

use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::event::Position;
use crate::postgres::row::from_row;
use crate::processing::tracker::ProcessorKey;

/// How many of them are shown.
const EXAMPLES_MAX: i64 = 10;

/// Events that would be dead letters, and are none of the version that serves. The field names are an interface: `--json` prints them.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct SetAside {
    /// How many.
    pub(crate) number: i64,
    /// How many of each type could not be handled. The others wait behind one of these.
    pub(crate) failed: Vec<(String, i64)>,
    /// Some of those that could not be handled.
    pub(crate) examples: Vec<SetAsideEvent>,
}

/// An event that could not be handled.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct SetAsideEvent {
    pub(crate) event_id: Position,
    pub(crate) event_type: String,
    pub(crate) aggregate_id: String,
    /// Why.
    pub(crate) message: String,
}

from_row!(SetAsideEvent { event_id, event_type, aggregate_id, message });

/// What somebody has agreed to. Of a comparison of before it is nothing.
#[derive(Debug, Default, Deserialize)]
pub(super) struct AgreedSetAside {
    number: i64,
    failed: Vec<(String, i64)>,
}

impl SetAside {
    /// Whether there is one.
    pub(crate) fn is_none(&self) -> bool {
        self.number == 0
    }

    /// How many only wait behind others.
    pub(crate) fn waiting(&self) -> i64 {
        self.number - self.failed.iter().map(|(_, number)| number).sum::<i64>()
    }

    /// Which they are, in a few words.
    pub(crate) fn describe(&self) -> String {
        let mut kinds: Vec<String> =
            self.failed.iter().map(|(event_type, number)| format!("{number} of type {event_type}")).collect();
        if self.waiting() > 0 {
            kinds.push(format!("{} that wait behind others", self.waiting()));
        }
        let what = if self.number == 1 {
            "event would be a dead letter that is"
        } else {
            "events would be dead letters that are"
        };
        format!("{} {what} none now ({})", self.number, kinds.join(", "))
    }

    /// Whether who has agreed to `former` has agreed to this: no other type fails, and there are no more than events came in since.
    pub(super) fn is_covered_by(&self, former: &AgreedSetAside, since: i64) -> bool {
        let has_failed = |event_type: &String| former.failed.iter().any(|(agreed, _)| agreed == event_type);
        self.is_none()
            || former.number > 0
                && self.number <= former.number.saturating_add(since)
                && self.failed.iter().all(|(event_type, _)| has_failed(event_type))
    }
}

/// Finds the events that one version has set aside and the serving one has not. `schema`: the quoted schema of the trackers.
pub(crate) async fn find_set_aside(
    connection: &mut PgConnection,
    schema: &str,
    (live, beside): (&ProcessorKey, &ProcessorKey),
) -> Result<SetAside, sqlx::Error> {
    let coming = format!(
        "{schema}.dead_letters as d
         where d.processor = $1 and d.version = $2
           and not exists (select from {schema}.dead_letters as o
             where o.processor = $3 and o.version = $4 and o.event_id = d.event_id)"
    );
    let count = format!(
        "-- count_set_aside
         select d.event_type, d.reason = 'failed' as has_failed, count(*) from {coming} group by 1, 2 order by 3 desc, 1"
    );
    let query =
        sqlx::query_as(AssertSqlSafe(count)).persistent(false).bind(&beside.name).bind(beside.version);
    let counted: Vec<(String, bool, i64)> =
        query.bind(&live.name).bind(live.version).fetch_all(&mut *connection).await?;
    let number = counted.iter().map(|(.., number)| number).sum();
    if number == 0 {
        return Ok(SetAside::default());
    }
    let failed = counted.into_iter().filter(|(_, has_failed, _)| *has_failed);
    let failed = failed.map(|(event_type, _, number)| (event_type, number)).collect();
    let list = format!(
        "-- list_set_aside
         select d.event_id, d.event_type, d.aggregate_id::text, coalesce(d.failure ->> 'message', '') as message
         from {coming} and d.reason = 'failed' order by d.event_id limit {EXAMPLES_MAX}"
    );
    let query = sqlx::query_as(AssertSqlSafe(list)).persistent(false).bind(&beside.name).bind(beside.version);
    let examples = query.bind(&live.name).bind(live.version).fetch_all(connection).await?;
    Ok(SetAside { number, failed, examples })
}

/// How many events a version has set aside.
pub(crate) async fn count_dead_letters(
    connection: &mut PgConnection,
    schema: &str,
    key: &ProcessorKey,
) -> Result<i64, sqlx::Error> {
    let statement = format!(
        "-- count_dead_letters\nselect count(*) from {schema}.dead_letters where processor = $1 and version = $2"
    );
    let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
    query.bind(&key.name).bind(key.version).fetch_one(connection).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_aside(number: i64, failed: &[(&str, i64)]) -> SetAside {
        let failed = failed.iter().map(|(event_type, number)| ((*event_type).to_owned(), *number)).collect();
        SetAside { number, failed, examples: vec![] }
    }

    #[test]
    fn what_fails_and_what_waits_behind_it_are_told_apart() {
        assert_eq!(
            set_aside(7, &[("Named", 4), ("Moved", 1)]).describe(),
            "7 events would be dead letters that are none now (4 of type Named, 1 of type Moved, 2 that wait behind others)"
        );
        assert_eq!(
            set_aside(1, &[("Named", 1)]).describe(),
            "1 event would be a dead letter that is none now (1 of type Named)"
        );
    }

    #[test]
    fn who_has_agreed_to_dead_letters_has_agreed_to_those_that_events_since_explain() {
        let agreed = AgreedSetAside { number: 4, failed: vec![("Named".to_owned(), 4)] };
        let covers = |now: &SetAside, since: i64| now.is_covered_by(&agreed, since);
        assert!(covers(&set_aside(4, &[("Named", 4)]), 0) && covers(&set_aside(0, &[]), 0));
        assert!(covers(&set_aside(6, &[("Named", 4)]), 2), "two events wait behind them");
        assert!(!covers(&set_aside(7, &[("Named", 4)]), 2), "two events do not explain three");
        assert!(!covers(&set_aside(4, &[("Named", 3), ("Moved", 1)]), 9), "another type");
        let none = AgreedSetAside::default();
        assert!(
            !set_aside(1, &[("Named", 1)]).is_covered_by(&none, 9)
                && set_aside(0, &[]).is_covered_by(&none, 0)
        );
    }
}
