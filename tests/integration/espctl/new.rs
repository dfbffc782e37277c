//! `espctl new`: what it makes builds, passes its tests, and is added to.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::support::program::Outcome;

/// A folder to make projects in.
struct Workshop(TempDir);

impl Workshop {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.0.path().join(inside)
    }

    /// Runs `espctl new` in a folder of the workshop.
    async fn espctl_new(&self, folder: &str, arguments: &str) -> Outcome {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_espctl"));
        command.arg("new").args(arguments.split_whitespace()).current_dir(self.path(folder));
        let output = command.output().await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Outcome { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.path(file)).unwrap()
    }
}

#[tokio::test]
async fn a_project_depends_on_this_version_or_on_a_checkout() {
    let workshop = Workshop::new();
    let said = workshop.espctl_new(".", "shop").await.printed();
    assert!(said.starts_with("made shop/: 14 files\nnext: cd shop && cargo test"), "{said}");
    assert!(workshop.read("shop/Cargo.toml").contains(&format!("espd = \"{}\"", env!("CARGO_PKG_VERSION"))));
    let checkout = env!("CARGO_MANIFEST_DIR");
    workshop.espctl_new(".", &format!("other --espd-path {checkout}")).await.printed();
    assert!(workshop.read("other/Cargo.toml").contains(&format!("espd = {{ path = \"{checkout}\" }}")));
    for file in ["src/main.rs", "src/web.rs", "tests/service.rs", "espd.toml", "README.md"] {
        assert!(!workshop.read(&format!("shop/{file}")).contains("@name"), "{file}");
    }
}

#[tokio::test]
async fn what_cannot_be_made_is_said_and_nothing_is_written() {
    let workshop = Workshop::new();
    workshop.espctl_new(".", "shop").await.printed();
    let refused = [
        (".", "shop", "is there already"),
        (".", "Shop", "espctl new shop"),
        (".", "other --espd-path /nowhere", "there is no folder /nowhere"),
        (".", "other --espd-path .", "is not a folder with the source of espd"),
        (".", "event OrderPaid --aggregate order", "this folder is no project of espctl new"),
        ("shop", "event OrderPaid --aggregate order", "src/order.rs cannot be read"),
        ("shop", "event NoteWritten --aggregate note", "has the event NoteWritten already"),
        (
            "shop",
            "command WriteNote --aggregate note --event NoteWritten",
            "has the command WriteNote already",
        ),
        ("shop", "aggregate note", "src/note.rs is there already"),
        ("shop", "event Paid a:u8 a:u16 --aggregate note", "the field a is given twice"),
        ("shop", "command Pay a a --aggregate note --event Paid", "the field a is given twice"),
        (
            "shop",
            "projector sums --events NoteWritten --events note_written",
            "the event NoteWritten is given twice",
        ),
        ("shop", "projector notes --events NoteWritten", "processors/notes.toml is there already"),
        (".", "tokio", "tokio is a crate that projects use"),
        (".", "postgres", "a database that is always there"),
        ("shop", "aggregate serde", "serde is a crate that projects use"),
        ("shop", "aggregate refusal", "Refusal is a type that the file of an aggregate uses"),
        ("shop", "event Context --aggregate note", "Context is a type that the file of an aggregate uses"),
        ("shop", "event Note --aggregate note", "src/note.rs has a type Note already"),
        ("shop", "command NoteWritten text --aggregate note --event Other", "has a type NoteWritten already"),
        ("shop", "command Cancel --aggregate note --event Cancel", "have different names"),
        (
            "shop",
            "command Copy text:u32 --aggregate note --event NoteWritten",
            "src/note.rs has the event NoteWritten with other fields than { text: u32 }",
        ),
    ];
    for (folder, arguments, reason) in refused {
        let complaint = workshop.espctl_new(folder, arguments).await.complained(1);
        assert!(complaint.contains(reason), "{arguments}: {complaint}");
    }
    assert!(!workshop.path("other").exists());
    for wrong in [
        "type",
        "1st",
        "event A-B --aggregate note",
        "event A amount:u32} --aggregate note",
        "event A due:NaiveDate --aggregate note",
    ] {
        assert_eq!(workshop.espctl_new("shop", wrong).await.code, Some(2), "{wrong}");
    }
    let web = workshop.read("shop/src/web.rs").replace("// espctl new: routes\n", "");
    std::fs::write(workshop.path("shop/src/web.rs"), web).unwrap();
    let add = "command Revise text:String --aggregate note --event Revised";
    let complaint = workshop.espctl_new("shop", add).await.complained(1);
    assert!(complaint.contains("src/web.rs has no line `// espctl new: routes`"), "{complaint}");
    assert!(!workshop.read("shop/src/note.rs").contains("Revised"), "half of it was written");
}

#[tokio::test]
async fn only_what_is_written_is_formatted() {
    let workshop = Workshop::new();
    workshop.espctl_new(".", "shop").await.printed();
    let mine = "pub async fn  notes ( ) { }\n";
    std::fs::write(workshop.path("shop/src/queries.rs"), mine).unwrap();
    workshop.espctl_new("shop", "aggregate account").await.printed();
    assert_eq!(workshop.read("shop/src/queries.rs"), mine);
    // In order, which is what rustfmt makes of it.
    assert!(workshop.read("shop/src/lib.rs").contains("pub mod account;\npub mod answer;"));
}

/// What it shares with the example application is the same there, so both are tested by either's tests.
#[test]
fn the_template_is_the_example_as_far_as_they_do_the_same() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in ["src/answer.rs", "src/main.rs", "src/service.rs", "espd.toml"] {
        let template =
            std::fs::read_to_string(root.join(format!("src/espctl/new/template/{file}.txt"))).unwrap();
        let example = std::fs::read_to_string(root.join("examples/todo").join(file)).unwrap();
        assert_eq!(template.replace("@name@", "todo").replace("@NAME@", "TODO"), example, "{file}");
    }
}

#[tokio::test]
#[ignore = "builds a project, which takes a minute and crates from the registry: ./bin/test and ./.ci/run run this"]
async fn a_project_and_what_is_added_to_it_build_and_pass_their_tests() {
    let workshop = Workshop::new();
    workshop.espctl_new(".", &format!("shop --espd-path {}", env!("CARGO_MANIFEST_DIR"))).await.printed();
    for addition in [
        "event NoteRevised text --aggregate note",
        "command ReviseNote text --aggregate note --event NoteRevised",
        "command TagNote tag:String weight:u32 --aggregate note --event NoteTagged",
        "command PrintNote --aggregate note --event NotePrinted",
        "command CopyNote text --aggregate note --event NoteWritten",
        "aggregate bank_account",
        "aggregate request",
        "command Cancel on:chrono::NaiveDate --aggregate note --event NoteCancelled",
        "command Cancel reason:Option<String> --aggregate request --event RequestCancelled",
        "projector order --events RequestCreated",
        "command AddMoney amount:u32 --aggregate bank_account --event MoneyAdded",
        "projector activity --events NoteWritten,NoteRevised,MoneyAdded",
        "event NoteGreeted because --aggregate note",
        "reactor greeter --events NoteWritten --emits NoteGreeted",
    ] {
        workshop.espctl_new("shop", addition).await.printed();
    }
    // Versions of crates as the example has them, and what it has built already.
    let example = |file: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/todo").join(file);
        std::fs::read_to_string(path).unwrap()
    };
    let lock = example("Cargo.lock").replace("name = \"todo\"", "name = \"shop\"");
    std::fs::write(workshop.path("shop/Cargo.lock"), lock).unwrap();
    let manifest = example("Cargo.toml");
    std::fs::create_dir(workshop.path("shop/.cargo")).unwrap();
    let profiles = &manifest[manifest.find("[profile").unwrap()..];
    std::fs::write(workshop.path("shop/.cargo/config.toml"), profiles).unwrap();
    let target = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().to_owned();
    for arguments in
        [&["fmt", "--check"][..], &["test"], &["run", "-q", "--", "check", "--config", "espd.toml"]]
    {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(arguments).current_dir(workshop.path("shop")).env("CARGO_TARGET_DIR", &target);
        let database = crate::support::database().await;
        let output =
            tokio::process::Command::from(cargo).env("DATABASE_URL", &database.url).output().await.unwrap();
        let said = format!(
            "{}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.status.success(), "cargo {arguments:?}: {said}");
    }
}
