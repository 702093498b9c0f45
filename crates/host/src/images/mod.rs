//! Images: built from the packages of the host's own apt, stored by content, copied for each VM.
//!
//! ```text
//!  apt (the host's configuration) ─► .deb files ─► recipe ─► blobs by SHA-256 + manifest ─► a VM's own copy
//!        apt.rs                        deb.rs      default_guest.rs    store.rs              instance.rs
//!                                                  debian.rs ─► a builder VM ([`RunVm`]) configures the packages
//!                                                  kernel.rs ─► the host's compiler
//! ```
//!
//! It never talks to a network itself, never names a mirror, needs no root, and never shows an image that is
//! not whole. Start reading at [`Images::build`].
mod agent;
mod apt;
mod artifact;
mod carry;
mod commit;
mod cpio;
mod deb;
mod debian;
mod default_guest;
mod details;
mod fault;
mod files;
mod import;
mod instance;
pub(crate) use carry::export_disk;
pub(crate) use commit::{Stopped, Told};
pub(crate) use fault::cancelled;
pub(crate) use instance::{copy, sample_disks};
mod kernel;
mod kmod;
mod layers;
mod lines;
mod machine;
mod manifest;
mod ova;
mod pull;
mod sources;
mod stack;
mod store;
mod tar;
#[cfg(feature = "trial")]
pub mod trial;

pub use agent::find_agent;
pub use debian::Additions;
pub use manifest::{Container, Image, Manifest, Package, Part, Usual};

use apt::{Apt, FetchFault, Wanted};
use fault::io_fault;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use store::{Lock, Scratch, Store};
use viv_api::agent::Exec;
use viv_api::operation::Progress;
use viv_model::{DiskSpec, End, Fault, FileSpec, Kind, MachineSpec};
use viv_oci::{Logins, Reference};

/// Media types of our parts.
const KERNEL: &str = "application/vnd.vivarium.kernel";
const INITRD: &str = "application/vnd.vivarium.initrd";
const DISK: &str = "application/vnd.vivarium.disk.raw";
const DISK_QCOW2: &str = "application/vnd.vivarium.disk.qcow2";
/// The label that says which agent is in an image.
const AGENT_LABEL: &str = "vivarium.agent.sha256";
/// The label that says which revision of its recipe made an image.
const REVISION_LABEL: &str = "vivarium.recipe.revision";
/// The label that says what a disk was made from: a new agent needs no new disk.
const DISK_LABEL: &str = "vivarium.disk.key";
/// The label that says that our own kernel is in an image: its digest.
const OWN_KERNEL_LABEL: &str = "vivarium.kernel.digest";

/// What can be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// Kernel, a few modules, a small user land and the agent, all in memory. Seconds; tens of megabytes.
    DefaultGuest,
    /// A full Debian with systemd and apt on a disk. Minutes.
    Debian,
    /// A kernel for virtual machines, compiled here; the default guest has it while it is there. Minutes.
    Kernel,
}

impl Recipe {
    /// Every recipe, for help texts.
    pub const ALL: [Recipe; 3] = [Recipe::DefaultGuest, Recipe::Debian, Recipe::Kernel];

    /// The name of the image that it makes.
    pub fn name(self) -> &'static str {
        match self {
            Recipe::DefaultGuest => viv_api::image::DEFAULT,
            Recipe::Debian => "debian",
            Recipe::Kernel => "kernel",
        }
    }
}

/// How to build.
#[derive(Clone, Debug)]
pub struct Options {
    /// The guest agent: the static binary on the host. [`find_agent`] looks where it is installed.
    pub agent: PathBuf,
    /// Size of the disk in MiB, for recipes that have one.
    pub disk_mib: u64,
    /// Build even if an image with the same content key is there.
    pub force: bool,
    /// Run apt's update into a private place even if the host's package lists would do.
    pub update: bool,
}

impl Options {
    /// The usual: a sparse disk of 2 GiB, rebuilt only if something changed.
    pub fn new(agent: PathBuf) -> Options {
        Options { agent, disk_mib: 2048, force: false, update: false }
    }
}

/// Who is told how a build goes on. It may come from another thread than the caller's.
pub trait Watcher: Sync {
    /// A step goes on. Called at most some ten times a second.
    fn progress(&self, progress: Progress);
    /// Whether the build should give up; asked often. It then cleans up and fails with a [`Fault`].
    fn cancelled(&self) -> bool {
        false
    }
    /// A command of the user's has written this line.
    fn said(&self, line: &str) {
        let _ = line;
    }
}

/// Nobody watches.
pub struct Unwatched;

impl Watcher for Unwatched {
    fn progress(&self, _: Progress) {}
}

/// Runs a VM to its end; the host service has it done by a runner process, tests by whatever they have.
pub trait RunVm {
    /// Runs `spec`, gives everything that the serial port says to `console`, and tells how it ended. If there is a `command`, the VM
    /// ends with it, in good order; what it says comes to `console`, too.
    /// The specification's paths are absolute, and its disks belong to this VM alone; its cards get their addresses.
    fn run(
        &self,
        spec: &MachineSpec,
        command: Option<&Exec>,
        console: &mut dyn FnMut(&[u8]),
    ) -> Result<End, Fault>;
}

/// A VM's own copy of an image, ready for a [`MachineSpec`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The kernel; empty if it is on its disks.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// What the image wants on the kernel's command line, besides the board's own words.
    pub append: String,
    /// Its disks: private, writable copies.
    pub disks: Vec<DiskSpec>,
}

/// The store of images in one directory.
#[derive(Debug)]
pub struct Images {
    store: Store,
}

impl Images {
    /// Opens the store in `dir` (`$XDG_DATA_HOME/vivarium/images`), making it if it is not there, and clears away
    /// what interrupted builds left.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Images, Fault> {
        Ok(Images { store: Store::open(dir.into())? })
    }

    /// Every image, by name.
    pub fn list(&self) -> Result<Vec<Image>, Fault> {
        self.store.list()
    }

    /// The image called `name`, or that of a reference.
    pub fn get(&self, name: &str) -> Result<Image, Fault> {
        let full = pull::full_name(name)?.map(|reference| reference.to_string());
        self.store.get(full.as_deref().unwrap_or(name))?.ok_or_else(|| self.not_found(name))
    }

    /// The file of the WebAssembly program that the image called `name` is.
    pub fn program(&self, name: &str) -> Result<PathBuf, Fault> {
        let image = self.get(name)?;
        match &image.manifest.program {
            Some(program) => self.store.part(&image, program),
            None => Err(Fault::new(
                Kind::NotRunnable,
                format!("the image {name:?} is no program, but a computer's"),
                format!("run it as one: viv run {name}"),
            )),
        }
    }

    /// Gets the image of containers, or the program, that `reference` names from where it is, or finds that the store has that very one. `None`
    /// if it is no reference.
    pub fn pull(
        &self,
        reference: &str,
        options: viv_oci::Options,
        watcher: &dyn Watcher,
    ) -> Result<Option<Image>, Fault> {
        let Some(reference) = pull::full_name(reference)? else { return Ok(None) };
        pull::pull(&self.store, &reference, options, watcher).map(Some)
    }

    /// What is in the image called `name`; `shown` is how lists show it.
    pub fn details(
        &self,
        name: &str,
        shown: &dyn Fn(&Image) -> viv_api::image::Image,
    ) -> Result<viv_api::image::ImageDetails, Fault> {
        let image = self.get(name)?;
        details::details(&self.store, &image, shown(&image))
    }

    /// Reads every byte of the image called `name` and compares it with its digests.
    pub fn verify(&self, name: &str) -> Result<viv_api::image::ImageVerified, Fault> {
        details::verify(&self.store, &self.get(name)?)
    }

    /// Lets `new` mean what `name` means.
    pub fn tag(&self, name: &str, new: &str) -> Result<Image, Fault> {
        let image = self.get(name)?;
        if Recipe::ALL.iter().any(|recipe| recipe.name() == new) {
            return Err(Fault::new(
                Kind::Usage,
                format!("{new:?} is the name of an image that is built here"),
                "choose another name",
            ));
        }
        let new = pull::full_name(new)?.map_or_else(|| new.to_string(), |reference| reference.to_string());
        self.store.tag(&image.name, &new)?.ok_or_else(|| self.not_found(name))
    }

    /// Removes what no image has, also what broken-off downloads left: bytes that are free now.
    pub fn prune(&self, watcher: &dyn Watcher) -> Result<u64, Fault> {
        self.store.prune(&self.store.lock(watcher)?)
    }

    /// Lets go what was downloaded to build images, and would be downloaded again, by `remove`.
    pub(crate) fn prune_downloads(
        &self,
        watcher: &dyn Watcher,
        remove: &mut dyn FnMut(&Path),
    ) -> Result<(), Fault> {
        let lock = self.store.lock(watcher)?;
        self.store.downloads(&lock).iter().for_each(|path| remove(path));
        Ok(())
    }

    fn not_found(&self, name: &str) -> Fault {
        if Recipe::ALL.iter().any(|recipe| recipe.name() == name) {
            return Fault::new(
                Kind::NotFound,
                format!("no image is called {name:?}"),
                format!("build it: viv build {name}"),
            );
        }
        if Reference::is_one(name) {
            return Fault::new(
                Kind::NotFound,
                format!("the image {name} has not been fetched"),
                format!("get it: viv pull {name}"),
            );
        }
        let there = self.list().unwrap_or_default().into_iter().map(|image| image.name);
        let known: Vec<String> =
            there.chain(Recipe::ALL.iter().map(|recipe| recipe.name().to_string())).collect();
        pull::unknown(name, &known)
    }

    /// Builds `recipe`'s image, or finds that it is there already. `vm` is needed for [`Recipe::Debian`].
    pub fn build(
        &self,
        recipe: Recipe,
        options: &Options,
        vm: Option<&dyn RunVm>,
        watcher: &dyn Watcher,
    ) -> Result<Image, Fault> {
        let lock = self.store.lock(watcher)?;
        let scratch = self.store.scratch(&lock)?;
        if recipe == Recipe::Kernel {
            return kernel::build(&self.store, &lock, &scratch, options, watcher);
        }
        agent::check(&options.agent)?;
        let job = Job { store: &self.store, lock: &lock, scratch: &scratch, recipe, options, vm, watcher };
        job.run()
    }

    /// Builds an image of containers out of Debian's packages and commands, or finds that it is there already.
    pub fn build_container(
        &self,
        ask: &Additions,
        options: &Options,
        vm: &dyn RunVm,
        watcher: &dyn Watcher,
    ) -> Result<Image, Fault> {
        let host = Options { force: false, ..options.clone() };
        let host = self.ensure_default(&host, watcher)?;
        let lock = self.store.lock(watcher)?;
        let scratch = self.store.scratch(&lock)?;
        debian::Build { store: &self.store, scratch: &scratch, options, host: &host, vm, watcher }.run(ask)
    }

    /// The default guest: builds it if it is not there, or has another agent or kernel than it would get now. Does not look for
    /// newer packages, so it needs no network once the image is there.
    pub fn ensure_default(&self, options: &Options, watcher: &dyn Watcher) -> Result<Image, Fault> {
        match self.current_default(options)? {
            Some(image) => Ok(image),
            None => self.build(Recipe::DefaultGuest, options, None, watcher),
        }
    }

    /// The default guest's image, if it is there and nothing is to be built anew.
    pub(crate) fn current_default(&self, options: &Options) -> Result<Option<Image>, Fault> {
        let recipe = Recipe::DefaultGuest;
        if !options.force
            && !options.update
            && let Some(image) = self.store.get(recipe.name())?
            && image.manifest.labels.get(AGENT_LABEL) == Some(&agent_digest(&options.agent)?)
            && image.manifest.labels.get(REVISION_LABEL) == Some(&recipe.revision().to_string())
            && image.manifest.labels.get(OWN_KERNEL_LABEL)
                == kernel::present(&self.store)?.as_ref().and_then(kernel::digest)
        {
            return Ok(Some(image));
        }
        Ok(None)
    }

    /// The fault for somebody who wants to run our own kernel's image.
    pub(crate) fn kernel_alone() -> Fault {
        kernel::alone(Recipe::Kernel.name())
    }

    /// Makes an image of a VM that does not run, and stays so meanwhile.
    pub(crate) fn commit(
        &self,
        vm: &Stopped<'_>,
        ask: &viv_api::image::ImageCommit,
        watcher: &dyn Watcher,
    ) -> Result<Image, Fault> {
        commit::commit(&self.store, vm, ask, watcher)
    }

    /// Sends the image called `name` to a registry, or the WebAssembly program in the file of that whole path.
    pub fn push(
        &self,
        name: &str,
        ask: &viv_api::image::ImagePush,
        logins: &Logins,
        watcher: &dyn Watcher,
    ) -> Result<viv_api::image::Pushed, Fault> {
        match Path::new(name) {
            file if file.is_absolute() => artifact::push(&self.store, (file, name), ask, logins, watcher),
            _ => carry::push(&self.store, &self.get(name)?, ask, logins, watcher),
        }
    }

    /// Writes the image called `name` to a new file.
    pub fn export(
        &self,
        name: &str,
        ask: &viv_api::image::ImageExport,
        watcher: &dyn Watcher,
    ) -> Result<viv_api::image::Exported, Fault> {
        let image = self.get(name)?;
        match ask.format {
            viv_api::image::MachineFormat::Oci => carry::export(&self.store, &image, &ask.path, watcher),
            viv_api::image::MachineFormat::Ova => ova::of_image(&self.store, &image, &ask.path, watcher),
        }
    }

    /// Writes a VM that does not run, and stays so meanwhile, to an OVA, a new file.
    pub(crate) fn export_vm(
        &self,
        vm: &Stopped<'_>,
        to: &Path,
        watcher: &dyn Watcher,
    ) -> Result<viv_api::image::Exported, Fault> {
        ova::of_vm(&self.store, vm, to, watcher)
    }

    /// Makes an image of a machine of another program, or only looks at it. `shown` is how lists show an image.
    pub fn import(
        &self,
        ask: &viv_api::image::ImageImport,
        watcher: &dyn Watcher,
        shown: &dyn Fn(&Image) -> viv_api::image::Image,
    ) -> Result<viv_api::image::Imported, Fault> {
        import::import(&self.store, ask, watcher, shown)
    }

    /// Forgets the image called `name`; VMs made from it live on.
    pub fn remove(&self, name: &str) -> Result<(), Fault> {
        let image = self.get(name)?;
        let lock = self.store.lock(&Unwatched)?;
        if self.store.remove(&image.name, &lock)? { Ok(()) } else { Err(self.not_found(name)) }
    }

    /// The file of the kernel that an image has: VMs of it have links to it.
    pub(crate) fn kernel(&self, image: &Image) -> Result<PathBuf, Fault> {
        let kernel = image.manifest.kernel.as_ref().ok_or_else(|| kernel::alone(&image.name))?;
        self.store.part(image, kernel)
    }

    /// Gives the VM that lives in `vm_dir` its own of `image`: links to kernel and initrd, and of the disks sparse or shared copies, or
    /// layers over links. An image of containers has these files besides.
    pub fn instantiate(&self, image: &Image, files: &[FileSpec], vm_dir: &Path) -> Result<Instance, Fault> {
        instance::instantiate(&self.store, image, files, vm_dir)
    }
}

impl Recipe {
    fn revision(self) -> u32 {
        match self {
            Recipe::DefaultGuest => default_guest::REVISION,
            Recipe::Debian => default_guest::REVISION * 1000 + debian::REVISION,
            Recipe::Kernel => kernel::REVISION,
        }
    }
}

fn agent_digest(path: &Path) -> Result<String, Fault> {
    Ok(store::sha256_file(path).map_err(io_fault("read the guest agent", path))?.0)
}

/// Tells of a step that has no measure.
pub(crate) fn step(watcher: &dyn Watcher, what: &str) {
    watcher.progress(Progress { step: what.to_string(), done: 0, total: None, bytes: false });
}

/// Refuses work for which there is no room on the file system of `dir`.
pub(crate) fn need_space(dir: &Path, bytes: u64) -> Result<(), Fault> {
    let Ok(found) = rustix::fs::statvfs(dir) else { return Ok(()) };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    // What is full to the last block troubles everybody else.
    let wanted = bytes.saturating_add(64 << 20);
    if free >= wanted {
        return Ok(());
    }
    Err(Fault::new(
        Kind::NoCapacity,
        format!("{} needs {} MiB and has {} MiB free", dir.display(), wanted >> 20, free >> 20),
        "free some space there, or keep everything on a larger disk: VIV_HOME=/path viv …",
    ))
}

/// One build.
struct Job<'a> {
    store: &'a Store,
    lock: &'a Lock,
    scratch: &'a Scratch,
    recipe: Recipe,
    options: &'a Options,
    vm: Option<&'a dyn RunVm>,
    watcher: &'a dyn Watcher,
}

/// What a build is made from.
struct Sources {
    /// The kernel, if it is ours.
    own_kernel: Option<Image>,
    /// For kernel and initial RAM disk; their files.
    guest: Vec<Wanted>,
    guest_debs: Vec<PathBuf>,
    /// For the disk, where there is one; their files.
    disk: Vec<Wanted>,
    disk_debs: Vec<PathBuf>,
    /// Lines for the guest's sources.list(5).
    repositories: Vec<String>,
    agent: String,
    key: String,
    disk_key: String,
}

impl Job<'_> {
    fn run(&self) -> Result<Image, Fault> {
        let is_debian = self.recipe == Recipe::Debian;
        if is_debian {
            debian::check_size(self.options.disk_mib)?;
        }
        step(self.watcher, "looking for the newest packages");
        let cache = self.store.cache_dir();
        let debs = cache.join("debs");
        let mut apt =
            Apt::open(&cache.join("apt"), default_guest::probe(), self.options.update, self.watcher)?;
        let before = self.store.get(self.recipe.name())?.filter(|_| !self.options.force);
        loop {
            let mut sources = self.resolve(&apt)?;
            if let Some(image) = &before
                && image.manifest.key == sources.key
            {
                return Ok(image.clone());
            }
            let old_disk = before.as_ref().filter(|image| {
                image.manifest.labels.get(DISK_LABEL) == Some(&sources.disk_key)
                    && image.manifest.disks.iter().all(|part| self.store.part(image, part).is_ok())
            });
            let needs_disk = is_debian && old_disk.is_none();
            let mut all = sources.guest.clone();
            if needs_disk {
                all.extend(sources.disk.iter().cloned());
            }
            match apt.fetch(&all, &debs, self.scratch.path()) {
                Ok(mut paths) => {
                    sources.disk_debs = paths.split_off(sources.guest.len());
                    sources.guest_debs = paths;
                    let old_disks = old_disk.map(|image| image.manifest.disks.clone());
                    let image = self.make(sources, old_disks)?;
                    self.clear_downloads(&debs, &all);
                    return Ok(image);
                }
                Err(FetchFault::Fault(fault)) => return Err(fault),
                // Lists of our own are fresh: this happens once.
                Err(FetchFault::Stale(fault)) => {
                    step(self.watcher, &format!("the package lists are old ({})", fault.message));
                    apt.update()?;
                }
            }
        }
    }

    fn resolve(&self, apt: &Apt<'_>) -> Result<Sources, Fault> {
        // A disk's kernel has modules on the disk.
        let own_kernel = match self.recipe {
            Recipe::DefaultGuest => kernel::present(self.store)?,
            Recipe::Debian | Recipe::Kernel => None,
        };
        let guest = default_guest::resolve(apt, own_kernel.is_some())?;
        let (disk, repositories) = match self.recipe {
            Recipe::DefaultGuest | Recipe::Kernel => (Vec::new(), Vec::new()),
            Recipe::Debian => (debian::resolve(apt)?, apt.sources()?),
        };
        let agent = agent_digest(&self.options.agent)?;
        let recipe = format!("{} {}", self.recipe.name(), self.recipe.revision());
        let packages = format!("{}\n{}", apt::digest(&guest), apt::digest(&disk));
        let disk_key = format!("{recipe} {}\n{packages}\n{}", self.options.disk_mib, repositories.join("\n"));
        let disk_key = store::sha256(disk_key.as_bytes());
        let kernel = own_kernel.as_ref().and_then(kernel::digest).map_or("", String::as_str);
        let key = store::sha256(format!("{recipe}\n{packages}\n{agent}\n{disk_key}\n{kernel}").as_bytes());
        let (guest_debs, disk_debs) = (Vec::new(), Vec::new());
        Ok(Sources { own_kernel, guest, guest_debs, disk, disk_debs, repositories, agent, key, disk_key })
    }

    /// Deletes downloads that this build did not need and that are a month old.
    fn clear_downloads(&self, debs: &Path, wanted: &[Wanted]) {
        const AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
        for entry in std::fs::read_dir(debs).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_wanted = wanted.iter().any(|package| name.strip_suffix(".deb") == Some(&package.sha256));
            let age = entry.metadata().and_then(|found| found.modified()).map(|time| time.elapsed());
            if !is_wanted && matches!(age, Ok(Ok(age)) if age > AGE_MAX) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    fn make(&self, sources: Sources, old_disks: Option<Vec<Part>>) -> Result<Image, Fault> {
        let dir = self.scratch.path();
        need_space(dir, 128 << 20)?;
        let mut built = default_guest::build(
            &sources.guest,
            &sources.guest_debs,
            sources.own_kernel.is_some(),
            &self.options.agent,
            dir,
            self.watcher,
        )?;
        let disks = match (self.recipe, old_disks) {
            (Recipe::DefaultGuest | Recipe::Kernel, _) => Vec::new(),
            (Recipe::Debian, Some(disks)) => disks,
            (Recipe::Debian, None) => {
                let disk = self.make_disk(&sources, &mut built)?;
                step(self.watcher, "storing the disk");
                vec![self.store.add_blob(&disk, DISK, self.lock)?]
            }
        };
        step(self.watcher, "storing the image");
        let packages = sources.guest.iter().chain(&sources.disk);
        let packages = packages
            .map(|package| Package { name: package.name.clone(), version: package.version.clone() })
            .collect();
        let (kernel, version) = match (&sources.own_kernel, &built.modules) {
            (Some(own), _) => kernel::part(self.store, own)?,
            (None, Some(modules)) => {
                (self.store.add_blob(&built.kernel, KERNEL, self.lock)?, modules.version.clone())
            }
            (None, None) => return Err(fault::broken("the list of packages", "it has no kernel")),
        };
        let (summary, append) = match self.recipe {
            Recipe::DefaultGuest | Recipe::Kernel => {
                (format!("Linux {version}, small user land in memory"), "")
            }
            Recipe::Debian => {
                (format!("Debian, {} packages, Linux {version}", sources.disk.len()), debian::APPEND)
            }
        };
        let created = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut labels = BTreeMap::from([
            (AGENT_LABEL.to_string(), sources.agent),
            (REVISION_LABEL.to_string(), self.recipe.revision().to_string()),
            (DISK_LABEL.to_string(), sources.disk_key),
        ]);
        let own = sources.own_kernel.as_ref().and_then(kernel::digest);
        labels.extend(own.map(|digest| (OWN_KERNEL_LABEL.to_string(), digest.clone())));
        let manifest = Manifest {
            schema_version: 2,
            media_type: Manifest::MEDIA_TYPE.to_string(),
            key: sources.key,
            created,
            summary,
            kernel: Some(kernel),
            initrd: Some(self.store.add_blob(&built.initrd, INITRD, self.lock)?),
            disks,
            container: None,
            program: None,
            usual: Default::default(),
            append: append.to_string(),
            packages,
            labels,
        };
        if self.watcher.cancelled() {
            return Err(fault::cancelled());
        }
        self.store.publish(self.recipe.name(), &manifest, self.lock)
    }

    fn make_disk(&self, sources: &Sources, built: &mut default_guest::Built) -> Result<PathBuf, Fault> {
        let vm = self.vm.ok_or_else(|| {
            Fault::new(
                Kind::Usage,
                format!("the image {:?} needs a VM to be built", self.recipe.name()),
                "build it through the command: viv build",
            )
        })?;
        let modules = built
            .modules
            .as_mut()
            .ok_or_else(|| fault::broken("the list of packages", "its kernel has no modules"))?;
        let inputs = debian::Inputs {
            debs: &sources.disk_debs,
            sources: &sources.repositories,
            modules,
            kernel: &built.kernel,
            initrd: &built.initrd,
            disk_mib: self.options.disk_mib,
            dir: self.scratch.path(),
            log: &self.store.cache_dir().join("builder.log"),
        };
        debian::build(inputs, vm, self.watcher)
    }
}
