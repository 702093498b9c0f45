//! What a kernel needs before programs can run: file systems, modules, names.
use crate::hurry::Hurry;
use crate::{children, say, sys};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use viv_model::{
    HOSTNAME_PARAMETER, ShareMount, TMPFS_PARAMETER, TmpfsMount, VOLUME_DISK_PARAMETER, VOLUME_PARAMETER,
    volume_disk_of, volume_of,
};

/// The list of modules to load, in order, made when the initial RAM disk was built.
const MODULES: &str = "/etc/viv/modules";

/// What the kernel's command line asks of the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wishes {
    /// The disk to start, a device.
    pub(crate) root: Option<String>,
    /// Mount it read-only.
    pub(crate) read_only: bool,
    /// The disk's init, if not `/sbin/init`.
    pub(crate) init: Option<String>,
    /// The only program to run.
    pub(crate) task: Option<String>,
    /// The guest's name.
    pub(crate) hostname: Option<String>,
    /// The disk of an image of containers, a device, and that of this VM above it.
    pub(crate) lower: Option<String>,
    pub(crate) upper: Option<String>,
    /// The signal that ends the image's program.
    pub(crate) stop_signal: Option<i32>,
    /// Directories of the image of containers that are on this VM's disk alone.
    pub(crate) volumes: Vec<String>,
    /// Directories of it that are on disks of their own, by the disks' serial numbers.
    pub(crate) volume_disks: Vec<ShareMount>,
    /// Directories of it that are in memory.
    pub(crate) tmpfs: Vec<TmpfsMount>,
    /// The host's directories to mount.
    pub(crate) shares: Vec<ShareMount>,
}

impl Wishes {
    /// Reads a kernel command line; later words win, as in the kernel, but for shares: each word is one.
    pub(crate) fn parse(line: &str) -> Wishes {
        let mut wishes = Wishes::default();
        for word in line.split_ascii_whitespace() {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let value = (!value.is_empty()).then(|| value.to_string());
            match name {
                "viv.root" => wishes.root = value,
                "viv.init" => wishes.init = value,
                "viv.task" => wishes.task = value,
                HOSTNAME_PARAMETER => wishes.hostname = value,
                "viv.lower" => wishes.lower = value,
                "viv.upper" => wishes.upper = value,
                "viv.stop" => wishes.stop_signal = value.and_then(|number| number.parse().ok()),
                VOLUME_PARAMETER => wishes.volumes.extend(value.as_deref().and_then(volume_of)),
                VOLUME_DISK_PARAMETER => {
                    wishes.volume_disks.extend(value.as_deref().and_then(volume_disk_of));
                }
                TMPFS_PARAMETER => wishes.tmpfs.extend(value.as_deref().and_then(TmpfsMount::from_value)),
                ShareMount::PARAMETER => {
                    wishes.shares.extend(value.as_deref().and_then(ShareMount::from_value));
                }
                "ro" => wishes.read_only = true,
                "rw" => wishes.read_only = false,
                _ => {}
            }
        }
        wishes
    }
}

/// Mounts what every program expects. What is there already is left alone.
pub(crate) fn mount_all() {
    const NO: u64 = libc::MS_NOSUID | libc::MS_NOEXEC | libc::MS_NODEV;
    const MOUNTS: [(&str, &str, u64, &str); 8] = [
        ("proc", "/proc", NO, ""),
        ("sysfs", "/sys", NO, ""),
        ("devtmpfs", "/dev", libc::MS_NOSUID, "mode=0755"),
        ("devpts", "/dev/pts", libc::MS_NOSUID | libc::MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"),
        ("tmpfs", "/dev/shm", libc::MS_NOSUID | libc::MS_NODEV, "mode=1777"),
        ("tmpfs", "/run", libc::MS_NOSUID | libc::MS_NODEV, "mode=0755"),
        ("tmpfs", "/tmp", libc::MS_NOSUID | libc::MS_NODEV, "mode=1777"),
        ("cgroup2", "/sys/fs/cgroup", NO, ""),
    ];
    for (kind, target, flags, data) in MOUNTS {
        let _ = fs::create_dir_all(target);
        match sys::mount(kind, target, kind, flags, data) {
            Err(error) if error.raw_os_error() != Some(libc::EBUSY) => {
                say(format_args!("cannot mount {kind} on {target}: {error}"));
            }
            _ => {}
        }
    }
    for (link, to) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        let _ = std::os::unix::fs::symlink(to, link);
    }
}

/// Loads the modules of the list, in its order. One that finds no hardware, or is there already, is no fault.
pub(crate) fn load_modules() {
    let _hurry = Hurry::begin();
    let list = fs::read_to_string(MODULES).unwrap_or_default();
    for path in list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Err(error) = load(Path::new(path)) {
            say(format_args!("cannot load the kernel module {path}: {error}"));
        }
    }
}

fn load(path: &Path) -> io::Result<()> {
    match File::open(path).and_then(|file| sys::load_module(&file)) {
        Err(error) if !matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENODEV)) => Err(error),
        _ => Ok(()),
    }
}

/// Loads a module with all that it needs. `modprobe` does that, too, in ten times the time.
fn load_with_needs(module: &str) -> io::Result<()> {
    let version = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let root = Path::new("/lib/modules").join(version.trim_end());
    let list = fs::read_to_string(root.join("modules.dep"))?;
    in_order(&list, module).iter().try_for_each(|path| load(&root.join(path)))
}

/// The files of a module and of all that it needs, in the order in which they are loaded, as `modules.dep` says (depmod(8)).
fn in_order<'a>(list: &'a str, module: &str) -> Vec<&'a str> {
    let is_of = |path: &str| Path::new(path).file_stem().is_some_and(|stem| stem == module);
    let mut lines = list.lines().filter_map(|line| line.split_once(':'));
    let Some((path, needs)) = lines.find(|(path, _)| is_of(path)) else { return Vec::new() };
    needs.split_ascii_whitespace().rev().chain([path]).collect()
}

/// Has the kernel know a file system: a module is loaded if it is not built in.
pub(crate) fn load_file_system(kind: &str) -> Result<(), String> {
    let is_known = || {
        let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        known.lines().any(|line| line.rsplit('\t').next() == Some(kind))
    };
    if is_known() {
        return Ok(());
    }
    if load_with_needs(kind).is_ok() && is_known() {
        return Ok(());
    }
    // It reads what is compressed, too.
    let loaded = children::run(Command::new("/sbin/modprobe").arg(kind));
    if is_known() {
        return Ok(());
    }
    let why = loaded.map_or_else(|error| error.to_string(), |status| format!("status {status}"));
    Err(format!("modprobe {kind}: {why}"))
}

/// Names the guest: the kernel's command line wins over `/etc/hostname`.
pub(crate) fn name_guest(wish: Option<&str>) {
    let file = fs::read_to_string("/etc/hostname").unwrap_or_default();
    let name = wish.unwrap_or(file.trim());
    if !name.is_empty()
        && let Err(error) = sys::set_hostname(name)
    {
        say(format_args!("cannot set the host name {name:?}: {error}"));
    }
}

/// The real device behind `/dev/console`, opened: the console itself can be nobody's controlling terminal.
pub(crate) fn open_console() -> io::Result<OwnedFd> {
    let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    let name = active.split_ascii_whitespace().next_back().unwrap_or("ttyS0");
    let device = Path::new("/dev").join(name);
    let device = if device.exists() { device } else { "/dev/console".into() };
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(device)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_comes_first() {
        let list = "kernel/fs/erofs/erofs.ko: kernel/lib/b.ko kernel/lib/a.ko\nkernel/fs/x/x.ko.xz:\nkernel/lib/a.ko:\n";
        assert_eq!(
            in_order(list, "erofs"),
            ["kernel/lib/a.ko", "kernel/lib/b.ko", "kernel/fs/erofs/erofs.ko"]
        );
        assert_eq!(in_order(list, "a"), ["kernel/lib/a.ko"]);
        assert!(in_order(list, "x").is_empty() && in_order("", "erofs").is_empty());
    }

    #[test]
    fn the_last_word_on_the_command_line_wins() {
        let wishes =
            Wishes::parse("console=ttyS0 ro viv.root=/dev/vda viv.task= rw viv.root=/dev/vdb quiet\n");
        assert_eq!(wishes, Wishes { root: Some("/dev/vdb".into()), ..Wishes::default() });
        assert_eq!(Wishes::parse("viv.task=/build").task.as_deref(), Some("/build"));
        assert_eq!(Wishes::parse(""), Wishes::default());
        let shares = Wishes::parse("viv.share=share0:rw:/a%20b viv.share= viv.share=share1:ro:/c").shares;
        let targets: Vec<_> = shares.iter().map(|share| (share.target.as_str(), share.read_only)).collect();
        assert_eq!(targets, [("/a b", false), ("/c", true)]);
        let volumes = Wishes::parse("viv.volume=/b viv.volume=/a%20c viv.volume=/.. viv.volume=").volumes;
        assert_eq!(volumes, ["/b", "/a c"]);
    }
}
