//! Sends one event and says what came of it.

use chrono::Utc;

use super::answer::DeliveryResult;
use super::client::{Client, RequestError};
use super::request::Requests;
use crate::event::Event;
use crate::processing::declaration::{InvalidReceiver, WebhookDeclaration};
use crate::processing::failure::Failure;

/// Sends the events of one reactor.
#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) requests: Requests,
    pub(crate) client: Client,
    /// What must not be shown, also where a receiver repeats it.
    hidden: Vec<String>,
}

/// What came of sending an event.
#[derive(Debug)]
pub(crate) enum SendAttempt {
    /// There was an answer, or a failure that counts.
    Concluded(DeliveryResult),
    /// The receiver is not there, for whichever event.
    Unreachable(String),
}

impl Sender {
    /// A sender for the events of the store in this schema.
    ///
    /// # Errors
    /// What is declared cannot be used here.
    pub(crate) fn new(
        reactor: &str,
        schema: &str,
        declaration: &WebhookDeclaration,
    ) -> Result<Self, InvalidReceiver> {
        let requests = Requests::new(reactor, schema, declaration)?;
        Ok(Self { requests, client: Client::new(declaration)?, hidden: declaration.hidden() })
    }

    /// Sends an event; takes the declared timeout at most.
    pub(crate) async fn send(&self, event: &Event) -> SendAttempt {
        match self.client.send(self.requests.request(event, Utc::now())).await {
            Ok(answer) => SendAttempt::Concluded(self.conceal(answer.classify(Utc::now()))),
            Err(RequestError::Unreachable(message)) => SendAttempt::Unreachable(message),
            Err(RequestError::Interrupted(message)) => {
                let failure = Box::new(Failure::of_processor(message));
                SendAttempt::Concluded(DeliveryResult::Failed { failure, wait: None })
            }
        }
    }

    /// The result without what the receiver has repeated of our secrets.
    fn conceal(&self, result: DeliveryResult) -> DeliveryResult {
        let DeliveryResult::Failed { failure, wait } = result else { return result };
        let conceal =
            |text: String| self.hidden.iter().fold(text, |text, secret| text.replace(secret, HIDDEN));
        let Failure { message, detail, .. } = *failure;
        let failure = Failure { message: conceal(message), detail: detail.map(conceal), ..*failure };
        DeliveryResult::Failed { failure: Box::new(failure), wait }
    }
}

const HIDDEN: &str = "***";
