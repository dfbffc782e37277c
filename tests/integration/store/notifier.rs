//! Notifications of new events.

use std::time::Instant;

use espd::event::Position;
use espd::store::{EventStore, PostgresEventStore};
use sqlx::PgPool;
use sqlx::postgres::PgListener;
use tokio::runtime::Handle;
use tokio::time::timeout;
use uuid::Uuid;

use super::{LONG, happened, layout, store};

async fn listen(pool: &PgPool) -> PgListener {
    let mut listener = PgListener::connect_with(pool).await.unwrap();
    listener.listen(layout().channel().unwrap()).await.unwrap();
    listener
}

/// The payload of the next notification.
async fn hear(listener: &mut PgListener) -> String {
    timeout(LONG, listener.recv()).await.expect("a notification").unwrap().payload().to_owned()
}

/// Notifies in the test's own name; what was sent before on this server is heard before.
async fn say(pool: &PgPool, payload: &str) {
    sqlx::query("select pg_notify($1, $2)")
        .bind(layout().channel().unwrap())
        .bind(payload)
        .execute(pool)
        .await
        .unwrap();
}

/// Appends `count` events one by one, while a reader looks into the store after each notification and
/// at no other time, until all events are there. Returns how often that was.
async fn append_until_heard(store: &PostgresEventStore, listener: &mut PgListener, count: usize) -> u128 {
    let before = store.read_after(Position::START, None, None, i64::MAX).await.unwrap().len();
    let append = async {
        for _ in 0..count {
            store.append(&[happened(Uuid::new_v4())]).await.unwrap();
        }
    };
    let hear_all = async {
        let mut times = 0;
        loop {
            hear(listener).await;
            times += 1;
            if store.read_after(Position::START, None, None, i64::MAX).await.unwrap().len() == before + count
            {
                return times;
            }
        }
    };
    tokio::join!(append, hear_all).1
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_append_of_many_is_notified() {
    let (pool, store) = store().await;
    let mut listener = listen(&pool).await;
    for count in [1, 1, 2, 20, 200] {
        append_until_heard(&store, &mut listener, count).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_notifies_at_most_250_times_a_second_after_the_first_few() {
    let (pool, store) = store().await;
    let mut listener = listen(&pool).await;
    let begin = Instant::now();
    let times = append_until_heard(&store, &mut listener, 1_000).await;
    let elapsed = begin.elapsed();
    // As many as may be at once, those that were earned since then, and the last one.
    assert!(times <= 65 + elapsed.as_millis() / 4, "{times} notifications in {elapsed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_notifications_is_silent() {
    let (pool, store) = store().await;
    let mut listener = listen(&pool).await;
    let silent = store.without_notifications();
    silent.append(&[happened(Uuid::new_v4())]).await.unwrap();
    silent.notify();
    say(&pool, "end").await;
    assert_eq!(hear(&mut listener).await, "end");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_append_in_a_transaction_its_owner_notifies() {
    let (pool, store) = store().await;
    let mut listener = listen(&pool).await;
    let mut transaction = pool.begin().await.unwrap();
    store.append_in(&mut transaction, &[happened(Uuid::new_v4())]).await.unwrap();
    transaction.commit().await.unwrap();
    say(&pool, "committed").await;
    assert_eq!(hear(&mut listener).await, "committed");
    store.notify();
    assert_eq!(hear(&mut listener).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_notifier_ends_with_the_last_handle() {
    let (pool, store) = store().await;
    let clone = store.clone();
    store.append(&[happened(Uuid::new_v4())]).await.unwrap();
    clone.append(&[happened(Uuid::new_v4())]).await.unwrap();
    // The pool has tasks of its own, which end with its last handle; the notifier holds one.
    drop((pool, store));
    assert!(Handle::current().metrics().num_alive_tasks() > 0);
    drop(clone);
    until_no_task_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_that_cannot_be_sent_does_no_harm() {
    let (pool, _) = store().await;
    let closed = PgPool::connect_lazy_with((*pool.connect_options()).clone());
    closed.close().await;
    let deaf = PostgresEventStore::new(closed, layout());
    deaf.notify();
    deaf.append(&[happened(Uuid::new_v4())]).await.unwrap_err();
    deaf.notify();
    drop((pool, deaf));
    until_no_task_is_left().await;
}

async fn until_no_task_is_left() {
    let ended = async {
        while Handle::current().metrics().num_alive_tasks() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, ended).await.expect("the notifier's task ends");
}
