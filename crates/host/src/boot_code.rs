//! What the software CPU has made of our kernel while that booted once: VMs that boot it need not make it again.
//!
//! It is host code, which their processes execute. So it comes from a VM of the service's own, in which nothing of a user's runs, and no VM's
//! process can write to it (decision 114).
use crate::builder::BuilderVm;
use crate::creation::APPEND_IMAGE;
use crate::images::{Image, Watcher, sample_disks, step};
use crate::info;
use crate::places::Places;
use crate::prune::Gone;
use crate::service::{Program, Service};
use crate::snapshots::io_fault;
use std::fs::{self, DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use viv_api::image::DEFAULT;
use viv_api::info::KvmState;
use viv_api::vm::VmCreate;
use viv_model::{Accel, Fault, NetKind, NicSpec};

/// A link to the kernel that it is of.
const KERNEL: &str = "kernel";
/// What begins the name of the code; which program made it follows, for no other can use it.
const CODE: &str = "code-";

fn code(places: &Places) -> Option<PathBuf> {
    Some(places.boot_code().join(format!("{CODE}{}", Program::current()?.mark())))
}

fn is_same(one: &Path, other: &Path) -> bool {
    let which = |path: &Path| fs::metadata(path).ok().map(|data| (data.dev(), data.ino()));
    which(one).is_some_and(|one| which(other) == Some(one))
}

/// The code for a VM with this kernel, if there is some.
pub(crate) fn of(places: &Places, kernel: &Path) -> Option<PathBuf> {
    let code = code(places)?;
    let is_some = fs::metadata(&code).is_ok_and(|data| data.len() > 0);
    (is_some && is_same(kernel, &places.boot_code().join(KERNEL))).then_some(code)
}

/// Whether nothing is to be learnt of the kernel of this image: that has been tried, or this host's own processor runs it.
pub(crate) fn is_known(service: &Service, image: &Image) -> bool {
    let places = &service.places;
    let is_tried = || code(places).is_none_or(|code| code.exists());
    let link = places.boot_code().join(KERNEL);
    // Where there can be no links there is no code.
    let is_of = |kernel: PathBuf| !link.exists() || is_same(&kernel, &link);
    info::kvm(places).state == KvmState::Good
        || is_tried() && service.images.kernel(image).map_or(true, is_of)
}

/// Boots the default guest once and keeps what comes of it. Without that, VMs boot all the same.
pub(crate) fn learn(service: &Service, image: &Image, watcher: &dyn Watcher) {
    // One at a time: the other one's is as good.
    let _turn = service.warming.blocking_lock();
    if is_known(service, image) {
        return;
    }
    step(watcher, "booting it once, to keep what the software CPU makes of its kernel");
    if let Err(fault) = boot(service, image, watcher) {
        viv_api::complain!("viv serve: VMs will boot slower than they could: {fault}");
    }
}

fn boot(service: &Service, image: &Image, watcher: &dyn Watcher) -> Result<(), Fault> {
    let places = &service.places;
    let (dir, Some(code)) = (places.boot_code(), code(places)) else { return Ok(()) };
    let _ = fs::remove_dir_all(&dir);
    DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(io_fault("make", &dir))?;
    // It is there in any case, and empty if it comes to nothing: that is tried once.
    let mut options = OpenOptions::new();
    let new = dir.join("new");
    let file = options.read(true).write(true).create_new(true).mode(0o400).open(&new);
    let file = file.map_err(io_fault("make", &new))?;
    let cancelled = || watcher.cancelled();
    let vm = BuilderVm { places, networks: &service.vms.networks, cancelled: &cancelled };
    let kernel = service.images.kernel(image)?;
    let linked = fs::hard_link(&kernel, dir.join(KERNEL)).map_err(io_fault("make", &dir));
    let learnt = linked.and_then(|()| {
        let lay_out = |home: &Path| {
            let instance = service.images.instantiate(image, &[], home)?;
            let mut machine = VmCreate { accel: Accel::Soft, ..VmCreate::default() }.machine();
            (machine.kernel, machine.initrd) = (instance.kernel, instance.initrd);
            // What seldom runs is most of a boot.
            machine.soft.eager = true;
            // What most VMs have, and images of containers.
            machine.disks = sample_disks(home)?;
            machine.nics = vec![NicSpec { net: NetKind::User { host: false }, ..NicSpec::default() }];
            machine.append = format!("{APPEND_IMAGE} {}", instance.append).trim_end().to_string();
            Ok(machine)
        };
        vm.boot_once(lay_out, &file)
    });
    if learnt.is_err() && cancelled() {
        let _ = fs::remove_file(&new);
        return learnt;
    }
    if learnt.is_err() {
        let _ = file.set_len(0);
    }
    fs::rename(&new, &code).map_err(io_fault("write", &code))?;
    learnt
}

/// Removes what is of a kernel that the default guest has no more.
pub(crate) fn forget_stale(service: &Service, gone: &mut Gone) {
    let dir = service.places.boot_code();
    let kernel = service.images.get(DEFAULT).and_then(|image| service.images.kernel(&image));
    if dir.exists() && !kernel.is_ok_and(|kernel| is_same(&kernel, &dir.join(KERNEL))) {
        gone.remove(&dir);
    }
}
