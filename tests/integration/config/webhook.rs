//! `[reactor.webhook]`: what is accepted, what is refused, what is never shown.

use std::time::Duration;

use espd::internals::declaration::{Handling, WebhookDeclaration};

use super::{Folder, load};

/// A webhook with these lines, and further ones of the reactor.
fn text(reactor: &str, webhook: &str) -> String {
    format!("[reactor]\nname = 'r'\nevents = ['A']\n{reactor}\n[reactor.webhook]\n{webhook}\n")
}

fn webhook(lines: &str) -> WebhookDeclaration {
    let config = load(&text("", lines)).unwrap_or_else(|faults| panic!("{faults}"));
    match &config.processors[0].handling {
        Handling::Webhook(webhook) => webhook.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_key_has_its_default() {
    let webhook = webhook("url = 'https://example.org/'");
    let WebhookDeclaration { concurrency, connect_timeout, timeout, allow_private, ca_file, .. } = &webhook;
    assert_eq!(
        (*concurrency, *connect_timeout, *timeout),
        (8, Duration::from_secs(5), Duration::from_secs(30))
    );
    assert_eq!((*allow_private, ca_file), (false, &None));
    assert!(webhook.secrets.is_empty() && webhook.headers.is_empty());
}

#[test]
fn a_url_is_accepted_where_it_is_meant() {
    for lines in [
        "url = 'http://example.org/'\nallow_http = true",
        "url = 'http://127.0.0.1:80/'\nallow_private = true",
        "url = 'http://localhost/'\nallow_private = true",
        "url = 'http://[::1]/'\nallow_private = true",
        "url = 'https://10.0.0.1/'\nallow_private = true",
        "url = 'http://10.0.0.1/'\nallow_private = true\nallow_http = true",
        "url = 'https://jo:pw@bücher.example/hooks?a=b#c'",
    ] {
        webhook(lines);
    }
}

#[test]
fn each_rule_is_kept() {
    let secret = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
    for (reactor, lines, message) in [
        ("", "", "[reactor.webhook] needs `url`"),
        ("", "url = 'example.org'", "not a URL: "),
        ("", "url = 'ftp://example.org/'", "the URL of a receiver begins with https://"),
        ("", "url = 'http://example.org/'", "events would be sent without encryption"),
        ("", "url = 'http://10.0.0.1/'\nallow_private = true", "events would be sent without encryption"),
        ("", "url = 'https://10.0.0.1/'", "the receiver's address is not on the public internet"),
        ("", "url = 'https://a.b/'\nsecrets = 'x'", "`secrets` must be a list"),
        ("", "url = 'https://a.b/'\nsecrets = ['x']", "the secret is not whsec_ and base64"),
        ("", "url = 'https://a.b/'\nsecrets = ['whsec_AAAA']", "the secret has 3 bytes instead of 24 to 64"),
        ("", "url = 'https://a.b/'\nconcurrency = 0", "`0` is not allowed for `concurrency`"),
        ("", "url = 'https://a.b/'\nconcurrency = 257", "`257` is not allowed for `concurrency`"),
        ("", "url = 'https://a.b/'\ntimeout = '6m'", "`6m` is not allowed for `timeout`"),
        ("", "url = 'https://a.b/'\ntimeout = '5s'", "`connect_timeout` is not less than `timeout`"),
        ("", "url = 'https://a.b/'\nallow_http = 'yes'", "`allow_http` must be true or false"),
        ("", "url = 'https://a.b/'\nca_file = 'none.pem'", ""),
        ("", "url = 'https://a.b/'\nca_file = 'espd.toml'", ""),
        ("", "url = 'https://a.b/'\nheaders = { Host = 'x' }", "the header `host` is espd's own"),
        ("", "url = 'https://a.b/'\nheaders = { webhook-id = 'x' }", "the header `webhook-id` is espd's own"),
        ("", "url = 'https://a.b/'\nheaders = { 'a b' = 'x' }", "\"a b\" is no name of a header"),
        (
            "",
            "url = 'https://a.b/'\nheaders = { a = \"x\\ny\" }",
            "the value of header a is not visible ASCII",
        ),
        ("", "url = 'https://a.b/'\nretries = 3", "unknown key `retries` in [reactor.webhook]"),
        ("tables = { t = 'a int' }", "url = 'https://a.b/'", "`tables` cannot be combined with `webhook`"),
        ("command = ['x']", "url = 'https://a.b/'", "`webhook` cannot be combined with `command`"),
    ] {
        let faults = load(&text(reactor, lines)).unwrap_err();
        let [fault] = faults.diagnostics() else { panic!("{lines}: not one fault:\n{faults}") };
        assert!(
            fault.message.starts_with(message)
                && fault.advice.as_ref().is_some_and(|advice| !advice.is_empty()),
            "{lines}\n{faults}"
        );
        assert!(!message.is_empty() || fault.message.contains(".pem") || fault.message.contains("espd.toml"));
    }
    let faults = load(&text("", "url = 'https://a.b/'\ntimeout = '3s'")).unwrap_err().to_string();
    assert!(faults.contains("write a lower `connect_timeout` as well, which is \"5s\""), "{faults}");
    webhook(&format!("url = 'https://a.b/'\nsecrets = ['{secret}', '{secret}']"));
    let faults =
        load("[projector]\nname = 'p'\nwebhook = { url = 'https://a.b/' }\n").unwrap_err().to_string();
    assert!(faults.contains("unknown key `webhook` in [projector]"), "{faults}");
}

#[test]
fn a_secret_is_never_shown() {
    let key = "whsec_czNjcmV0czNjcmV0czNjcmV0czNjcmV0";
    let lines = format!(
        "url = 'https://jo:s3cret@example.org/?key=s3cret'\nsecrets = ['{key}']\nheaders = {{ a = 's3cret' }}"
    );
    let config = load(&text("", &lines)).unwrap();
    let worker = format!("{:?}", config.processors[0]);
    for shown in [format!("{config:?} {config:#?}"), config.redacted().to_string(), worker] {
        assert!(shown.contains("example.org") && shown.contains("***"), "{shown}");
        assert!(!shown.contains("s3cret") && !shown.contains("czNjcmV0"), "{shown}");
    }
    for wrong in [
        "url = 'ftp://jo:s3cret@example.org/'",
        "url = 'https://s3cret@10.0.0.1/'",
        "url = 'http://s3cret@example.org/'",
        "url = 'https://s3cret@${NONE}/'",
        "secrets = ['s3cret']",
        "secrets = 's3cret'",
        "secrets = ['s3cret${NONE}']",
        "secret = 'whsec_s3cret'",
        "# 'whsec_s3cret\nsecrets = [whsec_s3cret]",
        "headers = 's3cret'",
        "headers = { a = 's3cretä' }",
        "headers = { a = 'Bearer s3cret ${NONE}' }",
        "headers = ['s3cret']",
        "headers = { Host = 's3cret' }",
    ] {
        let faults = Folder::new(&[("espd.toml", &text("", wrong))]).load().unwrap_err();
        let shown = format!("{faults} {faults:?}");
        assert!(!shown.contains("s3cret"), "{wrong}\n{shown}");
    }
}

#[test]
fn what_is_shown_can_be_read_again() {
    let config =
        load(&text("emits = ['B']", "url = 'http://127.0.0.1/'\nallow_private = true\ntimeout = '7s'"))
            .unwrap();
    let shown = toml::to_string(&config.redacted()).unwrap();
    let again = load(&shown).unwrap_or_else(|faults| panic!("{shown}\n{faults}"));
    assert_eq!(again.processors, config.processors);
}
