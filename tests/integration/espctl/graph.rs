//! `espctl graph`: who handles, emits, owns and reads what.

use crate::support;
use crate::support::facts::{append, reaches};
use crate::support::program::Installation;

#[tokio::test]
async fn the_graph_is_that_of_the_configuration_with_states_of_the_database() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    installation.declare_notes("notes", "");
    installation.declare(
        "answers",
        "[reactor]\nname = 'answers'\nemits = ['Answered']\nreads = ['notes']\n\
         [[reactor.on]]\nevents = ['A', 'B']\nsql = 'null'\n",
    );
    let text = installation.espctl(&["graph"]).await.printed();
    assert!(text.contains("notes  projector, sql\n  handles  A\n  owns     notes\n"), "{text}");
    assert!(text.contains("  handles  A, B\n  emits    Answered\n  reads    notes (of notes)\n"), "{text}");
    let dot = installation.espctl(&["graph", "--format", "dot"]).await.printed();
    assert!(dot.starts_with("digraph espd {") && dot.contains("label = \"Answered\""), "{dot}");
    let mermaid = installation.espctl(&["graph", "--format", "mermaid"]).await.printed();
    assert!(mermaid.starts_with("flowchart LR\n") && mermaid.contains("-.->"), "{mermaid}");
    let json = installation.espctl(&["graph", "--json"]).await.json();
    let answers = json.as_array().unwrap().iter().find(|node| node["name"] == "answers").unwrap();
    assert_eq!((&answers["emits"][0], &answers["state"]), (&"Answered".into(), &serde_json::Value::Null));

    let last = append(&db.pool, 2).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "notes", last).await;
    installation.espctl(&["pause", "notes"]).await.printed();
    let text = installation.espctl(&["graph", "--state"]).await.printed();
    assert!(text.contains("notes  projector, sql, paused\n"), "{text}");
    daemon.stop().await;
    let unreachable = Installation::new("postgres://nobody@127.0.0.1:1/nowhere", "");
    unreachable.declare_notes("notes", "");
    let outcome = unreachable.espctl(&["graph", "--state"]).await;
    assert!(outcome.code == Some(0) && outcome.stderr.contains("without states"), "{outcome:?}");
}
