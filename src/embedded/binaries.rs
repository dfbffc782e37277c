//! Finds PostgreSQL's server binaries on this machine.
//!
//! Distributions keep `initdb` and `postgres` off the `PATH`, in one folder per version, so the search knows
//! these folders.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use thiserror::Error;

/// The environment variable that names the folder of the server binaries.
pub const BINARIES_VARIABLE: &str = "ESPD_PG_BIN";

/// A folder that holds both `initdb` and `postgres`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries(PathBuf);

impl Binaries {
    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// The program that creates a data folder.
    pub fn initdb(&self) -> PathBuf {
        self.0.join("initdb")
    }

    /// The server.
    pub fn postgres(&self) -> PathBuf {
        self.0.join("postgres")
    }

    fn in_folder(folder: PathBuf) -> Option<Self> {
        let found = Self(folder);
        (found.initdb().is_file() && found.postgres().is_file()).then_some(found)
    }
}

/// No server binaries; the message says what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotFound {
    /// `ESPD_PG_BIN` is set, but not to a folder with the binaries: a typing error must not fall back silently.
    #[error("{BINARIES_VARIABLE} is {}, where there is no initdb and postgres", .0.display())]
    NotThere(PathBuf),

    /// The search found no binaries.
    #[error(
        "no PostgreSQL server binaries (initdb, postgres) on this machine: install them with `{install}`, \
         or set {BINARIES_VARIABLE} to the folder that holds them, \
         or let `url` under [event_store] name a server that runs already"
    )]
    Nowhere {
        /// The command that installs them on this system.
        install: String,
    },
}

/// Finds the server binaries: `ESPD_PG_BIN`, the `PATH`, `pg_config --bindir`, and then the highest version in the
/// folders where Debian, Red Hat, Alpine and Homebrew put them.
///
/// # Errors
/// [`NotFound`], whose message says how to get them.
pub fn find_binaries() -> Result<Binaries, NotFound> {
    Search {
        named: std::env::var_os(BINARIES_VARIABLE),
        path: std::env::var_os("PATH").unwrap_or_default(),
        root: PathBuf::from("/"),
        superuser: nix::unistd::geteuid().is_root(),
    }
    .run()
}

/// What the search looks at, so that tests can show it another machine.
struct Search {
    named: Option<OsString>,
    path: OsString,
    root: PathBuf,
    superuser: bool,
}

impl Search {
    fn run(&self) -> Result<Binaries, NotFound> {
        if let Some(named) = &self.named {
            let folder = PathBuf::from(named);
            return Binaries::in_folder(folder.clone()).ok_or(NotFound::NotThere(folder));
        }
        self.on_path()
            .or_else(|| self.pg_config_folder())
            .or_else(|| self.highest_version())
            .ok_or_else(|| NotFound::Nowhere { install: self.install_command() })
    }

    fn on_path(&self) -> Option<Binaries> {
        std::env::split_paths(&self.path).find_map(Binaries::in_folder)
    }

    /// The folder that `pg_config` names, the first on the path.
    fn pg_config_folder(&self) -> Option<Binaries> {
        let program = std::env::split_paths(&self.path).map(|f| f.join("pg_config")).find(|p| p.is_file())?;
        let output = Command::new(program).arg("--bindir").stdin(Stdio::null()).output().ok()?;
        let folder = String::from_utf8(output.stdout).ok()?;
        Binaries::in_folder(PathBuf::from(folder.trim_end()))
    }

    fn highest_version(&self) -> Option<Binaries> {
        VERSION_FOLDERS
            .iter()
            .flat_map(|folders| folders.versions(&self.root))
            .filter_map(|(version, folder)| Some((version, Binaries::in_folder(folder)?)))
            .max_by_key(|(version, _)| *version)
            .map(|(_, binaries)| binaries)
    }

    /// The command that installs the server here, as far as `/etc/os-release` tells.
    fn install_command(&self) -> String {
        if cfg!(target_os = "macos") {
            return "brew install postgresql@17".to_owned();
        }
        let release = fs::read_to_string(self.root.join("etc/os-release")).unwrap_or_default();
        let sudo = if self.superuser { "" } else { "sudo " };
        format!("{sudo}{}", install_command_of(&release))
    }
}

/// One system's way to keep versions side by side: `parent/{prefix}NN/{suffix}`.
struct VersionFolders {
    parent: &'static str,
    prefix: &'static str,
    suffix: &'static str,
}

const VERSION_FOLDERS: [VersionFolders; 6] = [
    VersionFolders { parent: "usr/lib/postgresql", prefix: "", suffix: "bin" }, // Debian, Ubuntu
    VersionFolders { parent: "usr", prefix: "pgsql-", suffix: "bin" }, // Red Hat, PostgreSQL's own packages
    VersionFolders { parent: "usr/libexec", prefix: "postgresql", suffix: "" }, // Alpine
    VersionFolders { parent: "opt/homebrew/opt", prefix: "postgresql@", suffix: "bin" },
    VersionFolders { parent: "usr/local/opt", prefix: "postgresql@", suffix: "bin" },
    VersionFolders { parent: "home/linuxbrew/.linuxbrew/opt", prefix: "postgresql@", suffix: "bin" },
];

impl VersionFolders {
    fn versions(&self, root: &Path) -> Vec<(u32, PathBuf)> {
        let Ok(entries) = fs::read_dir(root.join(self.parent)) else { return Vec::new() };
        entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let version = entry.file_name().to_str()?.strip_prefix(self.prefix)?.parse().ok()?;
                Some((version, entry.path().join(self.suffix)))
            })
            .collect()
    }
}

/// The command for the distribution in `ID` or `ID_LIKE`, whichever is known first.
fn install_command_of(release: &str) -> &'static str {
    let value = |key| release.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("").trim_matches('"');
    [value("ID="), value("ID_LIKE=")]
        .iter()
        .flat_map(|ids| ids.split_whitespace())
        .find_map(|id| match id {
            "debian" | "ubuntu" => Some("apt-get install postgresql"),
            "fedora" | "rhel" | "centos" => Some("dnf install postgresql-server"),
            "alpine" => Some("apk add postgresql"),
            "arch" => Some("pacman -S postgresql"),
            "suse" | "opensuse" => Some("zypper install postgresql-server"),
            _ => None,
        })
        .unwrap_or("your package manager (the package is often called postgresql or postgresql-server)")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with nothing on its path, whose files are under a temporary folder.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn empty() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn with_binaries(&self, folder: &str) -> PathBuf {
            let folder = self.0.path().join(folder);
            fs::create_dir_all(&folder).unwrap();
            for program in ["initdb", "postgres"] {
                fs::write(folder.join(program), "").unwrap();
            }
            folder
        }

        fn with_release(&self, text: &str) {
            fs::create_dir_all(self.0.path().join("etc")).unwrap();
            fs::write(self.0.path().join("etc/os-release"), text).unwrap();
        }

        fn search(&self) -> Search {
            let root = self.0.path().to_owned();
            Search { named: None, path: OsString::new(), root, superuser: false }
        }
    }

    #[test]
    fn the_named_folder_wins_and_a_wrong_one_does_not_fall_back() {
        let machine = Machine::empty();
        machine.with_binaries("usr/lib/postgresql/15/bin");
        let mine = machine.with_binaries("mine");
        let named = |folder: &Path| Search { named: Some(folder.into()), ..machine.search() }.run();
        assert_eq!(named(&mine), Ok(Binaries(mine.clone())));
        let wrong = Path::new("/nowhere");
        assert_eq!(named(wrong), Err(NotFound::NotThere(wrong.to_owned())));
    }

    #[test]
    fn the_path_comes_before_the_usual_folders() {
        let machine = Machine::empty();
        machine.with_binaries("usr/lib/postgresql/15/bin");
        let on_path = machine.with_binaries("bin");
        let search = Search { path: on_path.clone().into(), ..machine.search() };
        assert_eq!(search.run(), Ok(Binaries(on_path)));
    }

    #[test]
    fn the_highest_version_of_all_layouts_is_taken_by_number() {
        let machine = Machine::empty();
        for folder in ["usr/lib/postgresql/9/bin", "usr/pgsql-16/bin", "usr/libexec/postgresql15"] {
            machine.with_binaries(folder);
        }
        fs::create_dir_all(machine.0.path().join("usr/lib/postgresql/18/bin")).unwrap(); // client only
        assert_eq!(machine.search().run(), Ok(Binaries(machine.0.path().join("usr/pgsql-16/bin"))));
    }

    #[test]
    fn the_folder_of_pg_config_is_used() {
        use std::os::unix::fs::PermissionsExt;
        let machine = Machine::empty();
        let there = machine.with_binaries("odd/place");
        let bin = machine.0.path().join("bin");
        fs::create_dir(&bin).unwrap();
        let program = bin.join("pg_config");
        fs::write(&program, format!("#!/bin/sh\necho {}\n", there.display())).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(Search { path: bin.into(), ..machine.search() }.run(), Ok(Binaries(there)));
    }

    #[test]
    fn a_machine_without_binaries_gets_one_clear_message() {
        let machine = Machine::empty();
        machine.with_release("NAME=\"Linux Mint\"\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\n");
        let message = machine.search().run().unwrap_err().to_string();
        for part in ["`sudo apt-get install postgresql`", "ESPD_PG_BIN", "[event_store]"] {
            assert!(message.contains(part), "{part} is missing in: {message}");
        }
    }
}
