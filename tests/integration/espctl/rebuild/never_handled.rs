//! What a program is told of events that were dead letters: they were never handled, so what it does outside is not done yet.

use super::*;

/// Refuses the events whose number is in the file `bad`, and logs what it is told of the others.
const PROGRAM: &str = r#"
import json, sys
sys.stdin.readline()
def say(message):
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
say({"ready": 1})
for line in sys.stdin:
    batch = json.loads(line)
    for event in batch["events"]:
        if str(event["id"]) in open("bad").read().split():
            say({"failed": event["id"], "error": "bad"})
            break
        with open("told", "a") as told:
            told.write("%d:%s\n" % (event["id"], event["replaying"]))
        say({"done": event["id"], "actions": [{"upsert": "orders", "row": {"id": event["id"]}}]})
    say({"end": batch["batch"]})
"#;

fn declare(installation: &Installation, version: i32) {
    let text = format!(
        "[projector]\nname = 'orders'\nversion = {version}\nevents = ['A']\ncommand = ['python3', 'orders.py']\n\
         [projector.retry]\ninitial = '1ms'\nmax_attempts = 1\non_failure = 'skip'\n\
         [projector.tables]\norders = 'id bigint primary key'\n"
    );
    installation.declare("orders", &text);
}

impl Fixture {
    fn is_bad(&self, events: &str) {
        std::fs::write(self.installation.path().join("processors/bad"), events).unwrap();
    }

    /// What the program was told since this was asked last.
    fn told(&self) -> Vec<String> {
        let file = self.installation.path().join("processors/told");
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        std::fs::write(&file, "").unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn a_dead_letter_that_is_handled_at_last_is_no_repetition() {
    let db = support::database().await;
    let runner = "[runner]\npoll_interval_max = '50ms'\n[rebuild]\nparallelism = 0\n";
    let fixture = Fixture { installation: Installation::new(&db.url, runner), db };
    std::fs::write(fixture.installation.path().join("processors/orders.py"), PROGRAM).unwrap();
    declare(&fixture.installation, 1);
    fixture.is_bad("2 3");
    append(&fixture.db.pool, 4).await;
    let daemon = fixture.installation.start_daemon();
    reaches(&fixture.db.pool, "orders", 4).await;
    assert_eq!(fixture.told(), ["1:False", "4:False"]);

    // In place: one is handled now, and the other stays one that was not.
    fixture.is_bad("3");
    fixture.espctl(&["reset", "orders", "--in-place", "--yes"]).await.printed();
    reaches(&fixture.db.pool, "orders", 4).await;
    assert_eq!(fixture.told(), ["1:True", "2:False", "4:True"]);
    let letters = "select string_agg(event_id || ':' || replaying, ' ') from espd.dead_letters where processor = 'orders'";
    assert_eq!(fixture.fact(letters).await, "3:false");
    fixture.espctl(&["reset", "orders", "--in-place", "--yes"]).await.printed();
    reaches(&fixture.db.pool, "orders", 4).await;
    assert_eq!(fixture.told(), ["1:True", "2:True", "4:True"]);
    daemon.stop().await;

    // Whoever only looks does nothing outside.
    fixture.is_bad("");
    declare(&fixture.installation, 2);
    fixture.espctl(&["rebuild", "orders", "--dry-run"]).await;
    assert_eq!(fixture.told(), ["1:True", "2:True", "3:True", "4:True"]);
    // Beside.
    fixture.espctl(&["rebuild", "orders", "--yes", "--go-live", "swap"]).await.printed();
    assert_eq!(fixture.told(), ["1:True", "2:True", "3:False", "4:True"]);
    assert_eq!(fixture.fact("select count(*) from espd.dead_letters where processor = 'orders'").await, "0");
}
