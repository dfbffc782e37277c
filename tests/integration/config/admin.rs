//! `[admin]`: where the endpoint listens, and who may do what.

use std::path::PathBuf;

use espd::internals::config::{AdminSettings, Listen, Token};

use super::{Folder, load};

const READ: &str = "0123456789abcdef0123456789abcdef";
const OPERATE: &str = "fedcba9876543210fedcba9876543210";

#[test]
fn without_the_section_there_is_no_endpoint_and_an_empty_one_means_loopback() {
    assert_eq!(load("").unwrap().admin, None);
    let settings = load("[admin]").unwrap().admin.unwrap();
    assert_eq!(settings, AdminSettings::default());
    assert_eq!(settings.listen.to_string(), "127.0.0.1:4680");
}

#[test]
fn addresses_tokens_and_names_are_read() {
    let text = "[admin]\nlisten = '0.0.0.0:80'\nread_token = '${file:token}'\noperator_token = '${TOKEN}'\n\
                allowed_hosts = ['Espd.Example.org']";
    let folder = Folder::new(&[("espd.toml", text), ("token", &format!("{READ}\n"))]).with("TOKEN", OPERATE);
    let settings = folder.load().unwrap().admin.unwrap();
    assert!(!settings.listen.is_local());
    assert_eq!(settings.read_token, Token::new(READ));
    assert_eq!(settings.operator_token, Token::new(OPERATE));
    assert_eq!(settings.allowed_hosts, ["espd.example.org"]);

    let listen = |words: &str| {
        load(&format!("[admin]\nlisten = '{words}'")).map(|config| config.admin.unwrap().listen)
    };
    assert_eq!(listen("unix:/run/espd/admin").unwrap(), Listen::Unix(PathBuf::from("/run/espd/admin")));
    for local in ["unix:/a", "[::1]:1", "127.8.0.1:0"] {
        assert!(listen(local).unwrap().is_local(), "{local}");
    }
}

#[test]
fn what_would_be_open_or_useless_is_refused_with_its_place() {
    for (text, place, message) in [
        ("listen = '0.0.0.0:80'", "2:10", "can be reached from other machines, and there is no token"),
        ("listen = '[::]:80'", "2:10", "can be reached from other machines, and there is no token"),
        ("listen = 'localhost:80'", "2:10", "not an address to listen on"),
        ("listen = 'unix:run/admin'", "2:10", "not an address to listen on"),
        ("listen = 4680", "2:10", "must be a string"),
        ("read_token = 'short'", "2:14", "not 32 to 512 visible ASCII characters"),
        ("read_token = 'with a space ...................'", "2:14", "not 32 to 512 visible"),
        (&format!("read_token = '{READ}'\noperator_token = '{READ}'"), "3:18", "is the same as `read_token`"),
        ("allowed_hosts = ['a', 'b:80']", "2:23", "not the name of a host"),
        ("token = 'x'", "2:1", "unknown key `token`"),
    ] {
        let report = Folder::new(&[("espd.toml", &format!("[admin]\n{text}"))]).report();
        assert!(report.contains(&format!("espd.toml:{place}: ")), "{text}\n{report}");
        assert!(report.contains(message), "{text}\n{report}");
    }
}

#[test]
fn a_token_is_never_shown() {
    let text = format!("[admin]\nread_token = '{READ}'\noperator_token = '{OPERATE}'");
    let config = load(&text).unwrap();
    let shown = format!("{config:?} {config:#?} {}", config.redacted());
    assert!(!shown.contains(READ) && !shown.contains(OPERATE), "{shown}");
    for text in
        [format!("read_token = '{READ} '"), format!("read_token = '{READ}'\noperator_token = '{READ}'")]
    {
        let faults = load(&format!("[admin]\n{text}")).unwrap_err();
        assert!(!format!("{faults} {faults:?}").contains(READ), "{faults}");
    }
}
