//! Where state lives: the XDG base directories, or all below `VIV_HOME`.
use rustix::fs::{Access, access};
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use viv_model::{Fault, Kind};

/// State and images of the whole host's service; there if that is installed.
const SYSTEM: &str = "/var/lib/vivarium";
/// Its sockets.
const SYSTEM_RUNTIME: &str = "/run/vivarium";

/// The three roots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Records, logs and disks of VMs.
    pub state: PathBuf,
    /// Images.
    pub data: PathBuf,
    /// Sockets and locks.
    pub runtime: PathBuf,
}

impl Places {
    /// The places of this user, made if they are missing.
    pub fn find() -> Result<Places, Fault> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        // The service that a package has installed for the whole host is root's.
        let system = rustix::process::getuid().is_root() && Path::new(SYSTEM).is_dir();
        match system && variable("VIV_HOME").is_none() {
            true => Places::system().made(),
            false => Places::from(&variable)?.made(),
        }
    }

    fn from(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Places, Fault> {
        if let Some(home) = variable("VIV_HOME") {
            let home = std::path::absolute(&home).map_err(|error| cannot_make(Path::new(&home), &error))?;
            return Ok(Places {
                state: home.join("state"),
                data: home.join("data"),
                runtime: home.join("run"),
            });
        }
        // The XDG specification: a path that is not absolute is to be ignored.
        let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let below_home = |name: &str, rest: &str| match (absolute(name), absolute("HOME")) {
            (Some(root), _) => Ok(root.join("vivarium")),
            (None, Some(home)) => Ok(home.join(rest).join("vivarium")),
            (None, None) => Err(Fault::new(
                Kind::Usage,
                "no place for VMs: the variable HOME is not set",
                "set HOME, or name a directory for everything: VIV_HOME=/path viv …",
            )),
        };
        let state = below_home("XDG_STATE_HOME", ".local/state")?;
        let data = below_home("XDG_DATA_HOME", ".local/share")?;
        let uid = rustix::process::getuid().as_raw();
        let of_user = absolute("XDG_RUNTIME_DIR").unwrap_or_else(|| format!("/run/user/{uid}").into());
        let runtime = match is_ours(&of_user, uid) {
            true => of_user.join("vivarium"),
            false => state.join("run"),
        };
        Ok(Places { state, data, runtime })
    }

    /// The places of a service for the whole host (`viv serve --system`).
    pub fn system() -> Places {
        let root = Path::new(SYSTEM);
        Places { state: root.join("state"), data: root.join("data"), runtime: SYSTEM_RUNTIME.into() }
    }

    /// These places, made if they are missing.
    pub fn made(self) -> Result<Places, Fault> {
        for directory in [
            &self.state,
            &self.vms(),
            &self.translated(),
            &self.volumes(),
            &self.networks(),
            &self.secgroups(),
            &self.access(),
            &self.audit(),
            &self.data,
            &self.images(),
            &self.programs(),
            &self.runtime,
        ] {
            make_private(directory)?;
        }
        Ok(self)
    }

    /// A directory for each VM.
    pub fn vms(&self) -> PathBuf {
        self.state.join("vms")
    }

    /// What the host service remembers.
    pub fn store(&self) -> PathBuf {
        self.state.join("state.db")
    }

    /// What engines have made of programs, for the next time.
    pub fn programs(&self) -> PathBuf {
        self.data.join("programs")
    }

    /// What the processors of VMs had made of their code when each was last asked, by the VMs' identities; their processes get to none
    /// of it.
    pub fn translated(&self) -> PathBuf {
        self.state.join("translated")
    }

    /// What the software CPU makes of our kernel; VMs' processes read it.
    pub(crate) fn boot_code(&self) -> PathBuf {
        self.state.join("boot-code")
    }

    /// A directory for each project's volumes.
    pub fn volumes(&self) -> PathBuf {
        Places::volumes_in(&self.state)
    }

    /// Where they are below the directory of all state.
    pub(crate) fn volumes_in(state: &Path) -> PathBuf {
        state.join("volumes")
    }

    /// A directory for each snapshot.
    pub fn snapshots(&self) -> PathBuf {
        self.state.join("snapshots")
    }

    /// Kernels and initial RAM disks that were found in disks, by their checksums: VMs have links to them.
    pub fn boot(&self) -> PathBuf {
        self.state.join("boot")
    }

    /// A directory for each network that VMs share.
    pub fn networks(&self) -> PathBuf {
        self.state.join("networks")
    }

    /// A file for each security group.
    pub fn secgroups(&self) -> PathBuf {
        self.state.join("secgroups")
    }

    /// Who may come over the network.
    pub fn access(&self) -> PathBuf {
        self.state.join("access")
    }

    /// What was done, and by whom.
    pub fn audit(&self) -> PathBuf {
        self.state.join("audit")
    }

    /// The store of images.
    pub fn images(&self) -> PathBuf {
        self.data.join("images")
    }

    /// The host service's socket.
    pub fn socket(&self) -> PathBuf {
        self.runtime.join("viv.sock")
    }

    /// Held by the host service while it lives.
    pub fn lock(&self) -> PathBuf {
        self.runtime.join("serve.lock")
    }

    /// What the host service had to say.
    pub fn log(&self) -> PathBuf {
        self.state.join("serve.log")
    }
}

/// Whether it is surely not there. What cannot be looked at, for want of permission or by an error of the disk, may be there: nothing is
/// removed or made anew for that.
pub(crate) fn is_gone(path: &Path) -> bool {
    matches!(path.try_exists(), Ok(false))
}

fn is_ours(directory: &Path, uid: u32) -> bool {
    fs::metadata(directory).is_ok_and(|data| data.is_dir() && data.uid() == uid)
        && access(directory, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

fn make_private(directory: &Path) -> Result<(), Fault> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| cannot_make(directory, &error))
}

fn cannot_make(directory: &Path, error: &std::io::Error) -> Fault {
    let kind = match error.kind() {
        std::io::ErrorKind::PermissionDenied => Kind::Denied,
        std::io::ErrorKind::StorageFull => Kind::NoCapacity,
        _ => Kind::Error,
    };
    Fault::new(
        kind,
        format!("cannot make the directory {}: {error}", directory.display()),
        "make it yourself, or name another place for everything: VIV_HOME=/path viv …",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&str, &str)]) -> Result<Places, Fault> {
        Places::from(&|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn one_variable_moves_everything() {
        let places = from(&[("VIV_HOME", "/t"), ("HOME", "/h"), ("XDG_DATA_HOME", "/d")]).unwrap();
        assert_eq!(places.vms(), Path::new("/t/state/vms"));
        assert_eq!(places.images(), Path::new("/t/data/images"));
        assert_eq!(places.socket(), Path::new("/t/run/viv.sock"));
    }

    #[test]
    fn xdg_then_home_then_a_fault() {
        let places =
            from(&[("HOME", "/h"), ("XDG_STATE_HOME", "/s"), ("XDG_DATA_HOME", "not/absolute")]).unwrap();
        assert_eq!(places.state, Path::new("/s/vivarium"));
        assert_eq!(places.data, Path::new("/h/.local/share/vivarium"));
        assert_eq!(from(&[]).unwrap_err().kind, Kind::Usage);
    }

    #[test]
    fn a_runtime_directory_that_is_not_ours_is_not_used() {
        let places = from(&[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/proc/version")]).unwrap();
        assert_eq!(places.runtime, Path::new("/h/.local/state/vivarium/run"));
    }
}
