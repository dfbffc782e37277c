//! Starting a program: which file it is, what it inherits, and what it never does.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tokio::process::Child;

use crate::process::spawner::{close_files_on_exec, spawn_group};
use crate::processing::declaration::ProgramDeclaration;

/// Variables that a program inherits of espd's environment, besides all that begin with `LC_`.
const INHERITED: [&str; 5] = ["PATH", "HOME", "LANG", "TZ", "TMPDIR"];

/// Where programs are looked for if `PATH` is not set.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The most bytes of a script's first line that are read.
const INTERPRETER_MAX: u64 = 4 << 10;

/// Starts the program in a process group of its own. It inherits no files but its pipes, and dies with espd.
pub(super) fn launch(declaration: &ProgramDeclaration) -> io::Result<Child> {
    let (program, arguments) =
        declaration.command.split_first().ok_or_else(|| io::Error::other("no program is named"))?;
    let environment = environment(declaration, std::env::vars_os());
    let folder = absolute(&declaration.folder)?;
    let path = environment.get(OsStr::new("PATH"));
    let file = find_program(program, &folder, path, is_program).ok_or_else(|| {
        let what = match find_program(program, &folder, path, Path::is_file) {
            Some(_) => "the file is not executable",
            None => "there is no such program",
        };
        io::Error::new(io::ErrorKind::NotFound, what)
    })?;
    let mut command = Command::new(&file);
    command
        .arg0(program)
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .envs(environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    close_files_on_exec(&mut command);
    spawn_group(command).map_err(|error| explain(error, &file))
}

/// Says that it is not the file that is missing, but what its first line names.
fn explain(error: io::Error, file: &Path) -> io::Error {
    match find_interpreter(file).filter(|_| error.kind() == io::ErrorKind::NotFound) {
        Some(interpreter) => {
            let what = format!("there is no {interpreter:?}, which its first line names as its interpreter");
            io::Error::new(io::ErrorKind::NotFound, what)
        }
        None => error,
    }
}

/// The interpreter that the first line of a script names: `#!/bin/sh -e`.
fn find_interpreter(file: &Path) -> Option<String> {
    let mut line = Vec::new();
    BufReader::new(File::open(file).ok()?.take(INTERPRETER_MAX)).read_until(b'\n', &mut line).ok()?;
    let named = line.strip_prefix(b"#!")?.trim_ascii_start();
    // Only blanks end it for the system: one of a file with line ends of Windows has a carriage return in its name.
    let named = named.split(|byte| matches!(byte, b' ' | b'\t' | b'\n')).next()?;
    Some(String::from_utf8_lossy(named).into_owned())
}

/// The environment of the program: what it inherits of `ours`, and what is declared for it.
fn environment(
    declaration: &ProgramDeclaration,
    ours: impl Iterator<Item = (OsString, OsString)>,
) -> BTreeMap<OsString, OsString> {
    let is_inherited =
        |name: &OsStr| name.to_str().is_some_and(|name| INHERITED.contains(&name) || name.starts_with("LC_"));
    let mut environment: BTreeMap<_, _> = ours.filter(|(name, _)| is_inherited(name)).collect();
    let declared = declaration.environment.iter();
    environment.extend(declared.map(|(name, value)| (name.into(), value.expose().into())));
    environment
}

/// The absolute path of a declaration's folder, which is empty if its file was named without one.
fn absolute(folder: &Path) -> io::Result<PathBuf> {
    std::path::absolute(folder.join("."))
}

/// The file of a program. A name with a slash is a path from the declaration's folder; any other is looked for in the
/// folders of `path`.
fn find_program(
    program: &str,
    folder: &Path,
    path: Option<&OsString>,
    is_wanted: impl Fn(&Path) -> bool,
) -> Option<PathBuf> {
    let is_wanted = |file: &PathBuf| is_wanted(file);
    if program.contains('/') {
        return Some(folder.join(program)).filter(is_wanted);
    }
    let path = path.map_or(OsStr::new(DEFAULT_PATH), OsString::as_os_str);
    // The program is started in its declaration's folder, so relative folders of the path begin there.
    std::env::split_paths(path).map(|named| folder.join(named).join(program)).find(is_wanted)
}

/// Whether somebody may execute the file.
fn is_program(file: &Path) -> bool {
    file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processing::declaration::HandledEvents;

    #[test]
    fn a_program_inherits_only_what_every_program_needs() {
        let ours = [
            ("PATH", "/bin"),
            ("LC_ALL", "C"),
            ("DATABASE_URL", "secret"),
            ("NOTIFY_SOCKET", "@s"),
            ("TZ", "UTC"),
        ];
        let ours = ours.into_iter().map(|(name, value)| (name.into(), value.into()));
        let command = vec!["true".to_owned()];
        let mut declaration = ProgramDeclaration::new(HandledEvents::All, command, std::env::temp_dir());
        declaration.environment.insert("TZ".into(), "Europe/Amsterdam".to_owned().into());
        declaration.environment.insert("TOKEN".into(), "t".to_owned().into());
        let environment = environment(&declaration, ours);
        let expected = [("LC_ALL", "C"), ("PATH", "/bin"), ("TOKEN", "t"), ("TZ", "Europe/Amsterdam")];
        assert_eq!(environment, expected.map(|(name, value)| (name.into(), value.into())).into());
    }

    #[test]
    fn what_keeps_a_script_from_being_started_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("worker");
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        for (text, named) in [
            ("#!/no/such -e\nx", Some("\"/no/such\"")),
            ("#! /usr/bin/env\r\nx", Some("\"/usr/bin/env\\r\"")),
            ("\x7fELF", None),
        ] {
            std::fs::write(&file, text).unwrap();
            let said = explain(missing(), &file).to_string();
            let wanted = named.map(|named| format!("there is no {named}, which its first line names"));
            assert!(wanted.is_none_or(|wanted| said.starts_with(&wanted)), "{said}");
            assert_eq!(said == missing().to_string(), named.is_none());
        }
        let command = vec!["./worker".to_owned()];
        let declaration = ProgramDeclaration::new(HandledEvents::All, command, folder.path().to_owned());
        assert_eq!(launch(&declaration).unwrap_err().to_string(), "the file is not executable");
    }

    #[test]
    fn a_program_is_found_by_its_name_or_from_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let worker = folder.path().join("worker");
        std::fs::write(&worker, "#!/bin/sh\n").unwrap();
        assert_eq!(find_program("./worker", folder.path(), None, is_program), None);
        std::fs::set_permissions(&worker, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(find_program("./worker", folder.path(), None, is_program).is_some());
        assert_eq!(find_program("worker", folder.path(), None, is_program), None);
        assert!(find_program("worker", folder.path(), Some(&folder.path().into()), is_program).is_some());
        assert!(find_program("sh", folder.path(), None, is_program).is_some());
    }
}
