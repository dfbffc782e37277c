//! The command line: what `cargo test` and nextest pass to every test program, and two options of our own.

use std::time::Duration;

use espd::internals::config::parse_duration;

/// How long the storm lasts by default: short, so that the suite stays fast.
const DEFAULT_TIME: Duration = Duration::from_secs(12);

/// The name by which filters and lists know this test.
pub const NAME: &str = "storm";

/// Flags of Rust's own test programs that mean nothing here.
const IGNORED_FLAGS: [&str; 10] = [
    "--nocapture",
    "--no-capture",
    "--show-output",
    "--quiet",
    "-q",
    "--include-ignored",
    "--test",
    "--exclude-should-panic",
    "--report-time",
    "--shuffle",
];

/// The same, with a value.
const IGNORED_OPTIONS: [&str; 6] =
    ["--test-threads", "--format", "--color", "--logfile", "--shuffle-seed", "-Z"];

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Let the storm blow.
    Storm(Settings),
    /// Say which tests there are: one.
    List,
    /// The filters leave nothing to do.
    Nothing,
}

/// How the storm blows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How long faults happen.
    pub time: Duration,
    /// What the faults and the load are drawn from.
    pub seed: u64,
}

/// What the filters say, collected word by word.
#[derive(Default)]
struct Filters {
    wanted: Vec<String>,
    skipped: Vec<String>,
    exact: bool,
    ignored_only: bool,
}

/// Reads the arguments behind the program's name. The error is for people.
pub fn read(arguments: impl IntoIterator<Item = String>) -> Result<Wanted, String> {
    let mut arguments = arguments.into_iter();
    let mut settings = Settings { time: DEFAULT_TIME, seed: fastrand::u64(..1_000_000) };
    let (mut filters, mut list) = (Filters::default(), false);
    while let Some(argument) = arguments.next() {
        let (name, attached) = match argument.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
            _ => (argument.as_str(), None),
        };
        let mut value =
            || attached.clone().or_else(|| arguments.next()).ok_or(format!("{name} needs a value"));
        match name {
            "--for" => {
                settings.time = parse_duration(&value()?).map_err(|error| format!("--for: {error}"))?
            }
            "--seed" => settings.seed = value()?.parse().map_err(|_| "--seed: write a number".to_owned())?,
            "--skip" => filters.skipped.push(value()?),
            "--exact" => filters.exact = true,
            "--ignored" => filters.ignored_only = true,
            "--list" => list = true,
            name if IGNORED_FLAGS.contains(&name) => {}
            name if IGNORED_OPTIONS.contains(&name) => drop(value()?),
            name if name.starts_with('-') => {
                return Err(format!("{name} is unknown; ours are --for 2m and --seed 7"));
            }
            _ => filters.wanted.push(argument),
        }
    }
    Ok(match (filters.let_pass(), list) {
        (false, _) => Wanted::Nothing,
        (true, true) => Wanted::List,
        (true, false) => Wanted::Storm(settings),
    })
}

impl Filters {
    fn let_pass(&self) -> bool {
        let matches =
            |filter: &String| if self.exact { filter == NAME } else { NAME.contains(filter.as_str()) };
        !self.ignored_only
            && !self.skipped.iter().any(matches)
            && (self.wanted.is_empty() || self.wanted.iter().any(matches))
    }
}
