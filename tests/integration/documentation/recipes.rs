//! Each recipe of `docs/recipes.md`, on a database of its own.

use std::path::Path;

use super::page::{Section, sections};
use super::shell::{self, Step, free_port};
use crate::support::database;
use crate::support::facts::eventually;
use crate::support::program::{Installation, Program};

const PAGE: &str = "docs/recipes.md";

/// A test for each recipe, and one that requires a test for each.
macro_rules! recipes {
    ($($(#[$attribute:meta])* $test:ident: $title:literal,)*) => {
        $(#[tokio::test] $(#[$attribute])* async fn $test() { cook($title).await; })*

        #[test]
        fn every_recipe_is_tried() {
            let told = sections(&super::read(PAGE)).into_iter().map(|section| section.title);
            let told: Vec<String> = told.filter(|title| !title.is_empty()).collect();
            assert_eq!(told, [$($title),*]);
        }
    };
}

recipes! {
    names_are_unique: "Unique names",
    counters_and_a_ranking: "Counters and a ranking",
    two_aggregates_in_one_table: "A join of two aggregates",
    a_search_table: "Full-text search",
    #[ignore = "needs python3: ./bin/test and ./.ci/run have it and run this"]
    an_email_is_sent_once: "An e-mail, once",
    a_nightly_job: "A nightly job",
    soft_deletion: "Soft deletion and restoring",
    the_past_is_imported: "Importing what was there before",
    tenants_are_kept_apart: "Many tenants",
    a_time_out: "A process with a time-out",
    #[ignore = "needs python3: ./bin/test and ./.ci/run have it and run this"]
    a_signed_webhook: "A webhook with a signature",
    #[ignore = "needs python3: ./bin/test and ./.ci/run have it and run this"]
    a_call_under_a_key: "A call of another service, with its answer as an event",
    an_audit_log: "An audit log",
    a_person_is_forgotten: "Forgetting a person",
    a_handler_reads_its_writes: "A web handler that reads what it has written",
}

/// Saves the files of a recipe, has them checked and run, and does what the recipe says.
async fn cook(title: &str) {
    let sections = sections(&super::read(PAGE));
    let recipe = sections.into_iter().find(|section| section.title == title).expect("the recipe is there");
    let database = database().await;
    let installation = Installation::new(&database.url, "");
    save_files(&recipe, &installation.path());
    let folder = installation.path();
    let environment =
        [("DATABASE_URL", database.url.clone()), ("PORT", free_port()), ("SERVICE_PORT", free_port())];
    if folder.join("setup.sql").exists() {
        let setup = "psql -q -v ON_ERROR_STOP=1 \"$DATABASE_URL\" -f setup.sql\n".to_owned();
        let step = Step { commands: setup, expected: Some(String::new()), line: 0 };
        shell::try_out(title, &folder, &[step], &environment).await;
    }
    let check =
        Step {
            commands: "espctl check\n".to_owned(), expected: Some("…\nok: …\n…".to_owned()), line: 0
        };
    shell::try_out(title, &folder, &[check], &environment).await;
    let mut daemon = installation.espd_command(&["run"]);
    daemon.envs(environment.clone());
    let daemon = Program::start(daemon);
    eventually("all processors are live", async || all_are_live(&installation).await.then_some(())).await;
    let steps = shell::steps(&recipe.blocks);
    assert!(steps.iter().any(|step| step.expected.is_some()), "{title}: nothing shows that it works");
    shell::try_out(PAGE, &folder, &steps, &environment).await;
    daemon.stop().await;
}

/// A reactor begins with the events of its first start: whoever follows the page by hand is slower than that.
async fn all_are_live(installation: &Installation) -> bool {
    let statuses = installation.espctl(&["status", "--json"]).await.json();
    let statuses = statuses.as_array().unwrap();
    !statuses.is_empty() && statuses.iter().all(|status| status["state"] == "live")
}

fn save_files(recipe: &Section, folder: &Path) {
    for block in &recipe.blocks {
        if let Some(file) = block.file() {
            std::fs::write(folder.join(file), &block.text).unwrap();
        }
    }
}
