//! The default guest: a distribution's kernel, the modules that reach our devices, a small user land and the agent
//! as its init, all in one initial RAM disk.
use super::apt::{Apt, Wanted};
use super::cpio::Archive;
use super::deb::{self, Deb};
use super::fault::{broken, cancelled, io_fault};
use super::kmod;
use super::tar::Kind as Entry;
use super::{Watcher, step};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use viv_model::{Fault, Kind};

/// Raise it when what this file makes changes: images are then built again.
pub(super) const REVISION: u32 = 10;

/// Packages that depend on the newest kernel for machines like ours, the best first.
const KERNELS: [&str; 4] =
    ["linux-image-cloud-amd64", "linux-image-virtual", "linux-image-generic", "linux-image-amd64"];
/// The user land.
const BUSYBOX: &str = "busybox-static";

/// Loaded at boot: the ways to our devices, raw sockets for the DHCP client, the power button, and the checksums of ext4.
const LOADED: [&str; 13] = [
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "virtio_mem",
    "virtio_net",
    "af_packet",
    "vmw_vsock_virtio_transport",
    "button",
    "evdev",
    "crc32c_intel",
];
/// There for `modprobe`.
const INCLUDED: [&str; 8] =
    ["virtio_scsi", "erofs", "overlay", "virtiofs", "isofs", "squashfs", "xfs", "loop"];

/// What depmod(8) reads besides the modules.
const LISTS: [&str; 3] = ["modules.order", "modules.builtin", "modules.builtin.modinfo"];

/// Most bytes of a kernel module that we believe, and of a kernel.
const MODULE_LEN_MAX: u64 = 64 << 20;

/// Names under which busybox's programs are there.
const APPLETS: &str = "[ [[ acpid adjtimex ar arch arp arping ash awk base64 basename bc blkdiscard blockdev brctl \
bunzip2 bzcat bzip2 cal cat chgrp chmod chown chroot clear cmp cp cpio crc32 cut date dc dd depmod devmem df diff \
dirname dmesg dnsdomainname dos2unix du echo ed egrep env expand expr factor fallocate false fdisk fgrep find findfs \
fold free fsfreeze fstrim getopt grep groups gunzip gzip halt head hexdump hostid hostname httpd hwclock id ifconfig \
insmod ionice ip ipcalc kill killall last less link ln logger login logname losetup ls lsmod lzcat lzma md5sum \
microcom mkdir mkdosfs mke2fs mkfifo mknod mkpasswd mkswap mktemp modinfo modprobe more mount mountpoint mv nameif nc \
netstat nice nl nohup nologin nproc nsenter nslookup od openvt partprobe passwd paste patch pidof ping ping6 \
pivot_root poweroff printf ps pwd readlink realpath reboot renice reset resize rev rm rmdir rmmod route run-parts sed \
seq setpriv setsid sh sha1sum sha256sum sha3sum sha512sum shred shuf sleep sort start-stop-daemon stat strings stty su \
swapoff swapon switch_root sync sysctl tac tail tar taskset tee telnet test tftp time timeout top touch tr traceroute \
true truncate ts tty udhcpc umount uname uncompress unexpand uniq unix2dos unlink unlzma unshare unxz unzip uptime \
usleep uudecode uuencode vi watch wc wget which who whoami xargs xxd xz xzcat yes zcat";

/// Small files of the guest.
const FILES: [(&str, u32, &str); 8] = [
    (
        "etc/passwd",
        0o644,
        "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    ),
    ("etc/group", 0o644, "root:x:0:\ndaemon:x:1:\ntty:x:5:\ndisk:x:6:\nusers:x:100:\nnogroup:x:65534:\n"),
    ("etc/hostname", 0o644, "viv\n"),
    ("etc/hosts", 0o644, "127.0.0.1 localhost viv\n::1 localhost ip6-localhost\n"),
    (
        "etc/profile",
        0o644,
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nexport ENV=/etc/viv/shell\n. /etc/viv/shell\n",
    ),
    ("etc/viv/shell", 0o644, "PS1='viv:\\w# '\n"),
    (
        "etc/os-release",
        0o644,
        "NAME=\"Vivarium default guest\"\nID=vivarium\nPRETTY_NAME=\"Vivarium default guest\"\n",
    ),
    ("etc/shells", 0o644, "/bin/sh\n"),
];

/// The packages that it is made from; with a kernel of our own, none of them has one.
pub(super) fn resolve(apt: &Apt<'_>, own_kernel: bool) -> Result<Vec<Wanted>, Fault> {
    let mut names = if own_kernel { Vec::new() } else { resolve_kernel(apt)? };
    names.push(BUSYBOX.to_string());
    apt.locate(&names)
}

/// A probe for package lists: they are of use if they know one of these.
pub(super) fn probe() -> &'static [&'static str] {
    &KERNELS
}

/// The kernel's package, and those of its modules where they are apart.
pub(super) fn resolve_kernel(apt: &Apt<'_>) -> Result<Vec<String>, Fault> {
    for meta in KERNELS {
        let Some(stanza) = apt.show(meta)? else { continue };
        let mut names = depends_on(&stanza, &["linux-image-"]);
        names.retain(|name| !KERNELS.contains(&name.as_str()));
        let Some(kernel) = names.first().cloned() else { continue };
        let mut all = vec![kernel.clone()];
        if let Some(stanza) = apt.show(&kernel)? {
            all.extend(depends_on(&stanza, &["linux-modules-"]));
        }
        return Ok(all);
    }
    Err(Fault::new(
        Kind::NotFound,
        format!(
            "apt's package lists have no kernel for a virtual machine (looked for {})",
            KERNELS.join(", ")
        ),
        "add a Debian or Ubuntu archive for amd64 to apt's sources, then run the build with --update",
    ))
}

/// Names among a stanza's dependencies that begin with one of `prefixes`; of alternatives the first.
pub(super) fn depends_on(stanza: &super::apt::Stanza, prefixes: &[&str]) -> Vec<String> {
    let fields = ["Pre-Depends", "Depends"].into_iter().filter_map(|field| stanza.get(field));
    fields
        .flat_map(|field| field.split(','))
        .filter_map(|word| word.split(['|', '(', '[']).next())
        .map(|name| name.trim().to_string())
        .filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
        .collect()
}

/// A kernel and its modules, out of their packages.
pub(super) struct Kernel {
    /// The version, as in `/lib/modules/VERSION`.
    pub(super) version: String,
    /// By normal name: path below `/lib/modules/VERSION`, and content.
    pub(super) modules: BTreeMap<String, Module>,
    /// Lists that depmod(8) wants: what is built in, and the order.
    pub(super) lists: Vec<Module>,
    /// What each needs.
    needs: BTreeMap<String, Vec<String>>,
}

/// Reads the kernel's packages: the kernel itself goes to the file `kernel`.
pub(super) fn unpack_kernel(debs: &[&Path], kernel: &Path, watcher: &dyn Watcher) -> Result<Kernel, Fault> {
    let mut found = Kernel {
        version: String::new(),
        modules: BTreeMap::new(),
        lists: Vec::new(),
        needs: BTreeMap::new(),
    };
    let mut has_kernel = false;
    for path in debs {
        let package = Deb::new(*path);
        let damaged = |error: std::io::Error| broken(&package.name(), error);
        let mut data = package.data()?;
        step(watcher, "unpacking the kernel");
        while let Some(entry) = data.next().map_err(damaged)? {
            if watcher.cancelled() {
                return Err(cancelled());
            }
            if entry.kind != Entry::File || entry.size > MODULE_LEN_MAX {
                continue;
            }
            let path = entry.path.strip_prefix("usr/").unwrap_or(&entry.path);
            if path.starts_with("boot/vmlinuz-") {
                let mut file = File::create(kernel).map_err(io_fault("write", kernel))?;
                std::io::copy(&mut data, &mut file).map_err(io_fault("write", kernel))?;
                has_kernel = true;
            } else if let Some((version, module)) =
                path.strip_prefix("lib/modules/").and_then(|rest| rest.split_once('/'))
                && (module.starts_with("kernel/") && module.contains(".ko") || LISTS.contains(&module))
            {
                let mut bytes = Vec::new();
                data.read_to_end(&mut bytes).map_err(damaged)?;
                if LISTS.contains(&module) {
                    found.lists.push((module.to_string(), bytes));
                    continue;
                }
                found.version = version.to_string();
                let name = kmod::normal(kmod::name_of(module));
                found.modules.insert(name, (module.to_string(), bytes));
            }
        }
    }
    if !has_kernel || found.modules.is_empty() {
        return Err(broken("the kernel's package", "it has no kernel or no modules"));
    }
    Ok(found)
}

impl Kernel {
    /// Wanted modules with all that they need, in the order in which to load them: path and plain content.
    pub(super) fn select(&mut self, wanted: &[&str]) -> Result<Vec<Module>, Fault> {
        // Needs are read only of what is wanted: decompressing every module would take long.
        let mut open: Vec<String> = wanted.iter().map(|name| kmod::normal(name)).collect();
        while let Some(name) = open.pop() {
            if self.needs.contains_key(&name) {
                continue;
            }
            let Some((path, bytes)) = self.modules.get_mut(&name) else { continue };
            let plain = deb::decompress(path, std::mem::take(bytes)).map_err(|error| broken(path, error))?;
            let end = path.find(".ko").map_or(path.len(), |at| at + 3);
            path.truncate(end);
            let needs = kmod::depends(&plain);
            *bytes = plain;
            open.extend(needs.iter().cloned());
            self.needs.insert(name, needs);
        }
        let order = kmod::load_order(wanted, &self.needs);
        Ok(order.iter().filter_map(|name| self.modules.get(name).cloned()).collect())
    }

    /// `modules.dep` (depmod(8)) for these modules: each with all that it needs, the nearest first.
    pub(super) fn dep_file(&self, modules: &[Module]) -> String {
        let mut text = String::new();
        for (path, _) in modules {
            let name = kmod::normal(kmod::name_of(path));
            let mut before = kmod::load_order(&[&name], &self.needs);
            before.pop();
            let paths =
                before.iter().rev().filter_map(|name| self.modules.get(name)).map(|(path, _)| path.as_str());
            text.push_str(&format!("{path}:"));
            paths.for_each(|path| text.push_str(&format!(" {path}")));
            text.push('\n');
        }
        text
    }
}

/// Path below `/lib/modules/VERSION`, and content.
type Module = (String, Vec<u8>);

/// The modules of our initial RAM disks: every one, and the list to load.
fn guest_modules(kernel: &mut Kernel) -> Result<(Vec<Module>, String), Fault> {
    let loaded = kernel.select(&LOADED)?;
    let all: Vec<&str> = LOADED.iter().chain(&INCLUDED).copied().collect();
    let included = kernel.select(&all)?;
    let list = loaded.iter().map(|(path, _)| format!("/lib/modules/{}/{path}\n", kernel.version)).collect();
    Ok((included, list))
}

/// Writes the initial RAM disk, with the modules of `kernel` if it has any.
pub(super) fn write_initrd(
    kernel: Option<&mut Kernel>,
    busybox: &Path,
    agent: &Path,
    target: &Path,
    watcher: &dyn Watcher,
) -> Result<(), Fault> {
    step(watcher, "writing the initial RAM disk");
    let busybox = read_from_deb(busybox, "bin/busybox")?;
    let agent = fs::read(agent).map_err(io_fault("read", agent))?;
    let modules = match kernel {
        Some(kernel) => Some((guest_modules(kernel)?, &*kernel)),
        None => None,
    };
    let write = || -> std::io::Result<()> {
        let mut archive = Archive::new(BufWriter::new(File::create(target)?));
        for (path, mode) in [
            ("dev", 0o755),
            ("proc", 0o555),
            ("sys", 0o555),
            ("run", 0o755),
            ("tmp", 0o1777),
            ("root", 0o700),
            ("mnt", 0o755),
            ("newroot", 0o755),
            ("bin", 0o755),
            ("sbin", 0o755),
            ("usr", 0o755),
            ("usr/bin", 0o755),
            ("usr/sbin", 0o755),
            ("var", 0o755),
            ("var/log", 0o755),
            ("etc", 0o755),
            ("etc/viv", 0o755),
        ] {
            archive.directory(path, mode)?;
        }
        archive.symlink("var/run", "/run")?;
        archive.symlink("var/tmp", "/tmp")?;
        // The kernel opens it for process 1 before anything is mounted.
        archive.character_device("dev/console", 0o600, (5, 1))?;
        archive.character_device("dev/null", 0o666, (1, 3))?;
        archive.file("init", 0o755, &agent)?;
        archive.file("bin/busybox", 0o755, &busybox)?;
        for applet in APPLETS.split_ascii_whitespace() {
            archive.symlink(&format!("bin/{applet}"), "busybox")?;
        }
        // `modprobe` is what the kernel itself calls.
        archive.symlink("sbin/modprobe", "../bin/busybox")?;
        archive.symlink("sbin/init", "../init")?;
        for (path, mode, text) in FILES {
            archive.file(path, mode, text.as_bytes())?;
        }
        if let Some(((modules, list), kernel)) = &modules {
            archive.file("etc/viv/modules", 0o644, list.as_bytes())?;
            let root = format!("lib/modules/{}", kernel.version);
            let mut made = Vec::new();
            for (path, bytes) in modules {
                make_parents(&mut archive, &format!("{root}/{path}"), &mut made)?;
                archive.file(&format!("{root}/{path}"), 0o644, bytes)?;
            }
            archive.file(&format!("{root}/modules.dep"), 0o644, kernel.dep_file(modules).as_bytes())?;
        }
        archive.finish()?.flush()
    };
    write().map_err(io_fault("write", target))
}

fn make_parents(
    archive: &mut Archive<impl Write>,
    path: &str,
    made: &mut Vec<String>,
) -> std::io::Result<()> {
    for (at, _) in path.match_indices('/') {
        let parent = path.get(..at).unwrap_or_default();
        if !made.iter().any(|old| old == parent) {
            archive.directory(parent, 0o755)?;
            made.push(parent.to_string());
        }
    }
    Ok(())
}

/// One file of a package, wherever merged `/usr` has put it.
fn read_from_deb(path: &Path, wanted: &str) -> Result<Vec<u8>, Fault> {
    let package = Deb::new(path);
    let mut data = package.data()?;
    let damaged = |error: std::io::Error| broken(&package.name(), error);
    while let Some(entry) = data.next().map_err(damaged)? {
        if entry.kind == Entry::File && entry.path.strip_prefix("usr/").unwrap_or(&entry.path) == wanted {
            let mut bytes = Vec::new();
            data.read_to_end(&mut bytes).map_err(damaged)?;
            return Ok(bytes);
        }
    }
    Err(broken(&package.name(), format_args!("it has no {wanted}")))
}

/// What a build gives before it is stored.
pub(super) struct Built {
    /// Not there if the kernel is our own.
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    /// What the kernel's packages had besides; nothing if the kernel is our own.
    pub(super) modules: Option<Kernel>,
}

/// Builds kernel and initial RAM disk in `dir` from packages in the order of [`resolve`]; the latter alone if the kernel is our own.
pub(super) fn build(
    wanted: &[Wanted],
    debs: &[PathBuf],
    own_kernel: bool,
    agent: &Path,
    dir: &Path,
    watcher: &dyn Watcher,
) -> Result<Built, Fault> {
    let (mut kernels, mut busybox) = (Vec::new(), None);
    for (package, path) in wanted.iter().zip(debs) {
        if package.name == BUSYBOX {
            busybox = Some(path.as_path());
        } else if package.name.starts_with("linux-") {
            kernels.push(path.as_path());
        }
    }
    let busybox =
        busybox.ok_or_else(|| broken("the list of packages", format_args!("it has no {BUSYBOX}")))?;
    let (kernel_path, initrd) = (dir.join("kernel"), dir.join("initrd"));
    let mut kernel = if own_kernel { None } else { Some(unpack_kernel(&kernels, &kernel_path, watcher)?) };
    write_initrd(kernel.as_mut(), busybox, agent, &initrd, watcher)?;
    Ok(Built { kernel: kernel_path, initrd, modules: kernel })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_among_the_dependencies() {
        let text = "Package: linux-image-virtual\nDepends: linux-image-6.8.0-1-generic (= 6.8) | x, linux-modules-6.8.0-1-generic, kmod\n";
        let stanza = super::super::apt::stanzas(text).remove(0);
        assert_eq!(depends_on(&stanza, &["linux-image-"]), ["linux-image-6.8.0-1-generic"]);
        assert_eq!(depends_on(&stanza, &["linux-modules-"]), ["linux-modules-6.8.0-1-generic"]);
    }
}
