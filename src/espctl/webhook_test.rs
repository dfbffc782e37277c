//! `espctl webhook-test`: shows the request that an event is sent with, and the answer of the receiver.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Context as _, bail};
use chrono::Utc;
use clap::Args;
use futures_util::TryStreamExt as _;
use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::HeaderMap;

use crate::config::Config;
use crate::espctl::output;
use crate::event::{Event, Position};
use crate::handlers::batch::Action;
use crate::handlers::webhook::{Answer, DeliveryResult, RequestError, Sender};
use crate::operations::databases::Databases;
use crate::processing::declaration::{Handling, HiddenTexts, ProcessorDeclaration, WebhookDeclaration};
use crate::store::{EventStore as _, PostgresEventStore};

/// The most characters of an answer's body that are shown.
const BODY_SHOWN: usize = 2_000;

#[derive(Args)]
#[command(
    after_help = "Nothing is recorded and no position moves, with or without --send. Secrets and the values of the declared\n\
    headers are not shown. Exit code 1 if the receiver does not accept the event.\n\n\
    Example:\n  espctl webhook-test todo_mails --event 1234 --send"
)]
pub(crate) struct Arguments {
    /// Name of the reactor
    name: String,
    /// Position of the event
    #[arg(long, value_name = "POSITION")]
    event: Position,
    /// Send the request, and show the answer
    #[arg(long)]
    send: bool,
}

pub(crate) async fn run(arguments: Arguments, config: &Config, databases: &Databases) -> anyhow::Result<()> {
    let (declaration, webhook) = find_webhook(config, &arguments.name)?;
    let sender = Sender::new(&declaration.name, databases.layout.schema(), webhook)?;
    let event = find_event(databases, config, arguments.event).await?;
    let request = sender.requests.request(&event, Utc::now());
    output::print(&describe_request(&request, &event, webhook)?)?;
    if declaration.event_types().is_some_and(|types| !types.contains(event.event_type.as_str())) {
        output::print_note(&format!(
            "note: {} does not send events of type {}",
            declaration.name, event.event_type
        ))?;
    }
    if arguments.send { send(&sender, request).await } else { Ok(()) }
}

fn find_webhook<'c>(
    config: &'c Config,
    name: &str,
) -> anyhow::Result<(&'c ProcessorDeclaration, &'c WebhookDeclaration)> {
    let found = config.processors.iter().find(|processor| processor.name == name);
    match found.map(|declaration| (declaration, &declaration.handling)) {
        Some((declaration, Handling::Webhook(webhook))) => Ok((declaration, webhook)),
        Some(_) => bail!("{name} is not a webhook: its declaration has no [reactor.webhook]"),
        None => bail!("the configuration declares no processor {name}"),
    }
}

/// The event as processors read it, after upcasts.
async fn find_event(databases: &Databases, config: &Config, position: Position) -> anyhow::Result<Event> {
    let layout = databases.layout.clone().with_upcasts(&config.upcasts);
    let store = PostgresEventStore::new(databases.events.clone(), layout);
    let mut events = store.read_range(position, position, None);
    events.try_next().await?.with_context(|| format!("there is no event at position {position}"))
}

/// The request, and how its signature is computed.
fn describe_request(
    request: &Request<Full<Bytes>>,
    event: &Event,
    webhook: &WebhookDeclaration,
) -> anyhow::Result<String> {
    let mut text = format!("{} {}\n", request.method(), webhook.url);
    write_headers(&mut text, request.headers())?;
    writeln!(text, "\n{}\n", event.body.get())?;
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if webhook.secrets.is_empty() {
        write!(text, "The request is not signed: `secrets` is empty.")?;
    } else {
        write!(
            text,
            "webhook-signature has `v1,` and base64(HMAC-SHA256(key, \"{}.{}.\" + body)) for each of {} secrets; the key is what\n\
             is behind whsec_, decoded from base64. docs/webhooks.md has a receiver that verifies it.",
            header("webhook-id"),
            header("webhook-timestamp"),
            webhook.secrets.len()
        )?;
    }
    Ok(text)
}

fn write_headers(text: &mut String, headers: &HeaderMap) -> std::fmt::Result {
    for (name, value) in headers {
        let shown = if value.is_sensitive() { "***" } else { value.to_str().unwrap_or("(not ASCII)") };
        writeln!(text, "{name}: {shown}")?;
    }
    Ok(())
}

async fn send(sender: &Sender, request: Request<Full<Bytes>>) -> anyhow::Result<()> {
    let begun = Instant::now();
    let answer = match sender.client.send(|| request.clone(), &|| true).await {
        Ok(answer) => answer,
        Err(RequestError::Unreachable(message) | RequestError::Interrupted(message)) => bail!(message),
        Err(RequestError::NotBegun) => bail!("the request was not sent"),
    };
    output::print(&describe_answer(&answer, begun, &sender.hidden)?)?;
    match answer.classify(Utc::now(), &sender.hidden) {
        DeliveryResult::Accepted(actions) => {
            output::print(&sender.hidden.conceal(&describe_actions(&actions)))
        }
        DeliveryResult::Failed { failure, .. } => bail!("the event would be tried again: {failure}"),
        DeliveryResult::Busy { message, wait } => {
            let wait = wait.map_or(String::new(), |wait| format!(", not before {wait:?} are over"));
            bail!("all events would be tried again{wait}: {message}")
        }
    }
}

fn describe_answer(answer: &Answer, begun: Instant, hidden: &HiddenTexts) -> Result<String, std::fmt::Error> {
    let mut text = format!("\n{} after {} ms\n", answer.status, begun.elapsed().as_millis());
    write_headers(&mut text, &answer.headers)?;
    let mut text = hidden.conceal(&text);
    let body = hidden.conceal(&String::from_utf8_lossy(&answer.body));
    let shown = body.chars().take(BODY_SHOWN).map(|c| if c.is_control() && c != '\n' { ' ' } else { c });
    write!(text, "\n{}", shown.collect::<String>())?;
    Ok(text)
}

fn describe_actions(actions: &[Action]) -> String {
    let mut text = "The receiver has accepted the event".to_owned();
    for action in actions {
        match action {
            Action::Emit(emission) | Action::EmitAs(_, emission) => {
                let when = emission.due;
                text.push_str(&format!(
                    "\n  and wants {} emitted for {}{when}",
                    emission.event_type, emission.aggregate_id
                ));
            }
            Action::Cancel { key } => text.push_str(&format!("\n  and wants {key} cancelled")),
            Action::Upsert { .. } | Action::Delete { .. } => {}
        }
    }
    text
}
