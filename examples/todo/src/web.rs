//! Routes: a command each, and the queries.
//!
//! A command may have the header `Idempotency-Key` (a uuid: repeating the request is harmless) and `If-Match` (the version that the
//! client has seen). Its answer has a `position`; a query with `?after=POSITION` shows what was written there.

use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use axum::routing::{get, patch, post};
use axum::{Json, Router};
use espd::prelude::*;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::answer::{Failure, Refusal, executed};
use crate::queries;
use crate::service::Service;
use crate::todo::{AbandonTodo, AddTodo, AmendTodo, CompleteTodo, Todo};
use crate::wallet::{AddMoney, CreateWallet, DrawMoney, Wallet};

/// All routes.
pub fn routes(service: Service) -> Router {
    Router::new()
        .route("/todos", post(create::<Todo, AddTodo>).get(outstanding))
        .route("/todos/completed", get(completed))
        .route("/todos/{id}", patch(command::<Todo, AmendTodo>))
        .route("/todos/{id}/complete", post(command::<Todo, CompleteTodo>))
        .route("/todos/{id}/abandon", post(command::<Todo, AbandonTodo>))
        .route("/wallets", post(create::<Wallet, CreateWallet>))
        .route("/wallets/{id}", get(wallet))
        .route("/wallets/{id}/add", post(command::<Wallet, AddMoney>))
        .route("/wallets/{id}/draw", post(command::<Wallet, DrawMoney>))
        .route("/wallets/{id}/transactions", get(transactions))
        .with_state(service)
}

/// A command for something new. With a key, its id is made of the key, so that a repetition is for the same thing.
async fn create<A, C>(
    State(service): State<Service>,
    terms: Terms,
    Body(command): Body<C>,
) -> Result<Response, Failure>
where
    A: Aggregate + Decide<C, Refusal = Refusal>,
    C: Sync,
{
    let id = match terms.key {
        Some(key) => Id::new(Uuid::new_v5(&key, b"id")),
        None => Id::generate(),
    };
    execute::<A, C>(&service, id, &terms, &command).await
}

/// A command for something that exists.
async fn command<A, C>(
    State(service): State<Service>,
    Path(id): Path<Uuid>,
    terms: Terms,
    Body(command): Body<C>,
) -> Result<Response, Failure>
where
    A: Aggregate + Decide<C, Refusal = Refusal>,
    C: Sync,
{
    execute::<A, C>(&service, id.into(), &terms, &command).await
}

async fn execute<A, C>(service: &Service, id: Id<A>, terms: &Terms, command: &C) -> Result<Response, Failure>
where
    A: Aggregate + Decide<C, Refusal = Refusal>,
    C: Sync,
{
    let mut execution = service.repository.execute(&id, command);
    if let Some(key) = terms.key {
        execution = execution.command_id(key);
    }
    if let Some(version) = terms.version {
        execution = execution.expecting(version);
    }
    Ok(executed(&id, &execution.await?))
}

/// What the headers say of a command.
struct Terms {
    key: Option<Uuid>,
    version: Option<i64>,
}

impl<S: Sync> FromRequestParts<S> for Terms {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let key = header(parts, "idempotency-key", "a uuid")?;
        Ok(Self { key, version: header(parts, "if-match", "the number of a version, without quotes")? })
    }
}

fn header<T: std::str::FromStr>(parts: &Parts, name: &str, what: &str) -> Result<Option<T>, Failure> {
    let Some(value) = parts.headers.get(name) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|text| text.parse().ok());
    let wrong = || Failure::new(StatusCode::BAD_REQUEST, "header", format!("the header {name} takes {what}"));
    parsed.map(Some).ok_or_else(wrong)
}

/// A command in the body of a request, as JSON. No body is an empty object.
struct Body<C>(C);

impl<C: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<C> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let wrong = |status, message: String| Failure::new(status, "body", message);
        let body = axum::body::Bytes::from_request(request, state)
            .await
            .map_err(|error| wrong(error.status(), error.to_string()))?;
        let text: &[u8] = if body.is_empty() { b"{}" } else { &body };
        let read = serde_json::from_slice(text);
        read.map(Self).map_err(|error| wrong(StatusCode::BAD_REQUEST, error.to_string()))
    }
}

#[derive(Deserialize)]
struct Reading {
    after: Option<i64>,
}

type Listed<T> = Result<Json<Vec<T>>, Failure>;

async fn outstanding(
    State(service): State<Service>,
    Query(reading): Query<Reading>,
) -> Listed<queries::OutstandingTodo> {
    service.wait_for("outstanding_todos", reading.after).await?;
    Ok(Json(queries::outstanding_todos(&service.pool).await?))
}

async fn completed(
    State(service): State<Service>,
    Query(reading): Query<Reading>,
) -> Listed<queries::CompletedTodo> {
    service.wait_for("completed_todos", reading.after).await?;
    Ok(Json(queries::completed_todos(&service.pool).await?))
}

async fn wallet(
    State(service): State<Service>,
    Path(id): Path<Uuid>,
    Query(reading): Query<Reading>,
) -> Result<Json<queries::Wallet>, Failure> {
    service.wait_for("wallets", reading.after).await?;
    let found = queries::wallet(&service.pool, id).await?;
    found.map(Json).ok_or_else(|| Failure::new(StatusCode::NOT_FOUND, "unknown", "there is no such wallet"))
}

async fn transactions(
    State(service): State<Service>,
    Path(id): Path<Uuid>,
    Query(reading): Query<Reading>,
) -> Listed<queries::Transaction> {
    service.wait_for("wallets", reading.after).await?;
    Ok(Json(queries::transactions(&service.pool, id).await?))
}
