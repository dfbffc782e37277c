//! What is done around the handling of each command.

use std::any::Any;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::BoxFuture;

use super::{Envelope, Outcome};
use crate::event::AggregateId;

/// What is done around the handling of each command: who may send it, what is logged or measured of it.
///
/// ```
/// use std::time::Instant;
/// use espd::commands::{Call, CommandError, Incoming, Middleware, Next, Outcome};
/// use espd::prelude::*;
///
/// /// Refuses the commands of strangers, and tells how long the others take.
/// struct Gate;
///
/// #[async_trait]
/// impl Middleware for Gate {
///     async fn around(&self, call: Call, next: Next<'_>) -> Outcome {
///         let (name, began) = (call.name.clone(), Instant::now());
///         let outcome = next.run(call).await;
///         println!("{name}: {} after {:?}", outcome.label(), began.elapsed());
///         outcome
///     }
///
///     async fn check(&self, incoming: &Incoming<'_>) -> Result<(), Outcome> {
///         match incoming.envelope.metadata.get("user") {
///             Some(_) => Ok(()),
///             None => Err(Outcome::refused(CommandError::new("log_in", "log in first"), 401)),
///         }
///     }
/// }
/// ```
#[async_trait]
pub trait Middleware: Send + Sync + 'static {
    /// Goes on with `next.run(call)`, or answers by itself. The command is not read yet.
    async fn around(&self, call: Call, next: Next<'_>) -> Outcome {
        next.run(call).await
    }

    /// Looks at a command that is read and valid, before anything is looked up or decided.
    ///
    /// # Errors
    /// What the command is answered with instead.
    async fn check(&self, _: &Incoming<'_>) -> Result<(), Outcome> {
        Ok(())
    }
}

/// A command that has come in.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Call {
    /// What it is called; perhaps there is no such command.
    pub name: String,
    /// What it is sent with. What is changed here counts.
    pub envelope: Envelope,
}

/// A command that is read and valid.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Incoming<'c> {
    /// What it is called.
    pub name: &'c str,
    /// The aggregate that it is for.
    pub aggregate_id: &'c AggregateId,
    /// What it is sent with.
    pub envelope: &'c Envelope,
    pub(super) command: &'c (dyn Any + Send + Sync),
}

impl Incoming<'_> {
    /// The command, if it is of this type.
    pub fn command<C: 'static>(&self) -> Option<&C> {
        self.command.downcast_ref()
    }
}

/// What comes after a middleware: the next one, or the handling itself.
pub struct Next<'c> {
    rest: &'c [Arc<dyn Middleware>],
    last: Last<'c>,
}

/// The handling itself.
pub(super) type Last<'c> = Box<dyn FnOnce(Call) -> BoxFuture<'c, Outcome> + Send + 'c>;

impl<'c> Next<'c> {
    pub(super) fn new(all: &'c [Arc<dyn Middleware>], last: Last<'c>) -> Self {
        Self { rest: all, last }
    }

    /// Goes on.
    pub async fn run(self, call: Call) -> Outcome {
        match self.rest.split_first() {
            Some((first, rest)) => first.around(call, Next { rest, last: self.last }).await,
            None => (self.last)(call).await,
        }
    }
}

/// A closure that looks at each command before.
pub(super) struct Before<F>(pub(super) F);

#[async_trait]
impl<F> Middleware for Before<F>
where
    F: Fn(&Incoming<'_>) -> Result<(), Outcome> + Send + Sync + 'static,
{
    async fn check(&self, incoming: &Incoming<'_>) -> Result<(), Outcome> {
        (self.0)(incoming)
    }
}

/// A closure that looks at what has become of each command.
pub(super) struct After<F>(pub(super) F);

#[async_trait]
impl<F> Middleware for After<F>
where
    F: Fn(&Call, &mut Outcome) + Send + Sync + 'static,
{
    async fn around(&self, call: Call, next: Next<'_>) -> Outcome {
        let mut outcome = next.run(call.clone()).await;
        (self.0)(&call, &mut outcome);
        outcome
    }
}
