//! Reads the tables that the projectors keep.

use chrono::{DateTime, NaiveDate, Utc};
use espd::prelude::Uuid;
use espd::prelude::sqlx::{self, PgPool};
use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct OutstandingTodo {
    todo_id: Uuid,
    title: String,
    description: Option<String>,
    due_date: Option<NaiveDate>,
}

/// The todos that are still to be done, the most urgent first.
pub async fn outstanding_todos(pool: &PgPool) -> Result<Vec<OutstandingTodo>, sqlx::Error> {
    type Row = (Uuid, String, Option<String>, Option<NaiveDate>);
    let statement = "select todo_id, title, description, due_date from outstanding_todos
                     order by due_date nulls last, title limit 100";
    let rows: Vec<Row> = sqlx::query_as(statement).fetch_all(pool).await?;
    let todo =
        |(todo_id, title, description, due_date)| OutstandingTodo { todo_id, title, description, due_date };
    Ok(rows.into_iter().map(todo).collect())
}

#[derive(Debug, Serialize)]
pub struct CompletedTodo {
    todo_id: Uuid,
    title: String,
    completed_on: NaiveDate,
}

/// The todos that are done, the last first.
pub async fn completed_todos(pool: &PgPool) -> Result<Vec<CompletedTodo>, sqlx::Error> {
    let statement = "select todo_id, title, completed_on from completed_todos
                     order by completed_on desc, title limit 100";
    let rows: Vec<(Uuid, String, NaiveDate)> = sqlx::query_as(statement).fetch_all(pool).await?;
    Ok(rows
        .into_iter()
        .map(|(todo_id, title, completed_on)| CompletedTodo { todo_id, title, completed_on })
        .collect())
}

#[derive(Debug, Serialize)]
pub struct Wallet {
    wallet_id: Uuid,
    owner: String,
    balance: i64,
}

/// A wallet with what is in it.
pub async fn wallet(pool: &PgPool, id: Uuid) -> Result<Option<Wallet>, sqlx::Error> {
    let statement = "select owner, balance from wallets where wallet_id = $1";
    let row: Option<(String, i64)> = sqlx::query_as(statement).bind(id).fetch_optional(pool).await?;
    Ok(row.map(|(owner, balance)| Wallet { wallet_id: id, owner, balance }))
}

#[derive(Debug, Serialize)]
pub struct Transaction {
    amount: i64,
    purpose: String,
    at: DateTime<Utc>,
}

/// The movements of money in a wallet, the last first. What was drawn is negative.
pub async fn transactions(pool: &PgPool, id: Uuid) -> Result<Vec<Transaction>, sqlx::Error> {
    let statement = "select amount, purpose, at from wallet_transactions
                     where wallet_id = $1 order by version desc limit 100";
    let rows: Vec<(i64, String, DateTime<Utc>)> = sqlx::query_as(statement).bind(id).fetch_all(pool).await?;
    Ok(rows.into_iter().map(|(amount, purpose, at)| Transaction { amount, purpose, at }).collect())
}
