//! Reads and writes durations and sizes as words: `"30s"`, `"16MiB"`.

use std::time::Duration;

/// Units of time, the smallest first, in milliseconds.
const TIME_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Units of size, the smallest first of each kind, in bytes.
const SIZE_UNITS: [(&str, u64); 7] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];

/// Reads `"500ms"`, `"30s"`, `"5m"`, `"1h"`, `"1d"`: a whole number and a unit.
pub(crate) fn parse_duration(words: &str) -> Option<Duration> {
    parse(words, &TIME_UNITS).map(Duration::from_millis)
}

/// Writes a duration in the largest unit that leaves a whole number.
pub(crate) fn format_duration(duration: Duration) -> String {
    format(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), &TIME_UNITS)
}

/// Reads `"16MiB"`, `"64kB"`, `"100B"`: a whole number and a unit.
pub(crate) fn parse_size(words: &str) -> Option<i64> {
    parse(words, &SIZE_UNITS).and_then(|bytes| i64::try_from(bytes).ok())
}

/// Writes a size in the largest binary unit that leaves a whole number.
pub(crate) fn format_size(bytes: i64) -> String {
    format(bytes.unsigned_abs(), &SIZE_UNITS[..4])
}

fn parse(words: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = words.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = words.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

fn format(amount: u64, units: &[(&str, u64)]) -> String {
    let whole = |(_, factor): &&(&str, u64)| amount > 0 && amount.is_multiple_of(*factor);
    match units.iter().rev().find(whole) {
        Some((unit, factor)) => format!("{}{unit}", amount / factor),
        None => format!("{amount}{}", units[0].0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_a_number_and_a_unit() {
        for (words, millis) in
            [("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("2 h", 7_200_000), ("0s", 0)]
        {
            assert_eq!(parse_duration(words), Some(Duration::from_millis(millis)), "{words}");
        }
        for words in [
            "",
            "30",
            "s",
            "-1s",
            "1.5s",
            "1S",
            "1 week",
            "1m30s",
            "99999999999999999999s",
            "9999999999999999d",
        ] {
            assert_eq!(parse_duration(words), None, "{words}");
        }
    }

    #[test]
    fn sizes_are_a_number_and_a_unit() {
        for (words, bytes) in [("16MiB", 16 << 20), ("64kB", 64_000), ("100B", 100), ("1 GiB", 1 << 30)] {
            assert_eq!(parse_size(words), Some(bytes), "{words}");
        }
        for words in ["16", "16M", "16mib", "-1B", "18446744073709551615B"] {
            assert_eq!(parse_size(words), None, "{words}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_can_be_read(amount in 0u64..1 << 50) {
            let duration = Duration::from_millis(amount);
            proptest::prop_assert_eq!(parse_duration(&format_duration(duration)), Some(duration));
            let bytes = i64::try_from(amount).unwrap();
            proptest::prop_assert_eq!(parse_size(&format_size(bytes)), Some(bytes));
        }
    }
}
