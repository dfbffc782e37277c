//! Log lines: for people on a terminal, as JSON for programs. They go to standard error.

mod fields;
mod settings;
mod writer;

use std::io::{IsTerminal as _, Write as _};
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing_subscriber::EnvFilter;

pub use settings::LogFormat;
pub(crate) use settings::LogSettings;
pub(crate) use writer::{finish, lost_lines};

/// Starts logging. `RUST_LOG`, where set, wins over the configured level.
pub(crate) fn start(settings: &LogSettings) {
    let filter = EnvFilter::try_from_default_env()
        .or_else(|_| EnvFilter::try_new(&settings.level))
        .unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::stderr().is_terminal();
    let human = match settings.format {
        LogFormat::Auto => terminal,
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    let writer = writer::start(if human { notice_for_people } else { notice_in_json });
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_target(false);
    WRITES_JSON.store(!human, Ordering::Relaxed);
    // A second start in the same process is a test's, which has its subscriber already.
    let _ = if human {
        lines.with_ansi(terminal).fmt_fields(fields::VisibleFields).try_init()
    } else {
        lines.json().flatten_event(true).try_init()
    };
}

/// Whether the log of this process has begun and is one of JSON.
static WRITES_JSON: AtomicBool = AtomicBool::new(false);

/// Reports why the program ends: as a line of the log where that is JSON, so that whoever reads it understands every line; as
/// plain text otherwise. `worker`: its name, if it is one of a daemon's, which goes on.
pub(crate) fn report_end(complaint: &str, worker: Option<&str>) {
    if WRITES_JSON.load(Ordering::Relaxed) && tracing::enabled!(tracing::Level::ERROR) {
        let error = complaint.strip_prefix("error: ").unwrap_or(complaint);
        match worker {
            Some(worker) => tracing::error!(worker, error, "the worker ends"),
            None => tracing::error!(error, "espd ends"),
        }
    } else {
        // Where it cannot be written, the exit code tells.
        let _ = writeln!(std::io::stderr(), "{complaint}");
    }
}

fn notice_for_people(lines: u64) -> String {
    format!("{}  WARN log lines were lost lines={lines}\n", now())
}

fn notice_in_json(lines: u64) -> String {
    format!(
        "{{\"timestamp\":\"{}\",\"level\":\"WARN\",\"message\":\"log lines were lost\",\"lines\":{lines}}}\n",
        now()
    )
}

fn now() -> String {
    chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

/// Says where a panic came from, as a line like any other.
pub(crate) fn log_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    tracing::error!(error = panic.payload_as_str().unwrap_or("unknown"), place, "a defect of espd: panicked");
}
