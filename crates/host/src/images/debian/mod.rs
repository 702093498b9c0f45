//! A full Debian on a disk: minbase, systemd and apt, without root.
//!
//! ```text
//! packages ─► tree of files + dpkg's database                   tree.rs, dpkg.rs   (this host)
//!          ─► ext4 by the distribution's own mke2fs              disk.rs            (this host, out of the tree)
//!          ─► `dpkg --configure -a`, settings                    configure.sh, settings.sh (a VM with the agent as init)
//! ```
//!
//! Only what must run as root of that Debian runs in a VM, because a VM on the software CPU is slow.
mod container;
mod disk;
mod dpkg;
mod tree;

use super::apt::{Apt, Wanted};
use super::default_guest::Kernel;
use super::fault::cancelled;
use super::{RunVm, Watcher, step};
pub use container::Additions;
pub(super) use container::Build;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use tree::Tree;
use viv_api::operation::Progress;
use viv_model::{Accel, DiskSpec, End, Fault, Kind, MachineSpec};

/// Raise it when what this folder makes changes: disks are then built again.
pub(super) const REVISION: u32 = 4;
/// What the image adds to the kernel's command line.
pub(super) const APPEND: &str = "viv.root=/dev/vda rw";
/// Least size of the disk, MiB: what the packages take, and room to work.
const DISK_MIB_MIN: u64 = 1024;
/// Most, MiB: what ext4 with 4 KiB blocks and our reckoning surely hold.
const DISK_MIB_MAX: u64 = 1 << 22;

/// Beyond what every system must have. `usr-is-merged` says that our tree is: else apt would have it done.
const EXTRA: [&str; 11] = [
    "usr-is-merged",
    "apt",
    "systemd",
    "systemd-sysv",
    "udev",
    "dbus",
    "iproute2",
    "e2fsprogs",
    "kmod",
    "procps",
    "netbase",
];

/// Modules on the disk, for `modprobe`; the initial RAM disk has loaded those that the boot needs.
const MODULES: [&str; 30] = [
    "af_packet",
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_console",
    "virtio_rng",
    "virtio_net",
    "virtio_balloon",
    "virtio_scsi",
    "virtio_input",
    "vmw_vsock_virtio_transport",
    "vsock_loopback",
    "button",
    "evdev",
    "overlay",
    "virtiofs",
    "isofs",
    "squashfs",
    "loop",
    "vfat",
    "tun",
    "veth",
    "bridge",
    "dummy",
    "nf_tables",
    "dm_mod",
    "binfmt_misc",
    "autofs4",
    "configfs",
    "nls_iso8859_1",
];

/// Runs in a VM, in the place of the packages.
const CONFIGURE: &str = include_str!("configure.sh");
/// Runs once, as the only program of the builder VM, with the new disk as its root.
const CONFIGURE_DISK: &str = concat!(
    "#!/bin/sh\n",
    "export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C LANG=C\n",
    "export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true DEBCONF_NOWARNINGS=yes\n",
    "export SYSTEMD_OFFLINE=1 SYSTEMD_LOG_LEVEL=err\n",
    include_str!("configure.sh"),
    include_str!("settings.sh"),
);

/// The settings of the image: path, mode, text.
const FILES: [(&str, u32, &str); 12] = [
    ("etc/hostname", 0o644, "debian\n"),
    ("etc/hosts", 0o644, "127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost ip6-loopback\n"),
    (
        "etc/fstab",
        0o644,
        "# The root is mounted before this is read: viv.root on the kernel's command line.\n",
    ),
    // Empty: each VM makes its own at its first boot (machine-id(5)).
    ("etc/machine-id", 0o444, ""),
    ("etc/default/locale", 0o644, "LANG=C.UTF-8\n"),
    ("etc/systemd/network/80-viv.network", 0o644, "[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n"),
    // The name server of user networks; what would keep it up to date is a package of its own.
    ("etc/resolv.conf", 0o644, "nameserver 10.0.2.3\n"),
    // The serial console belongs to whoever owns the VM: it asks for no password.
    (
        "etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf",
        0o644,
        "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,57600,38400,9600 %I $TERM\n",
    ),
    // Two devices of three that a kernel has are terminals that nobody uses and ACPI's names for what has others: to
    // ask udev's rules about each would be a good part of the boot.
    (
        "etc/systemd/system/systemd-udev-trigger.service.d/viv.conf",
        0o644,
        "[Service]\nExecStart=\n\
         ExecStart=-udevadm trigger --type=all --action=add --prioritized-subsystem=module,block,net,input \
         --subsystem-nomatch=tty --subsystem-nomatch=vc --subsystem-nomatch=acpi --subsystem-nomatch=wakeup \
         --subsystem-nomatch=workqueue --subsystem-nomatch=mem\n\
         ExecStart=-udevadm trigger --action=add --subsystem-match=tty --sysname-match=ttyS0 --sysname-match=hvc0\n",
    ),
    (
        "etc/dpkg/dpkg.cfg.d/viv-slim",
        0o644,
        "# As the image was built.\npath-exclude=/usr/share/doc/*\npath-include=/usr/share/doc/*/copyright\npath-exclude=/usr/share/man/*\npath-exclude=/usr/share/info/*\npath-exclude=/usr/share/locale/*\npath-exclude=/usr/share/lintian/*\n",
    ),
    // Nothing is started while packages are configured; removed at the end (policy-rc.d, invoke-rc.d(8)).
    ("usr/sbin/policy-rc.d", 0o755, "#!/bin/sh\nexit 101\n"),
    ("viv-configure", 0o755, CONFIGURE_DISK),
];

/// The packages of the disk.
pub(super) fn resolve(apt: &Apt<'_>) -> Result<Vec<Wanted>, Fault> {
    apt.locate(&apt.closure(&essential(apt, &EXTRA)?)?)
}

/// The packages that every Debian has, and `extra`.
fn essential(apt: &Apt<'_>, extra: &[&str]) -> Result<Vec<String>, Fault> {
    let mut names: BTreeSet<String> = extra.iter().map(|name| name.to_string()).collect();
    for stanza in apt.available()? {
        let is = |field: &str, value: &str| stanza.get(field).is_some_and(|found| found == value);
        if (is("Essential", "yes") || is("Priority", "required"))
            && (is("Architecture", "amd64") || is("Architecture", "all"))
            && let Some(name) = stanza.get("Package")
        {
            names.insert(name.clone());
        }
    }
    Ok(names.into_iter().collect())
}

/// Everything that a build of the disk needs.
pub(super) struct Inputs<'a> {
    /// Package files, one for each of [`resolve`]'s.
    pub(super) debs: &'a [PathBuf],
    /// Lines for sources.list(5).
    pub(super) sources: &'a [String],
    /// The kernel's modules.
    pub(super) modules: &'a mut Kernel,
    /// To boot the builder VM with.
    pub(super) kernel: &'a Path,
    pub(super) initrd: &'a Path,
    pub(super) disk_mib: u64,
    /// A directory for this build.
    pub(super) dir: &'a Path,
    /// Where the VM's console is kept.
    pub(super) log: &'a Path,
}

/// Refuses sizes that cannot be.
pub(super) fn check_size(disk_mib: u64) -> Result<(), Fault> {
    if (DISK_MIB_MIN..=DISK_MIB_MAX).contains(&disk_mib) {
        return Ok(());
    }
    Err(Fault::new(
        Kind::Usage,
        format!("a disk of {disk_mib} MiB is no place for a Debian"),
        format!("give it {DISK_MIB_MIN} to {DISK_MIB_MAX} MiB; what is not used takes no space on the host"),
    ))
}

/// Builds the disk; gives its path.
pub(super) fn build(inputs: Inputs<'_>, vm: &dyn RunVm, watcher: &dyn Watcher) -> Result<PathBuf, Fault> {
    super::need_space(inputs.dir, 1 << 30)?;
    let root = inputs.dir.join("tree");
    let mut tree = Tree::new(&root)?;
    let mut database = dpkg::Database::default();
    let total = inputs.debs.len() as u64;
    for (done, deb) in inputs.debs.iter().enumerate() {
        if watcher.cancelled() {
            return Err(cancelled());
        }
        let step = "unpacking packages".to_string();
        watcher.progress(Progress { step, done: done as u64, total: Some(total), bytes: false });
        database.unpack(deb, &mut tree)?;
    }
    database.write(&mut tree)?;
    for (path, mode, text) in FILES {
        tree.write(path, mode, text.as_bytes())?;
    }
    let sources: String = inputs.sources.iter().map(|line| format!("{line}\n")).collect();
    tree.write("etc/apt/sources.list", 0o644, sources.as_bytes())?;
    let modules = inputs.modules.select(&MODULES)?;
    let place = format!("usr/lib/modules/{}", inputs.modules.version);
    for (path, bytes) in modules.iter().chain(&inputs.modules.lists) {
        tree.write(&format!("{place}/{path}"), 0o644, bytes)?;
    }
    let disk = inputs.dir.join("disk");
    step(watcher, "making the file system");
    disk::make(&tree, &disk, inputs.disk_mib, watcher)?;
    configure(&inputs, &disk, database.unpacked, vm, watcher)?;
    step(watcher, "checking the file system");
    disk::check(&tree, &disk)?;
    tree.remove();
    Ok(disk)
}

/// The machine of a builder VM, the same on every host: what asks for it gets the same answer.
fn builder(kernel: PathBuf, initrd: Option<PathBuf>, append: &str, disks: Vec<DiskSpec>) -> MachineSpec {
    MachineSpec {
        cpus: 1,
        memory_mib: 1024,
        memory_max_mib: None,
        cpu_limit_milli: None,
        cpu_weight: None,
        accel: Accel::Auto,
        soft: Default::default(),
        kernel,
        initrd,
        append: format!("console=ttyS0 quiet loglevel=4 panic=-1 reboot=k cryptomgr.notests {append}"),
        disks,
        shares: Vec::new(),
        nics: Vec::new(),
        console_ports: Vec::new(),
        ports: Vec::new(),
    }
}

/// Has the packages configured in a VM.
fn configure(
    inputs: &Inputs<'_>,
    disk: &Path,
    total: u64,
    vm: &dyn RunVm,
    watcher: &dyn Watcher,
) -> Result<(), Fault> {
    let disk = DiskSpec { path: disk.to_path_buf(), read_only: false, ..DiskSpec::default() };
    let (kernel, initrd) = (inputs.kernel.to_path_buf(), Some(inputs.initrd.to_path_buf()));
    let spec = builder(kernel, initrd, &format!("{APPEND} viv.task=/viv-configure"), vec![disk]);
    let mut console = Console { total, watcher, done: 0, line: Vec::new(), lines: Vec::new() };
    console.report();
    // A build that hangs is understood by what was said last.
    let mut log = File::create(inputs.log).ok();
    let end = vm.run(&spec, None, &mut |bytes| {
        console.take(bytes);
        if console.lines.len() < Console::LINES_MAX
            && let Some(log) = &mut log
        {
            let _ = log.write_all(bytes);
        }
    });
    if watcher.cancelled() {
        return Err(cancelled());
    }
    let end = end?;
    if end == End::PowerOff && console.lines.iter().any(|line| line == "viv-task: exit 0") {
        return Ok(());
    }
    let last: Vec<&str> =
        console.lines.iter().rev().map(String::as_str).filter(|line| !line.is_empty()).take(3).collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    Err(Fault::new(
        Kind::Error,
        format!("the builder VM could not configure the packages ({end:?}): {}", last.join(" | ")),
        format!("its console is in {}; try again, or report it", inputs.log.display()),
    ))
}

/// The builder VM's serial port, line by line.
struct Console<'a> {
    total: u64,
    watcher: &'a dyn Watcher,
    done: u64,
    line: Vec<u8>,
    lines: Vec<String>,
}

impl Console<'_> {
    /// Most lines and bytes of a line that are kept: the guest decides how much it says.
    const LINES_MAX: usize = 20_000;
    const LINE_LEN_MAX: usize = 1000;

    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => {
                    let line = String::from_utf8_lossy(&self.line).trim_end().to_string();
                    self.line.clear();
                    // dpkg's words for each package that it configures.
                    if line.starts_with("Setting up ") {
                        self.done = (self.done + 1).min(self.total);
                        self.report();
                    }
                    if self.lines.len() < Self::LINES_MAX {
                        self.lines.push(line);
                    }
                }
                byte if self.line.len() < Self::LINE_LEN_MAX => self.line.push(*byte),
                _ => {}
            }
        }
    }

    fn report(&self) {
        let step = "configuring packages in a VM".to_string();
        self.watcher.progress(Progress { step, done: self.done, total: Some(self.total), bytes: false });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::Unwatched;

    #[test]
    fn the_console_is_read_in_any_pieces_and_bounded() {
        let mut console =
            Console { total: 2, watcher: &Unwatched, done: 0, line: Vec::new(), lines: Vec::new() };
        for piece in [&b"Setting up a (1)"[..], b" ...\r\nSett", b"ing up b\r\n\r\nviv-task: exit 0\r\n"] {
            console.take(piece);
        }
        assert_eq!(console.done, 2);
        assert_eq!(console.lines, ["Setting up a (1) ...", "Setting up b", "", "viv-task: exit 0"]);
        console.take(&vec![b'x'; 100_000]);
        assert!(console.line.len() <= Console::LINE_LEN_MAX);
    }

    #[test]
    fn absurd_sizes_are_refused() {
        assert!(check_size(0).is_err());
        assert!(check_size(u64::MAX).is_err());
        assert!(check_size(2048).is_ok());
    }
}
