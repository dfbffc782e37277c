//! The clock of the machine that espd runs on, against that of the server.

use std::process::Command;

use super::SETTINGS;
use crate::support;
use crate::support::facts::{append, reaches};
use crate::support::program::{Installation, Program};

/// Makes every clock of a process an hour fast: a library that stands before the C library.
const FAST_CLOCK: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
int clock_gettime(clockid_t id, struct timespec *time) {
    static int (*original)(clockid_t, struct timespec *);
    if (!original) original = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = original(id, time);
    if (result == 0 && id == CLOCK_REALTIME) time->tv_sec += 3600;
    return result;
}
"#;

#[tokio::test]
async fn a_delay_is_counted_by_the_clock_of_the_server() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, SETTINGS);
    let folder = installation.path();
    std::fs::write(folder.join("clock.c"), FAST_CLOCK).unwrap();
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o", "clock.so", "clock.c", "-ldl"])
        .current_dir(&folder)
        .status()
        .unwrap();
    assert!(compiled.success());
    let worker = "import sys, json\nprint(json.dumps({'ready': 1}), flush=True)\nsys.stdin.readline()\n\
        for line in sys.stdin:\n    batch = json.loads(line)\n    for event in batch['events']:\n        \
        print(json.dumps({'done': event['id'], 'actions': [{'emit': 'E', 'aggregate_id': event['aggregate_id'], \
        'body': {}, 'after': 600}]}))\n    print(json.dumps({'end': batch['batch']}), flush=True)\n";
    std::fs::write(folder.join("processors/later.py"), worker).unwrap();
    installation.declare(
        "later",
        "[reactor]\nname = 'later'\nevents = ['A']\nstart = 'beginning'\nemits = ['E']\ncommand = ['python3', 'later.py']\n",
    );
    let last = append(&db.pool, 1).await;
    let mut command = installation.espd_command(&["run"]);
    command.env("LD_PRELOAD", folder.join("clock.so"));
    let daemon = Program::start(command);
    reaches(&db.pool, "later", last).await;
    let left: f64 = sqlx::query_scalar(
        "select extract(epoch from due_at - clock_timestamp())::float8 from espd.emissions",
    )
    .fetch_one(&db.pool)
    .await
    .unwrap();
    assert!((480.0..=600.0).contains(&left), "{left}");
    daemon.stop().await;
}
