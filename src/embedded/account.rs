//! Under which user the server runs: PostgreSQL refuses to run as root.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{Uid, User, geteuid};

/// An unprivileged user that root hands the server to; as any other user, that user itself.
#[derive(Debug, Clone)]
pub(super) struct Account(Option<User>);

impl Account {
    /// The account for a server whose files are (or will be) in `folder`.
    ///
    /// As root: the owner of a folder that an ordinary user has used before, else `postgres`, else `nobody`
    /// (`initdb` wants an entry in the user database).
    pub(super) fn for_folder(folder: &Path) -> io::Result<Self> {
        if !geteuid().is_root() {
            return Ok(Self(None));
        }
        let owner = fs::metadata(folder).map_or(0, |metadata| metadata.uid());
        if owner != 0 {
            return Ok(Self(User::from_uid(Uid::from_raw(owner))?));
        }
        for name in ["postgres", "nobody"] {
            if let Some(user) = User::from_name(name)? {
                return Ok(Self(Some(user)));
            }
        }
        Err(io::Error::new(
            io::ErrorKind::NotFound,
            "PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody`",
        ))
    }

    /// Makes `command` run as this account.
    pub(super) fn apply(&self, command: &mut Command) {
        if let Some(user) = &self.0 {
            // std also drops root's supplementary groups.
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
    }

    /// Gives `path` to this account.
    pub(super) fn own(&self, path: &Path) -> io::Result<()> {
        match &self.0 {
            Some(user) => chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())),
            None => Ok(()),
        }
    }

    /// The folder above `folder` that keeps this account out, if one does.
    ///
    /// Those folders are not ours, so their permissions are not changed; groups are left out of the reckoning.
    pub(super) fn barred_by(&self, folder: &Path) -> Option<PathBuf> {
        let user = self.0.as_ref()?;
        let barred = |above: &&Path| {
            fs::metadata(above).is_ok_and(|metadata| {
                let bit = if metadata.uid() == user.uid.as_raw() { 0o100 } else { 0o001 };
                metadata.permissions().mode() & bit == 0
            })
        };
        folder.ancestors().skip(1).find(barred).map(Path::to_owned)
    }

    /// The account's name, for messages.
    pub(super) fn name(&self) -> &str {
        self.0.as_ref().map_or("this user", |user| &user.name)
    }
}
