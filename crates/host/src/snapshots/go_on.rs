//! VMs that go on from snapshots: new ones and forks.
use super::make::{Made, Purpose};
use super::{Snapshots, io_fault, link, new_id};
use crate::apart;
use crate::creation;
use crate::guest_commands::Runs;
use crate::images::Unwatched;
use crate::plugs::card;
use crate::runners::Runner;
use crate::seed::{self, SEED, SETTINGS};
use crate::store::{Asked, Request, VmRecord};
use std::fs::{self, DirBuilder, OpenOptions};
use std::num::NonZero;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;
use viv_api::info::KvmState;
use viv_api::runner::{FIRST, MEMORY_BOARD, MEMORY_WANTED, RESUME, TRANSLATED};
use viv_api::snapshot::{SnapshotCreate, SnapshotRestore, VmFork};
use viv_api::vm::{Vm, VmStart};
use viv_block::{CreateOptions, Qcow2};
use viv_model::{
    Accel, DiskContent, DiskFormat, DiskSpec, Fault, GuestKind, Kind, MachineSpec, Manifest, NetKind,
    PortSpec, ProjectName,
};
use viv_snapshot::{
    DRAFT, IMAGE, INITRD, KERNEL, MANIFEST, MEMORY, STATE, content_files, disk_file, layer_file, map_file,
};

/// How long after a guest goes on it is looked what it has reached of its memory: what it does then is no longer what each of them does.
const FIRST_TIME: Duration = Duration::from_secs(1);
/// Most forks at a time.
const FORKS_MAX: u32 = 1000;

impl Snapshots {
    /// A new VM that goes on from a snapshot, in its project, and runs.
    pub(crate) fn restore(
        &self,
        project: &ProjectName,
        name: &str,
        ask: &SnapshotRestore,
        request: Option<Request>,
    ) -> Result<Vm, Fault> {
        let (dir, manifest) = self.find(project, name)?;
        self.verify_disks(&dir, &manifest)?;
        let snapshot = Some(manifest.id.clone());
        let record = VmRecord { snapshot, request, ..self.record(&manifest, ask)? };
        self.go_on(&dir, &manifest, record, &ask.ports, &VmStart::default(), Runs::All)
    }

    /// What is known of the VM before it has a machine.
    pub(super) fn record(&self, manifest: &Manifest, ask: &SnapshotRestore) -> Result<VmRecord, Fault> {
        let id = new_id()?;
        let name = self.vms.name(&manifest.project, ask.name.as_deref())?;
        let image = manifest.image.as_ref().and_then(|image| self.vms.image(image));
        // It may come from a host that has what this one has not.
        let can_weigh = self.vms.control_groups.version().is_ok();
        let machine = manifest.machine.clone();
        let accel = ask.accel.unwrap_or_else(|| self.usual_accel(machine.accel));
        let cpu_weight = machine.cpu_weight.filter(|_| can_weigh);
        let append = creation::named(&machine.append, &name);
        let machine = MachineSpec { cpu_weight, accel, append, ..machine };
        let record = VmRecord {
            project: manifest.project.clone(),
            image: manifest.image.clone(),
            program: manifest.program.clone(),
            process: image.as_ref().and_then(|image| image.manifest.process()).cloned(),
            boots_itself: image.is_some_and(|image| image.manifest.boots_itself()),
            remove: ask.remove,
            snapshot: manifest.parent.clone(),
            groups: manifest.groups.clone(),
            labels: manifest.labels.clone(),
            ..VmRecord::new(&id, &name, machine)
        };
        let Some(asked) = &manifest.asked else { return Ok(record) };
        let asked = Asked::of(asked).map_err(|error| {
            let text = format!("what the snapshot says of its VM is not understood: {error}");
            Fault::new(Kind::Error, text, "restore it with the release that made it, or a newer one")
        })?;
        Ok(record.with(asked))
    }

    /// What a snapshot of a machine on `saved` goes on with if nobody says it: the same, as far as this host has it.
    fn usual_accel(&self, saved: Accel) -> Accel {
        let is_here = || crate::info::kvm(&self.places).state == KvmState::Good;
        if saved == Accel::Kvm && !is_here() { Accel::Soft } else { saved }
    }

    /// A VM that goes on from there, where `runs` is what runs of it.
    pub(super) fn go_on(
        &self,
        from: &Path,
        manifest: &Manifest,
        record: VmRecord,
        ports: &[PortSpec],
        start: &VmStart,
        runs: Runs,
    ) -> Result<Vm, Fault> {
        let dir = self.places.vms().join(&record.id);
        let made = lay_out(from, manifest, &dir)
            .and_then(|mut machine| plug(&mut machine, ports, &record).map(|()| machine));
        let laid = made.inspect_err(|_| drop(fs::remove_dir_all(&dir)))?;
        if manifest.program.is_none() {
            // It begins with that, and need not say it again soon.
            let _ = fs::hard_link(from.join(TRANSLATED), self.places.translated().join(&record.id));
        }
        let (id, runner) = (record.id.clone(), self.vms.runner(&record));
        let MachineSpec { accel, cpu_weight, append, .. } = record.machine;
        let machine = MachineSpec { accel, cpu_weight, append, ..laid };
        let vm = self.vms.insert_and_start(VmRecord { machine, ..record }, start, runs);
        let vm = vm.inspect_err(|_| drop(self.vms.remove(&id, true)))?;
        if !manifest.memory_arrives() && manifest.program.is_none() && !from.join(FIRST).exists() {
            let from = from.to_path_buf();
            // Without it, those who come later need a little longer.
            let keeping = thread::Builder::new().name("first".into());
            let _ = keeping.spawn(move || keep_first(&from, &runner));
        }
        Ok(vm)
    }

    /// VMs that go on from where a running one is, beside it; those that there are, if the request has been answered before.
    pub(crate) fn fork(&self, vm: &str, ask: &VmFork, request: Option<Request>) -> Result<Vec<Vm>, Fault> {
        if !(1..=FORKS_MAX).contains(&ask.count) {
            return Err(Fault::new(
                Kind::Usage,
                format!("cannot make {} forks", ask.count),
                format!("use --count with 1 to {FORKS_MAX}"),
            ));
        }
        let of = |number| request.as_ref().map(|request| request.numbered(number));
        let _busy = request.as_ref().map(|request| self.begin(request)).transpose()?;
        let before = (1..=ask.count).filter_map(of).map(|each| self.vms.described_by(&each));
        let before: Vec<Vm> = before.filter_map(Result::transpose).collect::<Result<_, Fault>>()?;
        if before.len() == ask.count as usize {
            return Ok(before);
        }
        // The service was killed over them, and what belongs together is of one moment.
        for vm in before {
            self.vms.remove(&vm.id, true)?;
        }
        let (source, _) = self.vms.find(vm)?;
        let base = ask.name.clone().unwrap_or_else(|| format!("{}-fork", source.name));
        let alone = ask.count == 1 && ask.name.is_some();
        let name = |number: u32| if alone { base.clone() } else { format!("{base}-{number}") };
        if source.kind() == GuestKind::Evm {
            let forks = (1..=ask.count).map(|number| (name(number), of(number)));
            return self.vms.fork_chain(&source, forks, ask.remove);
        }
        let comment = format!("of a fork of {}", source.name);
        let between = SnapshotCreate { comment, drop_sockets: ask.drop_sockets, ..SnapshotCreate::default() };
        let made = self.make(vm, &between, Purpose::Fork, new_id()?, &Unwatched)?;
        let Made { dir, manifest, .. } = &made;
        let one = |number| {
            let ask = SnapshotRestore { name: Some(name(number)), remove: ask.remove, ..Default::default() };
            let record = VmRecord { request: of(number), ..self.record(manifest, &ask)? };
            self.go_on(dir, manifest, record, &[], &VmStart::default(), Runs::All)
        };
        let (mut made, mut failed) = (Vec::new(), None);
        for one in side_by_side(ask.count, &one) {
            match one {
                Ok(vm) => made.push(vm),
                Err(fault) => drop(failed.get_or_insert(fault)),
            }
        }
        // The forks have links to what they need of it.
        let _ = self.discard(dir);
        let Some(fault) = failed else { return Ok(made) };
        for vm in &made {
            let _ = self.vms.remove(&vm.id, true);
        }
        Err(fault)
    }
}

/// Makes all, as many at a time as the host has processors, until one fails; in order.
fn side_by_side<T: Send>(
    count: u32,
    make: &(impl Fn(u32) -> Result<T, Fault> + Sync),
) -> Vec<Result<T, Fault>> {
    let (next, failed) = (AtomicU32::new(1), AtomicBool::new(false));
    let work = || {
        let mut made = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number > count {
                break;
            }
            let one = make(number);
            failed.fetch_or(one.is_err(), Ordering::Relaxed);
            made.push((number, one));
        }
        made
    };
    let workers = thread::available_parallelism().map_or(1, NonZero::get).min(count as usize);
    let mut made: Vec<_> = thread::scope(|scope| {
        // With as many as the host lets us have.
        let other = |_| thread::Builder::new().spawn_scoped(scope, work).ok();
        let others: Vec<_> = (1..workers).filter_map(other).collect();
        let mut made = work();
        made.extend(others.into_iter().flat_map(|other| other.join().unwrap_or_default()));
        made
    });
    made.sort_by_key(|(number, _)| *number);
    made.into_iter().map(|(_, one)| one).collect()
}

/// What the first guest that goes on from a snapshot reaches of its memory comes beside the snapshot: the next one's is read beside it.
fn keep_first(dir: &Path, runner: &Runner) {
    thread::sleep(FIRST_TIME);
    let path = dir.join(FIRST);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(&path);
    // Somebody else's who was as soon stays.
    let Ok(file) = file else { return };
    if !matches!(runner.reached(&file), Ok(true)) {
        let _ = fs::remove_file(&path);
    }
}

/// Lays into a directory all that a VM needs that goes on from a snapshot; gives its machine.
pub(super) fn lay_out(from: &Path, manifest: &Manifest, dir: &Path) -> Result<MachineSpec, Fault> {
    let resume = dir.join(RESUME);
    DirBuilder::new().recursive(true).mode(0o700).create(&resume).map_err(io_fault("make", &resume))?;
    link(&from.join(STATE), &resume.join(STATE))?;
    // A draft may become the manifest just now.
    let place = |name| link(&from.join(name), &resume.join(MANIFEST));
    place(MANIFEST).or_else(|_| place(DRAFT)).or_else(|_| place(MANIFEST))?;
    if manifest.memory_arrives() {
        // A copy would be another file than that into which it comes.
        for name in [MEMORY, MEMORY_BOARD, MEMORY_WANTED] {
            let path = resume.join(name);
            fs::hard_link(from.join(name), &path).map_err(io_fault("make", &path))?;
        }
    } else {
        for (name, _) in content_files(MEMORY, &manifest.memory) {
            link(&from.join(&name), &resume.join(&name))?;
        }
    }
    for name in [TRANSLATED, FIRST] {
        if from.join(name).exists() {
            link(&from.join(name), &resume.join(name))?;
        }
    }
    let mut machine = manifest.machine.clone();
    for file in &manifest.files {
        link(&from.join(&file.name), &dir.join(&file.name))?;
        match file.name.as_str() {
            KERNEL => machine.kernel = dir.join(KERNEL),
            INITRD => machine.initrd = Some(dir.join(INITRD)),
            IMAGE => {
                let image = machine.disks.iter_mut().filter(|disk| disk.read_only);
                image
                    .filter(|disk| disk.path.file_name() == Some(IMAGE.as_ref()))
                    .for_each(|disk| disk.path = dir.join(IMAGE));
            }
            SEED => {
                let seeds = machine.disks.iter_mut().filter(|disk| seed::is_seed(disk));
                seeds.for_each(|disk| disk.path = dir.join(SEED));
            }
            SETTINGS => seed::forget_files(dir)?,
            _ => {}
        }
    }
    apart::lay_out(from, &mut machine, dir)?;
    for disk in &manifest.disks {
        let spec = machine.disks.get_mut(disk.index).ok_or_else(|| {
            let text = format!("the snapshot has a disk {} that its machine has not", disk.index);
            Fault::new(Kind::Error, text, "use another snapshot")
        })?;
        let (base, format) = lay_disk(from, disk, dir)?;
        let path = dir.join(format!("{}.qcow2", disk_file(disk.index)));
        let backing = Some((base, format.name().to_string()));
        Qcow2::create(&path, &CreateOptions { backing, ..CreateOptions::new(disk.content.bytes) })?;
        *spec = DiskSpec { path, format: Some(DiskFormat::Qcow2), allow: Vec::new(), ..spec.clone() };
    }
    Ok(machine)
}

/// Lays into a directory what a disk held, to be below the VM's own; gives its file's name and format.
fn lay_disk(from: &Path, disk: &DiskContent, dir: &Path) -> Result<(String, DiskFormat), Fault> {
    let (name, content) = (disk_file(disk.index), &disk.content);
    let base = format!("{name}.base");
    let place = |was: String, is: &str| link(&from.join(was), &dir.join(is));
    place(name.clone(), &base)?;
    if content.below.is_empty() {
        return Ok((base, DiskFormat::Raw));
    }
    place(map_file(&name), &map_file(&base))?;
    let mut layers = vec![base.clone()];
    for (depth, layer) in (1..).zip(&content.below) {
        let (was, is) = (layer_file(&name, depth), layer_file(&base, depth));
        if layer.map.is_some() {
            place(map_file(&was), &map_file(&is))?;
        }
        place(was, &is)?;
        layers.push(is);
    }
    let lowest = layers.pop().unwrap_or_default();
    let above: Vec<_> = layers.into_iter().map(|layer| (layer.clone(), map_file(&layer))).collect();
    let text = format!("{name}.layers");
    let path = dir.join(&text);
    fs::write(&path, viv_block::layers_text(content.bytes, &above, &lowest))
        .map_err(io_fault("write", &path))?;
    Ok((text, DiskFormat::Layers))
}

/// Plugs in the cards of a new VM; its console's ports have their sockets in its own directory.
fn plug(machine: &mut MachineSpec, ports: &[PortSpec], record: &VmRecord) -> Result<(), Fault> {
    let vm = &record.id;
    // The VM that was saved may have its sockets still.
    machine.console_ports.iter_mut().for_each(|port| port.path = None);
    for nic in &mut machine.nics {
        // In a network that VMs share, the VM that was saved may still be.
        match &nic.net {
            NetKind::Named(_) => nic.rebind(card(vm, nic.id)),
            // Nor can two have one address of the host's surroundings.
            NetKind::Bridge(_) => {
                nic.rebind(card(vm, nic.id));
                nic.address = None;
            }
            NetKind::Tap(_) => (nic.net, nic.address) = (NetKind::None, None),
            NetKind::User { .. } | NetKind::None => {}
        }
    }
    if record.kind() == GuestKind::Wasm && machine.nics.is_empty() {
        GuestKind::Wasm.check_ports(ports)?;
        // Each in the place of one that it had.
        if ports.len() > machine.ports.len() {
            let had = machine.ports.len();
            let text =
                format!("the program of the snapshot listens at {had} ports, and not at {}", ports.len());
            return Err(Fault::new(
                Kind::Usage,
                text,
                "publish as many with -p, in the same order, or fewer",
            ));
        }
        machine.ports = ports.to_vec();
        return Ok(());
    }
    // They lead to the card that had some, or to the first.
    let with_ports = machine.nics.iter().position(|nic| !nic.ports.is_empty());
    machine.nics.iter_mut().for_each(|nic| nic.ports.clear());
    match machine.nics.get_mut(with_ports.unwrap_or(0)) {
        Some(nic) => nic.ports = ports.to_vec(),
        None if ports.is_empty() => {}
        None => {
            return Err(Fault::new(
                Kind::Usage,
                "the snapshot's VM has no network card: it cannot publish ports",
                "leave out -p, or start a new VM with it",
            ));
        }
    }
    Ok(())
}
