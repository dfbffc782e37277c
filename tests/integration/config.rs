//! The configuration: what is accepted, what is refused and how, what is never shown, and whether the
//! committed files keep to it.

mod admin;
mod bounds;
mod committed_files;
mod faults;
mod json_schema;
mod secrets;
mod tables;
mod todo_projectors;
mod unreadable;
mod values;
mod webhook;

use std::fs;
use std::path::{Path, PathBuf};

use espd::internals::config::{Config, InvalidConfig};
use tempfile::TempDir;

/// A folder with configuration files, and variables.
struct Folder {
    folder: TempDir,
    variables: Vec<(String, String)>,
}

impl Folder {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Self { folder, variables: Vec::new() }
    }

    fn with(mut self, variable: &str, value: &str) -> Self {
        self.variables.push((variable.into(), value.into()));
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn load(&self) -> Result<Config, InvalidConfig> {
        Config::load_with(&self.path("espd.toml"), &|name| {
            self.variables.iter().find(|(variable, _)| variable == name).map(|(_, value)| value.clone())
        })
    }

    /// The report, with the names of the files relative to this folder.
    fn report(&self) -> String {
        let prefix = format!("{}/", self.folder.path().display());
        self.load().unwrap_err().to_string().replace(&prefix, "")
    }
}

/// The configuration that this text makes.
fn load(text: &str) -> Result<Config, InvalidConfig> {
    Folder::new(&[("espd.toml", text)]).load()
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn load_committed(name: &str) -> Config {
    Config::load_with(&repository().join("config").join(name), &|name| {
        (name == "DATABASE_URL").then(|| "postgres://jo:s3cret@h/d".to_owned())
    })
    .unwrap_or_else(|faults| panic!("{faults}"))
}

fn espd_example() -> Config {
    load_committed("espd.example.toml")
}
