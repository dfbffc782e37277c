//! Which of several hosts is the primary, where more than one says so: after a failover the former primary may come back as one, and what
//! it has is no longer what happened.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use sqlx::{Connection as _, PgConnection};
use tokio::time::{Instant, timeout_at};

use super::{Connected, Connector, not_needed};
use crate::postgres::connect_error::place;
use crate::postgres::deadline;
use crate::postgres::life::Life;

/// How long the other hosts are waited for once one is good enough.
const OTHERS_TIME: Duration = Duration::from_secs(1);

/// How long the end of a session may take that nobody needs.
const END_TIME: Duration = Duration::from_secs(1);

/// A host that is what is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::postgres) struct Good {
    /// Its place among the hosts.
    pub(super) host: usize,
    pub(super) life: Life,
}

impl Good {
    /// The host of the latest life, and of several the one that is named first.
    fn is_preferred_to(&self, other: &Self) -> bool {
        other.life.is_before(&self.life) || !self.life.is_before(&other.life) && self.host < other.host
    }
}

/// A host as a look at it has found it.
#[derive(Debug)]
pub(crate) struct SeenHost {
    /// Where it is: `db1:5432`.
    pub(crate) place: String,
    /// The life of its server; an error: it is not what is needed.
    pub(crate) life: Result<Life, sqlx::Error>,
}

impl Connector {
    /// Opens a session on the best of these hosts. One of a life that is over, because there was `later`, is none of them.
    ///
    /// # Errors
    /// Why each of them is not good enough.
    pub(super) async fn find_latest(
        &self,
        hosts: impl Iterator<Item = usize>,
        later: Option<Life>,
    ) -> Result<(Good, Connected), Vec<(usize, sqlx::Error)>> {
        let mut looks: FuturesUnordered<_> =
            hosts.map(|host| async move { (host, Box::pin(self.look_at(host, later)).await) }).collect();
        let (mut best, mut errors): (Option<(Good, Connected)>, _) = (None, Vec::new());
        let mut until = None;
        while let Some((host, found)) = next_until(&mut looks, until).await {
            let (life, connected) = match found {
                Ok(found) => found,
                Err(error) => {
                    errors.push((host, error));
                    continue;
                }
            };
            until.get_or_insert_with(|| Instant::now() + OTHERS_TIME);
            let good = Good { host, life };
            let is_best = best.as_ref().is_none_or(|(best, _)| good.is_preferred_to(best));
            let unneeded =
                if is_best { best.replace((good, connected)).map(|(_, one)| one) } else { Some(connected) };
            if let Some(unneeded) = unneeded {
                end(unneeded.connection).await;
            }
        }
        best.ok_or(errors)
    }

    /// Looks at each of several hosts; at none if there is but one.
    pub(crate) async fn look_at_all(&self) -> Vec<SeenHost> {
        let hosts = if self.has_several_hosts() { self.hosts.options.as_slice() } else { &[] };
        let looks = hosts.iter().enumerate().map(|(host, options)| async move {
            let look = async {
                let (life, connected) = self.look_at(host, None).await?;
                end(connected.connection).await;
                Ok(life)
            };
            SeenHost { place: place(options), life: deadline::in_time(super::SEARCH_TIME, look).await }
        });
        futures_util::future::join_all(looks.map(Box::pin)).await
    }

    async fn look_at(&self, host: usize, later: Option<Life>) -> Result<(Life, Connected), sqlx::Error> {
        let mut connected = self.try_host(host).await?;
        let life = Life::read(&mut connected.connection).await?;
        if later.is_some_and(|later| life.is_before(&later)) {
            end(connected.connection).await;
            return Err(not_needed(
                "it was the primary before a failover; if it is to be that again, start this program anew",
            ));
        }
        Ok((life, connected))
    }
}

/// The next that is ready; `None`: there is none, or it is not ready in time.
async fn next_until<F: Future>(looks: &mut FuturesUnordered<F>, until: Option<Instant>) -> Option<F::Output> {
    match until {
        None => looks.next().await,
        Some(until) => timeout_at(until, looks.next()).await.ok().flatten(),
    }
}

/// Says good-bye to the server, which would tell its log otherwise.
async fn end(connection: PgConnection) {
    let _ = deadline::in_time(END_TIME, connection.close()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_life_is_preferred_and_then_the_host_that_is_named_first() {
        let good = |host: usize, server: i64, timeline: i64| Good {
            host,
            life: Life { system_identifier: Some(server), timeline: Some(timeline) },
        };
        assert!(
            good(1, 7, 2).is_preferred_to(&good(0, 7, 1)) && !good(0, 7, 1).is_preferred_to(&good(1, 7, 2))
        );
        assert!(
            good(0, 7, 1).is_preferred_to(&good(1, 7, 1)) && !good(1, 7, 1).is_preferred_to(&good(0, 7, 1))
        );
        assert!(good(0, 7, 1).is_preferred_to(&good(1, 8, 2)), "no copy of the same server");
    }
}
