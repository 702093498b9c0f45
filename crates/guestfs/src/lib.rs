//! What is on a guest's disk, read without mounting it: partitions, file systems, and what the guest would boot.
//!
//! ```text
//!  block::Disk ──► partition   MBR, GPT
//!                  └─► volume  ext2/3/4, XFS, btrfs (others are recognized and named)
//!                      └─► boot ──┬── grub    grub.cfg, executed as far as a menu needs it
//!                                 ├── bls     entries of the Boot Loader Specification
//!                                 └── links   /vmlinuz and /initrd.img, or the newest kernel
//! ```
//! Every byte comes from a guest or a stranger: all sizes, counts and depths are bounded, and what is damaged is an
//! [`Error`]. It never writes, never mounts and never executes anything of the guest. Start reading at [`Guest`].
#![forbid(unsafe_code)]

mod bls;
mod boot;
mod error;
mod grub;
mod partition;
#[cfg(feature = "trial")]
pub mod trial;
mod version;
mod volume;

pub use boot::Boot;
pub use error::Error;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use viv_block::Disk;
use volume::Volume;

/// Most bytes of a kernel.
pub const KERNEL_MAX: u64 = 256 << 20;
/// Most bytes of an initial RAM disk, all its parts together.
pub const INITRD_MAX: u64 = 1 << 30;
/// Most bytes of a file that is text.
const TEXT_MAX: u64 = 4 << 20;

/// A guest's disk, looked into.
pub struct Guest {
    volumes: Vec<Volume>,
    /// What else is there, as one says it: `partition 2: FAT`.
    others: Vec<String>,
}

impl Guest {
    /// Reads the partition table and opens the file systems.
    pub fn open(disk: Arc<dyn Disk>) -> Result<Guest, Error> {
        guarded(move || {
            let (mut volumes, mut others) = (Vec::new(), Vec::new());
            for partition in partition::all(&*disk)? {
                match Volume::open(&disk, partition) {
                    Ok(found) => volumes.extend(found),
                    Err(what) => others.extend(what),
                }
            }
            Ok(Guest { volumes, others })
        })
    }

    /// What the guest would boot.
    pub fn boot(&self) -> Result<Boot, Error> {
        guarded(|| boot::find(&self.volumes, &self.others))
    }

    /// Writes what is to be booted: the kernel, and the initial RAM disk; tells whether there is one.
    pub fn extract(
        &self,
        boot: &Boot,
        kernel: &mut dyn Write,
        initrd: &mut dyn Write,
    ) -> Result<bool, Error> {
        guarded(|| boot.extract(&self.volumes, kernel, initrd))
    }

    /// The user whom cloud-init of the guest gives its keys, if it is installed (`system_info.default_user.name` of
    /// its configuration).
    pub fn cloud_init(&self) -> Option<CloudInit> {
        guarded(|| Ok(self.volumes.iter().find_map(cloud_init_of))).ok().flatten()
    }
}

/// The guest's cloud-init.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudInit {
    /// The image's default user, as far as that can be read.
    pub default_user: Option<String>,
}

fn cloud_init_of(volume: &Volume) -> Option<CloudInit> {
    let text = volume.text("/etc/cloud/cloud.cfg").ok()?;
    Some(CloudInit { default_user: default_user(&text) })
}

/// `name:` below `default_user:` in the YAML of `cloud.cfg`, which says it in block style.
fn default_user(text: &str) -> Option<String> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut lines = text.lines().filter(|line| !line.trim().is_empty() && !line.trim().starts_with('#'));
    let depth = indent(lines.find(|line| line.trim() == "default_user:")?);
    let name =
        lines.take_while(|line| indent(line) > depth).find_map(|line| line.trim().strip_prefix("name:"))?;
    let name = name.split(" #").next().unwrap_or_default().trim().trim_matches(['"', '\'']);
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    (!name.is_empty() && name.len() <= 32 && !name.starts_with('-') && name.chars().all(plain))
        .then(|| name.to_string())
}

/// The reader of file systems is another project's: should it break off over a damaged one, that is the image's fault
/// and not the end of whoever asks.
fn guarded<T>(look: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(look)).unwrap_or_else(|_| {
        Err(Error::Damaged {
            what: "a file system".into(),
            why: "its structures contradict each other".into(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_user_is_found_where_distributions_say_it() {
        let text = "users:\n  - default\n# x\nsystem_info:\n  distro: debian\n  default_user:\n    # c\n    lock_passwd: True\n    \
                    name: debian\n    groups: [adm]\n  paths:\n    name: x\n";
        assert_eq!(default_user(text).as_deref(), Some("debian"));
        assert_eq!(default_user("system_info:\n  default_user:\n  paths:\n    name: x\n"), None);
        assert_eq!(default_user("  default_user:\n    name: -oProxyCommand=x\n"), None);
        assert_eq!(default_user(""), None);
    }
}
