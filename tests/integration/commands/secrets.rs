//! A secret is hashed, and is nowhere in clear.

use std::io::Write;
use std::sync::{Arc, Mutex};

use espd::commands::PostgresCommandLog;
use espd::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing_subscriber::fmt::MakeWriter;
use validator::Validate;

use crate::store::store;

const PASSWORD: &str = "correct horse battery staple";

espd::event_set! {
    pub enum MemberEvent {
        MemberJoined { name: String, password: HashedPassword },
    }
}

#[derive(Debug, Clone, Default)]
struct Member {
    password: Option<HashedPassword>,
}

impl Aggregate for Member {
    type Event = MemberEvent;

    fn evolve(&mut self, MemberEvent::MemberJoined(joined): &MemberEvent) {
        self.password = Some(joined.password.clone());
    }
}

#[derive(Debug, Serialize, Deserialize, Validate)]
struct Join {
    member: Id<Member>,
    name: String,
    #[validate(length(min = 12))]
    password: Secret,
}

impl Command for Join {
    const NAME: &'static str = "Join";
    type Aggregate = Member;

    fn aggregate_id(&self) -> Id<Member> {
        self.member.clone()
    }

    fn secrets(&self) -> Vec<Secret> {
        vec![self.password.clone()]
    }
}

#[derive(Debug, Serialize)]
enum Refused {
    Member,
    NoHash,
}
espd::refusal!(Refused);

impl Decide<Join> for Member {
    type Refusal = Refused;

    fn decide(&self, join: &Join, context: &Context) -> Result<Vec<MemberEvent>, Refused> {
        if context.exists() {
            return Err(Refused::Member);
        }
        tracing::info!(?join, password = %join.password, "somebody joins");
        let password = join.password.hashed().map_err(|_| Refused::NoHash)?;
        Ok(espd::events![MemberJoined { name: join.name.clone(), password }])
    }
}

/// Log lines in memory.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn a_secret_is_in_no_table_no_log_and_no_answer() {
    let lines = Lines::default();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(lines.clone());
    let _guard = tracing::subscriber::set_default(subscriber.finish());
    let (pool, postgres) = store().await;
    let log = PostgresCommandLog::of(&postgres).unwrap();
    let commands = Commands::new(Repository::new(postgres)).register::<Join>().recorded_by(log);
    let member = Id::<Member>::generate();
    let body = |password: &str| json!({"member": &member, "name": "Ada", "password": password}).to_string();
    let mut answers = String::new();
    for (password, status) in [(PASSWORD, 200), (PASSWORD, 422), (&PASSWORD[..11], 400)] {
        let envelope = Envelope::new().command_id(Uuid::new_v4());
        let outcome = commands.execute_json("Join", body(password), envelope).await;
        assert_eq!(outcome.status(), status, "{outcome}");
        answers += &format!("{outcome:?} {}", serde_json::to_string(&outcome).unwrap());
    }
    let hashed = commands.repository().load(&member).await.unwrap().state.password.unwrap();
    assert!(hashed.verify(&Secret::new(PASSWORD)) && !hashed.verify(&Secret::new("another")));

    let text = "select string_agg(line, e'\n') from (
        select e::text from espd.events as e union all select c::text from espd.commands as c) as all_rows (line)";
    let tables: String = sqlx::query_scalar(text).fetch_one(&pool).await.unwrap();
    assert!(tables.contains("$argon2id$") && tables.contains("[secret]"), "{tables}");
    let logged = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(logged.contains("somebody joins") && logged.contains("[secret]"), "{logged}");
    for (place, text) in [("tables", &tables), ("log", &logged), ("answers", &answers)] {
        assert!(!text.contains(&PASSWORD[..11]), "the secret is in the {place}: {text}");
    }
}
