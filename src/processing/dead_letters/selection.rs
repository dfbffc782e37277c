//! A selection says which dead letters an operator's command is about.

use std::time::Duration;

use crate::event::{AggregateId, Position};
use crate::postgres::literal::interval;
use crate::postgres::quote::quote_literal;

/// Selects the dead letters that meet every condition; `None` is no condition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    /// Dead letters of this processor; `None`: of every version that serves.
    pub processor: Option<String>,
    /// The dead letter of this event.
    pub event_id: Option<Position>,
    /// Dead letters of events after this position.
    pub after: Option<Position>,
    /// Dead letters of events of this type.
    pub event_type: Option<String>,
    /// Dead letters of events of this aggregate.
    pub aggregate_id: Option<AggregateId>,
    /// Dead letters whose failure has this text in its message, or is of this SQLSTATE; case does not matter.
    pub error: Option<String>,
    /// Dead letters that were set aside longer ago than this, by the server's clock.
    pub older_than: Option<Duration>,
}

impl Selection {
    /// Selects all dead letters of one processor.
    pub(crate) fn of(processor: &str) -> Self {
        Self { processor: Some(processor.to_owned()), ..Self::default() }
    }

    /// Selects one dead letter.
    pub(crate) fn one(processor: &str, event_id: Position) -> Self {
        Self { event_id: Some(event_id), ..Self::of(processor) }
    }

    /// Whether all dead letters of the processor are selected, or those of all processors.
    pub(crate) fn is_everything(&self) -> bool {
        *self == Self { processor: self.processor.clone(), ..Self::default() }
    }

    /// Returns the SQL condition on a row `d` of `dead_letters`.
    pub(super) fn condition(&self) -> String {
        let Self { processor, event_id, after, event_type, aggregate_id, error, older_than } = self;
        let of_processor = match processor {
            Some(name) => format!("d.processor = {}", quote_literal(name)),
            // Versions that are kept or being built have names that no processor is declared under.
            None => "strpos(d.processor, '$') = 0".to_owned(),
        };
        let conditions = [
            Some(of_processor),
            event_id.map(|id| format!("d.event_id = {id}")),
            after.map(|id| format!("d.event_id > {id}")),
            event_type.as_ref().map(|name| format!("d.event_type = {}", quote_literal(name))),
            aggregate_id.as_ref().map(|id| format!("d.aggregate_id = {}", quote_literal(&id.to_string()))),
            error.as_ref().map(|error| has_failed_with(error)),
            older_than.map(|age| format!("d.set_aside_at < clock_timestamp() - {}", interval(age))),
        ];
        let conditions: Vec<String> = conditions.into_iter().flatten().collect();
        conditions.join(" and ")
    }
}

fn has_failed_with(error: &str) -> String {
    let error = quote_literal(&error.to_lowercase());
    format!(
        "(position({error} in lower(d.failure->>'message')) > 0 or lower(d.failure->>'sqlstate') = {error})"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_conditions_select_and_absent_ones_do_not() {
        assert_eq!(Selection::default().condition(), "strpos(d.processor, '$') = 0");
        let one = Selection::one("it's", 7.into());
        assert_eq!(one.condition(), "d.processor = 'it''s' and d.event_id = 7");
        assert!(Selection::of("a").is_everything() && Selection::default().is_everything());
        assert!(!one.is_everything());
    }
}
