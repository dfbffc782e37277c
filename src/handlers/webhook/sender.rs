//! Sends one event and decides what its delivery resulted in.

use chrono::Utc;

use super::answer::DeliveryResult;
use super::client::{Client, MayBegin, RequestError};
use super::request::Requests;
use crate::event::Event;
use crate::processing::declaration::{HiddenTexts, InvalidReceiver, WebhookDeclaration};
use crate::processing::failure::Failure;

/// Sends the events of one reactor.
#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) requests: Requests,
    pub(crate) client: Client,
    /// Secrets that must not be shown, even if a receiver repeats them.
    pub(crate) hidden: HiddenTexts,
}

/// The outcome of sending an event once.
#[derive(Debug)]
pub(crate) enum SendAttempt {
    /// There was an answer, or a failure that counts as an attempt.
    Concluded(DeliveryResult),
    /// The receiver could not be reached. No event is to blame.
    Unreachable(String),
    /// Nothing was sent, because somebody else may have the claim.
    NotBegun,
}

impl Sender {
    /// Makes a sender for events of the store in `schema`.
    ///
    /// # Errors
    /// The declaration cannot be used on this machine.
    pub(crate) fn new(
        reactor: &str,
        schema: &str,
        declaration: &WebhookDeclaration,
    ) -> Result<Self, InvalidReceiver> {
        let requests = Requests::new(reactor, schema, declaration)?;
        let client = Client::new(declaration, requests.uri())?;
        Ok(Self { requests, client, hidden: declaration.hidden() })
    }

    /// Sends an event, unless it may not begin any more when there is a connection. Takes no longer than the declared timeout, and the time
    /// of finding out whether the receiver is there.
    pub(crate) async fn send(&self, event: &Event, may_begin: MayBegin<'_>) -> SendAttempt {
        match self.client.send(|| self.requests.request(event, Utc::now()), may_begin).await {
            Ok(answer) => SendAttempt::Concluded(answer.classify(Utc::now(), &self.hidden)),
            Err(RequestError::Unreachable(message)) => SendAttempt::Unreachable(message),
            Err(RequestError::NotBegun) => SendAttempt::NotBegun,
            Err(RequestError::Interrupted(message)) => {
                let failure = Box::new(Failure::of_processor(message));
                SendAttempt::Concluded(DeliveryResult::Failed { failure, wait: None })
            }
        }
    }
}
