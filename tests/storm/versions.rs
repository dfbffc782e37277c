//! After the storm: what is being built is brought to its end, and counted.

use std::time::{Duration, Instant};

use fastrand::Rng;
use sqlx::PgConnection;
use tokio::time::sleep;

use crate::beside::Beside;
use crate::projectors::VERSIONED;
use crate::world::World;

/// How long the daemons may take to bring live what they build. A build that has failed rests for up to a minute or two.
const PATIENCE: Duration = Duration::from_secs(420);

/// Between two looks.
const POLL: Duration = Duration::from_millis(500);

/// What has become of versions, in both places.
#[derive(Debug, Default)]
pub struct Versions {
    pub gone_live: i64,
    pub given_up: i64,
}

impl Versions {
    pub async fn count(world: &World) -> Result<Self, sqlx::Error> {
        let statement = "-- count_acts
            select count(*) filter (where action = 'go_live'), count(*) filter (where action = 'abort_rebuild')
            from espd.operator_log";
        let mut counted = Self::default();
        for (_, server) in world.places() {
            let (gone_live, given_up): (i64, i64) =
                sqlx::query_as(statement).fetch_one(&mut server.connect().await?).await?;
            counted.gone_live += gone_live;
            counted.given_up += given_up;
        }
        Ok(counted)
    }
}

/// Has the daemons follow what is declared, and operators finish, or give up, what they have begun. Returns what does not end.
pub async fn settle(world: &World, rng: &mut Rng) -> anyhow::Result<Vec<String>> {
    let deadline = Instant::now() + PATIENCE;
    while !world.operators.run("here", &["reload"]).await? {
        anyhow::ensure!(Instant::now() < deadline, "the daemons do not read their configuration again");
    }
    for (place, (_, server)) in ["here", "elsewhere"].into_iter().zip(world.places()) {
        for name in left_by_operators(&mut server.connect().await?).await? {
            // What an operator builds is left to him: he goes on, or gives it up, and with it what was only looked at.
            if rng.bool() {
                world.operators.run(place, &["rebuild", &name, "--yes"]).await?;
            }
            world.operators.run(place, &["rebuild", "abort", &name]).await?;
        }
    }
    loop {
        let left = list_left(world).await?;
        if left.is_empty() || Instant::now() > deadline {
            return Ok(left);
        }
        sleep(POLL).await;
    }
}

/// The projectors of which operators have left something that no daemon goes on with.
async fn left_by_operators(connection: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    let statement = "-- list_left_by_operators
        select processor from espd.rebuilds where state not in ('live', 'merged', 'aborted') and not automatic
        union
        select split_part(name, '$', 1) from espd.trackers where name ~ '\\$(dry|check)$'";
    sqlx::query_scalar(statement).fetch_all(connection).await
}

async fn list_left(world: &World) -> anyhow::Result<Vec<String>> {
    let mut left = Vec::new();
    for (place, server) in world.places() {
        let beside = Beside::read(&mut server.connect().await?).await?;
        left.extend(beside.complaints().iter().map(|what| format!("{place}, still: {what}")));
    }
    Ok(left)
}

/// What there is beside the versions that serve; and once more after the former ones were dropped.
pub async fn read(world: &World) -> anyhow::Result<Vec<(&'static str, Beside)>> {
    let mut found = Vec::new();
    for (place, server) in world.places() {
        found.push((place, Beside::read(&mut server.connect().await?).await?));
    }
    for place in ["here", "elsewhere"] {
        for (name, _) in VERSIONED {
            world.operators.run(place, &["rebuild", "drop", name, "--yes"]).await?;
        }
    }
    for (place, server) in world.places() {
        let mut bare = Beside::read(&mut server.connect().await?).await?;
        // Each of them is one too many now.
        let former = bare.trackers.iter().filter(|(name, _)| name.contains('$'));
        bare.orphans.extend(former.map(|(name, _)| format!("a former version {name}")).collect::<Vec<_>>());
        found.push((place, bare));
    }
    Ok(found)
}
