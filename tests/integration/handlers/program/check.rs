//! `espd check` finds out whether a program can be a worker.

use super::declare_counting;
use crate::support;
use crate::support::program::Installation;

#[tokio::test]
async fn a_check_starts_programs_and_finds_what_is_wrong_with_them() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    declare_counting(&installation, "fine", "well", "");
    let said = installation.espctl(&["check"]).await.printed();
    assert_eq!(said, "ok: 1 projector, event store \"espd\".\"events\"\n");

    declare_counting(&installation, "stillborn", "stillborn", "");
    declare_counting(&installation, "ready_twice", "ready_twice", "");
    let projector =
        |name: &str, rest: &str| format!("[projector]\nname = '{name}'\nevents = ['A']\n{rest}\n");
    installation.declare("absent", &projector("absent", "command = ['./absent.sh', 'a']"));
    let keyless = "command = ['cat']\n[projector.tables]\nkeyless = 'id bigint'";
    installation.declare("keyless", &projector("keyless", keyless));
    let table = "command = ['cat']\n[projector.tables]\nwrong = 'id bigind primary key'";
    installation.declare("wrong", &projector("wrong", table));
    let complaint = installation.espd(&["check"]).await.complained(64);
    for words in [
        "processors/stillborn.toml:4:11: \"python3\" ended with exit code 1 before it said {\"ready\":1}; it wrote to standard error: no such module: todos",
        "processors/ready_twice.toml:4:11: \"python3\" wrote `ready` again: after `ready` it has to wait for events",
        "processors/absent.toml:4:11: could not start \"./absent.sh\": there is no such program; the program has to be executable, and in PATH or named from",
        "processors/keyless.toml:6:12: table keyless has no primary key",
        // It says what it was told.
        "processors/keyless.toml:4:11: \"cat\" wrote a line that is no message: unknown field `hello`",
        "processors/wrong.toml:6:13: type \"bigind\" does not exist",
    ] {
        assert!(complaint.contains(words), "{words}\n---\n{complaint}");
    }
    assert!(!complaint.contains("fine"), "{complaint}");
    let left: i64 = sqlx::query_scalar("select count(*) from pg_class where relname in ('fine', 'keyless')")
        .fetch_one(&db.pool)
        .await
        .unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn the_declaration_of_a_program_is_checked() {
    let installation = Installation::without_database("");
    let text = "[[projector]]\nname = 'one'\nevents = ['A']\ncommand = []\ncommand_timeout = '1ms'\n\
                command_memory_max = '1KiB'\ncommand_environment = { 'A B' = 'hush-hush', C = 'quiet' }\n\
                [[projector]]\nname = 'two'\ncommand_timeout = '1s'\non = { events = ['A'], sql = 'null' }\n\
                [[projector]]\nname = 'three'\ncommand = ['x']\n";
    installation.declare("faulty", text);
    let complaint = installation.espctl(&["config", "show"]).await.complained(64);
    for words in [
        "faulty.toml:4:11: a command needs a program",
        "faulty.toml:5:19: `1ms` is not allowed for `command_timeout`",
        "faulty.toml:6:22: `1KiB` is not allowed for `command_memory_max`",
        "faulty.toml:7:23: `A B` is not a name for a variable",
        "faulty.toml:10:19: `command_timeout` cannot be used without `command`",
        "faulty.toml:12:1: [projector] needs `events`",
    ] {
        assert!(complaint.contains(words), "{words}\n---\n{complaint}");
    }
    assert!(!complaint.contains("hush-hush") && !complaint.contains("quiet"), "{complaint}");
}
