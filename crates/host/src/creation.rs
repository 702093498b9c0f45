//! How a VM comes to be described: its name, its machine with what its image brings along, its record.
use crate::admission::Share;
use crate::container_ask;
use crate::described;
use crate::disk_image;
use crate::disks::{fill_mib, resolve_disk};
use crate::images::{Image, Instance};
use crate::names;
use crate::programs;
use crate::secgroups;
use crate::seed::{self, Identity};
use crate::shares;
use crate::store::{Request, StoreError, VmRecord};
use crate::vms::{Vms, absolute};
use crate::volumes;
use std::fs;
use std::path::Path;
use viv_api::vm::{Vm, VmCreate, VmStart};
use viv_model::{DiskSpec, Fault, Kind, MachineSpec, ProjectName, hostname_of, hostname_word};

/// The kernel's command line for an image.
pub(crate) const APPEND_IMAGE: &str = "console=ttyS0 quiet loglevel=4 panic=-1 reboot=k cryptomgr.notests";
/// The kernel's command line for a user's own kernel, unless the user gives one.
const APPEND_OWN: &str = "console=ttyS0 panic=-1 reboot=k";
/// What its image wants on the kernel's command line: what is there besides our words and the user's.
pub(crate) fn append_of(machine: &MachineSpec, user: Option<&str>) -> String {
    let words = machine.append.strip_prefix(APPEND_IMAGE).unwrap_or_default();
    let without = |words: &str, end: &str| words.strip_suffix(end).unwrap_or(words).trim().to_string();
    let words = without(words, user.unwrap_or_default());
    without(&words, &shares::boot_words(&machine.shares))
}

/// A command line that an image of containers has, for a guest with another name.
pub(crate) fn named(append: &str, name: &str) -> String {
    let word = |word: &str| match hostname_of(word) {
        Some(_) => hostname_word(name),
        None => word.to_string(),
    };
    append.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// What became of a description.
enum Described {
    /// It is remembered, with this identity.
    Kept(String),
    /// It would be so.
    Trial(Box<Vm>),
}

impl Vms {
    /// The name that was asked for, or one that no VM of the project has.
    pub(crate) fn name(&self, project: &ProjectName, asked: Option<&str>) -> Result<String, Fault> {
        let taken = |name: &str| self.store.by_name(project, name).is_ok_and(|record| record.is_some());
        match asked {
            Some(name) => {
                names::check(name)?;
                if taken(name) {
                    return Err(StoreError::NameTaken { name: name.to_string() }.into());
                }
                Ok(name.to_string())
            }
            None => names::pleasant(&taken).map_err(no_random),
        }
    }

    /// The VM that this request has described before, if it has.
    pub(crate) fn described_by(&self, request: &Request) -> Result<Option<Vm>, Fault> {
        match self.store.by_key(&request.key)? {
            Some(record) if record.request.as_ref() == Some(request) => Ok(Some(self.get(&record.id)?)),
            Some(_) => Err(StoreError::KeyTaken { key: request.key.clone() }.into()),
            None => Ok(None),
        }
    }

    /// Makes a VM that remembers its request, unless that has made one already.
    pub(crate) fn once(
        &self,
        request: Option<&Request>,
        make: impl FnOnce() -> Result<Vm, Fault>,
    ) -> Result<Vm, Fault> {
        let Some(request) = request else { return make() };
        if let Some(vm) = self.described_by(request)? {
            return Ok(vm);
        }
        // The same request, at the same time, may have been quicker.
        make().or_else(|fault| self.described_by(request).ok().flatten().ok_or(fault))
    }

    /// Describes a VM, and starts it if that is asked. A trial says what would be, and changes nothing.
    pub(crate) fn create(&self, ask: VmCreate, request: Option<Request>, trial: bool) -> Result<Vm, Fault> {
        match self.describe_new(&ask, request, trial)? {
            Described::Trial(vm) => Ok(*vm),
            Described::Kept(id) if ask.start => {
                self.start(&id, &VmStart { attended_by: ask.attended_by }).inspect_err(|_| {
                    let _ = self.store.remove(&id);
                    self.admission.give_back(Share::Described, &id);
                })
            }
            Described::Kept(id) => self.get(&id),
        }
    }

    /// Describes a VM.
    fn describe_new(
        &self,
        ask: &VmCreate,
        request: Option<Request>,
        trial: bool,
    ) -> Result<Described, Fault> {
        let project = ask.project.clone().unwrap_or_default();
        let name = self.name(&project, ask.name.as_deref())?;
        let id = names::identity().map_err(no_random)?;
        let dir = self.places.vms().join(&id);
        let image = match (&ask.image, &ask.kernel) {
            _ if ask.program.is_some() => None,
            (None, Some(_)) => None,
            (Some(file), _) if disk_image::is_file(file) => None,
            (image, _) => Some(self.images.get(image.as_deref().unwrap_or(viv_api::image::DEFAULT))?),
        };
        let process = image.as_ref().and_then(|image| image.manifest.process()).cloned();
        container_ask::check(ask, process.as_ref())?;
        let _kept = (!ask.volumes.is_empty()).then(|| self.keep_volumes());
        if !trial {
            self.make_missing_volumes(&project, &ask.volumes)?;
        }
        ask.check_restart()?;
        let ports = process.as_ref().map(|process| container_ask::all_ports(ask, process)).transpose()?;
        let ask = VmCreate { ports: ports.unwrap_or_else(|| ask.ports.clone()), ..ask.clone() };
        let boots_itself = image.as_ref().is_some_and(|image| image.manifest.boots_itself());
        let made = self.machine_of(&ask, image, &Identity { id: &id, name: &name }, &dir).and_then(
            |(image, machine)| {
                ask.health.over(process.as_ref().and_then(|process| process.health.as_ref()))?;
                let mut record = VmRecord {
                    disk_mib: fill_mib(&machine.disks),
                    boots_itself,
                    append: ask.append.clone().filter(|_| image.is_some()),
                    image,
                    groups: secgroups::distinct(&ask.groups)?,
                    labels: ask.labels.clone(),
                    on_reboot: ask.on_reboot,
                    remove: ask.remove,
                    restart: ask.restart,
                    program: ask.program.clone(),
                    request: request.clone(),
                    project: project.clone(),
                    command: ask.command.clone(),
                    process: process.map(|process| process.with_entrypoint(ask.entrypoint.as_deref())),
                    entrypoint: ask.entrypoint.clone(),
                    health: ask.health.clone(),
                    volumes: ask.volumes.clone(),
                    files: ask.files.clone(),
                    ..VmRecord::new(&id, &name, machine)
                };
                let share = self.describe(&record)?;
                // Those in no network need not wait for each other.
                let placed = !record.groups.is_empty() || !record.machine.nics.is_empty();
                let _turn = placed.then(|| self.networks.hold());
                let groups = &self.networks.groups;
                record.groups.iter().try_for_each(|group| groups.find(&project, group).map(drop))?;
                self.give_places(&project, &mut record.machine.nics)?;
                if trial {
                    let runner = self.runner(&record);
                    return Ok(Some(self.view(record, &runner)));
                }
                self.store.insert(&record)?;
                share.keep();
                Ok(None)
            },
        );
        if !matches!(made, Ok(None)) {
            let _ = fs::remove_dir_all(&dir);
        }
        Ok(made?.map_or(Described::Kept(id), |vm| Described::Trial(Box::new(vm))))
    }

    /// The image's name and the machine for what was asked; `image` is the one of the store. Copies of its disks go into `dir`.
    fn machine_of(
        &self,
        ask: &VmCreate,
        image: Option<Image>,
        identity: &Identity<'_>,
        dir: &Path,
    ) -> Result<(Option<String>, MachineSpec), Fault> {
        if let Some(program) = &ask.program {
            let mut machine = programs::machine_of(ask, program, dir, |name| self.images.program(name))?;
            if programs::wants_network(ask)? {
                machine.nics = self.cards_of(ask, dir)?;
            }
            return Ok((None, machine));
        }
        let ask = &with_usual(ask, image.as_ref());
        let mut machine = ask.machine();
        machine.append = ask.append.clone().unwrap_or_else(|| APPEND_OWN.to_string());
        machine.nics = self.cards_of(ask, dir)?;
        machine.check()?;
        machine.disks.clear();
        fits(machine.memory_max_mib.unwrap_or(machine.memory_mib))?;
        for path in [ask.kernel.as_ref(), ask.initrd.as_ref()]
            .into_iter()
            .flatten()
            .chain(ask.disks.iter().map(|d| &d.path))
            .chain(ask.shares.iter().map(|share| &share.path))
            .chain(ask.files.iter().map(|file| &file.path))
            .chain(ask.console_ports.iter().filter_map(|port| port.path.as_ref()))
        {
            absolute(path)?;
        }
        let disks = ask.disks.iter().map(resolve_disk).collect::<Result<Vec<_>, _>>()?;
        ask.shares.iter().try_for_each(shares::check)?;
        fs::DirBuilder::new().recursive(true).create(dir).map_err(|source| StoreError::Io {
            what: "make",
            path: dir.to_path_buf(),
            source,
        })?;
        let (mut of_image, mut of_volumes, mut name, mut cloud_init) = (Vec::new(), Vec::new(), None, None);
        let own_kernel = ask.kernel.is_some();
        let own_disks = match (&ask.image, &image) {
            (Some(file), None) => Some((vec![disk_image::layer(Path::new(file), dir)?], file)),
            (_, Some(image)) if image.manifest.boots_itself() => {
                Some((self.images.instantiate(image, &[], dir)?.disks, &image.name))
            }
            _ => None,
        };
        if let Some((disks, called)) = own_disks {
            let (instance, found) = disk_image::boot(disks, dir, own_kernel, &self.places)?;
            if !own_kernel {
                machine.append = disk_image::words(&instance.append, ask.append.as_deref());
            }
            of_image = take(instance, ask, &mut machine);
            (name, cloud_init) = (Some(called.clone()), found);
        } else if let Some(image) = image {
            let instance = self.images.instantiate(&image, &ask.files, dir)?;
            let mounts = shares::boot_words(&ask.shares);
            // A container is called what its host calls it.
            let called = match image.manifest.process() {
                Some(process) => {
                    let volumes = container_ask::volume_words(ask, process)?;
                    let project = ask.project.clone().unwrap_or_default();
                    let (disks, mounts) = volumes::disks(&self.places, &project, &ask.volumes)?;
                    of_volumes = disks;
                    let words = [hostname_word(identity.name), volumes, mounts.join(" ")];
                    words.into_iter().filter(|words| !words.is_empty()).collect::<Vec<_>>().join(" ")
                }
                None => String::new(),
            };
            let own = ask.append.as_deref().unwrap_or_default();
            let words = [APPEND_IMAGE, &instance.append, &called, &mounts, own];
            let words = words.into_iter().filter(|words| !words.is_empty());
            machine.append = words.collect::<Vec<_>>().join(" ");
            of_image = take(instance, ask, &mut machine);
            name = Some(image.name);
        }
        described::set_image_disks(&mut of_image, &ask.image_disks)?;
        machine.disks = of_image.into_iter().chain(of_volumes).chain(disks).collect();
        if ask.cloud_init.is_wanted(cloud_init.is_some()) {
            let user = cloud_init.as_ref().and_then(|found| found.default_user.as_deref());
            machine.disks.push(seed::make(&ask.cloud_init, identity, user, &self.places, dir)?);
        }
        Ok((name, machine))
    }

    /// An image of the store, if it is there.
    pub(crate) fn image(&self, name: &str) -> Option<Image> {
        if disk_image::is_file(name) { None } else { self.images.get(name).ok() }
    }
}

/// What was asked for, with what its image has for those who say nothing.
fn with_usual(ask: &VmCreate, image: Option<&Image>) -> VmCreate {
    let usual = image.map(|image| image.manifest.usual).unwrap_or_default();
    let most = ask.memory_max_mib.unwrap_or(u64::MAX);
    VmCreate {
        cpus: ask.cpus.or(usual.cpus),
        memory_mib: ask.memory_mib.or(usual.memory_mib.map(|mib| mib.min(most))),
        ..ask.clone()
    }
}

/// Gives a machine what its image boots, unless its user has said that; gives the image's disks.
fn take(instance: Instance, ask: &VmCreate, machine: &mut MachineSpec) -> Vec<DiskSpec> {
    if ask.kernel.is_none() {
        machine.kernel = instance.kernel;
    }
    machine.initrd = machine.initrd.take().or(instance.initrd);
    instance.disks
}

pub(crate) fn no_random(error: std::io::Error) -> Fault {
    Fault::new(
        Kind::Error,
        format!("cannot make up a name: /dev/urandom: {error}"),
        "see that /dev/urandom can be read",
    )
}

/// Whether there is that much memory at all.
pub(crate) fn fits(memory_mib: u64) -> Result<(), Fault> {
    let room = crate::info::room();
    if memory_mib <= room.total_mib {
        return Ok(());
    }
    Err(Fault::new(
        Kind::NoCapacity,
        format!(
            "the VM would have {memory_mib} MiB of memory, and {} has {} MiB",
            room.owner(),
            room.total_mib
        ),
        format!("use --memory with less: {} MiB are free now", room.available_mib),
    ))
}
