//! `espctl append`: reads JSON lines and prints the positions of the appended events.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read as _};

use anyhow::{Context as _, bail};
use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;
use serde::Deserialize;
use serde_json::value::RawValue;
use sqlx::Connection as _;
use uuid::Uuid;

use crate::espctl::moment::parse_time;
use crate::espctl::output;
use crate::event::{Appended, ExpectedVersion, NewEvent, Position, Tag};
use crate::operations::databases::Databases;
use crate::operations::outcome::is_closed_pipe;
use crate::store::{AppendCondition, AppendError, EventStore as _, PostgresEventStore};

#[derive(Args)]
#[command(after_help = "Each line is an object with aggregate_id (uuid), type and body, and optionally\n\
    expected_version (0: the aggregate must not exist), uuid, correlation_id, causation_id, created_at\n\
    (RFC 3339), metadata (object), tags (texts), and claims and releases (objects of scopes, with a key\n\
    or several each). An event whose uuid is stored already is not stored twice.\n\n\
    With --if, nothing is appended if an event came that the condition excludes: a JSON object, or a file\n\
    with one, as `espctl events --tag TAG --condition` prints it.\n\n\
    With --at, a daemon appends the events at that time, by the clock of the database; there can be no\n\
    expected_version. `espctl emissions list -` shows what is still to be appended.\n\n\
    Examples:\n  echo '{\"aggregate_id\":\"149d5c70-a373-4857-91e2-1d5ea90c27e4\",\
    \"type\":\"TodoAdded\",\"body\":{\"title\":\"milk\"}}' | espctl append\n  \
    espctl append --if '{\"items\":[{\"tags\":[\"course:1\"],\"types\":[\"CourseClosed\"]}]}' < enrolment.json\n  \
    espctl append --at 2026-12-24T17:00:00Z --key party < invitation.json")]
pub(crate) struct Arguments {
    /// Use one transaction per line instead of one for the whole input
    #[arg(long, conflicts_with = "at")]
    each: bool,
    /// Append unless an event came that this condition excludes: JSON, or the name of a file
    #[arg(long = "if", value_name = "CONDITION", conflicts_with_all = ["each", "at"], value_parser = parse_condition)]
    condition: Option<AppendCondition>,
    /// Append at this time (RFC 3339) instead of now, and print the uuids that the events will have
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    at: Option<DateTime<Utc>>,
    /// Name what is scheduled: it replaces what was scheduled under this key, and can be cancelled by it
    #[arg(long, value_name = "KEY", requires = "at", conflicts_with = "each")]
    key: Option<String>,
    /// Print objects with id, uuid and version instead of positions
    #[arg(long)]
    json: bool,
    /// Print only the summary
    #[arg(long, short)]
    quiet: bool,
}

/// One line of input.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    aggregate_id: Uuid,
    #[serde(rename = "type")]
    event_type: String,
    body: Box<RawValue>,
    expected_version: Option<i64>,
    uuid: Option<Uuid>,
    correlation_id: Option<Uuid>,
    causation_id: Option<Uuid>,
    created_at: Option<DateTime<Utc>>,
    metadata: Option<Box<RawValue>>,
    #[serde(default)]
    tags: Option<Vec<Tag>>,
    #[serde(default)]
    claims: Option<BTreeMap<String, Keys>>,
    #[serde(default)]
    releases: Option<BTreeMap<String, Keys>>,
}

/// The keys of a scope.
#[derive(Deserialize)]
#[serde(untagged)]
enum Keys {
    One(String),
    Several(Vec<String>),
}

impl Keys {
    fn into_list(self) -> Vec<String> {
        match self {
            Self::One(key) => vec![key],
            Self::Several(keys) => keys,
        }
    }
}

/// Reads a condition from JSON, or from the file that has it.
fn parse_condition(argument: &str) -> anyhow::Result<AppendCondition> {
    if argument.trim_start().starts_with('{') {
        return Ok(serde_json::from_str(argument)?);
    }
    let text = std::fs::read_to_string(argument).with_context(|| format!("cannot read {argument}"))?;
    serde_json::from_str(&text).with_context(|| format!("{argument} has no condition"))
}

/// The most lines sent at a time.
const CHUNK_LINES: usize = 1_000;

/// Bytes of event bodies after which a chunk is sent. A chunk exceeds them by less than one body.
const CHUNK_BYTES: usize = 16 << 20;

/// The longest line that is read, in bytes.
const LINE_BYTES_MAX: usize = 256 << 20;

pub(crate) async fn run(arguments: Arguments, databases: &Databases) -> anyhow::Result<()> {
    let store = PostgresEventStore::new(databases.events.clone(), databases.layout.clone());
    let mut lines = Lines::new(std::io::stdin().lock());
    if let Some(time) = arguments.at {
        return schedule(&arguments, time, &mut lines, &store, databases).await;
    }
    let mut appended = Tally::default();
    if arguments.each {
        while let Some(event) = lines.next_event()? {
            let stored = store.append(&[event]).await.with_context(|| lines.place())?;
            appended.add(&stored, &arguments)?;
        }
    } else {
        let stored = append_all(&mut lines, &store, databases, arguments.condition.as_ref())
            .await
            .context("nothing was appended")?;
        appended.add(&stored, &arguments)?;
    }
    databases.notify_runners().await;
    appended.summarise();
    Ok(())
}

/// Appends the whole input in one transaction.
async fn append_all(
    lines: &mut Lines<impl std::io::Read>,
    store: &PostgresEventStore,
    databases: &Databases,
    condition: Option<&AppendCondition>,
) -> anyhow::Result<Vec<Appended>> {
    if let Some(condition) = condition {
        let mut events = Vec::new();
        while let Some(event) = lines.next_event()? {
            events.push(event);
        }
        return Ok(store.append_if(&events, condition).await?);
    }
    let mut connection = databases.events.acquire().await?;
    let mut transaction = connection.begin().await?;
    let mut stored = Vec::new();
    while let Some(chunk) = lines.next_chunk()? {
        let appended = store.append_in(&mut transaction, &chunk).await;
        let appended = appended.map_err(|error| {
            let place = lines.place_of(&chunk, &error);
            advise(error).context(place)
        })?;
        stored.extend_from_slice(&appended);
    }
    transaction.commit().await?;
    Ok(stored)
}

/// Says what to do where some of the input is stored already, and the rest is not.
fn advise(error: AppendError) -> anyhow::Error {
    match error {
        AppendError::UuidReused { .. } => anyhow::anyhow!(
            "{error}; if these lines were appended before and others have come since, --each appends each line by itself, and \
             nothing twice"
        ),
        error => error.into(),
    }
}

/// Schedules the whole input in one transaction.
async fn schedule(
    arguments: &Arguments,
    time: DateTime<Utc>,
    lines: &mut Lines<impl std::io::Read>,
    store: &PostgresEventStore,
    databases: &Databases,
) -> anyhow::Result<()> {
    let (mut count, key) = (0, arguments.key.as_deref());
    let mut connection = databases.events.acquire().await?;
    let mut transaction = connection.begin().await?;
    while let Some(chunk) = lines.next_chunk()? {
        if count > 0 && key.is_some() {
            bail!("a key names {CHUNK_LINES} events at most: nothing was scheduled");
        }
        let scheduled = store.append_at_in(&mut transaction, time, key, &chunk).await;
        scheduled.with_context(|| lines.place_of_chunk()).context("nothing was scheduled")?;
        count += chunk.len();
        for NewEvent { uuid, .. } in chunk {
            if arguments.json {
                output::print_verbatim(&serde_json::json!({ "uuid": uuid, "due_at": time }).to_string())?;
            } else if !arguments.quiet {
                output::print(&uuid.to_string())?;
            }
        }
    }
    transaction.commit().await?;
    eprintln!("{count} event{} scheduled for {time}", if count == 1 { "" } else { "s" });
    Ok(())
}

/// How many events were appended, and where.
#[derive(Default)]
struct Tally {
    count: usize,
    first: Option<Position>,
    last: Option<Position>,
    /// The reader of the positions has closed the pipe. The remaining events are appended all the same.
    output_closed: bool,
}

impl Tally {
    fn add(&mut self, stored: &[Appended], arguments: &Arguments) -> anyhow::Result<()> {
        for event in stored {
            self.count += 1;
            self.first.get_or_insert(event.id);
            self.last = Some(event.id);
            if arguments.json {
                self.print(&serde_json::to_string(event)?)?;
            } else if !arguments.quiet {
                self.print(&event.id.to_string())?;
            }
        }
        Ok(())
    }

    fn print(&mut self, line: &str) -> anyhow::Result<()> {
        if self.output_closed {
            return Ok(());
        }
        match output::print(line) {
            Err(error) if is_closed_pipe(&error) => self.output_closed = true,
            outcome => outcome?,
        }
        Ok(())
    }

    fn summarise(&self) {
        match (self.first, self.last) {
            (Some(first), Some(_)) if self.count == 1 => eprintln!("1 event at position {first}"),
            (Some(first), Some(last)) => eprintln!("{} events at positions {first} to {last}", self.count),
            _ => eprintln!("no events"),
        }
    }
}

/// Standard input, line by line.
struct Lines<R> {
    input: BufReader<R>,
    number: usize,
    chunk_from: usize,
    /// The line of each event of the chunk.
    chunk_lines: Vec<usize>,
}

impl<R: std::io::Read> Lines<R> {
    fn new(input: R) -> Self {
        Self {
            input: BufReader::with_capacity(1 << 20, input),
            number: 0,
            chunk_from: 1,
            chunk_lines: Vec::new(),
        }
    }

    fn place(&self) -> String {
        format!("line {}", self.number)
    }

    fn place_of_chunk(&self) -> String {
        match self.number {
            number if number == self.chunk_from => self.place(),
            number => format!("lines {} to {number}", self.chunk_from),
        }
    }

    /// The line of the event that an error is about, as far as it says so.
    fn place_of(&self, chunk: &[NewEvent], error: &AppendError) -> String {
        let index = match error {
            AppendError::Conflict { aggregate_id, expected, .. } => {
                let is_meant = |event: &NewEvent| {
                    event.aggregate_id == *aggregate_id && event.expected_version.version() == Some(*expected)
                };
                chunk.iter().position(is_meant)
            }
            AppendError::UuidReused { uuid } => chunk.iter().position(|event| event.uuid == *uuid),
            AppendError::Invalid { index, .. } => *index,
            AppendError::KeyTaken { index, .. } => Some(*index),
            AppendError::ConditionFailed { .. } | AppendError::Database(_) => None,
        };
        match index.and_then(|index| self.chunk_lines.get(index)) {
            Some(line) => format!("line {line}"),
            None => self.place_of_chunk(),
        }
    }

    fn next_chunk(&mut self) -> anyhow::Result<Option<Vec<NewEvent>>> {
        self.chunk_from = self.number + 1;
        self.chunk_lines.clear();
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        while chunk.len() < CHUNK_LINES && bytes < CHUNK_BYTES {
            let Some(event) = self.next_event()? else { break };
            bytes += event.body.get().len();
            self.chunk_lines.push(self.number);
            chunk.push(event);
        }
        Ok((!chunk.is_empty()).then_some(chunk))
    }

    fn next_event(&mut self) -> anyhow::Result<Option<NewEvent>> {
        while let Some(line) = self.next_line()? {
            if !line.trim().is_empty() {
                return parse(&line).with_context(|| self.place()).map(Some);
            }
        }
        Ok(None)
    }

    fn next_line(&mut self) -> anyhow::Result<Option<String>> {
        let mut line = Vec::new();
        let mut limited = self.input.by_ref().take(LINE_BYTES_MAX as u64 + 1);
        if limited.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        self.number += 1;
        if line.len() > LINE_BYTES_MAX {
            bail!("{}: longer than {} MiB", self.place(), LINE_BYTES_MAX >> 20);
        }
        String::from_utf8(line).with_context(|| self.place()).map(Some)
    }
}

/// Replaces the place in an error: the parser sees one line only, so its line number is always 1.
fn explain(error: serde_json::Error) -> anyhow::Error {
    let place = format!(" at line {} column {}", error.line(), error.column());
    let said = error.to_string();
    let more = if error.is_eof() { ": one object per line, as `jq -c .` writes it" } else { "" };
    anyhow::anyhow!("column {}: {}{more}", error.column(), said.strip_suffix(&place).unwrap_or(&said))
}

/// A time as PostgreSQL reads it from a text: the fraction of a second as a float, rounded to the nearest microsecond, so that the
/// SQL function recognises what this has appended.
fn to_microseconds(time: DateTime<Utc>) -> DateTime<Utc> {
    let nanoseconds = time.timestamp_subsec_nanos();
    let microseconds = (f64::from(nanoseconds) / 1e9 * 1e6).round_ties_even() as i64;
    time - TimeDelta::nanoseconds(nanoseconds.into()) + TimeDelta::microseconds(microseconds)
}

fn parse(line: &str) -> anyhow::Result<NewEvent> {
    // Serde would take the elements of an array for the fields of the object, in their order.
    if line.trim_start().starts_with('[') {
        bail!("an array, expected one object per line; `jq -c '.[]'` makes lines of an array");
    }
    let line: Line = serde_json::from_str(line).map_err(explain)?;
    if let Some(character) = line.event_type.chars().find(|character| character.is_control()) {
        bail!("the type {:?} contains the control character {character:?}", line.event_type);
    }
    let mut event = NewEvent::new(line.aggregate_id, line.event_type, line.body);
    event.expected_version = match line.expected_version {
        None => ExpectedVersion::Any,
        Some(version) if version < 0 => bail!("expected_version is {version}, but must be 0 or more"),
        Some(version) => ExpectedVersion::exactly(version),
    };
    event.uuid = line.uuid.unwrap_or(event.uuid);
    event.metadata = line.metadata.unwrap_or(event.metadata);
    event.correlation_id = line.correlation_id;
    event.causation_id = line.causation_id;
    event.created_at = line.created_at.map(to_microseconds);
    event.tags = line.tags.unwrap_or_default();
    for (scope, keys) in line.claims.unwrap_or_default() {
        event = keys.into_list().into_iter().fold(event, |event, key| event.claiming(&scope, key));
    }
    for (scope, keys) in line.releases.unwrap_or_default() {
        event = keys.into_list().into_iter().fold(event, |event, key| event.releasing(&scope, key));
    }
    Ok(event)
}
