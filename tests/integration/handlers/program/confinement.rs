//! What a program gets to see of espd: its pipes, a few variables, its folder.

use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde_json::Value;

use super::declare_counting;
use crate::support;
use crate::support::facts::{append, eventually, reaches};
use crate::support::program::{Installation, Program};

/// A worker that writes what it sees into a file.
const SEEING: &str = r#"
import json, os, sys
seen = {
    "environment": dict(os.environ),
    "files": {fd: os.readlink("/proc/self/fd/" + fd) for fd in os.listdir("/proc/self/fd") if os.path.lexists("/proc/self/fd/" + fd)},
    "folder": os.getcwd(),
    "group": os.getpgrp() == os.getpid(),
    "hello": json.loads(sys.stdin.readline())["hello"],
}
with open("seen.tmp", "w") as file:
    json.dump(seen, file)
os.rename("seen.tmp", "seen")
print('{"ready":1}', flush=True)
for line in sys.stdin:
    batch = json.loads(line)
    for event in batch["events"]:
        print(json.dumps({"done": event["id"]}))
    print(json.dumps({"end": batch["batch"]}), flush=True)
"#;

async fn seen(installation: &Installation) -> Value {
    let file = installation.path().join("processors/seen");
    let text = eventually("what the program sees", async || std::fs::read_to_string(&file).ok()).await;
    serde_json::from_str(&text).unwrap()
}

fn declare_seeing(installation: &Installation) {
    std::fs::write(installation.path().join("processors/seeing.py"), SEEING).unwrap();
    installation.declare(
        "seeing",
        "[reactor]\nname = 'seeing'\nevents = ['A', 'B']\nemits = ['C']\nstart = 'beginning'\n\
         command = ['python3', 'seeing.py']\ncommand_environment = { TOKEN = '${SECRET_TOKEN}', TZ = 'UTC' }\n\
         [reactor.tables]\nseen_by_key = 'b text, a int, c jsonb, primary key (a, b)'\nseen_without = 'x int'\n",
    );
}

/// A program that says what is secret in each way that it has.
const TELLING: &str = r#"
import json, os, sys
token = os.environ["TOKEN"]
sys.stdin.readline()
print('{"ready":1}', flush=True)
for line in sys.stdin:
    batch = json.loads(line)
    event = batch["events"][0]
    print(json.dumps({"log": "logged " + token}))
    print("written " + token, file=sys.stderr, flush=True)
    way = event["body"]["way"]
    if way == "failed":
        print(json.dumps({"failed": event["id"], "error": "401 for Bearer " + token, "detail": "detail " + token}), flush=True)
    elif way == "refused":
        print(json.dumps({"done": event["id"], "actions": [{"upsert": "told", "row": {"id": 1, "n": token}}]}))
        print(json.dumps({"end": batch["batch"]}), flush=True)
    else:
        print("x" * (190 - 8) + token + "x" * 200, flush=True)
"#;

#[tokio::test]
async fn a_program_that_repeats_a_value_of_its_environment_does_not_show_it() {
    let secret = "hunter2-secret-value";
    for way in ["failed", "refused", "violated"] {
        let db = support::database().await;
        let installation = Installation::new(&db.url, "");
        std::fs::write(installation.path().join("processors/telling.py"), TELLING).unwrap();
        installation.declare(
            "telling",
            &format!(
                "[projector]\nname = 'telling'\nevents = ['A']\ncommand = ['python3', 'telling.py']\n\
                 command_environment = {{ TOKEN = '{secret}', MODE = 'true' }}\n\
                 [projector.tables]\ntold = 'id int primary key, n int'\n"
            ),
        );
        let append = "insert into espd.events (aggregate_id, type, version, body)
             select gen_random_uuid(), 'A', 1, jsonb_build_object('way', $1::text)";
        sqlx::query(append).bind(way).execute(&db.pool).await.unwrap();
        let daemon = installation.start_daemon();
        let written = daemon.says("the program wrote to its standard error").await;
        assert_eq!(written["line"], "written ***", "{written}");
        assert_eq!(daemon.says("the program says").await["line"], "logged ***");
        daemon.says("could not handle an event").await;
        let status = eventually("the failure", async || {
            Some(installation.status("telling").await).filter(|status| status["last_error"]["event_id"] == 1)
        })
        .await;
        let failure = status["last_error"].to_string();
        let words = match way {
            "failed" => "401 for Bearer ***",
            "refused" => "***",
            _ => "xxxx***",
        };
        assert!(failure.contains(words), "{failure}");
        let shown = format!(
            "{status} {:?} {}",
            daemon.log(),
            installation.espctl(&["status", "telling"]).await.printed()
        );
        assert!(!shown.contains("hunter2"), "{way}: {shown}");
        daemon.stop().await;
    }
}

#[tokio::test]
async fn a_program_sees_nothing_of_espd_but_what_it_needs() {
    let db = support::database().await;
    let installation = Installation::new("${DATABASE_URL}", "");
    std::fs::write(
        installation.path().join("espd.toml"),
        "include = ['processors/*.toml']\n[log]\nformat = 'json'\nlevel = 'trace'\n[event_store]\nurl = '${DATABASE_URL}'\n",
    )
    .unwrap();
    declare_seeing(&installation);
    // A file that espd itself has inherited, as from a shell.
    let inherited = std::fs::File::open("/dev/null").unwrap();
    let mut command = installation.espd_command(&["run"]);
    command.env("DATABASE_URL", &db.url).env("SECRET_TOKEN", "hush-hush").env("NOTIFY_SOCKET", "/nowhere");
    command.env("AWS_SECRET_ACCESS_KEY", "hush").env("LC_TIME", "C").env_remove("LANG");
    let fd = inherited.as_raw_fd();
    keep_open(&mut command, inherited);
    let daemon = Program::start(command);
    let last = append(&db.pool, 1).await;
    reaches(&db.pool, "seeing", last).await;

    let seen = seen(&installation).await;
    let environment = seen["environment"].as_object().unwrap();
    assert_eq!(environment["TOKEN"], "hush-hush");
    assert_eq!((&environment["TZ"], &environment["LC_TIME"]), (&"UTC".into(), &"C".into()));
    let allowed = ["PATH", "HOME", "TMPDIR", "TZ", "TOKEN", "LC_TIME"];
    // What the interpreter sets for itself, and what a wrapper around it does.
    let own = |name: &str| {
        name.starts_with("LC_") || name.contains("PYENV_") || ["_", "PWD", "SHLVL", "OLDPWD"].contains(&name)
    };
    let strange: Vec<_> =
        environment.keys().filter(|name| !allowed.contains(&name.as_str()) && !own(name)).collect();
    assert!(strange.is_empty(), "{strange:?}");
    let text = seen.to_string();
    assert!(!text.contains(&db.name) && !text.contains("postgres"), "{text}");

    let files = seen["files"].as_object().unwrap();
    for standard in ["0", "1", "2"] {
        assert!(files[standard].as_str().unwrap().starts_with("pipe:"), "{files:?}");
    }
    // Beside these only the folder that it reads to see them.
    assert!(
        files.len() <= 4 && files.get(&fd.to_string()).is_none_or(|file| file != "/dev/null"),
        "{files:?}"
    );
    assert_eq!(
        seen["folder"],
        installation.path().join("processors").canonicalize().unwrap().to_str().unwrap()
    );
    assert_eq!(seen["group"], true);
    let hello = &seen["hello"];
    assert_eq!(
        (&hello["protocol"], &hello["kind"], &hello["processor"]),
        (&1.into(), &"reactor".into(), &"seeing".into())
    );
    assert_eq!(hello["emits"], serde_json::json!(["C"]));
    let tables = serde_json::json!({
        "seen_by_key": { "key": ["a", "b"], "columns": ["b", "a", "c"] },
        "seen_without": { "key": [], "columns": ["x"] },
    });
    assert_eq!(hello["tables"], tables);

    let log = format!("{:?}", daemon.log());
    assert!(!log.contains("hush-hush"), "the log shows a secret");
    let shown = command_output(&installation, &db.url, &["config", "show"]).await;
    assert!(shown.contains("TOKEN = \"***\"") && !shown.contains("hush-hush"), "{shown}");
    daemon.stop().await;
}

async fn command_output(installation: &Installation, url: &str, arguments: &[&str]) -> String {
    let mut command = installation.espctl_command(arguments);
    command.env("DATABASE_URL", url).env("SECRET_TOKEN", "hush-hush");
    let output = tokio::process::Command::from(command).output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Has a program inherit a file.
fn keep_open(command: &mut std::process::Command, file: std::fs::File) {
    let keep = move || {
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(())
    };
    // SAFETY: one system call that is safe between fork and exec.
    #[expect(unsafe_code, reason = "std offers no safe way to hand a file on")]
    unsafe {
        command.pre_exec(keep)
    };
}

#[tokio::test]
async fn espd_keeps_no_files_of_programs_that_have_ended() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, super::SETTINGS);
    declare_counting(&installation, "restless", "exits", "");
    append(&db.pool, 500).await;
    let daemon = installation.start_daemon();
    let worker = daemon.child("restless", 1).await;
    let open = || std::fs::read_dir(format!("/proc/{worker}/fd")).unwrap().count();
    let restarts = async |wanted: usize| {
        eventually("restarts", async || {
            (daemon.logged("the program is ready").len() >= wanted).then_some(())
        })
        .await;
    };
    restarts(4).await;
    let before = open();
    restarts(24).await;
    // As many as one program more or less has.
    assert!(open() <= before + 6, "{before} files were open, now {}", open());
    daemon.stop().await;
}
