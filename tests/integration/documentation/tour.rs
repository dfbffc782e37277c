//! `docs/tour.md`, from an empty folder to its end.

use super::page::sections;
use super::shell::{self, free_port};
use crate::support::server;

const PAGE: &str = "docs/tour.md";

#[tokio::test]
#[ignore = "needs python3: ./bin/test and ./.ci/run have it and run this"]
async fn the_tour_goes_as_it_says() {
    let blocks: Vec<_> =
        sections(&super::read(PAGE)).into_iter().flat_map(|section| section.blocks).collect();
    let server = server().await;
    let folder = tempfile::tempdir().unwrap();
    let url = server.url("tour");
    let (role, socket) = (between(&url, "//", "@"), between(&url, "host=", "").replace("%2F", "/"));
    let port = between(&url, "localhost:", "/").to_owned();
    let environment =
        [("PGHOST", socket), ("PGPORT", port), ("PGUSER", role.to_owned()), ("PORT", free_port())];
    shell::try_out(PAGE, folder.path(), &shell::steps(&blocks), &environment).await;
    server.stop().await;
}

/// The part of a text behind one mark and before another; to its end where that is empty.
fn between<'t>(text: &'t str, from: &str, to: &str) -> &'t str {
    let behind = text.split_once(from).unwrap().1;
    if to.is_empty() { behind } else { behind.split_once(to).unwrap().0 }
}
