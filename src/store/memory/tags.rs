//! Tags and keys of the store in memory, by the rules of `migrations/event_store/0010_tags.sql`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::event::{AggregateId, Appended, Event, KeyChange, NewEvent, Position, Tag, UniqueKey};
use crate::store::condition::Item;
use crate::store::{AppendCondition, AppendError, ConsistencyToken, ExcludingEvent, TagQuery};

/// Which events have which tags, and who has which key.
#[derive(Debug, Default)]
pub(super) struct Tags {
    /// The events of each tag. Its numbers are the places in the list, from 1.
    streams: HashMap<Tag, Vec<Position>>,
    tags: HashMap<Position, BTreeSet<Tag>>,
    owners: HashMap<UniqueKey, AggregateId>,
}

impl Tags {
    fn head(&self, tag: &Tag) -> i64 {
        self.streams.get(tag).map_or(0, |stream| i64::try_from(stream.len()).unwrap_or(i64::MAX))
    }

    /// How far the tags of a query are.
    pub(super) fn token(&self, query: &TagQuery) -> ConsistencyToken {
        ConsistencyToken(query.tags().map(|tag| (tag.clone(), self.head(tag))).collect())
    }

    /// The events that match a query and came after a token; `event` is the one at a position.
    pub(super) fn find<'e>(
        &self,
        query: &TagQuery,
        since: &ConsistencyToken,
        event: impl Fn(Position) -> Option<&'e Event>,
    ) -> BTreeSet<Position> {
        let matching =
            |item| self.matching(item, since, &event).map(|(_, found)| found.id).collect::<Vec<_>>();
        query.items().iter().flat_map(matching).collect()
    }

    /// The events of an item after a token, each with its number, by the tag of the item that has moved least.
    fn matching<'e>(
        &self,
        item: &Item,
        since: &ConsistencyToken,
        event: impl Fn(Position) -> Option<&'e Event>,
    ) -> impl Iterator<Item = (Tag, &'e Event)> {
        let least = item.tags.iter().min_by_key(|tag| self.head(tag) - since.number(tag));
        let stream = least.and_then(|tag| Some((tag, self.streams.get(tag)?)));
        let has_all = |id: Position| {
            self.tags.get(&id).is_some_and(|has| item.tags.iter().all(|tag| has.contains(tag)))
        };
        let found = stream.into_iter().flat_map(|(tag, stream)| {
            let from = usize::try_from(since.number(tag)).unwrap_or(usize::MAX).min(stream.len());
            let ids = stream[from..].iter().filter(|id| has_all(**id));
            ids.filter_map(|id| event(*id))
                .filter(|event| item.is_about(&event.event_type))
                .map(|event| (tag.clone(), event))
        });
        found.collect::<Vec<_>>().into_iter()
    }

    /// Refuses what the condition excludes.
    pub(super) fn check<'e>(
        &self,
        condition: &AppendCondition,
        event: impl Fn(Position) -> Option<&'e Event>,
    ) -> Result<(), AppendError> {
        let nothing = ConsistencyToken::default();
        let token = condition.token().unwrap_or(&nothing);
        for (number, item) in condition.query().items().iter().enumerate() {
            // The store is in an earlier state than the token.
            if let Some(tag) = item.tags.iter().find(|tag| self.head(tag) < token.number(tag)) {
                return Err(AppendError::ConditionFailed { item: number, tag: tag.clone(), came: None });
            }
            if let Some((tag, event)) = self.matching(item, token, &event).next() {
                let came = ExcludingEvent {
                    id: event.id,
                    event_type: event.event_type.clone(),
                    aggregate_id: Some(event.aggregate_id.clone()),
                };
                return Err(AppendError::ConditionFailed { item: number, tag, came: Some(came) });
            }
        }
        Ok(())
    }

    /// Refuses an append that is stored already, where an event comes with other tags than it has.
    pub(super) fn refuse_others(
        &self,
        events: &[NewEvent],
        appended: &[Appended],
    ) -> Result<(), AppendError> {
        let none = BTreeSet::new();
        let is_same = |event: &NewEvent, id: &Position| {
            let given: BTreeSet<Tag> = event.tags.iter().cloned().collect();
            given.is_empty() || *self.tags.get(id).unwrap_or(&none) == given
        };
        match events.iter().zip(appended).find(|(event, stored)| !is_same(event, &stored.id)) {
            Some((event, _)) => Err(AppendError::UuidReused { uuid: event.uuid }),
            None => Ok(()),
        }
    }

    /// Who has the keys after the append. The events count one after the other, and in one event releases come before claims. What an
    /// aggregate has before the append, and releases in it, is free from the beginning. A claim is checked although a later event
    /// releases the key.
    pub(super) fn change_keys(
        &self,
        events: &[NewEvent],
    ) -> Result<BTreeMap<UniqueKey, Option<AggregateId>>, AppendError> {
        let keys = events.iter().flat_map(|event| &event.keys).map(KeyChange::key);
        let mut owners: BTreeMap<UniqueKey, Option<AggregateId>> =
            keys.map(|key| (key.clone(), self.owners.get(key).cloned())).collect();
        events.iter().for_each(|event| release(&mut owners, event));
        for (index, event) in events.iter().enumerate() {
            release(&mut owners, event);
            claim(&mut owners, event).map_err(|(key, owner)| AppendError::KeyTaken { index, key, owner })?;
        }
        Ok(owners)
    }

    /// Stores the tags of an event.
    pub(super) fn add(&mut self, id: Position, tags: &[Tag]) {
        for tag in tags {
            if self.tags.entry(id).or_default().insert(tag.clone()) {
                self.streams.entry(tag.clone()).or_default().push(id);
            }
        }
    }

    /// Stores who has which keys.
    pub(super) fn set_owners(&mut self, owners: BTreeMap<UniqueKey, Option<AggregateId>>) {
        for (key, owner) in owners {
            match owner {
                Some(owner) => drop(self.owners.insert(key, owner)),
                None => drop(self.owners.remove(&key)),
            }
        }
    }
}

/// Frees the keys that an event releases, as far as its aggregate has them.
fn release(owners: &mut BTreeMap<UniqueKey, Option<AggregateId>>, event: &NewEvent) {
    for change in &event.keys {
        let KeyChange::Release(key) = change else { continue };
        if let Some(owner) = owners.get_mut(key).filter(|owner| owner.as_ref() == Some(&event.aggregate_id)) {
            *owner = None;
        }
    }
}

/// Gives the keys that an event claims to its aggregate; or says which of them another one has.
fn claim(
    owners: &mut BTreeMap<UniqueKey, Option<AggregateId>>,
    event: &NewEvent,
) -> Result<(), (UniqueKey, AggregateId)> {
    for change in &event.keys {
        let KeyChange::Claim(key) = change else { continue };
        match owners.insert(key.clone(), Some(event.aggregate_id.clone())).flatten() {
            Some(owner) if owner != event.aggregate_id => return Err((key.clone(), owner)),
            _ => {}
        }
    }
    Ok(())
}
