//! The projector in a program: it counts the events of each type, and remembers the rows that it has written.

use std::collections::HashMap;
use std::io::{self, BufRead as _, Lines, StdinLock, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::PROGRAM_COUNTS;

/// Tells this binary to be the program.
pub const ARGUMENT: &str = "count-events";

/// Speaks the worker protocol until its input ends.
pub fn main() -> ExitCode {
    match speak(io::stdin().lock().lines()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn speak(mut input: Lines<StdinLock<'_>>) -> anyhow::Result<()> {
    read(&mut input)?.context("no hello")?;
    say(&json!({"ready": 1}))?;
    // What it remembers is wrong as soon as something was not committed, and it has to be ended then.
    let mut rows: HashMap<String, Value> = HashMap::new();
    while let Some(batch) = read(&mut input)? {
        for event in batch["events"].as_array().context("no events")? {
            let event_type = event["type"].as_str().context("no type")?;
            let row = match rows.remove(event_type) {
                Some(row) => row,
                None => ask(&mut input, event_type)?,
            };
            let row = count(&row, event);
            say(&json!({"done": event["id"], "actions": [{"upsert": PROGRAM_COUNTS, "row": row}]}))?;
            rows.insert(event_type.to_owned(), row);
        }
        say(&json!({"end": batch["batch"]}))?;
    }
    Ok(())
}

/// Reads the row of a type; null if there is none.
fn ask(input: &mut Lines<StdinLock<'_>>, event_type: &str) -> anyhow::Result<Value> {
    say(&json!({"read": PROGRAM_COUNTS, "key": {"event_type": event_type}}))?;
    Ok(read(input)?.context("no row")?["row"].take())
}

/// The row with one event more.
fn count(row: &Value, event: &Value) -> Value {
    let number = |value: &Value| value.as_i64().unwrap_or_default();
    json!({
        "event_type": event["type"],
        "events": number(&row["events"]) + 1,
        "amount": number(&row["amount"]) + number(&event["body"]["amount"]),
        "last_event": event["id"],
    })
}

fn read(input: &mut Lines<StdinLock<'_>>) -> anyhow::Result<Option<Value>> {
    let Some(line) = input.next() else { return Ok(None) };
    Ok(Some(serde_json::from_str(&line?)?))
}

fn say(message: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{message}")?;
    out.flush()
}
