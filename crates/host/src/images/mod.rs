//! Images: built from the packages of the host's own apt, stored by content, copied for each VM.
//!
//! ```text
//!  apt (the host's configuration) ─► .deb files ─► recipe ─► blobs by SHA-256 + manifest ─► a VM's own copy
//!        apt.rs                        deb.rs      default_guest.rs    store.rs              instance.rs
//!                                                  debian.rs ─► a builder VM ([`RunVm`]) configures the packages
//! ```
//!
//! It never talks to a network itself, never names a mirror, needs no root, and never shows an image that is
//! not whole. Start reading at [`Images::build`].
mod agent;
#[allow(dead_code)] // Debian's builder, which comes next, uses the rest of it
mod apt;
mod cpio;
#[allow(dead_code)] // as above
mod deb;
mod default_guest;
mod fault;
mod instance;
mod kmod;
mod manifest;
mod store;
mod tar;

pub use agent::find_agent;
pub use manifest::{Image, Manifest, Package, Part};

use apt::{Apt, FetchFault, Wanted};
use fault::io_fault;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use store::{Lock, Scratch, Store};
use viv_api::image::Progress;
use viv_model::{DiskSpec, End, Fault, Kind, MachineSpec};

/// Media types of our parts.
const KERNEL: &str = "application/vnd.vivarium.kernel";
const INITRD: &str = "application/vnd.vivarium.initrd";
/// The label that says which agent is in an image.
const AGENT_LABEL: &str = "vivarium.agent.sha256";
/// The label that says which revision of its recipe made an image.
const REVISION_LABEL: &str = "vivarium.recipe.revision";

/// What can be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// Kernel, a few modules, a small user land and the agent, all in memory. Seconds; tens of megabytes.
    DefaultGuest,
    /// A full Debian with systemd and apt on a disk. Minutes.
    Debian,
}

impl Recipe {
    /// Every recipe, for help texts.
    pub const ALL: [Recipe; 2] = [Recipe::DefaultGuest, Recipe::Debian];

    /// The name of the image that it makes.
    pub fn name(self) -> &'static str {
        match self {
            Recipe::DefaultGuest => viv_api::image::DEFAULT,
            Recipe::Debian => "debian",
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
}

/// Nobody watches.
pub struct Unwatched;

impl Watcher for Unwatched {
    fn progress(&self, _: Progress) {}
}

/// Runs a VM to its end; the host service has it done by a runner process, tests by whatever they have.
pub trait RunVm {
    /// Runs `spec`, gives everything that the serial port says to `console`, and tells how it ended.
    /// The specification's paths are absolute, and its disks belong to this VM alone.
    fn run(&self, spec: &MachineSpec, console: &mut dyn FnMut(&[u8])) -> Result<End, Fault>;
}

/// A VM's own copy of an image, ready for a [`MachineSpec`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The kernel.
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

    /// The image called `name`.
    pub fn get(&self, name: &str) -> Result<Image, Fault> {
        self.store.get(name)?.ok_or_else(|| not_found(name))
    }

    /// Builds `recipe`'s image, or finds that it is there already. `vm` is needed for [`Recipe::Debian`].
    pub fn build(
        &self,
        recipe: Recipe,
        options: &Options,
        vm: Option<&dyn RunVm>,
        watcher: &dyn Watcher,
    ) -> Result<Image, Fault> {
        agent::check(&options.agent)?;
        let lock = self.store.lock(watcher)?;
        let scratch = self.store.scratch(&lock)?;
        let job = Job { store: &self.store, lock: &lock, scratch: &scratch, recipe, options, vm, watcher };
        job.run()
    }

    /// The default guest: builds it if it is not there or has another agent. Does not look for newer packages, so
    /// it needs no network once the image is there.
    pub fn ensure_default(&self, options: &Options, watcher: &dyn Watcher) -> Result<Image, Fault> {
        let recipe = Recipe::DefaultGuest;
        if !options.force
            && !options.update
            && let Some(image) = self.store.get(recipe.name())?
            && image.manifest.labels.get(AGENT_LABEL) == Some(&agent_digest(&options.agent)?)
            && image.manifest.labels.get(REVISION_LABEL) == Some(&recipe.revision().to_string())
        {
            return Ok(image);
        }
        self.build(recipe, options, None, watcher)
    }

    /// Forgets the image called `name`; VMs made from it live on.
    pub fn remove(&self, name: &str) -> Result<(), Fault> {
        let lock = self.store.lock(&Unwatched)?;
        if self.store.remove(name, &lock)? { Ok(()) } else { Err(not_found(name)) }
    }

    /// Gives the VM that lives in `vm_dir` its own copy of `image`: links to kernel and initrd, and sparse or
    /// shared copies of the disks.
    pub fn instantiate(&self, image: &Image, vm_dir: &Path) -> Result<Instance, Fault> {
        instance::instantiate(&self.store, image, vm_dir)
    }
}

impl Recipe {
    fn revision(self) -> u32 {
        match self {
            Recipe::DefaultGuest | Recipe::Debian => default_guest::REVISION,
        }
    }
}

fn not_found(name: &str) -> Fault {
    let fix = if Recipe::ALL.iter().any(|recipe| recipe.name() == name) {
        format!("build it: viv build {name}")
    } else {
        "see what is there: viv images".to_string()
    };
    Fault::new(Kind::NotFound, format!("no image is called {name:?}"), fix)
}

fn agent_digest(path: &Path) -> Result<String, Fault> {
    Ok(store::sha256_file(path).map_err(io_fault("read the guest agent", path))?.0)
}

/// Tells of a step that has no measure.
fn step(watcher: &dyn Watcher, what: &str) {
    watcher.progress(Progress { step: what.to_string(), done: 0, total: None, bytes: false });
}

/// Refuses work for which there is no room on the file system of `dir`.
fn need_space(dir: &Path, bytes: u64) -> Result<(), Fault> {
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
        "free some space there, or set XDG_DATA_HOME to a larger disk",
    ))
}

/// One build.
struct Job<'a> {
    store: &'a Store,
    lock: &'a Lock,
    scratch: &'a Scratch,
    recipe: Recipe,
    options: &'a Options,
    #[allow(dead_code)] // for Debian's builder, which comes next
    vm: Option<&'a dyn RunVm>,
    watcher: &'a dyn Watcher,
}

impl Job<'_> {
    fn run(&self) -> Result<Image, Fault> {
        step(self.watcher, "looking for the newest packages");
        let cache = self.store.cache_dir();
        let mut apt =
            Apt::open(&cache.join("apt"), default_guest::probe(), self.options.update, self.watcher)?;
        let agent = agent_digest(&self.options.agent)?;
        loop {
            let wanted = default_guest::resolve(&apt)?;
            let key = self.key(&wanted, &agent);
            if !self.options.force
                && let Some(image) = self.store.get(self.recipe.name())?
                && image.manifest.key == key
            {
                return Ok(image);
            }
            match apt.fetch(&wanted, &cache.join("debs"), self.scratch.path(), self.watcher) {
                Ok(debs) => return self.make(&wanted, &debs, key, agent),
                Err(FetchFault::Fault(fault)) => return Err(fault),
                // Lists of our own are fresh: this happens once.
                Err(FetchFault::Stale(fault)) => {
                    step(self.watcher, &format!("the package lists are old ({})", fault.message));
                    apt.update(self.watcher)?;
                }
            }
        }
    }

    /// What decides whether an image must be built again.
    fn key(&self, wanted: &[Wanted], agent: &str) -> String {
        let recipe = format!("{} {} {}", self.recipe.name(), self.recipe.revision(), self.options.disk_mib);
        store::sha256(format!("{recipe}\n{}\n{agent}\n", apt::digest(wanted)).as_bytes())
    }

    fn make(&self, wanted: &[Wanted], debs: &[PathBuf], key: String, agent: String) -> Result<Image, Fault> {
        let dir = self.scratch.path();
        need_space(dir, 128 << 20)?;
        let built = default_guest::build(wanted, debs, &self.options.agent, dir, self.watcher)?;
        step(self.watcher, "storing the image");
        let packages = wanted
            .iter()
            .map(|package| Package { name: package.name.clone(), version: package.version.clone() })
            .collect();
        let created = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let manifest = Manifest {
            schema_version: 2,
            media_type: Manifest::MEDIA_TYPE.to_string(),
            key,
            created,
            summary: format!("Linux {}, small user land in memory", built.version),
            kernel: self.store.add_blob(&built.kernel, KERNEL, self.lock)?,
            initrd: Some(self.store.add_blob(&built.initrd, INITRD, self.lock)?),
            disks: Vec::new(),
            append: String::new(),
            packages,
            labels: BTreeMap::from([
                (AGENT_LABEL.to_string(), agent),
                (REVISION_LABEL.to_string(), self.recipe.revision().to_string()),
            ]),
        };
        if self.watcher.cancelled() {
            return Err(fault::cancelled());
        }
        self.store.publish(self.recipe.name(), &manifest, self.lock)
    }
}
