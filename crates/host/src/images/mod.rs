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
use std::path::{Path, PathBuf};
use viv_api::image::Progress;
use viv_model::{DiskSpec, End, Fault, MachineSpec};

mod manifest;

pub use manifest::{Image, Manifest, Package, Part};

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
    dir: PathBuf,
}

impl Images {
    /// Opens the store in `dir` (`$XDG_DATA_HOME/vivarium/images`), making it if it is not there, and clears away
    /// what interrupted builds left.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Images, Fault> {
        Ok(Images { dir: dir.into() })
    }

    /// Every image, by name.
    pub fn list(&self) -> Result<Vec<Image>, Fault> {
        todo!("{}", self.dir.display())
    }

    /// The image called `name`.
    pub fn get(&self, name: &str) -> Result<Image, Fault> {
        todo!("{name}")
    }

    /// Builds `recipe`'s image, or finds that it is there already. `vm` is needed for [`Recipe::Debian`].
    pub fn build(
        &self,
        recipe: Recipe,
        options: &Options,
        vm: Option<&dyn RunVm>,
        watcher: &dyn Watcher,
    ) -> Result<Image, Fault> {
        let _ = (recipe, options, vm, watcher);
        todo!()
    }

    /// The default guest: builds it if it is not there or has another agent. Does not look for newer packages, so
    /// it needs no network once the image is there.
    pub fn ensure_default(&self, options: &Options, watcher: &dyn Watcher) -> Result<Image, Fault> {
        let _ = (options, watcher);
        todo!()
    }

    /// Forgets the image called `name`; VMs made from it live on.
    pub fn remove(&self, name: &str) -> Result<(), Fault> {
        todo!("{name}")
    }

    /// Gives the VM that lives in `vm_dir` its own copy of `image`: links to kernel and initrd, and sparse or
    /// shared copies of the disks.
    pub fn instantiate(&self, image: &Image, vm_dir: &Path) -> Result<Instance, Fault> {
        let _ = (image, vm_dir);
        todo!()
    }
}

/// The guest agent's static binary: `$VIV_AGENT`, or beside the running executable, or where cargo built it.
pub fn find_agent() -> Result<PathBuf, Fault> {
    todo!()
}
