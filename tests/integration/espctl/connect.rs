//! `espctl` and databases that it cannot use.

use std::path::Path;

use crate::support;
use crate::support::program::Installation;

#[tokio::test]
async fn a_database_that_is_not_migrated_is_refused_until_it_is() {
    let db = support::empty_database().await;
    let installation = Installation::new(&db.url, "");
    for arguments in
        [&["status"][..], &["events"], &["append"], &["pause", "notes"], &["wait", "notes"], &["check"]]
    {
        let complaint = installation.espctl(arguments).await.complained(1);
        assert!(complaint.contains("run `espctl migrate`") && complaint.lines().count() == 1, "{complaint}");
    }
    let said = installation.espctl(&["migrate"]).await.printed();
    assert!(
        said.contains("event store: from version 0 to ") && said.contains("processing: from version 0"),
        "{said}"
    );
    let again = installation.espctl(&["migrate"]).await.printed();
    assert!(!again.contains("version 0"), "{again}");
    installation.espctl(&["status"]).await.printed();
}

#[tokio::test]
async fn a_database_that_cannot_be_reached_is_one_clear_line_without_the_password() {
    let db = support::database().await;
    let missing = db.url.replace(&db.name, "nowhere").replace("espd@", "espd:hush-hush@");
    let faults = [
        ("postgres://espd:hush-hush@127.0.0.1:1/events", "Connection refused"),
        (missing.as_str(), "database \"nowhere\" does not exist"),
        ("postgres://espd:hush-hush@localhost/events?host=/nowhere", "No such file or directory"),
    ];
    for (url, message) in faults {
        let complaint = Installation::new(url, "").espctl(&["status"]).await.complained(1);
        assert!(complaint.contains("could not connect to postgres://espd:***@"), "{complaint}");
        assert_eq!((complaint.matches(message).count(), complaint.lines().count()), (1, 1), "{complaint}");
        assert!(!complaint.contains("hush-hush") && !complaint.contains("at line"), "{complaint}");
    }
}

#[tokio::test]
async fn the_database_may_be_named_by_a_variable_alone() {
    let db = support::database().await;
    let installation = Installation::without_database("");
    let run = |url: Option<&str>| {
        let mut command = installation.espctl_command(&["events"]);
        // Neither a file here nor a demo that runs is to be found instead.
        command.env_remove("ESPD_CONFIG").env("TMPDIR", "/nowhere").current_dir("/");
        url.map(|url| command.env("DATABASE_URL", url));
        command.output().unwrap()
    };
    let named = run(Some(&db.url));
    assert_eq!((named.status.code(), named.stderr), (Some(0), vec![]));
    let unnamed = run(None);
    let complaint = String::from_utf8(unnamed.stderr).unwrap();
    assert_eq!(unnamed.status.code(), Some(64), "{complaint}");
    assert!(complaint.starts_with("error: ") && complaint.contains("DATABASE_URL"), "{complaint}");
}

#[tokio::test]
async fn the_configuration_in_the_current_folder_is_found_by_itself() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let in_folder = |folder: &Path| {
        let mut command = installation.espctl_command(&["events"]);
        command.env_remove("ESPD_CONFIG").env("TMPDIR", "/nowhere").current_dir(folder);
        command.output().unwrap()
    };
    assert_eq!(in_folder(&installation.path()).status.code(), Some(0));
    assert_eq!(in_folder(Path::new("/")).status.code(), Some(64));
}
