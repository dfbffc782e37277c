//! Finds the handler of a command by its name.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use serde::de::DeserializeOwned;
use validator::Validate;

use super::envelope::Message;
use super::handling::Desk;
use super::log::CommandLog;
use super::middleware::{After, Before, Call, Incoming, Middleware, Next};
use super::{Command, CommandError, Envelope, Input, Outcome, input};
use crate::aggregate::Repository;
use crate::store::EventStore;

/// The commands of an application, by their names, and what is done around each.
///
/// It is made once and shared, in an `Arc` or by reference. How to use it is in the documentation of the [module](super).
pub struct Commands<S> {
    desk: Desk<S>,
    routes: BTreeMap<String, Arc<dyn Route<S>>>,
}

impl<S: EventStore + 'static> Commands<S> {
    /// No command yet: what decides is loaded from this repository.
    pub fn new(repository: Repository<S>) -> Self {
        Self { desk: Desk { repository, log: None, middleware: Vec::new() }, routes: BTreeMap::new() }
    }

    /// With a command, which its aggregate decides about.
    ///
    /// # Panics
    /// There is a command of this name.
    #[must_use]
    pub fn register<C: Command>(self) -> Self {
        self.route(C::NAME, Arc::new(OfAggregate::<C>(PhantomData)))
    }

    /// With several commands: `register_all::<(LendBook, ReturnBook)>()`.
    ///
    /// # Panics
    /// There is a command of one of the names.
    #[must_use]
    pub fn register_all<Set: CommandSet>(self) -> Self {
        Set::register(self)
    }

    /// With one or more commands that a function of yours handles: those that concern several aggregates, for example, by a
    /// [unit of work](Repository::unit_of_work), or none. It reads the fields and says what has become of them. What [`Self::recorded_by`]
    /// says does not concern it, and middleware is asked for [`Middleware::around`] only.
    ///
    /// # Panics
    /// There is a command of one of the names.
    #[must_use]
    pub fn handle<F>(self, names: impl IntoIterator<Item = impl Into<String>>, handler: F) -> Self
    where
        F: Fn(Received<S>) -> BoxFuture<'static, Outcome> + Clone + Send + Sync + 'static,
        S: Clone,
    {
        let route: Arc<dyn Route<S>> = Arc::new(OfFunction(handler));
        names.into_iter().fold(self, |commands, name| commands.route(&name.into(), Arc::clone(&route)))
    }

    /// With something that is done around each command. The one that is added first is the outermost.
    #[must_use]
    pub fn middleware(mut self, middleware: impl Middleware) -> Self {
        self.desk.middleware.push(Arc::new(middleware));
        self
    }

    /// With a closure that looks at each command that is read and valid, before it is handled; an outcome that it returns is the answer.
    #[must_use]
    pub fn before(
        self,
        check: impl Fn(&Incoming<'_>) -> Result<(), Outcome> + Send + Sync + 'static,
    ) -> Self {
        self.middleware(Before(check))
    }

    /// With a closure that sees what has become of each command, and may change it.
    #[must_use]
    pub fn after(self, see: impl Fn(&Call, &mut Outcome) + Send + Sync + 'static) -> Self {
        self.middleware(After(see))
    }

    /// With a record of each command that is carried out or refused. Then a command with an id is answered as it was the first time also where it
    /// led to no events, or was refused. The events of recorded commands are appended to the store of the repository, with its codec and hooks.
    ///
    /// # Panics
    /// Nothing can be recorded beside the events of the repository's store, because espd only reads it.
    #[must_use]
    pub fn recorded_by(mut self, log: impl CommandLog) -> Self {
        self.desk.log = Some(Arc::new(log.beside(self.desk.repository.store())));
        self
    }

    /// The aggregates that the commands are for.
    pub fn repository(&self) -> &Repository<S> {
        &self.desk.repository
    }

    /// The names of all commands, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.routes.keys().map(String::as_str)
    }

    /// Carries out a command. It is validated, and need not be registered.
    pub async fn execute<C: Command>(&self, command: C, envelope: Envelope) -> Outcome {
        self.around(C::NAME, envelope, move |call| {
            Box::pin(async move {
                match input::validate(&command) {
                    Ok(()) => self.desk.handle(command, call.envelope).await,
                    Err(errors) => Outcome::invalid(errors),
                }
            })
        })
        .await
    }

    /// Carries out the command of this name, with the fields of a JSON object.
    pub async fn execute_json(&self, name: &str, json: impl AsRef<[u8]>, envelope: Envelope) -> Outcome {
        self.execute_input(name, Input::json(json), envelope).await
    }

    /// Carries out the command of this name, with the fields of a form, as [`Input::form`] understands them.
    pub async fn execute_form(
        &self,
        name: &str,
        fields: impl IntoIterator<Item = (impl AsRef<str>, impl Into<String>)>,
        envelope: Envelope,
    ) -> Outcome {
        self.execute_input(name, Input::form(fields), envelope).await
    }

    /// Carries out the command of this name, with fields from anywhere.
    pub async fn execute_input(&self, name: &str, input: impl Into<Fields>, envelope: Envelope) -> Outcome {
        let input = input.into().0;
        self.around(name, envelope, move |call| Box::pin(self.dispatch(call, input))).await
    }

    /// Carries out a command that names itself.
    pub async fn execute_message(&self, message: Message) -> Outcome {
        self.execute_input(&message.name, Input::value(message.body), message.envelope).await
    }

    async fn around<'c>(
        &'c self,
        name: &str,
        envelope: Envelope,
        last: impl FnOnce(Call) -> BoxFuture<'c, Outcome> + Send + 'c,
    ) -> Outcome {
        let next = Next::new(&self.desk.middleware, Box::new(last));
        let outcome = next.run(Call { name: name.to_owned(), envelope }).await;
        match &outcome {
            Outcome::Failed(problem) => {
                tracing::error!(command = name, error = problem.cause, "a command failed")
            }
            Outcome::Unavailable(problem) => {
                tracing::warn!(
                    command = name,
                    error = problem.cause,
                    "a command could not be carried out for now"
                );
            }
            other => tracing::debug!(command = name, outcome = other.label(), "command"),
        }
        outcome
    }

    async fn dispatch(&self, call: Call, input: Result<Input, CommandError>) -> Outcome {
        let Some(route) = self.routes.get(&call.name) else {
            return Outcome::UnknownCommand { name: call.name };
        };
        match input {
            Ok(input) => route.run(&self.desk, call, input).await,
            Err(error) => Outcome::invalid([error]),
        }
    }

    fn route(mut self, name: &str, route: Arc<dyn Route<S>>) -> Self {
        let earlier = self.routes.insert(name.to_owned(), route);
        assert!(earlier.is_none(), "two commands are called {name}");
        self
    }
}

impl<S> fmt::Debug for Commands<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Commands").field("names", &self.routes.keys()).finish_non_exhaustive()
    }
}

/// Fields, or why there are none.
pub struct Fields(Result<Input, CommandError>);

impl From<Input> for Fields {
    fn from(input: Input) -> Self {
        Self(Ok(input))
    }
}

impl From<Result<Input, CommandError>> for Fields {
    fn from(input: Result<Input, CommandError>) -> Self {
        Self(input)
    }
}

/// A command for a handler of one's own.
#[non_exhaustive]
pub struct Received<S> {
    /// What it is called.
    pub name: String,
    /// Its fields.
    pub input: Input,
    /// What it is sent with.
    pub envelope: Envelope,
    /// Where aggregates are loaded.
    pub repository: Repository<S>,
}

impl<S> Received<S> {
    /// Reads and validates the fields.
    ///
    /// # Errors
    /// What the command is to be answered with.
    pub fn read<T: DeserializeOwned + Validate>(&self) -> Result<T, Outcome> {
        self.input.clone().read().map_err(Outcome::invalid)
    }
}

impl<S> fmt::Debug for Received<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received")
            .field("name", &self.name)
            .field("input", &self.input)
            .finish_non_exhaustive()
    }
}

/// Reads a command and handles it.
#[async_trait]
trait Route<S>: Send + Sync {
    async fn run(&self, desk: &Desk<S>, call: Call, input: Input) -> Outcome;
}

/// An aggregate decides.
struct OfAggregate<C>(PhantomData<fn() -> C>);

#[async_trait]
impl<S: EventStore, C: Command> Route<S> for OfAggregate<C> {
    async fn run(&self, desk: &Desk<S>, call: Call, input: Input) -> Outcome {
        match input.read::<C>() {
            Ok(command) => desk.handle(command, call.envelope).await,
            Err(errors) => Outcome::invalid(errors),
        }
    }
}

/// A function of the application decides.
struct OfFunction<F>(F);

#[async_trait]
impl<S, F> Route<S> for OfFunction<F>
where
    S: EventStore + Clone,
    F: Fn(Received<S>) -> BoxFuture<'static, Outcome> + Send + Sync,
{
    async fn run(&self, desk: &Desk<S>, call: Call, input: Input) -> Outcome {
        let Call { name, envelope } = call;
        (self.0)(Received { name, input, envelope, repository: desk.repository.clone() }).await
    }
}

/// Several types of commands: a tuple of up to eight.
pub trait CommandSet {
    /// Registers each.
    fn register<S: EventStore + 'static>(commands: Commands<S>) -> Commands<S>;
}

macro_rules! sets {
    ($($first:ident $($rest:ident)*;)*) => {
        $(impl<$first: Command, $($rest: Command),*> CommandSet for ($first, $($rest,)*) {
            fn register<S: EventStore + 'static>(commands: Commands<S>) -> Commands<S> {
                commands.register::<$first>()$(.register::<$rest>())*
            }
        })*
    };
}

sets! {
    A;
    A B;
    A B C;
    A B C D;
    A B C D E;
    A B C D E F;
    A B C D E F G;
    A B C D E F G H;
}
