//! Which kernel a guest would boot, with what: GRUB's menu, else entries of the Boot Loader Specification, else the
//! links that Debian keeps, else the newest kernel.
use crate::bls::{self, Entry};
use crate::volume::Volume;
use crate::{Error, INITRD_MAX, KERNEL_MAX, grub, version};
use std::io::Write;

/// Where GRUB has its configuration: below the root, and on a file system of its own.
const GRUB: &[&str] = &["/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub/grub.cfg", "/grub2/grub.cfg"];
/// Where the entries are: on a file system for booting, and below the root.
const ENTRIES: &[&str] = &["/loader/entries", "/boot/loader/entries"];
/// Kernel and initial RAM disk as Debian links them.
const LINKS: &[(&str, &str)] = &[("/vmlinuz", "/initrd.img"), ("/boot/vmlinuz", "/boot/initrd.img")];
/// Where kernels are.
const DIRECTORIES: &[&str] = &["/boot", "/"];
/// What they are called, in front of their version.
const KERNEL: &str = "vmlinuz-";
/// What initial RAM disks are called, around it.
const INITRDS: &[(&str, &str)] =
    &[("initrd.img-", ""), ("initramfs-", ".img"), ("initrd-", ""), ("initrd-", ".img")];
/// Our console, and the word with it.
const CONSOLE: &str = "ttyS0";

/// What a guest would boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// Which file system it is on.
    pub(crate) volume: usize,
    /// The kernel's file.
    pub kernel: String,
    /// The initial RAM disk's files, one after the other.
    pub initrds: Vec<String>,
    /// The kernel's command line.
    pub append: String,
    /// What the guest calls it.
    pub title: String,
    /// Who says so.
    pub from: String,
}

impl Boot {
    pub(crate) fn of_entry(entry: &Entry, volume: usize, value: &dyn Fn(&str) -> Option<String>) -> Boot {
        let initrds = entry.initrds.iter().map(|path| bls::expand(path, value));
        Boot {
            volume,
            kernel: entry.linux.clone(),
            initrds: initrds.filter(|path| !path.is_empty()).collect(),
            append: bls::expand(&entry.options, value),
            title: if entry.title.is_empty() { entry.id.clone() } else { entry.title.clone() },
            from: format!("the boot entry {}", entry.id),
        }
    }

    /// Writes kernel and initial RAM disk; tells whether there is one.
    pub(crate) fn extract(
        &self,
        volumes: &[Volume],
        kernel: &mut dyn Write,
        initrd: &mut dyn Write,
    ) -> Result<bool, Error> {
        let missing = |error| match error {
            Error::Missing { path, why, .. } => Error::Missing { from: self.from.clone(), path, why },
            other => other,
        };
        let gone = || Error::NoKernel { found: "its file system is gone".to_string() };
        let volume = volumes.get(self.volume).ok_or_else(gone)?;
        volume.copy(&self.kernel, KERNEL_MAX, kernel).map_err(missing)?;
        let mut total = 0;
        for path in &self.initrds {
            // Each archive begins at a multiple of 4 bytes (Linux, early-userspace/buffer-format.rst).
            let padding = total % 4;
            if padding != 0 {
                let zeroes = [0; 4];
                initrd.write_all(zeroes.get(padding as usize..).unwrap_or_default()).map_err(Error::Write)?;
                total += 4 - padding;
            }
            total += volume.copy(path, INITRD_MAX.saturating_sub(total), initrd).map_err(missing)?;
        }
        Ok(total > 0)
    }
}

/// Finds it.
pub(crate) fn find(volumes: &[Volume], others: &[String]) -> Result<Boot, Error> {
    let each = || volumes.iter().enumerate();
    let grub = || {
        let all = each().flat_map(|(index, volume)| {
            GRUB.iter()
                .filter(|path| volume.is_file(path))
                .filter_map(move |path| grub::boot(volumes, index, path))
        });
        // A menu's kernel that is gone is as good as none.
        all.into_iter().find(|boot| is_there(volumes, boot))
    };
    let entries = || {
        let all = each().flat_map(|(index, volume)| {
            let entries = ENTRIES.iter().flat_map(|directory| bls::entries(volume, directory));
            entries.map(move |entry| Boot::of_entry(&entry, index, &|_| None)).collect::<Vec<_>>()
        });
        // A subvolume's entries may name files from another's root.
        let same = |index: usize, other: &Volume| {
            volumes.get(index).is_some_and(|volume| volume.partition == other.partition)
        };
        let any = |boot: Boot| {
            let others = each().filter(|(_, other)| same(boot.volume, other)).map(|(index, _)| index);
            let places = std::iter::once(boot.volume).chain(others);
            places.map(|volume| Boot { volume, ..boot.clone() }).find(|boot| is_there(volumes, boot))
        };
        all.into_iter().find_map(any)
    };
    let found = grub().or_else(entries).or_else(|| linked(volumes)).or_else(|| newest(volumes));
    let boot = found.ok_or_else(|| Error::NoKernel { found: told(volumes, others) })?;
    Ok(Boot { append: with_console(&boot.append), ..boot })
}

fn is_there(volumes: &[Volume], boot: &Boot) -> bool {
    volumes.get(boot.volume).is_some_and(|volume| volume.is_file(&boot.kernel))
}

/// What there is instead.
fn told(volumes: &[Volume], others: &[String]) -> String {
    let read = volumes.iter().map(|volume| format!("{} without one", volume.told()));
    let mut all: Vec<String> = read.chain(others.iter().cloned()).collect();
    // Of the subvolumes of one file system.
    all.dedup();
    match all.is_empty() {
        true => "nothing on it is known".to_string(),
        false => all.join(", "),
    }
}

/// Debian's links, to files of the same file system.
fn linked(volumes: &[Volume]) -> Option<Boot> {
    let all =
        (0..).zip(volumes).flat_map(|(index, volume)| LINKS.iter().map(move |link| (index, volume, link)));
    let (index, volume, (kernel, initrd)) =
        all.into_iter().find(|(_, volume, link)| volume.is_file(link.0))?;
    let initrds = volume.is_file(initrd).then(|| initrd.to_string());
    Some(plain(volumes, index, kernel.to_string(), initrds))
}

/// The newest kernel that lies where kernels lie.
fn newest(volumes: &[Volume]) -> Option<Boot> {
    let mut best: Option<(usize, &str, String)> = None;
    for (index, volume) in volumes.iter().enumerate() {
        for directory in DIRECTORIES {
            let names = volume.names(directory).into_iter();
            for name in names.filter_map(|name| name.strip_prefix(KERNEL).map(str::to_string)) {
                let newer = best.as_ref().is_none_or(|(.., best)| version::compare(&name, best).is_gt());
                if newer && volume.is_file(&join(directory, &format!("{KERNEL}{name}"))) {
                    best = Some((index, directory, name));
                }
            }
        }
    }
    let (index, directory, version) = best?;
    let volume = volumes.get(index)?;
    let names = INITRDS.iter().map(|(before, after)| join(directory, &format!("{before}{version}{after}")));
    let initrd = names.into_iter().find(|path| volume.is_file(path));
    Some(plain(volumes, index, join(directory, &format!("{KERNEL}{version}")), initrd))
}

fn join(directory: &str, name: &str) -> String {
    format!("{}/{name}", directory.trim_end_matches('/'))
}

/// A kernel of which nobody says how it is to be booted: its root is what looks like one.
fn plain(volumes: &[Volume], volume: usize, kernel: String, initrd: Option<String>) -> Boot {
    let looks = |volume: &&Volume| {
        volume.is_file("/etc/fstab") || volume.is_file("/etc/os-release") || volume.is_dir("/etc")
    };
    let root = volumes.iter().find(looks).or_else(|| volumes.get(volume));
    let root = root.map(|root| root.root_word(initrd.is_some())).unwrap_or_default();
    let title = kernel.rsplit('/').next().unwrap_or_default().to_string();
    Boot {
        volume,
        from: "the guest".to_string(),
        kernel,
        initrds: initrd.into_iter().collect(),
        append: format!("{root} ro"),
        title,
    }
}

/// The command line, with our console if it has none of ours.
fn with_console(append: &str) -> String {
    let ours = |word: &str| {
        let device = word.strip_prefix("console=").map(|value| value.split(',').next().unwrap_or_default());
        device == Some(CONSOLE)
    };
    match append.split_ascii_whitespace().any(ours) {
        true => append.to_string(),
        false => format!("{append} console={CONSOLE}").trim_start().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_console_is_there_once() {
        assert_eq!(with_console("ro quiet"), "ro quiet console=ttyS0");
        assert_eq!(with_console(""), "console=ttyS0");
        assert_eq!(with_console("ro console=tty0"), "ro console=tty0 console=ttyS0");
        for has in ["console=ttyS0", "console=tty0 console=ttyS0,115200n8 ro"] {
            assert_eq!(with_console(has), has);
        }
    }
}
