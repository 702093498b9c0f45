//! What may be done with VMs, and how.
use crate::container_ask;
use crate::described;
use crate::disk_image;
use crate::guest_commands::{health_watch, main_command};
use crate::images::{Image, Images, Instance};
use crate::names;
use crate::networks::Networks;
use crate::places::Places;
use crate::runners::Runner;
use crate::secgroups;
use crate::seed::{self, Identity};
use crate::shares;
use crate::store::{Store, VmRecord};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use viv_api::info::KvmState;
use viv_api::runner::{Ask as RunnerAsk, RESUME, RunnerSpec};
use viv_api::socket;
use viv_api::stats::VmStats;
use viv_api::timestamp::Timestamp;
use viv_api::vm::{DiskSize, Process, Vm, VmCreate, VmKill, VmMemory, VmStart, VmStop};
use viv_model::{Accel, Ask, DiskFormat, DiskLimits, DiskSpec, End, Fault, Kind, MachineSpec, State, next};

/// The kernel's command line for an image.
const APPEND_IMAGE: &str = "console=ttyS0 quiet loglevel=4 panic=-1 reboot=k cryptomgr.notests";
/// The kernel's command line for a user's own kernel, unless the user gives one.
const APPEND_OWN: &str = "console=ttyS0 panic=-1 reboot=k";
/// How long a guest may take to switch itself off, seconds.
const STOP_S: u64 = 30;
/// The longest that a user may let it take, seconds.
const STOP_S_MAX: u64 = 24 * 3600;
/// Fewest digits of an identity that name a VM.
const ID_DIGITS_MIN: usize = 4;

/// All VMs of this host.
pub(crate) struct Vms {
    pub(crate) store: Box<dyn Store>,
    places: Places,
    images: Arc<Images>,
    pub(crate) networks: Networks,
    /// One change at a time for each VM.
    changing: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    /// Whose process has been started and has not yet said whether it runs.
    starting: Mutex<HashSet<String>>,
    /// Told the identity of each VM that has a process, once.
    watch: Box<dyn Fn(Process, String) + Send + Sync>,
}

/// What its image wants on the kernel's command line: what is there besides our words and the user's.
pub(crate) fn append_of(machine: &MachineSpec, user: Option<&str>) -> String {
    let words = machine.append.strip_prefix(APPEND_IMAGE).unwrap_or_default();
    let without = |words: &str, end: &str| words.strip_suffix(end).unwrap_or(words).trim().to_string();
    let words = without(words, user.unwrap_or_default());
    without(&words, &shares::boot_words(&machine.shares))
}

/// A VM that starts.
struct Starting<'a> {
    all: &'a Mutex<HashSet<String>>,
    id: String,
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        lock(self.all).remove(&self.id);
    }
}

/// Locks, also after a panic of another holder.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Vms {
    pub(crate) fn new(
        store: Box<dyn Store>,
        places: Places,
        images: Arc<Images>,
        networks: Networks,
        watch: Box<dyn Fn(Process, String) + Send + Sync>,
    ) -> Vms {
        Vms { store, places, images, networks, changing: Mutex::default(), starting: Mutex::default(), watch }
    }

    /// Finds the VMs that live on from an earlier service, and forgets those that were to be.
    pub(crate) fn adopt(&self) -> Result<(), Fault> {
        for record in self.store.all()? {
            let runner = self.runner(&record);
            match runner.process() {
                Some(process) => {
                    self.plug_in_again(&record, &runner);
                    (self.watch)(process, record.id);
                }
                None => self.ended(&record.id),
            }
        }
        Ok(())
    }

    /// Does what is left to do after a VM's process has ended.
    pub(crate) fn ended(&self, id: &str) {
        let Ok(records) = self.store.all() else { return };
        let Some(record) = records.into_iter().find(|record| record.id == id) else { return };
        clear_sockets(&record.machine);
        self.clear_kernel(&record);
        let attended = record.attended_by.is_some_and(|owner| owner.is_alive());
        // A command in the foreground still wants to know how it ended, and removes it then.
        if record.remove && record.started_at.is_some() && !attended {
            let _ = self.remove(id, false);
        }
    }

    /// Forgets ended VMs that were to be forgotten by a command that is gone.
    pub(crate) fn sweep(&self) {
        for record in self.store.all().unwrap_or_default() {
            if record.remove
                && self.runner(&record).process().is_none()
                && !lock(&self.starting).contains(&record.id)
            {
                self.ended(&record.id);
            }
        }
    }

    fn runner(&self, record: &VmRecord) -> Runner {
        Runner::new(self.places.vms().join(&record.id))
    }

    /// The runner and the record of the VM called `name`.
    pub(crate) fn find(&self, name: &str) -> Result<(VmRecord, Runner), Fault> {
        let records = self.store.all()?;
        let exact = records.iter().find(|record| record.name == name || record.id == name);
        let record = match exact {
            Some(record) => record.clone(),
            None => {
                let mut matching = records
                    .iter()
                    .filter(|record| name.len() >= ID_DIGITS_MIN && record.id.starts_with(name));
                match (matching.next(), matching.next()) {
                    (Some(record), None) => record.clone(),
                    (Some(_), Some(_)) => {
                        return Err(Fault::new(
                            Kind::Usage,
                            format!("the ids of several VMs begin with {name:?}"),
                            "write more digits, or the name: viv ps -a",
                        ));
                    }
                    (None, _) => {
                        return Err(Fault::new(
                            Kind::NotFound,
                            format!("no VM is called {name:?}"),
                            "see what there is: viv ps -a",
                        ));
                    }
                }
            }
        };
        let runner = self.runner(&record);
        Ok((record, runner))
    }

    /// All records.
    pub(crate) fn records(&self) -> Result<Vec<VmRecord>, Fault> {
        Ok(self.store.all()?)
    }

    /// One change of a VM at a time.
    pub(crate) fn change<T>(
        &self,
        name: &str,
        act: impl FnOnce(VmRecord, Runner) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let (record, _) = self.find(name)?;
        let turn = lock(&self.changing).entry(record.id.clone()).or_default().clone();
        let _turn = lock(&turn);
        let (record, runner) = self.find(&record.id)?; // as it is now that it is our turn
        act(record, runner)
    }

    /// The VM as it is now.
    pub(crate) fn get(&self, name: &str) -> Result<Vm, Fault> {
        let (record, runner) = self.find(name)?;
        Ok(self.view(record, &runner))
    }

    /// All VMs as they are now, oldest first.
    pub(crate) fn list(&self) -> Result<Vec<Vm>, Fault> {
        let records = self.store.all()?;
        Ok(records
            .into_iter()
            .map(|record| {
                let runner = self.runner(&record);
                self.view(record, &runner)
            })
            .collect())
    }

    /// What it has used and done: now, or when it ended.
    pub(crate) fn stats(&self, name: &str) -> Result<VmStats, Fault> {
        let (record, runner) = self.find(name)?;
        let asked = runner.process().map(|_| runner.stats());
        if let Some(Ok(stats)) = asked {
            return Ok(VmStats { network: self.traffic(&record), ..stats });
        }
        match (asked, runner.process()) {
            (Some(Err(fault)), Some(_)) => Err(fault),
            // It may just have ended.
            _ => runner.last_stats().ok_or_else(|| {
                Fault::new(
                    Kind::Conflict,
                    format!("VM {:?} has not run to an end that left counts", record.name),
                    format!("start it: viv start {}", record.name),
                )
            }),
        }
    }

    pub(crate) fn view(&self, record: VmRecord, runner: &Runner) -> Vm {
        let process = runner.process();
        let status = process.and_then(|_| runner.ask(&RunnerAsk::Status).ok());
        let is_starting = process.is_some() || lock(&self.starting).contains(&record.id);
        let last = if is_starting { None } else { self.last_end(&record, runner) };
        let state = match (&status, is_starting, &last) {
            (Some(status), ..) => status.state,
            (None, true, _) => State::Starting,
            (None, false, None) => State::Defined,
            (None, false, Some((End::Panic | End::TripleFault | End::Failed { .. }, _))) => State::Failed,
            (None, false, Some(_)) => State::Stopped,
        };
        let status = status.as_ref();
        Vm {
            state,
            accel: status.map_or(record.machine.accel, |status| status.accel),
            pid: process.map(|process| process.pid),
            boots: status.map_or(0, |status| status.boots),
            sandbox: status.map(|status| status.sandbox.clone()).unwrap_or_default(),
            full_disks: status.map(|status| status.full_disks.clone()).unwrap_or_default(),
            health: status.and_then(|status| status.health.clone()),
            ended_at: last.as_ref().and_then(|(_, when)| *when),
            end: last.map(|(end, _)| end),
            spec: described::spec_of(&record, runner.dir()),
            dir: runner.dir().to_path_buf(),
            id: record.id,
            name: record.name,
            image: record.image,
            created_at: record.created_at,
            started_at: record.started_at,
            remove: record.remove,
            groups: record.groups,
            labels: record.labels,
            on_reboot: record.on_reboot,
            attended_by: record.attended_by,
            machine: record.machine,
            process: record.process,
        }
    }

    /// How a VM without a process ended; nothing if it was never started.
    fn last_end(&self, record: &VmRecord, runner: &Runner) -> Option<(End, Option<Timestamp>)> {
        record.started_at?;
        if let Some((end, when)) = runner.end() {
            return Some((end, Some(when)));
        }
        let message = format!(
            "the VM's process ended without a word; killed from outside (does dmesg speak of memory?), or a crash{}",
            runner.own_words()
        );
        Some((End::Failed { message }, None))
    }

    /// The name that was asked for, or one that no VM has.
    pub(crate) fn name(&self, asked: Option<&str>) -> Result<String, Fault> {
        let taken: HashSet<String> = self.store.all()?.into_iter().map(|record| record.name).collect();
        match asked {
            Some(name) => {
                names::check(name)?;
                if taken.contains(name) {
                    return Err(crate::store::StoreError::NameTaken { name: name.to_string() }.into());
                }
                Ok(name.to_string())
            }
            None => names::pleasant(&|name| taken.contains(name)).map_err(no_random),
        }
    }

    /// Remembers a VM whose directory is there already, with an address in the network that it was in; if that is gone, it
    /// is plugged into nothing.
    fn insert_with_address(&self, record: &mut VmRecord) -> Result<(), Fault> {
        fits(record.machine.memory_mib)?;
        let _turn = self.networks.hold();
        record.groups.iter().try_for_each(|group| self.networks.groups.find(group).map(drop))?;
        self.find_places(&mut record.machine.nics)?;
        Ok(self.store.insert(record)?)
    }

    /// Remembers which snapshot it came from last.
    pub(crate) fn came_from(&self, id: &str, snapshot: &str) -> Result<(), Fault> {
        self.change(id, |record, _| {
            Ok(self.store.update(&VmRecord { snapshot: Some(snapshot.to_string()), ..record })?)
        })
    }

    /// Describes a VM, and starts it if that is asked.
    pub(crate) fn create(&self, ask: VmCreate) -> Result<Vm, Fault> {
        let name = self.name(ask.name.as_deref())?;
        let id = names::identity().map_err(no_random)?;
        let dir = self.places.vms().join(&id);
        let image = match (&ask.image, &ask.kernel) {
            (None, Some(_)) => None,
            (Some(file), _) if disk_image::is_file(file) => None,
            (image, _) => Some(self.images.get(image.as_deref().unwrap_or(viv_api::image::DEFAULT))?),
        };
        let process = image.as_ref().and_then(|image| image.manifest.process()).cloned();
        container_ask::check(&ask, process.as_ref())?;
        let ports = process.as_ref().map(|process| container_ask::all_ports(&ask, process)).transpose()?;
        let ask = VmCreate { ports: ports.unwrap_or_else(|| ask.ports.clone()), ..ask };
        let boots_itself = image.as_ref().is_some_and(|image| image.manifest.boots_itself());
        let made = self.machine_of(&ask, image, &Identity { id: &id, name: &name }, &dir).and_then(
            |(image, machine)| {
                ask.health.over(process.as_ref().and_then(|process| process.health.as_ref()))?;
                let mut record = VmRecord {
                    boots_itself,
                    append: ask.append.clone().filter(|_| image.is_some()),
                    image,
                    groups: secgroups::distinct(&ask.groups)?,
                    labels: ask.labels.clone(),
                    on_reboot: ask.on_reboot,
                    remove: ask.remove,
                    command: ask.command.clone(),
                    process: process.map(|process| process.with_entrypoint(ask.entrypoint.as_deref())),
                    entrypoint: ask.entrypoint.clone(),
                    health: ask.health.clone(),
                    volumes: ask.volumes.clone(),
                    ..VmRecord::new(&id, &name, machine)
                };
                let _turn = self.networks.hold();
                record.groups.iter().try_for_each(|group| self.networks.groups.find(group).map(drop))?;
                self.give_places(&mut record.machine.nics)?;
                self.store.insert(&record)?;
                Ok(())
            },
        );
        if let Err(fault) = made {
            let _ = fs::remove_dir_all(&dir);
            return Err(fault);
        }
        if !ask.start {
            return self.get(&id);
        }
        self.start(&id, &VmStart { attended_by: ask.attended_by }).inspect_err(|_| {
            let _ = self.store.remove(&id);
        })
    }

    /// The image's name and the machine for what was asked; `image` is the one of the store. Copies of its disks go into `dir`.
    fn machine_of(
        &self,
        ask: &VmCreate,
        image: Option<Image>,
        identity: &Identity<'_>,
        dir: &Path,
    ) -> Result<(Option<String>, MachineSpec), Fault> {
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
            .chain(ask.console_ports.iter().filter_map(|port| port.path.as_ref()))
        {
            absolute(path)?;
        }
        let disks = ask.disks.iter().map(resolve_disk).collect::<Result<Vec<_>, _>>()?;
        ask.shares.iter().try_for_each(shares::check)?;
        fs::DirBuilder::new().recursive(true).create(dir).map_err(|source| crate::store::StoreError::Io {
            what: "make",
            path: dir.to_path_buf(),
            source,
        })?;
        let (mut of_image, mut name, mut cloud_init) = (Vec::new(), None, None);
        let own_kernel = ask.kernel.is_some();
        let own_disks = match (&ask.image, &image) {
            (Some(file), None) => Some((vec![disk_image::layer(Path::new(file), dir)?], file)),
            (_, Some(image)) if image.manifest.boots_itself() => {
                Some((self.images.instantiate(image, dir)?.disks, &image.name))
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
            let instance = self.images.instantiate(&image, dir)?;
            let mounts = shares::boot_words(&ask.shares);
            // A container is called what its host calls it.
            let called = match image.manifest.process() {
                Some(process) => {
                    let volumes = container_ask::volume_words(ask, process)?;
                    format!("viv.hostname={} {volumes}", identity.name).trim_end().to_string()
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
        machine.disks = of_image.into_iter().chain(disks).collect();
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

    /// Starts a VM that has no process.
    pub(crate) fn start(&self, name: &str, ask: &VmStart) -> Result<Vm, Fault> {
        self.change(name, |record, runner| {
            let state = self.view(record.clone(), &runner).state;
            refuse(state, Ask::Start, &record.name)?;
            let _starting = self.starting(&record.id);
            let ran_before = record.started_at.is_some();
            let mut record =
                VmRecord { started_at: Some(Timestamp::now()), attended_by: ask.attended_by, ..record };
            if !runner.dir().join(RESUME).exists() {
                // What boots knows nothing from before.
                record.machine.nics.iter_mut().for_each(|nic| nic.aliases.clear());
                if ran_before && disk_image::boots_itself(&record, runner.dir()) {
                    disk_image::look_again(&mut record, runner.dir(), &self.places)?;
                }
            }
            self.store.update(&record)?;
            self.launch(record, &runner)
        })
    }

    /// Remembers a new VM whose directory is there already, and starts it. Its files are gone if it is not remembered.
    pub(crate) fn insert_and_start(&self, record: VmRecord, ask: &VmStart) -> Result<Vm, Fault> {
        let runner = self.runner(&record);
        let _starting = self.starting(&record.id);
        // Written once: it is as good as started.
        let mut record =
            VmRecord { started_at: Some(Timestamp::now()), attended_by: ask.attended_by, ..record };
        self.insert_with_address(&mut record).inspect_err(|_| drop(fs::remove_dir_all(runner.dir())))?;
        let id = record.id.clone();
        self.change(&id, |record, runner| self.launch(record, &runner))
    }

    /// Until what it gives is dropped, the VM counts as one that starts.
    fn starting(&self, id: &str) -> Starting<'_> {
        lock(&self.starting).insert(id.to_string());
        Starting { all: &self.starting, id: id.to_string() }
    }

    /// Starts the process of a VM that is remembered as started.
    fn launch(&self, record: VmRecord, runner: &Runner) -> Result<Vm, Fault> {
        let mut machine = record.machine.clone();
        // Known for as long as the host is up: the VM's process need not find it out again.
        if machine.accel == Accel::Auto && crate::info::kvm(&self.places).state != KvmState::Good {
            machine.accel = Accel::Soft;
        }
        let resume = runner.dir().join(RESUME).exists();
        let spec = RunnerSpec {
            name: record.name.clone(),
            machine,
            on_reboot: record.on_reboot,
            attended_by: record.attended_by,
            command: main_command(&record, resume)?,
            health: health_watch(&record)?,
            resume,
        };
        match self.plug_in_all(&record).and_then(|ports| runner.start(&spec, &ports)) {
            Ok(status) => {
                (self.watch)(status.process, record.id.clone());
                lock(&self.starting).remove(&record.id);
                Ok(self.view(record, runner))
            }
            Err(fault) => {
                self.clear_kernel(&record);
                runner.set_end(&End::Failed { message: fault.message.clone() });
                Err(fault)
            }
        }
    }

    /// Lets its vCPUs stand still or go on.
    pub(crate) fn step(&self, name: &str, ask: Ask) -> Result<Vm, Fault> {
        self.change(name, |record, runner| {
            let state = self.view(record.clone(), &runner).state;
            refuse(state, ask, &record.name)?;
            runner.ask(&if ask == Ask::Pause { RunnerAsk::Pause } else { RunnerAsk::Resume })?;
            Ok(self.view(record, &runner))
        })
    }

    /// Asks a running guest to get by with so much memory.
    pub(crate) fn resize_memory(&self, name: &str, ask: &VmMemory) -> Result<Vm, Fault> {
        self.change(name, |record, runner| {
            let view = self.view(record, &runner);
            if !matches!(view.state, State::Running | State::Paused) {
                return Err(Fault::new(
                    Kind::Conflict,
                    format!("cannot resize the memory of VM {:?}: it is {}", view.name, view.state),
                    format!("start it first: viv start {}", view.name),
                ));
            }
            runner.ask(&RunnerAsk::ResizeMemory { mib: ask.memory_mib })?;
            Ok(view)
        })
    }

    /// Gives it one more disk: at once if it runs, and whenever it starts.
    pub(crate) fn attach_disk(&self, name: &str, disk: &DiskSpec) -> Result<Vm, Fault> {
        disk.check()?;
        absolute(&disk.path)?;
        let mut disk = resolve_disk(disk)?;
        self.change(name, |mut record, runner| {
            keep_serials(&mut record.machine.disks);
            disk.serial = Some(free_serial(&record.machine.disks, disk.serial.as_ref())?);
            if record.machine.disks.iter().any(|other| other.path == disk.path) {
                return Err(Fault::new(
                    Kind::Conflict,
                    format!("{} has the disk {} already", record.name, disk.path.display()),
                    "see its disks with: viv inspect",
                ));
            }
            if self.view(record.clone(), &runner).state.is_live() {
                runner.attach_disk(&disk)?;
            }
            record.machine.disks.push(disk.clone());
            self.store.update(&record)?;
            Ok(self.view(record, &runner))
        })
    }

    /// The serial number of a disk.
    pub(crate) fn disk_serial(&self, name: &str, disk: &str) -> Result<(String, Runner), Fault> {
        let (record, runner) = self.find(name)?;
        let index = disk_index(&record, disk)?;
        let serial = record.machine.disks.get(index).map(|disk| disk.serial_of(index));
        Ok((serial.unwrap_or_default(), runner))
    }

    /// Takes a disk from it; if it runs, when its guest has let it go.
    pub(crate) fn detach_disk(&self, name: &str, disk: &str) -> Result<Vm, Fault> {
        self.change(name, |mut record, runner| {
            let index = disk_index(&record, disk)?;
            if self.view(record.clone(), &runner).state.is_live() {
                runner.ask(&RunnerAsk::DetachDisk { disk: index })?;
            }
            keep_serials(&mut record.machine.disks);
            record.machine.disks.remove(index);
            self.store.update(&record)?;
            Ok(self.view(record, &runner))
        })
    }

    /// Lets a disk be as fast as this: at once if the VM runs, and whenever it starts.
    pub(crate) fn limit_disk(&self, name: &str, disk: &str, limits: DiskLimits) -> Result<Vm, Fault> {
        limits.check()?;
        self.change(name, |mut record, runner| {
            let index = disk_index(&record, disk)?;
            if let Some(disk) = record.machine.disks.get_mut(index) {
                disk.limits = limits;
            }
            if self.view(record.clone(), &runner).state.is_live() {
                runner.ask(&RunnerAsk::LimitDisk { disk: index, limits })?;
            }
            self.store.update(&record)?;
            Ok(self.view(record, &runner))
        })
    }

    /// Lets a disk of a running VM grow.
    pub(crate) fn resize_disk(&self, name: &str, disk: &str, size: DiskSize) -> Result<Vm, Fault> {
        self.change(name, |record, runner| {
            let index = disk_index(&record, disk)?;
            let view = self.view(record, &runner);
            if !view.state.is_live() {
                let disk = view.machine.disks.get(index).map(|disk| disk.path.display().to_string());
                return Err(Fault::new(
                    Kind::Conflict,
                    format!("VM {:?} is {}, and does not use its disk", view.name, view.state),
                    format!(
                        "give the disk itself the size: viv disk resize {} SIZE",
                        disk.unwrap_or_default()
                    ),
                ));
            }
            runner.ask(&RunnerAsk::ResizeDisk { disk: index, size })?;
            Ok(view)
        })
    }

    /// Presses the power button, and kills a guest that does not obey.
    pub(crate) fn stop(&self, name: &str, ask: &VmStop) -> Result<Vm, Fault> {
        let limit = Duration::from_secs(ask.time_s.unwrap_or(STOP_S).min(STOP_S_MAX));
        let end = ask.status.map(|status| End::Command { status });
        let (record, runner) = self.change(name, |record, runner| {
            let state = self.view(record.clone(), &runner).state;
            refuse(state, Ask::Stop, &record.name)?;
            if state == State::Paused {
                runner.ask(&RunnerAsk::Resume)?;
            }
            let _ = runner.ask(&RunnerAsk::PowerButton { end: end.clone() });
            Ok((record, runner))
        })?;
        // Not in our turn any more: an impatient user may still kill it.
        if !runner.wait(Some(limit)) {
            runner.kill(end);
        }
        Ok(self.view(record, &runner))
    }

    /// Ends it now.
    pub(crate) fn kill(&self, name: &str, ask: &VmKill) -> Result<Vm, Fault> {
        self.change(name, |record, runner| {
            let state = self.view(record.clone(), &runner).state;
            refuse(state, Ask::Kill, &record.name)?;
            runner.kill(ask.status.map(|status| End::Command { status }));
            Ok(self.view(record, &runner))
        })
    }

    /// Forgets it, with all its files.
    pub(crate) fn remove(&self, name: &str, force: bool) -> Result<Vm, Fault> {
        self.change(name, |record, runner| {
            if force {
                runner.kill(None);
            }
            let view = self.view(record.clone(), &runner);
            refuse(view.state, Ask::Remove, &record.name)?;
            self.clear_kernel(&record);
            self.store.remove(&record.id)?;
            lock(&self.changing).remove(&record.id);
            Ok(view)
        })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> Result<viv_api::info::VmCount, Fault> {
        let records = self.store.all()?;
        let live = records.iter().filter(|record| self.runner(record).process().is_some()).count();
        Ok(viv_api::info::VmCount { live, all: records.len() })
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

fn refuse(state: State, ask: Ask, name: &str) -> Result<(), Fault> {
    next(state, ask).map(drop).map_err(|refused| {
        let verb = if ask == Ask::Remove { "remove" } else { ask.verb() };
        Fault::new(Kind::Conflict, format!("cannot {verb} VM {name:?}: it is {state}"), refused.fix(name))
    })
}

/// Removes the sockets of console ports outside the VM's directory, which its process itself may not remove.
fn clear_sockets(machine: &MachineSpec) {
    for path in machine.console_ports.iter().filter_map(|port| port.path.as_ref()) {
        let _ = socket::remove_left(path);
    }
}

fn no_random(error: std::io::Error) -> Fault {
    Fault::new(
        Kind::Error,
        format!("cannot make up a name: /dev/urandom: {error}"),
        "see that /dev/urandom can be read",
    )
}

/// Gives each disk the serial number that it has by its place now, so that it keeps it in another one.
fn keep_serials(disks: &mut [DiskSpec]) {
    for (index, disk) in disks.iter_mut().enumerate() {
        disk.serial = Some(disk.serial_of(index));
    }
}

/// The serial number that was wanted, or one, if no disk has it.
fn free_serial(disks: &[DiskSpec], wanted: Option<&String>) -> Result<String, Fault> {
    let free = |serial: &String| !disks.iter().any(|disk| disk.serial.as_ref() == Some(serial));
    match wanted {
        Some(serial) if free(serial) => Ok(serial.clone()),
        Some(serial) => Err(Fault::new(
            Kind::Conflict,
            format!("a disk of the VM has the serial number {serial:?} already"),
            "use another one, or none: then one is made up",
        )),
        None => Ok((0..).map(|n| format!("viv-disk-{n}")).find(free).unwrap_or_default()),
    }
}

pub(crate) fn absolute(path: &Path) -> Result<(), Fault> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(Fault::new(
        Kind::Usage,
        format!("{} is not an absolute path", path.display()),
        "name files from the root: the service does not know your directory",
    ))
}

/// The disk that is called by its number, from 0.
fn disk_index(record: &VmRecord, disk: &str) -> Result<usize, Fault> {
    let count = record.machine.disks.len();
    disk.parse::<usize>().ok().filter(|index| *index < count).ok_or_else(|| {
        let text = format!("{} has no disk {disk:?}: it has {count}", record.name);
        Fault::new(Kind::NotFound, text, "count from 0; see the disks with: viv inspect")
    })
}

/// Whether there is that much memory at all.
fn fits(memory_mib: u64) -> Result<(), Fault> {
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
/// Looks up the format of a disk whose user has not said it: now, before the guest has written to it, and never again
/// (docs/decisions/032).
fn resolve_disk(asked: &DiskSpec) -> Result<DiskSpec, Fault> {
    let format = asked.format.map_or_else(|| viv_block::probe(&asked.path), Ok)?;
    if format == DiskFormat::Raw && !asked.read_only {
        // File systems without extended attributes have the record alone.
        let _ = viv_block::mark_raw(&asked.path);
    }
    Ok(DiskSpec { format: Some(format), ..asked.clone() })
}
