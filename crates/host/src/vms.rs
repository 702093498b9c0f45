//! What may be done with VMs, and how.
use crate::admission::{Admission, Reservation, Share};
use crate::boot_code;
use crate::control_groups::ControlGroups;
use crate::creation::fits;
use crate::described;
use crate::disk_image;
use crate::disks;
use crate::events::tell_state;
use crate::guest_commands::{Runs, health_watch, main_command};
use crate::images::Images;
use crate::keep::Restarts;
use crate::networks::Networks;
use crate::places::Places;
use crate::precondition;
use crate::programs;
use crate::prune::{Gone, forget_others};
use crate::runners::Runner;
use crate::store::{Store, StoreError, VmRecord};
use crate::volumes;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::hash::Hash;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use viv_api::info::KvmState;
use viv_api::runner::{Ask as RunnerAsk, RESUME, RunnerSpec};
use viv_api::socket;
use viv_api::stats::VmStats;
use viv_api::timestamp::Timestamp;
use viv_api::vm::{Process, Vm, VmKill, VmMemory, VmStart, VmStop};
use viv_model::{Accel, Ask, End, Fault, Kind, MachineSpec, ProjectName, State, next};
use viv_snapshot::read_manifest;

/// How long a guest may take to switch itself off, seconds.
const STOP_S: u64 = 30;
/// The longest that a user may let it take, seconds.
const STOP_S_MAX: u64 = 24 * 3600;
/// Fewest digits of an identity that name a VM.
const ID_DIGITS_MIN: usize = 4;

/// All VMs of this host.
pub(crate) struct Vms {
    pub(crate) store: Box<dyn Store>,
    pub(crate) places: Places,
    pub(crate) images: Arc<Images>,
    pub(crate) networks: Networks,
    /// Held for reading by who makes a VM with volumes, so that none of them is removed meanwhile.
    pub(crate) volumes_kept: RwLock<()>,
    /// One change at a time for each VM.
    changing: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    /// Whose turn it is with the disks that a VM uses: see [`Vms::disks_turn`].
    disks_turns: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    /// Whose process has been started and has not yet said whether it runs.
    starting: Mutex<HashSet<String>>,
    pub(crate) admission: Admission,
    pub(crate) restarts: Restarts,
    pub(crate) control_groups: ControlGroups,
    hooks: Hooks,
}

/// What the service does for VMs in time to come.
pub(crate) struct Hooks {
    /// Told the identity of each VM that has a process, once.
    pub(crate) watch: Box<dyn Fn(Process, String) + Send + Sync>,
    /// Starts a VM again, after so long ([`Vms::start_again`]).
    pub(crate) later: Box<dyn Fn(String, Duration) + Send + Sync>,
}

/// Something that is in a set as long as this lives.
pub(crate) struct Held<'a, T: Eq + Hash> {
    pub(crate) all: &'a Mutex<HashSet<T>>,
    pub(crate) what: T,
}

impl<T: Eq + Hash> Drop for Held<'_, T> {
    fn drop(&mut self) {
        lock(self.all).remove(&self.what);
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
        hooks: Hooks,
    ) -> Vms {
        let admission = Admission::new(places.vms());
        let control_groups = ControlGroups::find(&places.state);
        Vms {
            store,
            places,
            images,
            networks,
            volumes_kept: RwLock::default(),
            changing: Mutex::default(),
            disks_turns: Mutex::default(),
            starting: Mutex::default(),
            admission,
            restarts: Restarts::default(),
            control_groups,
            hooks,
        }
    }

    /// Finds the VMs that live on from an earlier service, and forgets those that were to be.
    pub(crate) fn adopt(&self) -> Result<(), Fault> {
        self.load_limits()?;
        self.load_projects()?;
        self.after_boot()?;
        let records = self.store.all()?;
        let known = records.iter().map(|record| record.id.clone()).collect();
        forget_others(&self.places.translated(), &known, &mut Gone::default());
        volumes::forget_unfinished(&self.places, Duration::ZERO, &mut Gone::default());
        for record in records {
            let runner = self.runner(&record);
            self.admission.take(Share::Described, &record.id, record.claim());
            match runner.process() {
                Some(process) => {
                    self.admission.take(Share::Running, &record.id, record.claim());
                    self.plug_in_again(&record, &runner);
                    (self.hooks.watch)(process, record.id);
                }
                None => self.ended(&record.id),
            }
        }
        Ok(())
    }

    /// Does what is left to do after a VM's process has ended.
    pub(crate) fn ended(&self, id: &str) {
        let Ok(Some(record)) = self.store.by_id(id) else { return };
        let runner = self.runner(&record);
        if runner.process().is_some() {
            return; // it has been started again meanwhile
        }
        clear_sockets(&record.machine);
        self.clear_kernel(&record);
        self.forget_translated(id);
        if lock(&self.starting).contains(id) {
            return;
        }
        self.admission.give_back(Share::Running, id);
        let end = self.last_end(&record, &runner);
        if !runner.dir().exists() {
            return; // it is just being forgotten, and its end with it
        }
        if let Some((end, _)) = end {
            tell_state(&*self.store, id, &record.name, state_after(&end), Some(end.clone()));
            self.keep(&record, &end);
        }
        let attended = record.attended_by.is_some_and(|owner| owner.is_alive());
        // A command in the foreground still wants to know how it ended, and removes it then.
        if record.remove && record.started_at.is_some() && !attended {
            let _ = self.remove(id, false);
        }
    }

    /// What a process had made of its guest's code is of no use to the next one.
    fn forget_translated(&self, id: &str) {
        let _ = fs::remove_file(self.places.translated().join(id));
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

    /// Whether it has a process, or is about to.
    pub(crate) fn is_live(&self, record: &VmRecord) -> bool {
        self.runner(record).process().is_some() || lock(&self.starting).contains(&record.id)
    }

    /// Starts it again after so long.
    pub(crate) fn later(&self, id: String, delay: Duration) {
        (self.hooks.later)(id, delay);
    }

    pub(crate) fn runner(&self, record: &VmRecord) -> Runner {
        Runner::new(self.places.vms().join(&record.id))
    }

    /// The runner and the record of the VM with this identity.
    pub(crate) fn find(&self, id: &str) -> Result<(VmRecord, Runner), Fault> {
        let record = self.store.by_id(id)?.ok_or_else(|| StoreError::Missing { id: id.to_string() })?;
        let runner = self.runner(&record);
        Ok((record, runner))
    }

    /// The VM of a project that has this name, this identity, or one that begins so. A VM of another project is as if it were not there.
    pub(crate) fn named(&self, project: &ProjectName, name: &str) -> Result<VmRecord, Fault> {
        if let Some(record) = self.store.by_name(project, name)? {
            return Ok(record);
        }
        match self.store.by_id(name)?.filter(|record| record.project == *project) {
            Some(record) => Ok(record),
            None => self.beginning_with(project, name),
        }
    }

    /// The VM of a project whose identity begins so.
    fn beginning_with(&self, project: &ProjectName, digits: &str) -> Result<VmRecord, Fault> {
        let records = if digits.len() >= ID_DIGITS_MIN { self.store.all()? } else { Vec::new() };
        let mut matching =
            records.into_iter().filter(|record| record.project == *project && record.id.starts_with(digits));
        match (matching.next(), matching.next()) {
            (Some(record), None) => Ok(record),
            (Some(_), Some(_)) => Err(Fault::new(
                Kind::Usage,
                format!("the ids of several VMs begin with {digits:?}"),
                "write more digits, or the name: viv ps -a",
            )),
            (None, _) => Err(Fault::new(
                Kind::NotFound,
                format!("no VM is called {digits:?}"),
                "see what there is: viv ps -a",
            )),
        }
    }

    /// All records.
    pub(crate) fn records(&self) -> Result<Vec<VmRecord>, Fault> {
        Ok(self.store.all()?)
    }

    /// One change of a VM at a time.
    pub(crate) fn change<T>(
        &self,
        id: &str,
        act: impl FnOnce(VmRecord, Runner) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let (record, _) = self.find(id)?;
        let turn = lock(&self.changing).entry(record.id.clone()).or_default().clone();
        let _turn = lock(&turn);
        let (record, runner) = self.find(id)?; // as it is now that it is our turn
        precondition::check(&record.name, self.store.revision_of(&record.id))?;
        act(record, runner)
    }

    /// Held by whoever puts images above disks that a VM uses, or resizes such disks: longer than it takes to change its record.
    pub(crate) fn disks_turn(&self, id: &str) -> Arc<Mutex<()>> {
        let mut turns = lock(&self.disks_turns);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(id.to_string()).or_default().clone()
    }

    /// The VM as it is now.
    pub(crate) fn get(&self, id: &str) -> Result<Vm, Fault> {
        let (record, runner) = self.find(id)?;
        Ok(self.view(record, &runner))
    }

    /// What it has used and done: now, or when it ended.
    pub(crate) fn stats(&self, id: &str) -> Result<VmStats, Fault> {
        let (record, runner) = self.find(id)?;
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
        // One that was never started has none to look for.
        let process = record.started_at.and_then(|_| runner.process());
        let status = process.and_then(|_| runner.status().ok());
        let begins = lock(&self.starting).contains(&record.id);
        let is_starting = process.is_some() || begins;
        let last = if is_starting { None } else { self.last_end(&record, runner) };
        // One that hangs is what it was when it last answered.
        let hangs = process.is_some() && status.is_none() && !begins;
        let before = self.store.told(&record.id).filter(|state| hangs && state.is_live());
        let state = match (&status, is_starting, &last) {
            (Some(status), ..) => status.state,
            (None, true, _) => before.unwrap_or(State::Starting),
            (None, false, None) => State::Defined,
            (None, false, Some((end, _))) => state_after(end),
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
            answers: !hangs,
            revision: self.store.revision_of(&record.id),
            restart: record.restart,
            kind: record.kind(),
            id: record.id,
            name: record.name,
            project: record.project,
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

    /// Remembers a VM whose directory is there already, with an address in the network that it was in; if that is gone, it
    /// is plugged into nothing.
    fn insert_with_address(&self, record: &mut VmRecord) -> Result<(), Fault> {
        fits(record.machine.memory_mib)?;
        let share = self.describe(record)?;
        let _turn = self.networks.hold();
        let groups = &self.networks.groups;
        record.groups.iter().try_for_each(|group| groups.find(&record.project, group).map(drop))?;
        self.find_places(&record.project, &mut record.machine.nics)?;
        self.store.insert(record)?;
        share.keep();
        Ok(())
    }

    /// Remembers which snapshot it came from last.
    pub(crate) fn came_from(&self, id: &str, snapshot: &str) -> Result<(), Fault> {
        self.change(id, |record, _| {
            Ok(self.store.update(&VmRecord { snapshot: Some(snapshot.to_string()), ..record })?)
        })
    }

    /// Starts a VM that has no process.
    pub(crate) fn start(&self, id: &str, ask: &VmStart) -> Result<Vm, Fault> {
        self.change(id, |record, runner| {
            let state = self.view(record.clone(), &runner).state;
            refuse(state, Ask::Start, &record.name)?;
            let _starting = self.starting(&record.id);
            let share = self.run(&record)?;
            let ran_before = record.started_at.is_some();
            let mut record = VmRecord {
                started_at: Some(Timestamp::now()),
                attended_by: ask.attended_by,
                wanted: !record.restart.is_never(),
                ..record
            };
            if !runner.resumes() {
                // What boots knows nothing from before.
                record.machine.nics.iter_mut().for_each(|nic| nic.aliases.clear());
                if ran_before && disk_image::boots_itself(&record, runner.dir()) {
                    disk_image::look_again(&mut record, runner.dir(), &self.places)?;
                }
            }
            // A disk may have been made larger meanwhile.
            record.disk_mib = disks::fill_mib(&record.machine.disks);
            self.update_grown(&record, || Ok(()))?;
            let vm = self.launch(record, &runner, Runs::All)?;
            share.keep();
            Ok(vm)
        })
    }

    /// Remembers a new VM whose directory is there already, and starts it; `runs` says what runs in it if it goes on from somewhere.
    /// Its files are gone if it is not remembered.
    pub(crate) fn insert_and_start(&self, record: VmRecord, ask: &VmStart, runs: Runs) -> Result<Vm, Fault> {
        let runner = self.runner(&record);
        let _starting = self.starting(&record.id);
        // Written once: it is as good as started.
        let mut record = VmRecord {
            started_at: Some(Timestamp::now()),
            attended_by: ask.attended_by,
            disk_mib: disks::fill_mib(&record.machine.disks),
            ..record
        };
        let share = self.run(&record)?;
        self.insert_with_address(&mut record).inspect_err(|_| drop(fs::remove_dir_all(runner.dir())))?;
        let id = record.id.clone();
        let vm = self.change(&id, |record, runner| self.launch(record, &runner, runs))?;
        share.keep();
        Ok(vm)
    }

    /// Takes its share of what may be described.
    pub(crate) fn describe(&self, record: &VmRecord) -> Result<Reservation<'_>, Fault> {
        self.control_groups.of(&record.id, record.machine.cpu_weight)?;
        let gone =
            |id: &str| matches!(self.store.by_id(id), Ok(None)) && !self.places.vms().join(id).exists();
        self.admission.reserve(Share::Described, &record.id, record.claim(), &gone)
    }

    /// Writes down a VM that may need more than before, when `act` has been done with its share taken.
    pub(crate) fn update_grown(
        &self,
        record: &VmRecord,
        act: impl FnOnce() -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let share = self.describe(record)?;
        act()?;
        self.store.update(record)?;
        share.keep();
        Ok(())
    }

    /// Writes down a VM that needs no more than before.
    pub(crate) fn update_shrunk(&self, record: &VmRecord) -> Result<(), Fault> {
        self.store.update(record)?;
        self.describe_less(record);
        Ok(())
    }

    /// Its share of what may be described is what it now needs, which is no more than before.
    pub(crate) fn describe_less(&self, record: &VmRecord) {
        self.admission.take(Share::Described, &record.id, record.claim());
    }

    /// Takes its share of the host.
    fn run(&self, record: &VmRecord) -> Result<Reservation<'_>, Fault> {
        let gone = |id: &str| {
            !lock(&self.starting).contains(id) && Runner::new(self.places.vms().join(id)).process().is_none()
        };
        self.admission.reserve(Share::Running, &record.id, record.claim(), &gone)
    }

    /// Until what it gives is dropped, the VM counts as one that starts.
    fn starting(&self, id: &str) -> Held<'_, String> {
        lock(&self.starting).insert(id.to_string());
        Held { all: &self.starting, what: id.to_string() }
    }

    /// Starts the process of a VM that is remembered as started; `runs` says what runs in its guest if it goes on from somewhere.
    fn launch(&self, record: VmRecord, runner: &Runner, runs: Runs) -> Result<Vm, Fault> {
        let mut machine = record.machine.clone();
        // Known for as long as the host is up: the VM's process need not find it out again.
        let is_computer = !record.kind().is_program();
        let kvm_is_good = || crate::info::kvm(&self.places).state == KvmState::Good;
        if is_computer && machine.accel == Accel::Auto && !kvm_is_good() {
            machine.accel = Accel::Soft;
        }
        let beside_kvm = is_computer && machine.accel == Accel::Soft && kvm_is_good();
        let from = runner.dir().join(RESUME);
        let resume = runner.resumes();
        if !resume && from.exists() {
            // Whoever was just going on from it has been killed over its removal.
            let _ = fs::remove_dir_all(&from);
        }
        let runs = if resume { runs } else { Runs::Nothing };
        let has_main = record.process.is_some() || record.command.is_some();
        // One that cannot be read is the process's to tell.
        let is_copy = resume && read_manifest(&from).is_ok_and(|manifest| manifest.vm.0 != record.id);
        let boots_on_soft = is_computer && !resume && machine.accel == Accel::Soft;
        let translated = boots_on_soft.then(|| boot_code::of(&self.places, &machine.kernel)).flatten();
        let spec = RunnerSpec {
            name: record.name.clone(),
            machine,
            on_reboot: record.on_reboot,
            attended_by: record.attended_by,
            command: main_command(&record, runs)?,
            attend: runs != Runs::Nothing && has_main,
            health: health_watch(&record)?,
            program: programs::told(&record, runner.dir(), &self.places),
            resume,
            translated,
            is_copy,
            beside_kvm,
        };
        let start = || {
            let group = self.control_groups.of(&record.id, record.machine.cpu_weight)?;
            runner.start(&spec, &self.plug_in_all(&record)?, group.as_ref())
        };
        match start() {
            Ok(status) => {
                (self.hooks.watch)(status.process, record.id.clone());
                lock(&self.starting).remove(&record.id);
                let vm = self.view(record, runner);
                self.tell_view(&vm);
                Ok(vm)
            }
            Err(fault) => {
                self.clear_kernel(&record);
                let end = End::Failed { message: fault.message.clone() };
                runner.set_end(&end);
                tell_state(&*self.store, &record.id, &record.name, State::Failed, Some(end));
                Err(fault)
            }
        }
    }

    /// Lets its vCPUs stand still or go on.
    pub(crate) fn step(&self, id: &str, ask: Ask) -> Result<Vm, Fault> {
        self.change(id, |record, runner| {
            let state = self.view(record.clone(), &runner).state;
            refuse(state, ask, &record.name)?;
            runner.ask(&if ask == Ask::Pause { RunnerAsk::Pause } else { RunnerAsk::Resume })?;
            let vm = self.view(record, &runner);
            self.tell_view(&vm);
            Ok(vm)
        })
    }

    /// Looks how it is, and tells its state if that is another one than before.
    pub(crate) fn look(&self, record: VmRecord) {
        let runner = self.runner(&record);
        self.tell_view(&self.view(record, &runner));
    }

    /// Tells its state, if it is another one than before; its end is told when its process is seen to be gone.
    fn tell_view(&self, vm: &Vm) {
        if vm.state.is_live() {
            tell_state(&*self.store, &vm.id, &vm.name, vm.state, None);
        }
    }

    /// Asks a running guest to get by with so much memory.
    pub(crate) fn resize_memory(&self, id: &str, ask: &VmMemory) -> Result<Vm, Fault> {
        self.change(id, |record, runner| {
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

    /// Presses the power button, and kills a guest that does not obey.
    pub(crate) fn stop(&self, id: &str, ask: &VmStop) -> Result<Vm, Fault> {
        let limit = Duration::from_secs(ask.time_s.unwrap_or(STOP_S).min(STOP_S_MAX));
        let end = ask.status.map(|status| End::Command { status });
        let (record, runner) = self.change(id, |mut record, runner| {
            let waits = record.wanted && !self.is_live(&record);
            self.set_wanted(&mut record, false)?;
            let state = self.view(record.clone(), &runner).state;
            if waits {
                return Ok((record, runner)); // it will not be started again
            }
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
    pub(crate) fn kill(&self, id: &str, ask: &VmKill) -> Result<Vm, Fault> {
        self.change(id, |mut record, runner| {
            let waits = record.wanted && !self.is_live(&record);
            self.set_wanted(&mut record, false)?;
            let state = self.view(record.clone(), &runner).state;
            if waits {
                return Ok(self.view(record, &runner));
            }
            refuse(state, Ask::Kill, &record.name)?;
            runner.kill(ask.status.map(|status| End::Command { status }));
            Ok(self.view(record, &runner))
        })
    }

    /// Forgets it, with all its files.
    pub(crate) fn remove(&self, id: &str, force: bool) -> Result<Vm, Fault> {
        self.change(id, |mut record, runner| {
            if force {
                self.set_wanted(&mut record, false)?;
                runner.kill_by_force();
            }
            let view = self.view(record.clone(), &runner);
            refuse(view.state, Ask::Remove, &record.name)?;
            self.clear_kernel(&record);
            self.forget_translated(id);
            self.store.remove(&record.id)?;
            self.restarts.forget(&record.id);
            self.admission.give_back(Share::Described, &record.id);
            self.admission.give_back(Share::Running, &record.id);
            lock(&self.changing).remove(&record.id);
            self.control_groups.forget(&record.id);
            Ok(view)
        })
    }

    /// How many there are: of all, or in a project.
    pub(crate) fn count(&self, project: Option<&ProjectName>) -> Result<viv_api::info::VmCount, Fault> {
        let mut records = self.store.all()?;
        records.retain(|record| project.is_none_or(|project| record.project == *project));
        let live = records.iter().filter(|record| self.runner(record).process().is_some()).count();
        Ok(viv_api::info::VmCount { live, all: records.len() })
    }
}

/// The state of a VM that has ended so.
fn state_after(end: &End) -> State {
    match end {
        End::Panic
        | End::TripleFault
        | End::Failed { .. }
        | End::Trap { .. }
        | End::Limit { .. }
        | End::Timeout { .. } => State::Failed,
        _ => State::Stopped,
    }
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
