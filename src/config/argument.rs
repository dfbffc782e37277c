//! The command-line argument that names the configuration file, and where the file is looked for without it.

use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::TypedValueParser as _;
use nix::unistd::geteuid;

/// `--config`, the same for every program and command.
#[derive(Debug, Args)]
pub(crate) struct ConfigArgument {
    /// Configuration file; without it, that of the variable ESPD_CONFIG, then espd.toml in the current folder
    // The variable is read below: clap would take it for a part of the command line, and have its usage show it.
    #[arg(long, short, global = true, value_name = "FILE",
          value_parser = clap::builder::OsStringValueParser::new().map(PathBuf::from))]
    config: Option<PathBuf>,
}

/// The variable that names the file where the command line does not.
const VARIABLE: &str = "ESPD_CONFIG";

/// The file that is read from the current folder when none is named.
const USUAL_FILE: &str = "espd.toml";

impl ConfigArgument {
    /// The file that is named, or else `espd.toml` in the current folder, if it exists.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        // Of a container, an empty variable means that nothing was set.
        let of_environment = || std::env::var_os(VARIABLE).map(PathBuf::from);
        let named = self.config.clone().or_else(of_environment).filter(|file| !file.as_os_str().is_empty());
        named.or_else(|| Some(PathBuf::from(USUAL_FILE)).filter(|file| file.exists()))
    }
}

/// A link to the folder with the configuration of the demo that this user runs.
pub(crate) fn demo_link() -> PathBuf {
    std::env::temp_dir().join(format!("espd-demo-{}", geteuid()))
}

/// The configuration of the demo that this user runs; `None` if none runs.
pub(crate) fn demo_file() -> Option<PathBuf> {
    let link = demo_link();
    let ours = |path: &Path, metadata: std::io::Result<std::fs::Metadata>| {
        use std::os::unix::fs::MetadataExt as _;
        metadata.is_ok_and(|metadata| metadata.uid() == geteuid().as_raw()) && path.exists()
    };
    // Anybody may write into the folder of temporary files: a link that another user has made is not followed.
    let file = link.join(USUAL_FILE);
    (ours(&link, link.symlink_metadata()) && ours(&file, file.metadata())).then_some(file)
}
