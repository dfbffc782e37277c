//! What an `include` leads to and cannot be looked into is a fault: it is not empty.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use nix::unistd::{Uid, geteuid, setfsuid};

use super::Folder;

const PROCESSOR: &str = "[projector]\nname = 'p'\n[[projector.on]]\nevents = ['A']\nsql = 'null'\n";

fn set_mode(path: &Path, mode: u32) {
    set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// The report, as a user reads the files who may look into everything that its mode allows: root may look into everything.
fn report_to_a_user(folder: &Folder) -> String {
    set_mode(&folder.path("."), 0o755);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            if geteuid().is_root() {
                // For the rest of this thread.
                setfsuid(Uid::from_raw(65_534));
            }
            folder.report()
        });
        reading.join().unwrap()
    })
}

#[test]
fn a_folder_that_may_not_be_read_is_a_fault_wherever_the_pattern_leads_into_it() {
    for pattern in
        ["shut/*.toml", "**/*.toml", "*/p.toml", "shut/inner/*.toml", "shut/p.toml", "*/inner/*.toml"]
    {
        let text = format!("include = ['{pattern}']\n");
        let files =
            [("espd.toml", text.as_str()), ("shut/p.toml", PROCESSOR), ("shut/inner/p.toml", PROCESSOR)];
        let folder = Folder::new(&files);
        set_mode(&folder.path("shut"), 0o000);
        let report = report_to_a_user(&folder);
        set_mode(&folder.path("shut"), 0o755);
        let said = report.contains("cannot look into shut") && report.contains("Permission denied");
        assert!(said, "{pattern}: {report}");
        assert!(report.contains("1 fault "), "{pattern}: {report}");
    }
}

#[test]
fn links_in_a_circle_are_a_fault_and_what_is_not_there_is_none() {
    let folder =
        Folder::new(&[("espd.toml", "include = ['none/*.toml', 'espd.toml.d/*.toml', 'espd.toml/*.toml']")]);
    assert!(folder.load().is_ok());
    let folder = Folder::new(&[("espd.toml", "include = ['round/*.toml']")]);
    symlink(folder.path("round"), folder.path("round")).unwrap();
    assert!(folder.report().contains("cannot look into round"), "{}", folder.report());
}

#[test]
fn a_folder_with_the_name_of_a_file_is_a_fault() {
    let folder = Folder::new(&[("espd.toml", "include = ['p/*.toml']"), ("p/a.toml/p.toml", PROCESSOR)]);
    assert!(folder.report().contains("p/a.toml matches, and is a folder"), "{}", folder.report());
    let folder = Folder::new(&[("espd.toml", "include = ['p/*']"), ("p/a/x", ""), ("p/p.toml", PROCESSOR)]);
    assert_eq!(folder.load().unwrap().processors.len(), 1);
}
