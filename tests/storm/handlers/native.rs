//! The daemon under test: espd with a projector in Rust.

use std::process::ExitCode;

use espd::Program;
use espd::native::{Delivery, HandlerError, Projector, ProjectorContext, Registration};

use super::{COLUMNS, NATIVE_COUNTS};

/// Counts the events of each type.
struct Counts;

#[async_trait::async_trait]
impl Projector for Counts {
    async fn project(
        &mut self,
        events: &[Delivery],
        context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        for event in events {
            let body: serde_json::Value =
                serde_json::from_str(event.body.get()).map_err(|error| event.failed(error))?;
            sqlx::query(
                "-- count_event
                 insert into native_counts as c values ($1, 1, $2, $3)
                 on conflict (event_type) do update set
                   events = c.events + 1, amount = c.amount + excluded.amount, last_event = excluded.last_event",
            )
            .bind(&event.event_type)
            .bind(body["amount"].as_i64())
            .bind(event.id)
            .execute(context.connection())
            .await
            .map_err(|error| event.failed(error))?;
        }
        Ok(())
    }
}

/// Does what `espd` does.
pub fn main() -> ExitCode {
    let counts = Registration::projector(NATIVE_COUNTS).table(NATIVE_COUNTS, COLUMNS);
    Program::new().projector(counts, || Counts).main()
}
