//! `espctl trace`: from an event to its cause and to everything that has followed.

use serde_json::Value;

use crate::support;
use crate::support::facts::{eventually, reaches};
use crate::support::program::Installation;

const COMMAND: &str = "00000000-0000-4000-8000-0000000000c0";
const ASKED: &str = "00000000-0000-4000-8000-000000000001";

const ANSWERING: &str = "[reactor]\nname = 'answering'\nemits = ['Answered', 'Reminded']\nstart = 'beginning'\n\
    [[reactor.on]]\nevents = ['Asked']\nsql = '''\n\
    perform espd.emit('Answered', event.aggregate_id, '{}');\n\
    perform espd.emit_after('Reminded', event.aggregate_id, '{}', interval '1 day')'''\n";

const FAILING: &str = "[projector]\nname = 'failing'\n[projector.tables]\nanswers = 'id bigint'\n\
    [projector.retry]\nmax_attempts = 1\non_failure = 'skip'\n\
    [[projector.on]]\nevents = ['Answered']\nsql = '''raise exception 'no room for answers' '''\n";

#[tokio::test]
async fn a_trace_leads_from_the_command_to_all_effects_and_to_what_waits() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "[runner]\npoll_interval_max = '50ms'\n");
    installation.declare("answering", ANSWERING).declare("failing", FAILING);
    let line = |uuid: &str, cause: &str| {
        format!(
            "{{\"uuid\":\"{uuid}\",\"aggregate_id\":\"{ASKED}\",\"type\":\"Asked\",\"body\":{{}},\"causation_id\":{cause}}}\n"
        )
    };
    let unrelated = "00000000-0000-4000-8000-000000000002";
    let asked = [line(ASKED, &format!("\"{COMMAND}\"")), line(unrelated, "null")].concat();
    installation.espctl_fed(&["append"], &asked).await.printed();
    let daemon = installation.start_daemon();
    reaches(&db.pool, "answering", 4).await;
    let trace = async |event: &str| installation.espctl(&["trace", event, "--json"]).await.json();
    let of_answer = eventually("a dead letter in the trace", async || {
        let found = trace("3").await;
        (!found["dead_letters"].as_array().unwrap().is_empty()).then_some(found)
    })
    .await;
    daemon.stop().await;

    assert_eq!(of_answer["cause"], COMMAND);
    let events = of_answer["events"].as_array().unwrap();
    let short =
        |event: &Value| (event["depth"].as_i64().unwrap(), event["type"].as_str().unwrap().to_owned());
    let shorts: Vec<(i64, String)> = events.iter().map(short).collect();
    assert_eq!(shorts, [(0, "Asked".to_owned()), (1, "Answered".to_owned())]);
    assert_eq!((&of_answer["asked"], &of_answer["is_cut"]), (&events[1]["uuid"], &Value::Bool(false)));
    let pending = &of_answer["pending"][0];
    assert_eq!(pending["causation_id"], ASKED);

    let tree = installation.espctl(&["trace", ASKED]).await.printed();
    let lines: Vec<&str> = tree.lines().collect();
    assert_eq!(lines.len(), 5, "{tree}");
    assert!(lines[0].starts_with(COMMAND) && lines[0].contains("no event of this store"), "{tree}");
    assert!(lines[1].starts_with("└ 1  Asked  20") && lines[1].ends_with("  <- this"), "{tree}");
    assert!(lines[2].starts_with("  └ pending  Reminded  due 20"), "{tree}");
    assert!(lines[3].starts_with("  └ 3  Answered  +"), "{tree}");
    assert!(lines[3].ends_with("  emitted by answering"), "{tree}");
    assert_eq!(lines[4], "    └ dead letter of failing, failed: no room for answers");

    let reminder = pending["uuid"].as_str().unwrap();
    let of_pending = installation.espctl(&["trace", reminder]).await.printed();
    let marked = of_pending.lines().find(|line| line.ends_with("<- this")).unwrap();
    assert!(marked.contains("pending  Reminded") && marked.contains("emitted by answering"), "{of_pending}");

    let shortened = installation.espctl(&["trace", "1", "--limit", "1"]).await.printed();
    assert!(shortened.ends_with("There is more: raise --limit or --depth.\n"), "{shortened}");
    for (event, complaint) in
        [("99", "no event at position 99"), (COMMAND, "no event has the uuid"), ("x", "neither")]
    {
        let complained = installation.espctl(&["trace", event]).await.complained(1);
        assert!(complained.contains(complaint), "{complained}");
    }
}
