//! The ledger of the memory store.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::ledger::{Commit, DeadLetter, Later, Ledger, Pending, Standing, Unit, WorkflowChanges};
use crate::event::{NewEvent, Position};
use crate::processing::effects::{Effect, EffectQueue};
use crate::processing::tracker::ProcessorKey;
use crate::processing::workflow::{Step, WorkflowInstance};
use crate::store::{AppendError, MemoryEventStore};

/// What processors on a memory store remember.
#[derive(Debug)]
pub(super) struct MemoryLedger {
    store: MemoryEventStore,
    remembered: Mutex<Remembered>,
}

#[derive(Debug, Default)]
struct Remembered {
    positions: HashMap<ProcessorKey, Position>,
    pending: Vec<Pending>,
    /// With the name of the processor, in order.
    effects: Vec<(String, Effect)>,
    dead_letters: Vec<(ProcessorKey, DeadLetter)>,
    /// By workflow and name.
    instances: HashMap<(String, String), WorkflowInstance>,
    /// By workflow, event and name.
    steps: HashMap<(String, Uuid, String), Box<RawValue>>,
    /// The last number that was given to an emission or an effect.
    last_id: i64,
}

impl Remembered {
    fn next_id(&mut self) -> i64 {
        self.last_id += 1;
        self.last_id
    }

    fn change_workflow(&mut self, workflow: &str, changes: WorkflowChanges) {
        for (instance, kept) in changes.instances {
            let key = (workflow.to_owned(), instance);
            match kept {
                Some(kept) => drop(self.instances.insert(key, kept)),
                None => drop(self.instances.remove(&key)),
            }
        }
        self.steps.retain(|(of, event, _), _| of != workflow || !changes.done.contains(event));
    }

    fn change(&mut self, later: Later, is_stored: impl Fn(&NewEvent) -> bool) {
        match later {
            Later::Cancel { reactor, key } => {
                self.pending.retain(|pending| !pending.has_key(&reactor, Some(&key)));
            }
            Later::Keep { event, .. } if is_stored(&event) => {}
            Later::Keep { reactor, event, key, due_at } => {
                let (uuid, key_text) = (event.uuid, key.as_deref());
                self.pending.retain(|pending| !pending.is_replaced_by(&reactor, uuid, key_text));
                if !self.pending.iter().any(|pending| pending.event.uuid == uuid) {
                    let id = self.next_id();
                    self.pending.push(Pending { id, reactor, event: *event, key, due_at });
                    self.pending.sort_by_key(|pending| (pending.due_at, pending.id));
                }
            }
        }
    }
}

impl MemoryLedger {
    pub(super) fn new(store: MemoryEventStore) -> Self {
        Self { store, remembered: Mutex::default() }
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Ledger for MemoryLedger {
    async fn register(&self, key: &ProcessorKey, start: Position) -> Result<(), sqlx::Error> {
        self.remembered().positions.entry(key.clone()).or_insert(start);
        Ok(())
    }

    async fn standing(&self, key: &ProcessorKey) -> Result<Standing, sqlx::Error> {
        let remembered = self.remembered();
        let own = remembered.dead_letters.iter().filter(|(of, letter)| of == key && letter.blocks);
        Ok(Standing {
            position: remembered.positions.get(key).copied(),
            parked: own.map(|(_, letter)| letter.event.aggregate_id.clone()).collect(),
        })
    }

    async fn open_unit(&self) -> Result<Box<dyn Unit + '_>, sqlx::Error> {
        Ok(Box::new(MemoryUnit(self)))
    }

    async fn pending(&self) -> Result<Vec<Pending>, sqlx::Error> {
        Ok(self.remembered().pending.clone())
    }

    async fn append_pending(&self, id: i64, event: NewEvent) -> Result<(), AppendError> {
        let mut remembered = self.remembered();
        let Some(place) = remembered.pending.iter().position(|pending| pending.id == id) else {
            return Ok(());
        };
        self.store.append_missing(&[event])?;
        remembered.pending.remove(place);
        Ok(())
    }

    fn effects<'l>(&'l self, processor: &'l str) -> Box<dyn EffectQueue + 'l> {
        Box::new(MemoryEffects { ledger: self, processor })
    }

    async fn load_instance(
        &self,
        workflow: &str,
        instance: &str,
    ) -> Result<Option<WorkflowInstance>, sqlx::Error> {
        let key = (workflow.to_owned(), instance.to_owned());
        Ok(self.remembered().instances.get(&key).cloned())
    }

    async fn find_step(&self, workflow: &str, step: Step<'_>) -> Result<Option<Box<RawValue>>, sqlx::Error> {
        Ok(self.remembered().steps.get(&step_key(workflow, step)).cloned())
    }

    async fn record_step(
        &self,
        workflow: &str,
        step: Step<'_>,
        result: &RawValue,
    ) -> Result<Box<RawValue>, sqlx::Error> {
        let mut remembered = self.remembered();
        let recorded = remembered.steps.entry(step_key(workflow, step));
        Ok(recorded.or_insert_with(|| result.to_owned()).clone())
    }

    async fn has_effects(&self, processor: &str) -> Result<bool, sqlx::Error> {
        Ok(self.remembered().effects.iter().any(|(of, _)| of == processor))
    }
}

fn step_key(workflow: &str, step: Step<'_>) -> (String, Uuid, String) {
    (workflow.to_owned(), step.event_uuid, step.name.to_owned())
}

/// Handlers write nothing in it, so there is nothing to undo before what they have emitted is stored.
struct MemoryUnit<'l>(&'l MemoryLedger);

#[async_trait]
impl Unit for MemoryUnit<'_> {
    async fn savepoint(&mut self) -> Result<(), sqlx::Error> {
        Ok(())
    }

    async fn rollback_to_savepoint(&mut self) -> Result<(), sqlx::Error> {
        Ok(())
    }

    async fn begin_event(&mut self) -> Result<(), sqlx::Error> {
        Ok(())
    }

    async fn undo_event(&mut self) -> Result<(), sqlx::Error> {
        Ok(())
    }

    /// It is stored at once: between this and the commit nothing can fail.
    async fn emit(&mut self, now: Vec<NewEvent>, later: Vec<Later>) -> Result<(), AppendError> {
        let store = &self.0.store;
        store.append_missing(&now)?;
        let mut remembered = self.0.remembered();
        for change in later {
            remembered.change(change, |event| store.is_stored(event.uuid));
        }
        Ok(())
    }

    async fn commit(self: Box<Self>, commit: Commit<'_>) -> Result<bool, sqlx::Error> {
        let mut remembered = self.0.remembered();
        let Commit { key, from, position, effects, dead_letters, workflow } = commit;
        if remembered.positions.get(key) != Some(&from) {
            return Ok(false);
        }
        remembered.positions.insert(key.clone(), position);
        remembered.dead_letters.extend(dead_letters.into_iter().map(|letter| (key.clone(), letter)));
        remembered.change_workflow(&key.name, workflow);
        for new in effects {
            let id = remembered.next_id();
            remembered.effects.push((key.name.clone(), new.into_effect(id)));
        }
        Ok(true)
    }
}

struct MemoryEffects<'l> {
    ledger: &'l MemoryLedger,
    processor: &'l str,
}

#[async_trait]
impl EffectQueue for MemoryEffects<'_> {
    async fn next(&mut self, done: Option<i64>) -> Result<Option<Effect>, sqlx::Error> {
        let mut remembered = self.ledger.remembered();
        remembered.effects.retain(|(_, effect)| Some(effect.id) != done);
        let next = remembered.effects.iter_mut().find(|(of, _)| of == self.processor);
        Ok(next.map(|(_, effect)| {
            effect.attempt += 1;
            effect.clone()
        }))
    }

    async fn remove(&mut self, id: i64) -> Result<(), sqlx::Error> {
        self.ledger.remembered().effects.retain(|(_, effect)| effect.id != id);
        Ok(())
    }
}
