//! What waits in the databases beside events: scheduled events, and effects of handlers.

use crate::operations::databases::Databases;
use crate::own_name::in_own_name;
use crate::processing::effects::{Effects, PendingEffects};
use crate::store::scheduled::{ScheduledEvents, ScheduledSummary};

/// How long a scheduled event may be due before somebody has to look. A daemon needs milliseconds.
const OVERDUE_SECONDS: f64 = 30.0;

/// What waits, in numbers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Backlog {
    /// `None`: espd appends nothing to this store.
    pub(crate) scheduled: Option<ScheduledSummary>,
    /// Of processors that have any.
    pub(crate) effects: Vec<PendingEffects>,
}

impl Backlog {
    pub(crate) async fn read(databases: &Databases) -> Result<Self, sqlx::Error> {
        let scheduled = match ScheduledEvents::of(&databases.layout) {
            Some(events) => Some(events.summarise(&databases.events).await?),
            None => None,
        };
        let effects = Effects::new(databases.layout.schema()).summarise(&databases.projections).await?;
        Ok(Self { scheduled, effects })
    }

    /// What is wrong with scheduled events, and what to do about each.
    pub(crate) fn troubles(&self) -> impl Iterator<Item = (String, String)> {
        self.overdue().into_iter().chain(self.refused())
    }

    /// What is wrong where scheduled events are due and the event store refuses them, and what to do; `None`: all is well.
    fn refused(&self) -> Option<(String, String)> {
        let scheduled = self.scheduled.as_ref().filter(|one| one.refused > 0)?;
        let events = if scheduled.refused == 1 { "event that is due" } else { "events that are due" };
        let last =
            scheduled.refusal.as_ref().map_or_else(String::new, |error| format!(", lately because: {error}"));
        let problem = format!(
            "The event store refuses {} scheduled {events}{last}. The others are appended.",
            scheduled.refused
        );
        let remedy = "`espctl emissions list - --refused` shows them. They are tried again by themselves; `espctl emissions retry - --all` \
                      does so now, `espctl emissions cancel - ID` removes one for good.";
        Some((problem, in_own_name(remedy).into_owned()))
    }

    /// What is wrong where scheduled events are due and nobody appends them, and what to do; `None`: all is well.
    fn overdue(&self) -> Option<(String, String)> {
        let scheduled = self.scheduled.as_ref().filter(|one| one.overdue_seconds > OVERDUE_SECONDS)?;
        let (are, since) =
            (if scheduled.due == 1 { " is" } else { "s are" }, scheduled.overdue_seconds as i64);
        let problem = format!(
            "{} scheduled event{are} due and not in the event store, the first since {since} s. None is lost.",
            scheduled.due
        );
        let remedy = "Any daemon of this store appends them: start `espd run`, or see the log of the one that runs, which may be frozen; \
                      `espctl emissions list -` shows them.";
        Some((problem, in_own_name(remedy).into_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scheduled_events_that_nobody_appends_are_told_after_half_a_minute() {
        let backlog = |due, overdue_seconds| Backlog {
            scheduled: Some(ScheduledSummary {
                pending: 9,
                due,
                overdue_seconds,
                ..ScheduledSummary::default()
            }),
            effects: Vec::new(),
        };
        assert!(Backlog::default().overdue().is_none() && backlog(1, 29.0).overdue().is_none());
        let (problem, remedy) = backlog(2, 37.9).overdue().unwrap();
        assert!(
            problem.starts_with("2 scheduled events are due") && problem.contains("since 37 s"),
            "{problem}"
        );
        assert!(remedy.contains("`espctl emissions list -`"), "{remedy}");
    }
}
