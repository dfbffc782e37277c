//! What keeps a daemon from starting or its workers from running, whatever the databases say: nothing to do, an address to listen on
//! that is not this machine's, and hooks whose programs are missing.

use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::config::{Config, Listen};
use crate::diagnostic::Diagnostic;
use crate::store::layout::Layout;

/// What a daemon with this configuration would refuse, or fail with again and again.
pub(super) fn find_unstartable(config: &Config) -> Vec<Diagnostic> {
    let work = (!config.files.is_empty() && has_no_work(config))
        .then(|| Diagnostic::of_file(&config.main_file(), describe_no_work(config)));
    work.into_iter().chain(find_unusable_address(config)).chain(find_missing_hooks(config)).collect()
}

/// What of that is new in `config`.
pub(super) fn find_newly_unstartable(config: &Config, running: &Config) -> Vec<Diagnostic> {
    let address = if config.admin == running.admin { None } else { find_unusable_address(config) };
    let hooks = if config.hooks == running.hooks { Vec::new() } else { find_missing_hooks(config) };
    address.into_iter().chain(hooks).collect()
}

/// Whether a daemon with this configuration has nothing to do.
fn has_no_work(config: &Config) -> bool {
    config.processors.is_empty() && !only_schedules(config)
}

/// Whether a configuration without processors is meant so: it names a database to whose store espd appends what is scheduled, and no
/// other files.
pub(crate) fn only_schedules(config: &Config) -> bool {
    let layout = Layout::new(&config.event_store.layout, &config.event_store.schema);
    let is_appended_to = layout.is_ok_and(|layout| layout.append.is_some());
    !config.includes
        && !config.is_database_of_environment
        && config.event_store.url.is_some()
        && is_appended_to
}

/// That there is nothing to do, with the reason.
pub(crate) fn describe_no_work(config: &Config) -> String {
    let why = match config.files.len() {
        0 | 1 if config.includes => ", and `include` matches no file: name the files that declare some",
        0 | 1 => ": see `espctl config example`",
        _ => " in any of the files: see `espctl config example`",
    };
    format!("no processor is declared{why}")
}

/// An address that the endpoint cannot listen on. One where somebody listens, a daemon for example, is left alone: nothing is
/// opened there.
fn find_unusable_address(config: &Config) -> Option<Diagnostic> {
    let listen = &config.admin.as_ref()?.listen;
    let problem = match listen {
        Listen::Tcp(address) => {
            let mut any_port = *address;
            any_port.set_port(0);
            let bound = TcpListener::bind(any_port).map(drop);
            bound.err().filter(|error| error.kind() == io::ErrorKind::AddrNotAvailable)?.to_string()
        }
        Listen::Unix(path) => find_unusable_path(path)?,
    };
    let message = format!("the admin endpoint cannot listen on {listen}: {problem}");
    let advice = "choose another `listen` under [admin]";
    Some(Diagnostic::of_file(&config.main_file(), message).with_advice(advice))
}

fn find_unusable_path(path: &Path) -> Option<String> {
    if SocketAddr::from_pathname(path).is_err() {
        return Some("the path is too long for a socket".to_owned());
    }
    match path.symlink_metadata() {
        Ok(found) if !found.file_type().is_socket() => {
            Some("something that is no socket is there".to_owned())
        }
        Ok(_) => None,
        Err(_) => {
            let folder = path.parent().unwrap_or(Path::new("/"));
            (!folder.is_dir()).then(|| format!("there is no folder {}", folder.display()))
        }
    }
}

/// The hooks whose programs are not there, or cannot be run. A worker whose `on_worker_start` is missing ends again and again.
fn find_missing_hooks(config: &Config) -> Vec<Diagnostic> {
    let hooks = &config.hooks;
    let commands = [
        ("on_worker_start", &hooks.on_worker_start),
        ("on_worker_end", &hooks.on_worker_end),
        ("on_failure", &hooks.on_failure),
        ("on_dead_letter", &hooks.on_dead_letter),
        ("on_diverged", &hooks.on_diverged),
    ];
    let missing = |(hook, command): (&str, &Vec<String>)| {
        let program = command.first().filter(|program| find_program(program).is_none())?;
        let message = format!("the program {program:?} of the hook {hook} is not there");
        let advice = "name one that is executable, and in PATH or in the folder that espd is started in";
        Some(Diagnostic::of_file(&config.main_file(), message).with_advice(advice))
    };
    commands.into_iter().filter_map(missing).collect()
}

/// The file that is run as a hook: a path from the present folder, or a name that is looked for in `PATH`.
fn find_program(program: &str) -> Option<PathBuf> {
    let is_program = |file: &PathBuf| {
        file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(is_program);
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(is_program)
}
