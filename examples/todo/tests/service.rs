//! The service as its users see it: requests over HTTP, on a PostgreSQL of its own.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use espd::Running;
use espd::embedded::{EmbeddedPostgres, Options};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use todo::service::Service;
use todo::web::routes;
use tokio::net::TcpListener;

/// The service, listening.
struct Started {
    address: String,
    client: Client,
    running: Running,
    server: EmbeddedPostgres,
}

impl Started {
    async fn new() -> Self {
        let server = EmbeddedPostgres::start_temporary(Options::default()).await.unwrap();
        server.create_database("todo", None).await.unwrap();
        let (service, running) = Service::start(&server.url("todo")).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async { axum::serve(listener, routes(service)).await });
        Self { address, client: Client::new(), running, server }
    }

    /// Status and body of the answer. A header is a name and a value.
    async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Value) -> (u16, Value) {
        let mut request = self.client.request(method, format!("{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !body.is_null() {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.ask(Method::POST, path, &[], body).await
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask(Method::GET, path, &[], Value::Null).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    async fn stop(self) {
        self.running.stop().await.unwrap();
        self.server.stop().await;
    }
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_todo_lives_from_request_to_table() {
    let service = Started::new().await;
    let (status, added) = service
        .post(
            "/todos",
            json!({"title": "Buy milk", "due_date": "2030-05-01", "stakeholder_email": "ada@example.com"}),
        )
        .await;
    assert_eq!((status, &added["version"]), (201, &json!(1)));
    let id = text(&added, "id");
    let listed = service.get(&format!("/todos?after={}", added["position"])).await;
    assert_eq!((&listed[0]["title"], &listed[0]["todo_id"]), (&json!("Buy milk"), &json!(id)));

    let (status, amended) = service
        .ask(Method::PATCH, &format!("/todos/{id}"), &[("if-match", "1")], json!({"title": "Buy oat milk"}))
        .await;
    assert_eq!((status, &amended["version"]), (200, &json!(2)));
    let listed = service.get(&format!("/todos?after={}", amended["position"])).await;
    assert_eq!(listed[0]["title"], "Buy oat milk");

    let (_, done) =
        service.post(&format!("/todos/{id}/complete"), json!({"completed_on": "2030-04-30"})).await;
    assert_eq!(service.get(&format!("/todos?after={}", done["position"])).await, json!([]));
    let completed = service.get(&format!("/todos/completed?after={}", done["position"])).await;
    assert_eq!(
        (&completed[0]["title"], &completed[0]["completed_on"]),
        (&json!("Buy oat milk"), &json!("2030-04-30"))
    );

    let idle = service.running.idle(std::time::Duration::from_secs(30)).await;
    assert!(idle.is_ok(), "{idle:?}");
    let told = "select count(*) from espd.events where type = 'StakeholderNotifiedOfTodoCompletion'";
    let pool = espd::prelude::sqlx::PgPool::connect(&service.server.url("todo")).await.unwrap();
    let told: i64 = espd::prelude::sqlx::query_scalar(told).fetch_one(&pool).await.unwrap();
    assert_eq!(told, 1);
    // What the reactor has emitted is in the stream of the todo.
    let (status, refused) = service.post(&format!("/todos/{id}/complete"), Value::Null).await;
    assert_eq!((status, &refused["code"]), (422, &json!("completed")));
    pool.close().await;
    service.stop().await;
}

#[tokio::test]
async fn a_null_takes_a_value_away_and_what_is_left_out_stays() {
    let service = Started::new().await;
    let todo = json!({"title": "Buy milk", "description": "two litres", "due_date": "2030-05-01"});
    let (_, added) = service.post("/todos", todo).await;
    let path = format!("/todos/{}", text(&added, "id"));
    let (status, amended) = service.ask(Method::PATCH, &path, &[], json!({"due_date": null})).await;
    assert_eq!((status, &amended["version"]), (200, &json!(2)));
    let listed = service.get(&format!("/todos?after={}", amended["position"])).await;
    assert_eq!(
        (&listed[0]["due_date"], &listed[0]["description"]),
        (&Value::Null, &json!("two litres")),
        "{listed}"
    );
    // There is none any more: nothing happens.
    let (status, again) = service.ask(Method::PATCH, &path, &[], json!({"due_date": null})).await;
    assert_eq!((status, &again["version"]), (200, &json!(2)));
    service.stop().await;
}

/// Runs the program in a folder without a configuration.
fn serve_in(folder: &Path, url: &str, config: Option<&Path>) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_todo"));
    command.arg("serve").current_dir(folder).env("DATABASE_URL", url).env("TODO_LISTEN", "127.0.0.1:0");
    command.env_remove("TODO_CONFIG").envs(config.map(|file| ("TODO_CONFIG", file)));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[tokio::test]
async fn the_program_runs_anywhere_logs_what_clients_are_not_told_and_ends_on_sigterm() {
    let server = EmbeddedPostgres::start_temporary(Options::default()).await.unwrap();
    server.create_database("todo", None).await.unwrap();
    let elsewhere = std::env::temp_dir();
    let unconfigured = serve_in(&elsewhere, &server.url("todo"), None).wait_with_output().unwrap();
    let said = String::from_utf8(unconfigured.stderr).unwrap();
    assert!(!unconfigured.status.success() && said.contains("espd.toml"), "{said}");

    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("espd.toml");
    let mut child = serve_in(&elsewhere, &server.url("todo"), Some(&config));
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("http://") {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "it has ended");
    }
    let address = line.split_whitespace().next().unwrap();

    // Until the projector has made its table.
    while reqwest::get(format!("{address}/todos")).await.unwrap().status().as_u16() != 200 {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let pool = espd::prelude::sqlx::PgPool::connect(&server.url("todo")).await.unwrap();
    espd::prelude::sqlx::query("drop table outstanding_todos").execute(&pool).await.unwrap();
    let answer = reqwest::get(format!("{address}/todos")).await.unwrap();
    assert_eq!(answer.status().as_u16(), 503);
    let told: Value = answer.json().await.unwrap();
    assert_eq!(told, json!({"code": "unavailable", "message": "the service is not available: try again"}));

    let asked = Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(asked.success());
    let mut log = String::new();
    output.read_to_string(&mut log).unwrap();
    assert!(child.wait().unwrap().success(), "{log}");
    assert!(log.contains("\"outstanding_todos\" does not exist"), "{log}");
    pool.close().await;
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_done_is_said_clearly() {
    let service = Started::new().await;
    let unknown = "/todos/149d5c70-a373-4857-91e2-1d5ea90c27e4/complete";
    assert_eq!(
        service.post(unknown, Value::Null).await,
        (404, json!({"code": "unknown", "message": "there is no such todo"}))
    );
    let (status, refused) = service.post("/todos", json!({"title": " "})).await;
    assert_eq!((status, &refused["code"]), (422, &json!("no_title")));
    let (status, wrong) = service.post("/todos", json!({"title": "x", "due_date": "tomorrow"})).await;
    assert_eq!((status, &wrong["code"]), (400, &json!("body")));
    assert!(wrong["message"].as_str().unwrap().contains("line 1 column"), "{wrong}");

    let (status, unstorable) = service.post("/todos", json!({"title": "a\0b"})).await;
    assert_eq!((status, &unstorable["code"]), (400, &json!("invalid")), "{unstorable}");
    let (status, long) = service.post("/todos", json!({"title": "x".repeat(3_000_000)})).await;
    assert_eq!((status, &long["code"]), (413, &json!("body")), "{long}");

    let (_, added) = service.post("/todos", json!({"title": "Buy milk"})).await;
    let path = format!("/todos/{}", text(&added, "id"));
    service.ask(Method::PATCH, &path, &[], json!({"title": "Buy bread"})).await;
    let outdated =
        service.ask(Method::PATCH, &path, &[("if-match", "1")], json!({"title": "Buy eggs"})).await;
    assert_eq!((outdated.0, &outdated.1["code"]), (409, &json!("conflict")));
    let wrong = service.ask(Method::PATCH, &path, &[("if-match", "first")], json!({})).await;
    assert_eq!((wrong.0, &wrong.1["code"]), (400, &json!("header")));
    service.stop().await;
}

#[tokio::test]
async fn money_is_not_drawn_twice_and_not_below_nothing() {
    let service = Started::new().await;
    let (_, created) = service.post("/wallets", json!({"owner": "Ada"})).await;
    let path = format!("/wallets/{}", text(&created, "id"));
    service.post(&format!("{path}/add"), json!({"amount": 500, "purpose": "pocket money"})).await;
    let key = [("idempotency-key", "7b5d4f1e-6a0c-4f8e-9d9b-2f6c4f1f0d11")];
    let draw = json!({"amount": 300, "purpose": "bread"});
    let first = service.ask(Method::POST, &format!("{path}/draw"), &key, draw.clone()).await;
    let again = service.ask(Method::POST, &format!("{path}/draw"), &key, draw).await;
    assert_eq!(
        (first.1["position"].clone(), first.1["repeated"].clone()),
        (again.1["position"].clone(), json!(false))
    );
    assert_eq!(again.1["repeated"], true);

    // Ten at once, and there is enough for two of them: all are decided on what the others have left.
    let draws = (0..10).map(|_| {
        let (client, url) = (service.client.clone(), format!("{}{path}/draw", service.address));
        tokio::spawn(async move {
            client.post(url).json(&json!({"amount": 100})).send().await.unwrap().status().as_u16()
        })
    });
    let mut drawn = Vec::new();
    for draw in draws.collect::<Vec<_>>() {
        drawn.push(draw.await.unwrap());
    }
    assert_eq!(drawn.iter().filter(|status| **status == 200).count(), 2, "{drawn:?}");
    assert_eq!(drawn.iter().filter(|status| **status == 422).count(), 8, "{drawn:?}");

    service.running.caught_up().await.unwrap();
    assert_eq!(service.get(&path).await["balance"], 0);
    let amounts: Vec<Value> = service
        .get(&format!("{path}/transactions"))
        .await
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["amount"].clone())
        .collect();
    assert_eq!(amounts, [json!(-100), json!(-100), json!(-300), json!(500)]);
    service.stop().await;
}
