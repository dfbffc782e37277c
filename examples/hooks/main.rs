//! A program with hooks in Rust: what happens to its workers and processors is noted in files, one line of JSON each.
//!
//! `HOOKS_FOLDER=/tmp/hooks cargo run --example hooks -- run --config espd.toml`
//!
//! `ledger` is a projector that cannot handle an event of type `Broken`. A file `refuse` in the folder keeps workers from
//! starting, which is what a missing mount or an unreachable service would do.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use espd::Program;
use espd::prelude::*;
use serde::Serialize;

struct Ledger;

#[async_trait]
impl Projector for Ledger {
    async fn project(
        &mut self,
        events: &[Delivery],
        context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        for event in events {
            if event.event_type == "Broken" {
                return Err(event.failed("no entry can be made of this"));
            }
            sqlx::query("insert into ledger (id, type) values ($1, $2)")
                .bind(event.id.get())
                .bind(&event.event_type)
                .execute(context.connection())
                .await?;
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    let ledger = Registration::projector("ledger").version(3).table("ledger", "id bigint, type text");
    Program::new()
        .projector(ledger, || Ledger)
        .on_worker_start(|worker| {
            note("starts", worker);
            if folder().join("refuse").exists() { Err("this worker is not to start") } else { Ok(()) }
        })
        .on_worker_end(|end| note("ends", end))
        .on_failure(|failure| note("failures", failure))
        .on_dead_letter(|events| note("dead_letters", events))
        .on_diverged(|divergence| note("divergences", divergence))
        .main()
}

fn folder() -> PathBuf {
    std::env::var_os("HOOKS_FOLDER").map_or_else(|| Path::new(".").to_owned(), PathBuf::from)
}

/// Adds a line to a file. A hook has nobody who could do something about its failure.
fn note(file: &str, facts: &impl Serialize) {
    let open = std::fs::OpenOptions::new().create(true).append(true).open(folder().join(file));
    if let (Ok(mut file), Ok(line)) = (open, serde_json::to_string(facts)) {
        let _ = writeln!(file, "{line}");
    }
}
