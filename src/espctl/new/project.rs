//! A new project, from the files of `template/`.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};

use super::naming::Name;

/// The files of a project. `@name@` is its name, `@NAME@` the same in capitals, `@espd@` the dependency.
const FILES: &[(&str, &str)] = &[
    ("Cargo.toml", include_str!("template/Cargo.toml.txt")),
    (".gitignore", include_str!("template/gitignore.txt")),
    ("README.md", include_str!("template/README.md.txt")),
    ("rustfmt.toml", include_str!("template/rustfmt.toml.txt")),
    ("espd.toml", include_str!("template/espd.toml.txt")),
    ("processors/notes.toml", include_str!("template/processors/notes.toml.txt")),
    ("src/lib.rs", include_str!("template/src/lib.rs.txt")),
    ("src/main.rs", include_str!("template/src/main.rs.txt")),
    ("src/note.rs", include_str!("template/src/note.rs.txt")),
    ("src/answer.rs", include_str!("template/src/answer.rs.txt")),
    ("src/queries.rs", include_str!("template/src/queries.rs.txt")),
    ("src/service.rs", include_str!("template/src/service.rs.txt")),
    ("src/web.rs", include_str!("template/src/web.rs.txt")),
    ("tests/service.rs", include_str!("template/tests/service.rs.txt")),
];

/// Makes the folder of a project, which must not be there yet.
pub(super) fn create(parent: &Path, name: &Name, espd_path: Option<&Path>) -> anyhow::Result<Vec<String>> {
    let underscored = name.underscored();
    ensure!(name.as_str() == underscored, "a project is named in small letters: espctl new {underscored}");
    name.require_project()?;
    let folder = parent.join(&underscored);
    ensure!(!folder.exists(), "{} is there already: choose another name, or remove it", folder.display());
    let dependency = dependency(espd_path)?;
    for (path, template) in FILES {
        let text = template
            .replace("@name@", &underscored)
            .replace("@NAME@", &underscored.to_ascii_uppercase())
            .replace("@espd@", &dependency);
        write(&folder.join(path), &text)?;
    }
    Ok(vec![
        format!("made {underscored}/: {} files", FILES.len()),
        format!("next: cd {underscored} && cargo test && cargo run -- serve"),
    ])
}

fn dependency(espd_path: Option<&Path>) -> anyhow::Result<String> {
    let Some(path) = espd_path else {
        return Ok(format!("espd = \"{}\"", env!("CARGO_PKG_VERSION")));
    };
    let path = path.canonicalize().with_context(|| format!("there is no folder {}", path.display()))?;
    let is_espd =
        fs::read_to_string(path.join("Cargo.toml")).is_ok_and(|text| text.contains("name = \"espd\""));
    ensure!(is_espd, "{} is not a folder with the source of espd", path.display());
    let path = path.to_str().context("the folder of espd has a name that is not UTF-8")?;
    Ok(format!("espd = {{ path = {path:?} }}"))
}

pub(super) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    }
    fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
}
