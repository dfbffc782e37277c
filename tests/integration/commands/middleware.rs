//! What is done around the handling of each command.

use std::sync::{Arc, Mutex};

use espd::commands::{Call, CommandError, CommandLog, Incoming, Middleware, Next};
use espd::prelude::*;

use super::{Book, LendBook, count_events, lend, on_both, router};

type Lines = Arc<Mutex<Vec<String>>>;

/// Writes what it sees.
struct Writer(&'static str, Lines);

impl Writer {
    fn write(&self, what: &str) {
        self.1.lock().unwrap().push(format!("{} {what}", self.0));
    }
}

#[async_trait]
impl Middleware for Writer {
    async fn around(&self, mut call: Call, next: Next<'_>) -> Outcome {
        self.write(&format!("before {}", call.name));
        call.envelope = call.envelope.metadata(self.0, true);
        let outcome = next.run(call).await;
        self.write(&format!("after {}", outcome.label()));
        outcome
    }

    async fn check(&self, incoming: &Incoming<'_>) -> Result<(), Outcome> {
        let to = incoming.command::<LendBook>().map(|lend| lend.to.clone());
        self.write(&format!("check {} {to:?}", incoming.name));
        Ok(())
    }
}

on_both!(middleware_is_called_around_each_command_in_order, check_order);
async fn check_order<S: EventStore + Clone + 'static>(store: S, _: impl CommandLog) {
    let lines = Lines::default();
    let commands = router(&store)
        .middleware(Writer("outer", Arc::clone(&lines)))
        .middleware(Writer("inner", Arc::clone(&lines)));
    commands.execute(lend(&Id::generate(), "Ada"), Envelope::new()).await;
    commands.execute_json("LendBook", "{}", Envelope::new()).await;
    let expected = [
        "outer before LendBook",
        "inner before LendBook",
        "outer check LendBook Some(\"Ada\")",
        "inner check LendBook Some(\"Ada\")",
        "inner after executed",
        "outer after executed",
        "outer before LendBook",
        "inner before LendBook",
        "inner after invalid",
        "outer after invalid",
    ];
    assert_eq!(*lines.lock().unwrap(), expected);
    let event = store.read_after(Position::START, None, None, 9).await.unwrap().remove(0);
    assert_eq!(event.metadata.get().replace(' ', ""), r#"{"inner":true,"outer":true}"#);
}

on_both!(a_check_keeps_a_command_from_being_decided, check_gate);
async fn check_gate<S: EventStore + Clone + 'static>(store: S, log: impl CommandLog + Clone) {
    let labels = Lines::default();
    let seen = Arc::clone(&labels);
    let commands = router(&store)
        .recorded_by(log.clone())
        .after(move |call, outcome| {
            seen.lock().unwrap().push(format!("{} {}", call.name, outcome.status()));
        })
        .before(|incoming| match incoming.envelope.metadata.get("user") {
            Some(user) if user == "ada" => Ok(()),
            _ => Err(Outcome::refused(CommandError::new("not_allowed", "log in first"), 403)),
        });
    let book = Id::<Book>::generate();
    let id = Uuid::new_v4();
    let stranger = commands.execute(lend(&book, "Ada"), Envelope::new().command_id(id)).await;
    assert_eq!((stranger.status(), count_events(&store).await), (403, 0));
    assert!(log.find(id).await.unwrap().is_none(), "it may be sent again by somebody who may");
    let ada = Envelope::new().command_id(id).metadata("user", "ada");
    assert!(commands.execute(lend(&book, "Ada"), ada).await.is_executed());
    assert_eq!(*labels.lock().unwrap(), ["LendBook 403", "LendBook 200"]);
}
