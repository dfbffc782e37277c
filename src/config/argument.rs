//! The command-line argument that names the configuration file.

use std::path::PathBuf;

use clap::Args;

/// `--config`, the same for every program and command.
#[derive(Debug, Args)]
pub(crate) struct ConfigArgument {
    /// Configuration file
    #[arg(long, short, global = true, env = "ESPD_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}
