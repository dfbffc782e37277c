//! The example behind axum, as a client sees it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use uuid::Uuid;

/// The example, which ends with the test.
struct Service(Child, String);

impl Service {
    fn start() -> Self {
        let own = std::env::current_exe().unwrap();
        let program = own.parent().and_then(std::path::Path::parent).unwrap().join("examples/commands");
        let mut child =
            Command::new(program).args(["serve", "127.0.0.1:0"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        let address = line.trim().rsplit('/').next().unwrap().to_owned();
        // The pipe stays open: the example may say more.
        child.stdout = Some(output.into_inner());
        Self(child, address)
    }

    /// Status and body of the answer.
    fn post(&self, command: &str, headers: &str, body: &str) -> (u16, Value) {
        let mut connection = TcpStream::connect(&self.1).unwrap();
        let length = body.len();
        write!(
            connection,
            "POST /commands/{command} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or(json!(body)))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

const FORM: &str = "content-type: application/x-www-form-urlencoded\r\n";

#[test]
fn commands_come_over_http_as_json_and_as_forms() {
    let service = Service::start();
    let (book, key) = (Uuid::new_v4(), Uuid::new_v4());
    let form = format!("book={book}&to=Ada&days=14&address.street=Main+Street&address.town=Paris");
    let keyed = format!("{FORM}idempotency-key: {key}\r\nif-match: \"0\"\r\n");
    let (status, lent) = service.post("LendBook", &keyed, &form);
    assert_eq!((status, &lent["version"], &lent["command_id"]), (200, &json!(1), &json!(key)));
    let (status, again) = service.post("LendBook", &keyed, &form);
    assert_eq!((status, &again["repeated"], &again["events"]), (200, &json!(true), &lent["events"]));

    let (status, refused) = service.post("LendBook", FORM, &form.replace("Ada", "Bob"));
    assert_eq!((status, &refused["error"]["code"]), (422, &json!("lent_to_another")));
    let fields = json!({"book": book, "to": "", "days": "many", "address": {"street": ""}}).to_string();
    let (status, invalid) = service.post("LendBook", "content-type: application/json\r\n", &fields);
    let errors = invalid["errors"].as_array().unwrap().iter();
    let mut paths: Vec<_> = errors.map(|error| error["path"].as_str().unwrap()).collect();
    paths.sort_unstable();
    assert_eq!((status, paths), (400, vec!["address.street", "address.town", "days", "to"]));
    let returned = json!({"book": book}).to_string();
    assert_eq!(service.post("ReturnBook", "if-match: \"7\"\r\n", &returned).0, 409);
    assert_eq!(service.post("ReturnBook", "if-match: x\r\n", &returned).0, 400);
    assert_eq!(service.post("ReturnBook", "", &json!({"book": Uuid::new_v4()}).to_string()).0, 404);
    assert_eq!(service.post("Nothing", "", "{}").0, 404);
    assert_eq!(service.post("ReturnBook", "", "{").1["errors"][0]["code"], "json");
}

const JSON: &str = "content-type: application/json\r\n";

#[test]
fn headers_of_a_command_mean_what_they_say() {
    let service = Service::start();
    let book = Uuid::new_v4();
    let lend = |to: &str| {
        json!({"book": book, "to": to, "days": 14, "address": {"street": "a", "town": "b"}}).to_string()
    };
    let code = |answer: (u16, Value)| (answer.0, answer.1["errors"][0]["path"].clone());
    assert_eq!(
        code(service.post("LendBook", "idempotency-key: \r\n", &lend("Ada"))),
        (400, json!("Idempotency-Key"))
    );
    let (status, missing) = service.post("LendBook", "if-match: *\r\n", &lend("Ada"));
    assert_eq!((status, &missing["outcome"], &missing["actual"]), (409, &json!("conflict"), &json!(0)));
    for wrong in ["-1", "\"-1\"", "1.5"] {
        let header = format!("if-match: {wrong}\r\n");
        assert_eq!(
            code(service.post("LendBook", &header, &lend("Ada"))),
            (400, json!("If-Match")),
            "{wrong}"
        );
    }
    let key = "idempotency-key: lend-1\r\n";
    assert_eq!(service.post("LendBook", key, &lend("Ada")).0, 200);
    let (status, reused) = service.post("LendBook", key, &lend("Eve"));
    assert_eq!((status, &reused["outcome"]), (422, &json!("command_id_reused")));
    assert_eq!(service.post("LendBook", key, &lend("Ada")).1["repeated"], true);
    let loud = lend("Ada").replace(&book.to_string(), &book.to_string().to_uppercase());
    assert_eq!(service.post("LendBook", key, &loud).1["repeated"], true);
    let returned = json!({"book": book.to_string().to_uppercase()}).to_string();
    let (status, answer) = service.post("ReturnBook", "if-match: *\r\n", &returned);
    assert_eq!(
        (status, &answer["version"], &answer["aggregate_id"]),
        (200, &json!(2), &json!(book)),
        "{answer}"
    );
}

#[test]
fn what_cannot_be_stored_or_read_is_told_by_its_place_and_never_quoted() {
    let service = Service::start();
    let book = Uuid::new_v4();
    let fields = |to: Value, days: &str, book: &str| {
        format!(r#"{{"book":"{book}","to":{to},"days":{days},"address":{{"street":"a","town":"b"}}}}"#)
    };
    let id = book.to_string();
    for (body, path, code) in [
        (fields(json!("Ada"), "14", "secret value hunter2"), "book", "not_storable"),
        (fields(json!("hunter2\0"), "14", &id), "to", "not_storable"),
        (fields(json!("Ada"), "18446744073709551616", &id), "days", "integer_range"),
        (fields(json!("Ada"), "4294967296", &id), "days", "integer_range"),
        (fields(json!("Ada"), "1.5", &id), "days", "integer"),
        (fields(json!("Ada"), "14,\"to\":\"hunter2\"", &id), "to", "duplicate"),
        (fields(json!("Ada"), "14", &id).replace("\"town\"", "\"street\""), "address.street", "duplicate"),
    ] {
        let (status, answer) = service.post("LendBook", JSON, &body);
        let error = &answer["errors"][0];
        assert_eq!(
            (status, &error["path"], &error["code"]),
            (400, &json!(path), &json!(code)),
            "{body} {answer}"
        );
        assert!(!answer.to_string().contains("hunter2"), "{answer}");
    }
    let form = format!("book={book}&to=%ff%fe&days=14&address.street=a&address.town=b");
    let (status, answer) = service.post("LendBook", FORM, &form);
    assert_eq!((status, &answer["errors"][0]["code"]), (400, &json!("encoding")), "{answer}");
    assert_eq!(service.post("LendBook", FORM, &form.replace("%ff%fe", "J%C3%BCrgen")).0, 200);
}
