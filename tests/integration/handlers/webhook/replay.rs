//! A reset does not repeat what was sent, unless that is wanted.

use super::{QUICK, append, declare, installation, shows};
use crate::support;
use crate::support::facts::{eventually, position, reaches};
use crate::support::receiver::{Receiver, Reply};

#[tokio::test]
async fn a_reset_sends_nothing_again_unless_that_is_wanted() {
    let db = support::database().await;
    // The second one keeps the position back, so that the third is beyond it.
    let receiver =
        Receiver::start(|request| if request.n() == 2 { Reply::Status(500) } else { Reply::Status(200) })
            .await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", "initial = '1h'\nmax = '1h'\n");
    append(&db.pool, &[(1, 1), (2, 2), (3, 3)]).await;
    let daemon = installation.start_daemon();
    shows(&installation, "the failure", |status| status["attempts"] == 1 && status["position"] == 1).await;
    let done = "select count(*) from espd.deliveries where is_done";
    eventually("the third", async || (super::count(&db.pool, done).await == 1).then_some(())).await;

    installation.espctl(&["reset", "hook", "--to", "0", "--yes"]).await.printed();
    let again = receiver.receives(4).await.remove(3);
    assert_eq!((again.n(), again.earlier), (2, 1), "the failing one only, as it was never received");
    eventually("the position", async || (position(&db.pool, "hook").await == 1).then_some(())).await;
    append(&db.pool, &[(4, 4)]).await;
    receiver.receives(5).await;
    assert_eq!(receiver.numbers()[4..], [4]);

    installation.espctl(&["reset", "hook", "--to", "0", "--repeat-effects", "--yes"]).await.printed();
    let received = receiver.receives(9).await;
    let mut numbers: Vec<i64> = received[5..].iter().map(support::receiver::Received::n).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3, 4]);
    for one in &received[5..] {
        assert!(one.earlier > 0, "under the key that it had");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_reactor_begins_with_what_comes_unless_it_says_otherwise() {
    let db = support::database().await;
    let receiver = Receiver::start(|_| Reply::Status(200)).await;
    let installation = installation(&db);
    declare(&installation, &receiver, "", "", QUICK);
    let file = installation.path().join("processors/hook.toml");
    let text = std::fs::read_to_string(&file).unwrap().replace("start = 'beginning'", "");
    std::fs::write(&file, text).unwrap();
    let last = append(&db.pool, &[(1, 1), (2, 2)]).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "hook", last).await;
    let last = append(&db.pool, &[(1, 3)]).await;
    reaches(&db.pool, "hook", last).await;
    assert_eq!(receiver.numbers(), [3]);
    daemon.stop().await;
}
