//! The hosts of a URL that names several: which of them is the primary, and whether another one takes writes as well.

use super::Finding;
use crate::config::Config;
use crate::postgres::connector::SeenHost;
use crate::postgres::life::Life;
use crate::postgres::sqlstate::describe;

/// Nothing where each URL names one host.
pub(super) async fn examine(config: &Config, program: &str) -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for url in [config.direct_event_store_url(), config.direct_projections_url()].into_iter().flatten() {
        findings.extend(judge(&url.connector()?.named(program).look_at_all().await));
    }
    Ok(findings)
}

/// What follows from a look at all hosts of a database; `None`: there is one, or none that could be used.
fn judge(seen: &[SeenHost]) -> Option<Finding> {
    let mut used: Option<(&str, Life)> = None;
    for (place, life) in primaries(seen) {
        if used.is_none_or(|(_, before)| before.is_before(&life)) {
            used = Some((place, life));
        }
    }
    let (used, life) = used?;
    let former: Vec<&str> =
        primaries(seen).filter(|(_, other)| other.is_before(&life)).map(|(place, _)| place).collect();
    let strange: Vec<&str> =
        primaries(seen).filter(|(_, other)| is_other_server(*other, life)).map(|(place, _)| place).collect();
    Some(match (former.is_empty(), strange.is_empty()) {
        (true, true) => Finding::ok("hosts", format!("{used} is the primary{}", describe_others(seen))),
        (false, _) => Finding::failure(
            "hosts",
            format!(
                "{used} is the primary, and {} takes writes as well: it was the primary before a failover, and what is written there is \
                 lost",
                former.join(", ")
            ),
            format!("end it, make it a standby of {used} (pg_rewind), or take it out of the URL"),
        ),
        (true, false) => Finding::failure(
            "hosts",
            format!("{used} and {} are primaries of different servers", strange.join(", ")),
            "name the hosts of one database only",
        ),
    })
}

fn primaries(seen: &[SeenHost]) -> impl Iterator<Item = (&str, Life)> {
    seen.iter().filter_map(|host| Some((host.place.as_str(), *host.life.as_ref().ok()?)))
}

fn is_other_server(one: Life, other: Life) -> bool {
    one.system_identifier.zip(other.system_identifier).is_some_and(|(one, other)| one != other)
}

/// Why the others are not used, behind another part of a sentence.
fn describe_others(seen: &[SeenHost]) -> String {
    let why = |host: &SeenHost| {
        let error = host.life.as_ref().err()?;
        Some(format!("; {}: {}", host.place, describe(error)))
    };
    seen.iter().filter_map(why).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn seen(place: &str, life: Option<(i64, i64)>) -> SeenHost {
        let life =
            life.map(|(server, timeline)| Life { system_identifier: Some(server), timeline: Some(timeline) });
        SeenHost { place: place.to_owned(), life: life.ok_or(sqlx::Error::PoolClosed) }
    }

    #[test]
    fn one_primary_is_well_and_two_ways_to_it_are_too() {
        assert_eq!(judge(&[]), None);
        assert_eq!(judge(&[seen("a:1", None), seen("b:1", None)]), None, "the connection says why");
        let found = judge(&[seen("a:1", None), seen("b:1", Some((7, 2)))]).unwrap();
        assert!(
            found.level == Level::Ok && found.message.starts_with("b:1 is the primary; a:1: "),
            "{found:?}"
        );
        let found = judge(&[seen("a:1", Some((7, 2))), seen("b:1", Some((7, 2)))]).unwrap();
        assert_eq!((found.level, found.message.as_str()), (Level::Ok, "a:1 is the primary"));
    }

    #[test]
    fn another_primary_is_a_failure() {
        let found = judge(&[seen("a:1", Some((7, 1))), seen("b:1", Some((7, 2)))]).unwrap();
        assert!(found.message.starts_with("b:1 is the primary, and a:1 takes writes as well"), "{found:?}");
        assert_eq!(found.level, Level::Failure);
        let found = judge(&[seen("a:1", Some((7, 1))), seen("b:1", Some((8, 1)))]).unwrap();
        assert_eq!(found.message, "a:1 and b:1 are primaries of different servers");
    }
}
