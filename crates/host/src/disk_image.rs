//! A disk's file as the image of a VM: the VM writes to a layer of its own over it, and boots the kernel that is found in it
//! (docs/decisions/071).
use crate::images::Instance;
use crate::places::Places;
use crate::prune::Gone;
use crate::store::{StoreError, VmRecord};
use crate::vms::lock;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use viv_block::{CreateOptions, Qcow2, Source};
use viv_guestfs::{Boot, CloudInit, Guest};
use viv_model::{DiskFormat, DiskSpec, Fault, Kind};

/// The VM's own layer, and what it boots, in its directory.
const LAYER: &str = "disk0.qcow2";
const KERNEL: &str = "kernel";
const INITRD: &str = "initrd";

/// Whether an image's name is a disk's file, as the service is asked.
pub(crate) fn is_file(image: &str) -> bool {
    image.starts_with('/')
}

/// Whether a VM in `dir` boots what its own disks have.
pub(crate) fn boots_itself(record: &VmRecord, dir: &Path) -> bool {
    let of_disks = record.boots_itself || record.image.as_deref().is_some_and(is_file);
    of_disks && record.machine.kernel.starts_with(dir)
}

/// A VM's own of a disk's file: an empty layer over it. The file itself is only read, and has its format from now on.
pub(crate) fn layer(image: &Path, dir: &Path) -> Result<DiskSpec, Fault> {
    let format = viv_block::probe(image)?;
    let source = Source { format: Some(format), ..Source::new(image, true) };
    let size = viv_block::open(&source)?.size();
    let name = image.to_str().ok_or_else(|| {
        let text = format!("a layer cannot refer to {}: its name is no text", image.display());
        Fault::new(Kind::Usage, text, "rename it")
    })?;
    let path = dir.join(LAYER);
    let backing = Some((name.to_string(), format.name().to_string()));
    Qcow2::create(&path, &CreateOptions { backing, ..CreateOptions::new(size) })?;
    let allow = viv_block::files(&source)?;
    Ok(DiskSpec { path, format: Some(DiskFormat::Qcow2), allow, ..DiskSpec::default() })
}

/// What the VM in `dir` with these disks boots: the kernel that is found on them, unless there is another one already.
pub(crate) fn boot(
    disks: Vec<DiskSpec>,
    dir: &Path,
    own_kernel: bool,
    places: &Places,
) -> Result<(Instance, Option<CloudInit>), Fault> {
    let guests: Vec<_> = disks.iter().map(open).collect();
    let cloud_init = guests.iter().flatten().find_map(Guest::cloud_init);
    let (kernel, initrd, append) = match own_kernel {
        true => (PathBuf::new(), None, String::new()),
        false => find(guests, &|guest, boot| extract(guest, boot, dir, &places.boot()))?,
    };
    Ok((Instance { kernel, initrd, append, disks }, cloud_init))
}

/// What the VM's disks boot now: its guest may have got another kernel.
pub(crate) fn look_again(record: &mut VmRecord, dir: &Path, places: &Places) -> Result<(), Fault> {
    let own: Vec<&DiskSpec> = record.machine.disks.iter().filter(|disk| !disk.read_only).collect();
    if own.is_empty() {
        let text = format!("VM {:?} has no disk to boot from any more", record.name);
        return Err(Fault::new(Kind::Conflict, text, "give it one, or make it anew: viv run IMAGE"));
    }
    let found = find(own.into_iter().map(open), &|guest, boot| extract(guest, boot, dir, &places.boot()));
    let (kernel, initrd, append) = found?;
    record.machine.kernel = kernel;
    record.machine.initrd = initrd;
    record.machine.append = words(&append, record.append.as_deref());
    Ok(())
}

/// Does something with the first of these disks that has a kernel; if none has, the first says why.
pub(crate) fn find<T>(
    disks: impl IntoIterator<Item = Result<Guest, Fault>>,
    act: &dyn Fn(&Guest, &Boot) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let mut why = None;
    for disk in disks {
        let found = disk.and_then(|guest| {
            let boot = guest.boot()?;
            Ok((guest, boot))
        });
        match found {
            Ok((guest, boot)) => return act(&guest, &boot),
            Err(fault) => why = why.or(Some(fault)),
        }
    }
    Err(why.unwrap_or_else(|| {
        Fault::new(Kind::Error, "it has no disks to boot from", "give it a kernel: --kernel FILE")
    }))
}

/// The kernel's command line, with the user's words behind it.
pub(crate) fn words(append: &str, user: Option<&str>) -> String {
    [append, user.unwrap_or_default()]
        .into_iter()
        .filter(|words| !words.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// What is on a disk.
pub(crate) fn open(disk: &DiskSpec) -> Result<Guest, Fault> {
    Ok(Guest::open(viv_block::open(&Source { read_only: true, ..Source::of(disk) })?)?)
}

/// Held by whoever extracts: what is not used yet may not be cleared.
static TURN: Mutex<()> = Mutex::new(());

/// Puts kernel and initial RAM disk into the VM's directory, as links to what VMs share that boot the same. What is there may be
/// shared with snapshots: it is replaced, not written.
fn extract(
    guest: &Guest,
    boot: &Boot,
    dir: &Path,
    shared: &Path,
) -> Result<(PathBuf, Option<PathBuf>, String), Fault> {
    let _turn = lock(&TURN);
    let (mut kernel, mut initrd) = (New::create(dir, KERNEL)?, New::create(dir, INITRD)?);
    let has_initrd = guest.extract(boot, &mut kernel, &mut initrd)?;
    fs::create_dir_all(shared).map_err(failed(shared))?;
    let kernel = kernel.finish(shared)?;
    let initrd = has_initrd.then(|| initrd.finish(shared)).transpose()?;
    clear(shared, &mut Gone::default());
    Ok((kernel, initrd, boot.append.clone()))
}

/// Forgets what no VM and no snapshot has a link to any more.
pub(crate) fn prune(shared: &Path, gone: &mut Gone) {
    let _turn = lock(&TURN);
    clear(shared, gone);
}

fn clear(shared: &Path, gone: &mut Gone) {
    for entry in fs::read_dir(shared).into_iter().flatten().flatten() {
        if entry.metadata().is_ok_and(|data| data.is_file() && data.nlink() == 1) {
            gone.remove(&entry.path());
        }
    }
}

/// A file that is not there until it is whole.
struct New {
    file: File,
    hash: Sha256,
    new: PathBuf,
    path: PathBuf,
}

impl New {
    fn create(dir: &Path, name: &str) -> Result<New, Fault> {
        let new = dir.join(format!("{name}.new"));
        let file = File::create(&new).map_err(failed(&new))?;
        Ok(New { file, hash: Sha256::new(), new, path: dir.join(name) })
    }

    /// Gives it its name, as a link to a file with the same content if there is one.
    fn finish(mut self, shared: &Path) -> Result<PathBuf, Fault> {
        let sum: String = self.hash.finalize_reset().iter().map(|byte| format!("{byte:02x}")).collect();
        let one = shared.join(sum);
        let place = || {
            if one.exists() {
                fs::remove_file(&self.new)?;
                fs::hard_link(&one, &self.new)?;
            } else {
                self.file.set_permissions(fs::Permissions::from_mode(0o400))?;
                self.file.sync_all()?;
                fs::hard_link(&self.new, &one)?;
            }
            fs::rename(&self.new, &self.path)
        };
        place().map_err(failed(&self.path))?;
        Ok(self.path.clone())
    }
}

impl Write for New {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = self.file.write(data)?;
        self.hash.update(data.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for New {
    fn drop(&mut self) {
        // Gone already if it has its name.
        let _ = fs::remove_file(&self.new);
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Fault + '_ {
    move |source| StoreError::Io { what: "write", path: path.to_path_buf(), source }.into()
}
