//! What a decision depends on beyond one aggregate: which events it was made from, and the state that they were read in.
//!
//! `docs/consistency.md` says how to use it, and why a position cannot do what a token does.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::AppendError;
use crate::event::{AggregateId, Event, Position, Tag};

/// Which events a decision depends on, by tags and types: a list of alternatives, each of which is about events that have all of
/// its tags.
///
/// ```
/// # use espd::store::TagQuery;
/// // Enrolments of this course, and whatever happens to this student.
/// let query = TagQuery::tag("course:1").of_types(["StudentEnrolled"]).or(TagQuery::tag("student:2"));
/// // Events that have both tags.
/// let both = TagQuery::all_of(["course:1", "student:2"]);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TagQuery {
    items: Vec<Item>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Item {
    pub(super) tags: Vec<Tag>,
    /// None: all types.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) types: Option<Vec<String>>,
}

impl Item {
    pub(super) fn is_about(&self, event_type: &str) -> bool {
        self.types.as_ref().is_none_or(|types| types.iter().any(|one| one == event_type))
    }
}

impl TagQuery {
    /// The events with a tag.
    pub fn tag(tag: impl Into<Tag>) -> Self {
        Self::all_of([tag])
    }

    /// The events that have all of these tags. There must be one: a query about every event of the store would have all writers
    /// wait for each other, and a store refuses it.
    pub fn all_of(tags: impl IntoIterator<Item = impl Into<Tag>>) -> Self {
        let mut tags: Vec<Tag> = tags.into_iter().map(Into::into).collect();
        tags.sort();
        tags.dedup();
        Self { items: vec![Item { tags, types: None }] }
    }

    /// The same alternatives, each with these types only. There must be one; without a call, it is about events of any type.
    #[must_use]
    pub fn of_types(mut self, types: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let types: Vec<String> = types.into_iter().map(Into::into).collect();
        for item in &mut self.items {
            item.types = Some(types.clone());
        }
        self
    }

    /// What matches this query or the other one.
    #[must_use]
    pub fn or(mut self, other: Self) -> Self {
        self.items.extend(other.items);
        self
    }

    /// The append is refused if an event matches that came after the state in which the token was read.
    #[must_use]
    pub fn unchanged_since(self, token: ConsistencyToken) -> AppendCondition {
        AppendCondition { items: self, token: Some(token) }
    }

    /// The append is refused if any event matches.
    #[must_use]
    pub fn without_any(self) -> AppendCondition {
        AppendCondition { items: self, token: None }
    }

    /// The same query, where an alternative without types is about these.
    pub(crate) fn with_default_types(mut self, types: &[&str]) -> Self {
        for item in self.items.iter_mut().filter(|item| item.types.is_none()) {
            item.types = Some(types.iter().map(|&name| name.to_owned()).collect());
        }
        self
    }

    /// The same query, with each list of types changed.
    pub(super) fn with_types(mut self, change: impl Fn(&[String]) -> Vec<String>) -> Self {
        for types in self.items.iter_mut().filter_map(|item| item.types.as_mut()) {
            *types = change(types);
        }
        self
    }

    pub(super) fn items(&self) -> &[Item] {
        &self.items
    }

    pub(super) fn tags(&self) -> impl Iterator<Item = &Tag> {
        self.items.iter().flat_map(|item| &item.tags)
    }

    /// Why no store can answer it.
    pub(super) fn find_fault(&self) -> Option<String> {
        if self.items.iter().any(|item| item.tags.is_empty()) || self.items.is_empty() {
            let reason = "a query without a tag would be about everything in the store: name a tag";
            return Some(reason.to_owned());
        }
        if self.items.iter().any(|item| item.types.as_ref().is_some_and(Vec::is_empty)) {
            let reason =
                "a query with no type at all would find nothing: leave out the types for all of them";
            return Some(reason.to_owned());
        }
        let fault = self.tags().find_map(super::validity::find_fault_of_tag)?;
        Some(fault.to_owned())
    }
}

/// How far each tag was when events were read. It is opaque, and may be kept or sent elsewhere as JSON in the meantime.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ConsistencyToken(pub(super) BTreeMap<Tag, i64>);

impl ConsistencyToken {
    /// The number of the last event of a tag that was there.
    pub(super) fn number(&self, tag: &Tag) -> i64 {
        self.0.get(tag).copied().unwrap_or(0)
    }

    /// Whether an earlier read has seen events of a tag that are not in the state of this one: the store was restored to an earlier state, or
    /// has lost its end in a failover. What was read then has to be read anew.
    pub fn is_behind(&self, earlier: &Self) -> bool {
        self.0.iter().any(|(tag, number)| *number < earlier.number(tag))
    }

    /// Why no store can have returned it.
    pub(super) fn find_fault(&self) -> Option<String> {
        let is_none = self.0.values().any(|number| *number < 0);
        is_none.then(|| "the token is not one that read_tagged has returned".to_owned())
    }
}

/// What must not have happened, so that an append is stored. [`TagQuery::unchanged_since`] and [`TagQuery::without_any`] make it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppendCondition {
    items: TagQuery,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<ConsistencyToken>,
}

impl AppendCondition {
    /// Which events it excludes.
    pub fn query(&self) -> &TagQuery {
        &self.items
    }

    /// The state after which it excludes them; `None`: at any time.
    pub fn token(&self) -> Option<&ConsistencyToken> {
        self.token.as_ref()
    }

    /// The same condition on another query.
    pub(super) fn with_query(self, query: TagQuery) -> Self {
        Self { items: query, ..self }
    }

    pub(super) fn check(&self) -> Result<(), AppendError> {
        let fault_of_token = || self.token.as_ref().and_then(ConsistencyToken::find_fault);
        match self.items.find_fault().or_else(fault_of_token) {
            Some(reason) => Err(AppendError::Invalid { index: None, reason }),
            None => Ok(()),
        }
    }
}

/// What a decision is made from.
#[derive(Debug, Clone)]
pub struct TaggedEvents {
    /// The events that match, by ascending id.
    pub events: Vec<Event>,
    /// The state in which they were read, of all tags of the query.
    pub token: ConsistencyToken,
}

/// The event that a condition excludes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExcludingEvent {
    /// Its position.
    pub id: Position,
    /// What happened.
    pub event_type: String,
    /// Its aggregate; `None`: it was deleted since.
    pub aggregate_id: Option<AggregateId>,
}

/// What an unmet condition says.
pub(super) fn explain_unmet(item: usize, tag: &Tag, came: Option<&ExcludingEvent>) -> String {
    match came {
        Some(ExcludingEvent { id, event_type, .. }) => {
            format!(
                "event {id} ({event_type}) came on tag {tag}, which item {} of the condition excludes",
                item + 1
            )
        }
        None => format!("the token knows a state of tag {tag} that this store is not in: read again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_the_json_that_sql_takes() {
        let query = TagQuery::all_of(["b", "a", "b"]).of_types(["T"]).or(TagQuery::tag(Tag::of("course", 1)));
        let token = ConsistencyToken(BTreeMap::from([("a".into(), 7)]));
        let condition = query.unchanged_since(token);
        let text = serde_json::to_string(&condition).unwrap();
        let expected =
            r#"{"items":[{"tags":["a","b"],"types":["T"]},{"tags":["course:1"]}],"token":{"a":7}}"#;
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<AppendCondition>(&text).unwrap(), condition);
        let open = serde_json::to_string(&TagQuery::tag("a").without_any()).unwrap();
        assert_eq!(open, r#"{"items":[{"tags":["a"]}]}"#);
    }

    #[test]
    fn a_token_is_behind_one_that_knows_more_of_a_tag_that_both_know() {
        let token = |numbers: &[(&str, i64)]| {
            ConsistencyToken(numbers.iter().map(|(tag, number)| ((*tag).into(), *number)).collect())
        };
        let now = token(&[("a", 3), ("b", 0)]);
        assert!(now.is_behind(&token(&[("a", 4), ("b", 0)])) && now.is_behind(&token(&[("b", 1)])));
        assert!(!now.is_behind(&token(&[("a", 3), ("c", 9)])) && !now.is_behind(&now));
    }

    #[test]
    fn a_query_without_a_tag_is_refused() {
        assert!(TagQuery::all_of(Vec::<Tag>::new()).find_fault().is_some());
        assert!(TagQuery::tag("").find_fault().is_some());
        assert!(serde_json::from_str::<TagQuery>("[]").unwrap().find_fault().is_some());
        assert!(serde_json::from_str::<AppendCondition>(r#"{"items":[{"types":["T"]}]}"#).is_err());
        assert!(TagQuery::tag("a").or(TagQuery::tag("x".repeat(1001))).find_fault().is_some());
        assert_eq!(TagQuery::tag("x".repeat(1000)).find_fault(), None);
    }

    #[test]
    fn no_type_at_all_is_not_any_type() {
        assert!(TagQuery::tag("a").of_types(Vec::<String>::new()).find_fault().is_some());
        let read: TagQuery = serde_json::from_str(r#"[{"tags":["a"],"types":[]}]"#).unwrap();
        assert!(read.find_fault().is_some());
        assert_eq!(TagQuery::tag("a").of_types(["A"]).find_fault(), None);
    }
}
