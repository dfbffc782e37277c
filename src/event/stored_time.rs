//! A point in time as PostgreSQL stores it, which may be one that no calendar of the program has.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueFormat, PgValueRef, Postgres};
use sqlx::{Decode, Encode, Type};

/// Where PostgreSQL's time begins: 1 January 2000, in microseconds since 1970.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// The first microsecond that PostgreSQL has (24 November 4714 BC), since 1970.
const FIRST_MICROS: i64 = -210_866_803_200_000_000;

const MICROS_PER_DAY: i64 = 86_400_000_000;

/// A point in time to the microsecond, exactly as a column of type `timestamptz` has it.
///
/// Any writer may store `infinity`, `-infinity`, and years from 4713 BC to 294276 AD. Where the program's own type of time
/// has the moment, [`Self::to_utc`] returns it. The text, also in JSON, is that of RFC 3339 for the years 1 to 9999, and
/// otherwise what PostgreSQL writes: `infinity`, `0044-03-15T00:00:00+00:00 BC`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoredTime(i64);

/// The text is no time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no time like \"2026-01-31T00:00:00Z\"")]
pub struct InvalidTime(String);

impl StoredTime {
    /// After every other time.
    pub const INFINITY: Self = Self(i64::MAX);

    /// Before every other time.
    pub const NEGATIVE_INFINITY: Self = Self(i64::MIN);

    /// The moment as the program's own type; `None`: it is infinite, or beyond the years that this type has.
    pub fn to_utc(self) -> Option<DateTime<Utc>> {
        let is_finite = self != Self::INFINITY && self != Self::NEGATIVE_INFINITY;
        is_finite
            .then(|| self.0.checked_add(EPOCH_MICROS))
            .flatten()
            .and_then(DateTime::from_timestamp_micros)
    }

    /// A moment to compare with: [`Self::NEGATIVE_INFINITY`] in the place of one that is earlier than all that PostgreSQL has, which it
    /// would refuse.
    pub(crate) fn no_earlier_than(time: DateTime<Utc>) -> Self {
        Some(time)
            .filter(|time| time.timestamp_micros() >= FIRST_MICROS)
            .map_or(Self::NEGATIVE_INFINITY, Self::from)
    }

    /// The moment, or the first one that PostgreSQL has in the place of an earlier one.
    pub(crate) fn at_least_first(time: DateTime<Utc>) -> Self {
        let micros = time.timestamp_micros().max(FIRST_MICROS);
        Self(micros - EPOCH_MICROS)
    }

    /// A moment given as PostgreSQL's binary format has it: microseconds since 1 January 2000.
    const fn of_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// The text that PostgreSQL writes into JSON, in UTC. The moment is finite.
    fn write_as_postgres(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, micros) = (self.0.div_euclid(MICROS_PER_DAY), self.0.rem_euclid(MICROS_PER_DAY));
        let (year, month, day) = civil_of_days(days + EPOCH_MICROS / MICROS_PER_DAY);
        // There is no year 0: the one before 1 AD is 1 BC.
        let (year, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
        let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
        let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")?;
        if fraction > 0 {
            write!(f, ".{}", format!("{fraction:06}").trim_end_matches('0'))?;
        }
        write!(f, "+00:00{era}")
    }
}

/// Year, month and day of a day that is counted from 1 January 1970, in the Gregorian calendar extended backward; the year 0
/// is 1 BC.
fn civil_of_days(days: i64) -> (i64, i64, i64) {
    // Years begin in March here, so that the day that some years lack is the last one. 400 years have 146,097 days.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year_of_era + next_year, month, day)
}

/// The inverse of [`civil_of_days`].
fn days_of_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month > 2 { year } else { year - 1 };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Parses what [`StoredTime::write_as_postgres`] writes.
fn parse_as_postgres(text: &str) -> Option<i64> {
    let (text, is_bc) = text.strip_suffix(" BC").map_or((text, false), |text| (text, true));
    let (date, time) = text.strip_suffix("+00:00")?.split_once('T')?;
    let numbers = |text: &str, separator| -> Option<[i64; 3]> {
        let parts: Option<Vec<i64>> = text.split(separator).map(|part| part.parse().ok()).collect();
        parts?.try_into().ok()
    };
    let [year, month, day] = numbers(date, '-')?;
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [hour, minute, second] = numbers(clock, ':')?;
    let fraction: i64 = format!("{fraction:0<6}").get(..6)?.parse().ok()?;
    let in_range = (1..=12).contains(&month) && (1..=31).contains(&day) && (1..=300_000).contains(&year);
    let days = days_of_civil(if is_bc { 1 - year } else { year }, month, day) - EPOCH_MICROS / MICROS_PER_DAY;
    let seconds = hour * 3_600 + minute * 60 + second;
    in_range.then_some(days * MICROS_PER_DAY + seconds * 1_000_000 + fraction)
}

impl fmt::Display for StoredTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use chrono::Datelike as _;
        match self.to_utc() {
            Some(time) if (1..=9_999).contains(&time.year()) => {
                f.write_str(&time.to_rfc3339_opts(SecondsFormat::AutoSi, true))
            }
            _ if *self == Self::INFINITY => f.write_str("infinity"),
            _ if *self == Self::NEGATIVE_INFINITY => f.write_str("-infinity"),
            _ => self.write_as_postgres(f),
        }
    }
}

impl fmt::Debug for StoredTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for StoredTime {
    type Err = InvalidTime;

    fn from_str(text: &str) -> Result<Self, InvalidTime> {
        match text {
            "infinity" => return Ok(Self::INFINITY),
            "-infinity" => return Ok(Self::NEGATIVE_INFINITY),
            _ => {}
        }
        let known = text.parse::<DateTime<Utc>>().ok().map(Self::from);
        known.or_else(|| parse_as_postgres(text).map(Self)).ok_or_else(|| InvalidTime(text.to_owned()))
    }
}

impl From<DateTime<Utc>> for StoredTime {
    /// The microsecond that the moment is in.
    fn from(time: DateTime<Utc>) -> Self {
        Self(time.timestamp_micros() - EPOCH_MICROS)
    }
}

/// A moment compares with what the program's own type has.
impl PartialEq<DateTime<Utc>> for StoredTime {
    fn eq(&self, time: &DateTime<Utc>) -> bool {
        *self == Self::from(*time)
    }
}

impl PartialOrd<DateTime<Utc>> for StoredTime {
    fn partial_cmp(&self, time: &DateTime<Utc>) -> Option<std::cmp::Ordering> {
        Some(self.cmp(&Self::from(*time)))
    }
}

impl Serialize for StoredTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StoredTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Type<Postgres> for StoredTime {
    fn type_info() -> PgTypeInfo {
        <DateTime<Utc> as Type<Postgres>>::type_info()
    }

    fn compatible(other: &PgTypeInfo) -> bool {
        <DateTime<Utc> as Type<Postgres>>::compatible(other)
    }
}

impl PgHasArrayType for StoredTime {
    fn array_type_info() -> PgTypeInfo {
        <DateTime<Utc> as PgHasArrayType>::array_type_info()
    }
}

impl Encode<'_, Postgres> for StoredTime {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        <i64 as Encode<'_, Postgres>>::encode_by_ref(&self.0, buffer)
    }
}

impl<'r> Decode<'r, Postgres> for StoredTime {
    /// The driver's own decoding would panic at what chrono does not have.
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        match value.format() {
            PgValueFormat::Binary => {
                let bytes = value.as_bytes()?;
                let number = bytes.try_into().map_err(|_| format!("a timestamp of {} bytes", bytes.len()))?;
                Ok(Self::of_micros(i64::from_be_bytes(number)))
            }
            PgValueFormat::Text => match value.as_str()? {
                text @ ("infinity" | "-infinity") => Ok(text.parse()?),
                _ => Ok(<DateTime<Utc> as Decode<'r, Postgres>>::decode(value)?.into()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts that PostgreSQL writes, with its microseconds since 2000.
    #[test]
    fn a_time_is_written_as_postgresql_writes_it_and_read_again() {
        for (micros, text) in [
            (0, "2000-01-01T00:00:00Z"),
            (1, "2000-01-01T00:00:00.000001Z"),
            (-1, "1999-12-31T23:59:59.999999Z"),
            (252_455_615_999_999_999, "9999-12-31T23:59:59.999999Z"),
            (252_455_616_000_000_000, "10000-01-01T00:00:00+00:00"),
            (-63_082_281_600_000_000, "0001-01-01T00:00:00Z"),
            (-63_082_281_600_500_000, "0001-12-31T23:59:59.5+00:00 BC"),
            (-211_810_204_800_000_000, "4713-01-01T00:00:00+00:00 BC"),
            (i64::MAX, "infinity"),
            (i64::MIN, "-infinity"),
        ] {
            assert_eq!(StoredTime::of_micros(micros).to_string(), text);
            assert_eq!(text.parse(), Ok(StoredTime::of_micros(micros)), "{text}");
        }
        let ides: StoredTime = "0044-03-15T00:00:00+00:00 BC".parse().unwrap();
        assert_eq!(ides.to_utc().unwrap().to_rfc3339(), "-0043-03-15T00:00:00+00:00");
        let last: StoredTime = "294276-12-31T23:59:59.999999+00:00".parse().unwrap();
        assert_eq!((last.to_utc(), last.0), (None, 9_223_371_331_199_999_999));
        for wrong in ["", "tomorrow", "2026-13-01T00:00:00+00:00 BC", "12026-01-01T00:00:00"] {
            assert!(wrong.parse::<StoredTime>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_day_is_found_again() {
        for days in (-2_500_000..107_000_000).step_by(9_973) {
            let (year, month, day) = civil_of_days(days);
            assert_eq!(days_of_civil(year, month, day), days);
        }
    }
}
