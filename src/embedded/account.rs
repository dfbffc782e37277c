//! Chooses the user that the server runs as: PostgreSQL refuses to run as root.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{Uid, User, geteuid};

/// The user that runs the server: an unprivileged one if this process runs as root (`Some`), else the user of this process.
#[derive(Debug, Clone)]
pub(super) struct Account(Option<Delegate>);

#[derive(Debug, Clone)]
struct Delegate {
    uid: u32,
    gid: u32,
    name: String,
}

impl Account {
    /// The account for a server on `data`, which need not exist yet.
    ///
    /// If this process runs as root, it is the owner of data that an ordinary user has made before, as PostgreSQL insists on
    /// the owner; else `postgres`, else `nobody` (`initdb` wants an entry in the user database).
    pub(super) fn for_data(data: &Path) -> io::Result<Self> {
        if !geteuid().is_root() {
            return Ok(Self(None));
        }
        if let Ok(owned) = fs::metadata(data)
            && owned.uid() != 0
        {
            return Ok(Self(Some(Delegate::owner_of(&owned)?)));
        }
        for name in ["postgres", "nobody"] {
            if let Some(user) = User::from_name(name)? {
                return Ok(Self(Some(Delegate::from(user))));
            }
        }
        let message = "PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody`";
        Err(io::Error::new(io::ErrorKind::NotFound, message))
    }

    /// Makes `command` run as this account.
    pub(super) fn apply(&self, command: &mut Command) {
        if let Some(user) = &self.0 {
            // std also drops root's supplementary groups.
            command.uid(user.uid).gid(user.gid);
        }
    }

    /// Gives `path` to this account.
    pub(super) fn own(&self, path: &Path) -> io::Result<()> {
        match &self.0 {
            Some(user) => chown(path, Some(user.uid), Some(user.gid)),
            None => Ok(()),
        }
    }

    /// The folder above `folder` that keeps this account out, if one does.
    ///
    /// Those folders belong to others, so their permissions are not changed. Groups are not considered.
    pub(super) fn barred_by(&self, folder: &Path) -> Option<PathBuf> {
        let user = self.0.as_ref()?;
        let barred = |above: &&Path| {
            fs::metadata(above).is_ok_and(|metadata| {
                let bit = if metadata.uid() == user.uid { 0o100 } else { 0o001 };
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

impl Delegate {
    fn owner_of(data: &fs::Metadata) -> io::Result<Self> {
        let (uid, gid) = (data.uid(), data.gid());
        let name = User::from_uid(Uid::from_raw(uid))?.map_or_else(|| uid.to_string(), |user| user.name);
        Ok(Self { uid, gid, name })
    }
}

impl From<User> for Delegate {
    fn from(user: User) -> Self {
        Self { uid: user.uid.as_raw(), gid: user.gid.as_raw(), name: user.name }
    }
}
