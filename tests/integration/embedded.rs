//! The embedded PostgreSQL server.

use crate::support;

#[tokio::test]
async fn each_test_has_a_database_of_its_own() {
    let (one, other) = (support::database().await, support::database().await);
    assert_ne!(one.name, other.name);
    sqlx::raw_sql("create table mine (id int)").execute(&one.pool).await.unwrap();
    let elsewhere: Option<String> =
        sqlx::query_scalar("select to_regclass('mine')::text").fetch_one(&other.pool).await.unwrap();
    assert_eq!(elsewhere, None);
}

#[tokio::test]
async fn a_test_database_has_the_migrations() {
    let database = support::database().await;
    espd::schema::check_event_store(&database.pool, support::SCHEMA).await.unwrap();
    espd::schema::check_processing(&database.pool, support::SCHEMA).await.unwrap();
}
