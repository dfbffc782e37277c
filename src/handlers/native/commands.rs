//! Commands that a reactor gives to aggregates as part of handling an event.

use futures_util::TryStreamExt as _;
use uuid::Uuid;

use super::context::ReactorContext;
use super::error::HandlerError;
use crate::aggregate::{
    Aggregate, CommandId, Context, Decide, Executed, Id, Loaded, new_event, pause_before,
};
use crate::event::{Appended, Event, EventSet as _, ExpectedVersion, NewEvent, Version};
use crate::store::AppendError;

/// How often a decision is made anew when other writers were faster.
const CONFLICT_RETRIES: u32 = 10;

/// How many events of a command are looked up at a time.
const PAGE: u32 = 16;

impl ReactorContext<'_> {
    /// Has an aggregate decide about a command, exactly once for the event at hand: `context.execute(&account, &command).await?`. A
    /// refusal is a value, `Err` inside of `Ok`.
    ///
    /// What the command leads to is stored with the version that the decision has seen, and the decision is made anew, a few
    /// times, when another writer was faster. The events are in the conversation of the event at hand, which has caused them. They are
    /// in the transaction that moves the position if the event store is in the same database: then they go when the
    /// event fails after all. Otherwise they are stored at once, under uuids that follow from the reactor, the event and the
    /// number of the command; when the event is handled again, the command is not decided again, and answers with what it has
    /// led to then ([`Executed::is_repeated`]). So a reactor gives the same commands in the same order each time. What it emits
    /// for the event is stored after the events of its commands.
    ///
    /// While the event is handled again after a reset ([`Self::is_replaying`]), no command is carried out: the answer is what
    /// it has led to when the event was handled, if anything.
    ///
    /// # Errors
    /// [`Registration::executes`](super::Registration::executes) does not name the aggregate, the aggregate cannot be loaded, or the store
    /// does not keep the events.
    pub async fn execute<A, C>(
        &mut self,
        id: &Id<A>,
        command: &C,
    ) -> Result<Result<Executed<A>, <A as Decide<C>>::Refusal>, HandlerError>
    where
        A: Aggregate + Decide<C>,
        C: Sync,
        <A as Decide<C>>::Refusal: Send,
    {
        self.decide(id, |state: &A, context: &Context| state.decide(command, context)).await
    }

    /// As [`Self::execute`], for a decision that a closure makes.
    ///
    /// # Errors
    /// As for [`Self::execute`].
    pub async fn decide<A: Aggregate, R: Send>(
        &mut self,
        id: &Id<A>,
        decision: impl Fn(&A, &Context) -> Result<Vec<A::Event>, R> + Send + Sync,
    ) -> Result<Result<Executed<A>, R>, HandlerError> {
        let command_id = self.next_command_id()?;
        if let Some(executed) = self.find_executed(id, command_id).await? {
            return Ok(Ok(executed));
        }
        let mut loaded = self.load_at(id, Version::MAX).await?;
        if self.replaying {
            return Ok(Ok(Executed { is_repeated: true, ..executed(loaded, Vec::new(), Vec::new()) }));
        }
        self.begin_writing().await?;
        let mut retry = 0;
        loop {
            let now = self.transaction.now();
            let context = Context::new(id.get().clone(), loaded.version, now, CommandId::new(command_id));
            let events = match decision(&loaded.state, &context) {
                Ok(events) => events,
                Err(refusal) => return Ok(Err(refusal)),
            };
            let new_events = self.new_events(&loaded, &events, command_id)?;
            match self.transaction.append(self.emitter, new_events).await {
                Ok(appended) => return Ok(Ok(executed(loaded, events, appended))),
                Err(AppendError::Conflict { .. }) if retry < CONFLICT_RETRIES => retry += 1,
                Err(AppendError::Database(error)) => return Err(error.into()),
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(pause_before(retry, command_id.as_bytes()[0])).await;
            loaded = self.load_at(id, Version::MAX).await?;
        }
    }

    /// The identity of the next command for this event.
    fn next_command_id(&mut self) -> Result<Uuid, HandlerError> {
        if !self.commands.allowed {
            let advice = "add `.executes::<…>()` with the aggregate to it";
            return Err(format!("the registration does not allow commands: {advice}").into());
        }
        self.commands.given += 1;
        let name = format!("espd/{}/command/{}", self.emitter.reactor(), self.commands.given);
        Ok(Uuid::new_v5(&self.source.uuid, name.as_bytes()))
    }

    async fn load_at<A: Aggregate>(
        &mut self,
        id: &Id<A>,
        version: Version,
    ) -> Result<Loaded<A>, HandlerError> {
        let mut loaded = Loaded::absent(id.clone());
        let mut events = self.stream_aggregate(id.get(), version);
        while let Some(event) = events.try_next().await? {
            loaded.take_in(&event)?;
        }
        drop(events);
        Ok(loaded)
    }

    fn new_events<A: Aggregate>(
        &self,
        loaded: &Loaded<A>,
        events: &[A::Event],
        command_id: Uuid,
    ) -> Result<Vec<NewEvent>, HandlerError> {
        let mut new_events = Vec::with_capacity(events.len());
        for (ordinal, event) in (0..).zip(events) {
            let mut event = new_event::<A>(loaded.id.get(), event)?;
            event.uuid = CommandId::new(command_id).event_uuid(ordinal);
            if ordinal == 0 {
                event.expected_version = ExpectedVersion::Exact(loaded.version);
            }
            new_events.push(self.emitter.of_command(self.source, command_id, event)?);
        }
        Ok(new_events)
    }

    /// What the command has led to, if it was carried out before.
    async fn find_executed<A: Aggregate>(
        &mut self,
        id: &Id<A>,
        command_id: Uuid,
    ) -> Result<Option<Executed<A>>, HandlerError> {
        let stored = self.find_events(CommandId::new(command_id)).await?;
        let Some(last) = stored.last() else { return Ok(None) };
        let mut events = Vec::with_capacity(stored.len());
        for event in &stored {
            let known = A::Event::read(event)?.filter(|_| event.aggregate_id == *id.get());
            events.push(known.ok_or_else(|| self.was_another(event))?);
        }
        let loaded = self.load_at(id, last.version).await?;
        let place = |event: &Event| Appended { id: event.id, uuid: event.uuid, version: event.version };
        let appended = stored.iter().map(place).collect();
        let (version, state) = (loaded.version, loaded.state);
        Ok(Some(Executed { events, appended, version, state, is_repeated: true }))
    }

    async fn find_events(&mut self, command_id: CommandId) -> Result<Vec<Event>, HandlerError> {
        let mut found = Vec::new();
        loop {
            let from = found.len() as u32;
            let uuids: Vec<Uuid> = (from..from + PAGE).map(|n| command_id.event_uuid(n)).collect();
            let page = self.transaction.read_uuids(&uuids).await?;
            let is_last = page.len() < uuids.len();
            for event in page {
                found.push(self.codec.decode(event)?);
            }
            if is_last {
                return Ok(found);
            }
        }
    }

    fn was_another(&self, event: &Event) -> HandlerError {
        format!(
            "command {} for event {} was carried out before, on aggregate {}, and is another one now: a reactor has to give \
             the same commands in the same order each time",
            self.commands.given, self.event.id, event.aggregate_id
        )
        .into()
    }
}

/// The answer to a command, for a state that its events are still to be added to.
fn executed<A: Aggregate>(loaded: Loaded<A>, events: Vec<A::Event>, appended: Vec<Appended>) -> Executed<A> {
    let version = appended.last().map_or(loaded.version, |last| last.version);
    let state = loaded.state.after(&events);
    Executed { events, appended, version, state, is_repeated: false }
}
