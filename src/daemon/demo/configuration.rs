//! The demo's own configuration: the processors of `config/processors` and a reactor, in files that `espctl` can read too.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::TempDir;

use super::arriving::IMPOSSIBLE_DAY;
use crate::config::{Config, DatabaseUrl, demo_link};

/// The files, which are part of this program.
const FILES: [(&str, &str); 4] = [
    ("processors/outstanding_todos.toml", include_str!("../../../config/processors/outstanding_todos.toml")),
    ("processors/scheduled_todos.toml", include_str!("../../../config/processors/scheduled_todos.toml")),
    ("processors/completed_todos.toml", include_str!("../../../config/processors/completed_todos.toml")),
    ("processors/thank_stakeholders.toml", include_str!("thank_stakeholders.toml")),
];

/// A folder with the demo's configuration. It is removed with this value, and so is the link that leads `espctl` to it.
#[derive(Debug)]
pub(super) struct Configuration {
    folder: TempDir,
    link: Option<PathBuf>,
}

impl Configuration {
    /// Writes the files, for the database at `url`.
    pub(super) fn write(url: &DatabaseUrl) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("espd-demo-config-").tempdir()?;
        std::fs::create_dir(folder.path().join("processors"))?;
        for (name, text) in FILES {
            std::fs::write(folder.path().join(name), text)?;
        }
        let mut main = include_str!("espd.toml").to_owned();
        main.push_str(&format!("\n[event_store]\nurl = '{}'\n", url.expose()));
        std::fs::write(folder.path().join("espd.toml"), main)?;
        let link = lead_to(folder.path())?;
        Ok(Self { folder, link })
    }

    /// The main file.
    pub(super) fn file(&self) -> PathBuf {
        self.folder.path().join("espd.toml")
    }

    /// What to write after `espctl` so that it finds the demo: nothing, unless another demo runs.
    pub(super) fn argument(&self) -> String {
        if self.link.is_some() { String::new() } else { format!(" --config {}", self.file().display()) }
    }

    /// Corrects the handler of `completed_todos` that cannot handle a day that does not exist.
    pub(super) fn correct_handler(&self) -> io::Result<()> {
        let file = self.folder.path().join("processors/completed_todos.toml");
        let text = std::fs::read_to_string(&file)?;
        let corrected = format!("nullif(event.body->>'completed_on', '{IMPOSSIBLE_DAY}')::date");
        std::fs::write(file, text.replace("(event.body->>'completed_on')::date", &corrected))
    }

    /// Reads the files.
    pub(super) fn load(&self) -> anyhow::Result<Config> {
        Config::load(&self.file()).context("the demo's own configuration")
    }
}

impl Drop for Configuration {
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            // What cannot be removed leads nowhere, and the next demo replaces it.
            let _ = std::fs::remove_file(link);
        }
    }
}

/// Makes the link that `espctl` follows. `None` if it belongs to another demo that runs.
fn lead_to(folder: &Path) -> io::Result<Option<PathBuf>> {
    let link = demo_link();
    if link.exists() {
        return Ok(None);
    }
    // A demo that was killed has left a link to what is gone.
    match std::fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Ok(None),
        _ => {}
    }
    Ok(std::os::unix::fs::symlink(folder, &link).is_ok().then_some(link))
}
