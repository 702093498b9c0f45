//! Power cuts: the VM's process is killed while its guest writes to ext4 or xfs on a raw and a qcow2 disk. Nothing that the
//! guest was told to be durable may be lost, and no file system and no image be damaged. `VIV_CUTS` says how often;
//! `cargo xtask disks` is the long form.
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use viv_e2e::{Vm, run, until, viv};

const VM: &str = "e2e-cuts";
/// Bytes of a record, as in `power_cuts/writer.c`; so for the next two.
const RECORD: usize = 64;
/// Each of so many records also replaces a file.
const REPLACING: u64 = 8;
/// Files that are replaced in turn.
const SLOTS: u64 = 40;
/// Acknowledged records before a cut: at least, and how many more at most.
const ACKNOWLEDGED: (u64, u64) = (30, 120);

/// What is on a disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FileSystem {
    Ext4,
    Xfs,
}

impl FileSystem {
    fn name(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
        }
    }

    fn make(self, image: &Path) {
        match self {
            FileSystem::Ext4 => {
                tool(Command::new("mke2fs").args(["-q", "-t", "ext4", "-F"]).arg(image).arg("64M"))
            }
            FileSystem::Xfs => {
                // It makes none that are smaller.
                File::create(image).unwrap().set_len(320 << 20).unwrap();
                tool(Command::new("mkfs.xfs").arg("-q").arg(image));
            }
        }
    }
}

/// A disk, where the guest mounts it, and what is known to be on it.
struct Disk {
    kind: FileSystem,
    image: PathBuf,
    mount: &'static str,
    acknowledged: u64,
    /// Records in its log after the last cut.
    there: u64,
}

#[test]
fn nothing_that_was_acknowledged_is_lost() {
    cut_off(FileSystem::Ext4);
}

#[test]
#[ignore = "needs xfsprogs: cargo xtask disks"]
fn nothing_that_xfs_acknowledged_is_lost() {
    cut_off(FileSystem::Xfs);
}

fn cut_off(kind: FileSystem) {
    let cuts = std::env::var("VIV_CUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let writer = compile(place);
    let (raw, cow) = (place.join("cuts.raw"), place.join("cuts.qcow2"));
    let name = kind.name();
    let _ = (fs::remove_file(&raw), fs::remove_file(&cow));
    kind.make(&raw);
    run(&["disk", "convert", "-o", "qcow2", raw.to_str().unwrap(), cow.to_str().unwrap()], "").ok();
    let new = |image, mount| Disk { kind, image, mount, acknowledged: 0, there: 0 };
    let mut disks = [new(raw, "/mnt/raw"), new(cow, "/mnt/qcow2")];
    for cut in 0..cuts {
        // Anything but regular: where in the guest's work it strikes is chance anyway.
        let wanted = ACKNOWLEDGED.0 + (cut * 7919) % ACKNOWLEDGED.1;
        write_until_cut(&mut disks, &writer, wanted);
        for disk in &mut disks {
            check(disk, place);
        }
        let counts: Vec<_> = disks.iter().map(|disk| (disk.acknowledged, disk.there)).collect();
        eprintln!("{name}, cut {}: {counts:?} records acknowledged and there", cut + 1);
    }
}

/// Lets a guest write until so many records are acknowledged, then ends its VM's process.
fn write_until_cut(disks: &mut [Disk], writer: &Path, wanted: u64) {
    run(&["rm", "-f", VM], "").ok();
    let _vm = Vm(VM);
    let images: Vec<&str> = disks.iter().flat_map(|disk| ["--disk", disk.image.to_str().unwrap()]).collect();
    run(&[&["run", "-d", "--accel", "soft", "--cpus", "2", "--name", VM][..], &images].concat(), "").ok();
    let take = "cat > /tmp/writer && chmod +x /tmp/writer";
    let taken =
        viv(&["exec", VM, "--", "sh", "-c", take]).stdin(File::open(writer).unwrap()).status().unwrap();
    assert!(taken.success());
    let modules = if disks.iter().any(|disk| disk.kind == FileSystem::Xfs) { "modprobe xfs; " } else { "" };
    let (mut script, mut words) = (format!("set -e; {modules}"), String::new());
    for (disk, device) in disks.iter().zip('a'..) {
        let (mount, kind) = (disk.mount, disk.kind.name());
        // The two disks are one file system's copies: xfs mounts no two with one UUID, unless it is told to.
        let options = if disk.kind == FileSystem::Xfs { "-o nouuid" } else { "" };
        script += &format!("mkdir -p {mount}; mount -t {kind} {options} /dev/vd{device} {mount}; ");
        // What was not acknowledged is done anew.
        words += &format!(" {mount} {}", disk.acknowledged + 1);
    }
    script += &format!("exec /tmp/writer{words}");
    let mut child = viv(&["exec", VM, "--", "sh", "-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut count = 0;
    let mut note = |line: &str| {
        let (mount, n) = line.split_once(' ').expect("a mount point and a number");
        let disk = disks.iter_mut().find(|disk| disk.mount == mount).expect("one of ours");
        disk.acknowledged = n.parse().expect("a number");
    };
    while count < wanted {
        note(&lines.next().expect("the writer goes on until it is cut off"));
        count += 1;
    }
    let shown = run(&["inspect", VM], "").ok().out;
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let pid = shown[0]["pid"].as_u64().expect("it runs").to_string();
    tool(Command::new("kill").args(["-KILL", &pid]));
    // What is on its way here was acknowledged before.
    lines.for_each(|line| note(&line));
    child.wait().unwrap();
    until("the end of its process", Duration::from_secs(60), || !Path::new("/proc").join(&pid).exists());
}

/// Looks for all that the guest was told to be durable.
fn check(disk: &mut Disk, place: &Path) {
    let copy = place.join("cuts.copy");
    let _ = fs::remove_file(&copy);
    let name = disk.image.display().to_string();
    if name.ends_with("qcow2") {
        let ours = run(&["disk", "check", &name], "");
        assert!(ours.status == 0 || ours.err.contains("has 0 errors"), "{ours:?}");
        if let Ok(checked) = Command::new("qemu-img").args(["check", &name]).output() {
            // 3: clusters that nobody uses, which a crash may leave.
            assert!(matches!(checked.status.code(), Some(0 | 3)), "{checked:?}");
        }
    }
    run(&["disk", "convert", "-o", "raw", &name, copy.to_str().unwrap()], "").ok();
    // The journal is replayed as the guest does it at its next mount; then all must be in order.
    let files = match disk.kind {
        FileSystem::Ext4 => files_of_ext4(&copy, &name),
        FileSystem::Xfs => files_of_xfs(&copy, &name, place),
    };
    let log = files("log");
    let records: Vec<&[u8]> = log.chunks(RECORD).collect();
    for (n, record) in (1..).zip(&records) {
        assert_eq!(number(record), Some(n), "{name}: record {n} of {}", records.len());
    }
    disk.there = records.len() as u64;
    assert!(disk.there >= disk.acknowledged, "{name}: {} of {} records", disk.there, disk.acknowledged);
    let mut newest = BTreeMap::new();
    for n in (REPLACING..=disk.acknowledged).step_by(REPLACING as usize) {
        newest.insert(n / REPLACING % SLOTS, n);
    }
    for (slot, acknowledged) in newest {
        let found = number(&files(&format!("slot-{slot}")));
        // Another one may have taken its place without having been acknowledged.
        let fits = found.is_some_and(|found| found >= acknowledged && found / REPLACING % SLOTS == slot);
        assert!(fits, "{name}: slot {slot} has {found:?}, and {acknowledged} was acknowledged");
    }
}

/// Gives the content of a file by its name.
type Files<'a> = Box<dyn Fn(&str) -> Vec<u8> + 'a>;

fn files_of_ext4<'a>(copy: &'a Path, name: &str) -> Files<'a> {
    let replayed = output(Command::new("e2fsck").args(["-y", "-E", "journal_only"]).arg(copy));
    assert!(replayed.status.code().is_some_and(|code| code & !1 == 0), "{name}: {replayed:?}");
    let checked = output(Command::new("e2fsck").args(["-f", "-n"]).arg(copy));
    assert!(checked.status.success(), "{name}: {checked:?}");
    let cat = move |file: &str| {
        output(Command::new("debugfs").args(["-R", &format!("cat /{file}")]).arg(copy)).stdout
    };
    Box::new(cat)
}

/// Its journal is replayed by a guest, which gives the files out.
fn files_of_xfs<'a>(copy: &'a Path, name: &str, place: &Path) -> Files<'a> {
    let dir = place.join("cuts.files");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    let script =
        "modprobe xfs && mkdir /m && mount -t xfs /dev/vda /m >&2 && tar -c -f - -C /m . && umount /m";
    let image = copy.to_str().unwrap();
    let words =
        ["run", "--rm", "--accel", "soft", "--memory", "256M", "--disk", image, "--", "sh", "-c", script];
    let given = viv(&words).output().unwrap();
    assert!(given.status.success(), "{name}: {}", String::from_utf8_lossy(&given.stderr));
    let archive = place.join("cuts.tar");
    fs::write(&archive, given.stdout).unwrap();
    tool(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&dir));
    let checked = output(Command::new("xfs_repair").args(["-n", "-f"]).arg(copy));
    assert!(checked.status.success(), "{name}: {checked:?}");
    Box::new(move |file| fs::read(dir.join(file)).unwrap_or_default())
}

/// The number of a whole record.
fn number(record: &[u8]) -> Option<u64> {
    let whole = record.len() == RECORD && record.ends_with(b".\n");
    let digits = record.get(..12).filter(|_| whole)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The writer, for the default guest, which has no libraries.
fn compile(place: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("power_cuts/writer.c");
    let program = place.join("writer");
    let mut command = Command::new("cc");
    tool(command.args(["-O2", "-static", "-Wall", "-Wextra", "-o"]).arg(&program).arg(source));
    program
}

fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().expect("the tool is there")
}

fn tool(command: &mut Command) {
    let done = output(command);
    assert!(done.status.success(), "{command:?}: {done:?}");
}
