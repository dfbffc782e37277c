//! What is logged, and how.

use serde::{Deserialize, Serialize};

/// Says what is logged, and how: the section `[log]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSettings {
    /// How a line looks.
    pub format: LogFormat,
    /// A filter that `tracing_subscriber::EnvFilter` accepts.
    pub level: String,
    /// Whether the statements of other sessions are shown with the values in them.
    #[serde(default)]
    pub query_literals: bool,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Human on a terminal, otherwise JSON.
    #[default]
    Auto,
    /// For people.
    Human,
    /// One JSON object per line.
    Json,
}

impl Default for LogSettings {
    /// Lines of `info` and above, in the format that suits standard error.
    fn default() -> Self {
        Self { format: LogFormat::default(), level: "info".into(), query_literals: false }
    }
}
