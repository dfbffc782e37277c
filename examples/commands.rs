//! The lending desk of a library, behind HTTP: commands from JSON and from forms, checked, routed, answered.
//! `docs/commands.md` explains it.
//!
//! `cargo run --example commands` sends some commands and ends; `cargo run --example commands -- serve` listens, on
//! 127.0.0.1:4691.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::{FromRequest, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use espd::commands::{Call, CommandError, Incoming, Input, MemoryCommandLog, Middleware, Next};
use espd::prelude::*;
use serde::{Deserialize, Serialize};
use validator::Validate;

type Error = Box<dyn std::error::Error>;

espd::event_set! {
    /// What happens to a book.
    pub enum BookEvent {
        /// Somebody has taken it home.
        BookLent { to: String, days: u32, address: Address },
        /// It is back.
        BookReturned {},
    }
}

espd::event_set! {
    /// What happens to a reader.
    pub enum ReaderEvent {
        /// Somebody has become a reader.
        ReaderJoined { name: String, password: HashedPassword },
    }
}

/// Where a reader lives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Validate)]
pub struct Address {
    #[validate(length(min = 1))]
    street: String,
    #[validate(length(min = 1))]
    town: String,
}

/// A book.
#[derive(Debug, Clone, Default, PartialEq)]
struct Book {
    lent_to: Option<String>,
}

impl Aggregate for Book {
    type Event = BookEvent;

    fn evolve(&mut self, event: &BookEvent) {
        self.lent_to = match event {
            BookEvent::BookLent(lent) => Some(lent.to.clone()),
            BookEvent::BookReturned(_) => None,
        };
    }
}

/// A reader.
#[derive(Debug, Clone, Default)]
struct Reader;

impl Aggregate for Reader {
    type Event = ReaderEvent;

    fn evolve(&mut self, _: &ReaderEvent) {}
}

#[derive(Debug, Serialize, Deserialize, Validate)]
struct LendBook {
    book: Id<Book>,
    #[validate(length(min = 1, max = 80))]
    to: String,
    #[validate(range(min = 1, max = 30))]
    days: u32,
    #[validate(nested)]
    address: Address,
}

impl Command for LendBook {
    const NAME: &'static str = "LendBook";
    type Aggregate = Book;

    fn aggregate_id(&self) -> Id<Book> {
        self.book.clone()
    }
}

#[derive(Debug, Serialize, Deserialize, Validate)]
struct ReturnBook {
    book: Id<Book>,
}

impl Command for ReturnBook {
    const NAME: &'static str = "ReturnBook";
    type Aggregate = Book;

    fn aggregate_id(&self) -> Id<Book> {
        self.book.clone()
    }
}

#[derive(Debug, Serialize)]
enum BookRefusal {
    LentToAnother { to: String },
    NeverLent,
}

espd::refusal!(
    BookRefusal,
    message = |refused| match refused {
        BookRefusal::LentToAnother { to } => format!("{to} has the book"),
        BookRefusal::NeverLent => "nobody has ever had the book".to_owned(),
    },
    status = |refused| match refused {
        BookRefusal::LentToAnother { .. } => 422,
        BookRefusal::NeverLent => 404,
    },
);

impl Decide<LendBook> for Book {
    type Refusal = BookRefusal;

    fn decide(&self, lend: &LendBook, _: &Context) -> Result<Vec<BookEvent>, BookRefusal> {
        match &self.lent_to {
            Some(to) => Err(BookRefusal::LentToAnother { to: to.clone() }),
            None => Ok(espd::events![BookLent {
                to: lend.to.clone(),
                days: lend.days,
                address: lend.address.clone()
            }]),
        }
    }
}

impl Decide<ReturnBook> for Book {
    type Refusal = BookRefusal;

    fn decide(&self, _: &ReturnBook, context: &Context) -> Result<Vec<BookEvent>, BookRefusal> {
        match context.exists() {
            true => Ok(self.if_changed(espd::events![BookReturned {}])),
            false => Err(BookRefusal::NeverLent),
        }
    }
}

#[derive(Debug, Serialize, Deserialize, Validate)]
struct Join {
    reader: Id<Reader>,
    name: String,
    #[validate(length(min = 12))]
    password: Secret,
}

impl Command for Join {
    const NAME: &'static str = "Join";
    type Aggregate = Reader;

    fn aggregate_id(&self) -> Id<Reader> {
        self.reader.clone()
    }

    fn secrets(&self) -> Vec<Secret> {
        vec![self.password.clone()]
    }
}

#[derive(Debug, Serialize)]
enum NotJoined {
    IsReader,
    NoRandomness,
}

espd::refusal!(NotJoined);

impl Decide<Join> for Reader {
    type Refusal = NotJoined;

    fn decide(&self, join: &Join, context: &Context) -> Result<Vec<ReaderEvent>, NotJoined> {
        if context.exists() {
            return Err(NotJoined::IsReader);
        }
        let password = join.password.hashed().map_err(|_| NotJoined::NoRandomness)?;
        Ok(espd::events![ReaderJoined { name: join.name.clone(), password }])
    }
}

/// Tells how long commands take, and refuses those of strangers.
struct Desk;

#[async_trait]
impl Middleware for Desk {
    async fn around(&self, call: Call, next: Next<'_>) -> Outcome {
        let (name, began) = (call.name.clone(), Instant::now());
        let outcome = next.run(call).await;
        println!("{name}: {} after {:?}", outcome.label(), began.elapsed());
        outcome
    }

    async fn check(&self, incoming: &Incoming<'_>) -> Result<(), Outcome> {
        let user = incoming.envelope.metadata.get("user");
        match incoming.command::<LendBook>() {
            Some(lend) if user.is_some_and(|user| *user != lend.to) => {
                Err(Outcome::refused(CommandError::new("not_yours", "borrow in your own name"), 403))
            }
            _ => Ok(()),
        }
    }
}

fn commands(store: MemoryEventStore) -> Commands<MemoryEventStore> {
    Commands::new(Repository::new(store.clone()))
        .register::<Join>()
        .register_all::<(LendBook, ReturnBook)>()
        .middleware(Desk)
        .recorded_by(MemoryCommandLog::of(store))
}

async fn lend() -> Result<(), Error> {
    let commands = commands(MemoryEventStore::new());
    let book = Id::<Book>::generate();

    let form = [
        ("book", book.to_string()),
        ("to", "Ada".into()),
        ("days", "14".into()),
        ("address[street]", "Main Street 1".into()),
        ("address[town]", String::new()),
    ];
    let outcome = commands.execute_form("LendBook", form.clone(), Envelope::new()).await;
    assert_eq!(outcome.to_string(), "invalid: address.town: must have a length of at least 1");

    let german = outcome.translated(|error| match error.code.as_str() {
        "length" => Some("braucht mindestens {min} Zeichen".to_owned()),
        _ => None,
    });
    assert_eq!(german.to_string(), "invalid: address.town: braucht mindestens 1 Zeichen");

    let input =
        Input::form(form)?.with("address", serde_json::json!({"street": "Main Street 1", "town": "Paris"}));
    let planned = commands.execute_input("LendBook", input.clone(), Envelope::new().dry_run()).await;
    let Outcome::Planned(plan) = planned else { panic!("{planned}") };
    assert_eq!(plan.events[0].event_type, "BookLent");

    let envelope = Envelope::new().command_id(Uuid::new_v4()).expecting(0).metadata("user", "Ada");
    let outcome = commands.execute_input("LendBook", input.clone(), envelope.clone()).await;
    println!("{} {}", outcome.status(), serde_json::to_string(&outcome)?);

    let Outcome::Executed(receipt) = commands.execute_input("LendBook", input, envelope).await else {
        panic!()
    };
    assert!(receipt.repeated);

    let outcome = commands.execute(ReturnBook { book }, Envelope::new()).await;
    assert!(outcome.is_executed());
    Ok(())
}

/// What has become of a command, as a response.
struct Answer(Outcome);

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self.0).unwrap_or_default();
        (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

/// The fields of a command, from JSON or from a form, and what it is sent with, from the headers.
struct Sent(Input, Envelope);

impl<S: Send + Sync> FromRequest<S> for Sent {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let headers = request.headers().clone();
        let header = |name: &str| headers.get(name);
        let body = Bytes::from_request(request, state).await.map_err(IntoResponse::into_response)?;
        let is_form = header("content-type")
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/x-www-form-urlencoded"));
        let input = if is_form { Input::form_encoded(&body) } else { Input::json(&body) };
        let invalid = |error| Answer(Outcome::invalid([error])).into_response();
        Ok(Self(input.map_err(invalid)?, Envelope::from_headers(header).map_err(invalid)?))
    }
}

async fn execute(
    State(commands): State<Arc<Commands<MemoryEventStore>>>,
    Path(name): Path<String>,
    Sent(input, envelope): Sent,
) -> Answer {
    Answer(commands.execute_input(&name, input, envelope).await)
}

fn service() -> axum::Router {
    let commands = Arc::new(commands(MemoryEventStore::new()));
    axum::Router::new().route("/commands/{name}", axum::routing::post(execute)).with_state(commands)
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    if std::env::args().nth(1).as_deref() != Some("serve") {
        return lend().await;
    }
    let address = std::env::args().nth(2).unwrap_or_else(|| "127.0.0.1:4691".to_owned());
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, service()).await?)
}
