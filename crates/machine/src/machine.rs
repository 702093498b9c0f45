//! A machine from its description to its end.
use crate::acpi;
use crate::board::{Board, Built, NamedWork, Nic, Plan};
use crate::boot::{self, BootFiles};
use crate::core::{CpuSlot, KvmWires, Phase, SoftWires, Wires, World, lock};
use crate::drives::{Drives, HandedFiles};
use crate::files;
use crate::hot_plug::Place;
use crate::identity::{self, Identity};
use crate::layout::{self, ACPI_TABLES, MIB};
use crate::parts::{ConsoleSink, Doorbells, Work};
use crate::saving;
use crate::threads::{self, Engine};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use viv_arch::processor::Processor;
use viv_arch::saved::MachineSaved;
use viv_arch::x86::{Activity, CpuState};
use viv_block::{DiskCounts, Shortage};
use viv_cpu::CpuError;
use viv_cpu::kvm::{CpuLevel, KvmPlaces, KvmVm, KvmWorth, probe_kvm};
use viv_cpu::soft::{self, KeptCode, PerfMap, ShownStats, SoftCpu, SoftStats};
use viv_cpu::timebase::Timebase;
use viv_devices::virtio::GuestMemoryStats;
use viv_mem::{Gpa, GuestMemory, MemError, SavedMemory};
use viv_model::{
    Accel, DiskLimits, DiskSpec, End, Fault, Kind, MEMORY_MIB_MIN, MachineSpec, NicSpec, SoftSpec,
};
use viv_net::port::NetPort;
use viv_net::vsock::{VsockGuest, VsockMuxer, Waker};

/// How long vCPUs may take to stand still.
const PAUSE_TIME_MAX: Duration = Duration::from_secs(10);

/// Takes what the guest writes to its console.
pub type ConsoleWriter = Box<dyn Fn(&[u8]) + Send + Sync>;

/// The machine's ends towards its process.
pub struct MachineIo {
    /// Takes what the guest writes to its console. Called from one thread of the machine; while it blocks, the
    /// guest is slowed down.
    pub console: ConsoleWriter,
    /// What the network cards are plugged into, in the guest's order.
    pub ports: Vec<Arc<dyn NetPort>>,
    /// The Unix socket to serve the guest's vsock on.
    pub vsock: Option<PathBuf>,
    /// The sockets of the servers of shared directories ([`viv_share::link`]), in the guest's order.
    pub shares: Vec<UnixStream>,
    /// The console's named ports, each with the socket for its clients, which does not block.
    pub console_ports: Vec<(String, UnixListener)>,
    /// What [`Machine::translated`] gave where a saved machine goes on from, in a file of its own.
    pub translated: Option<KeptCode>,
    /// This host's KVM is good: a machine that boots on the software CPU is shown what it would be shown on KVM, as far as both have
    /// it, so that it can go on there.
    pub beside_kvm: bool,
}

/// How often a device that shall go is looked for.
const EJECT_LOOK: Duration = Duration::from_millis(5);

/// What a machine has used so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineStats {
    /// Guest time since the first start, nanoseconds; pauses do not count.
    pub uptime_ns: u64,
    /// Processor time of the host that each vCPU has used.
    pub vcpu_time: Vec<Duration>,
    /// The counts of each vCPU that is the software CPU.
    pub soft: Vec<SoftStats>,
    /// What has passed each disk since the start, by its serial number.
    pub disks: Vec<(String, DiskCounts)>,
    /// Bytes of its memory that the guest has given back, because it was asked to.
    pub given_back: u64,
    /// Bytes that it has taken in addition to what it was started with.
    pub taken: u64,
    /// What the guest says of its memory.
    pub guest_memory: GuestMemoryStats,
}

/// What a machine begins with.
pub(crate) enum Origin<'a> {
    /// Its kernel.
    Boot { kernel: Vec<u8>, initrd: Option<Vec<u8>> },
    /// What was saved.
    Saved(&'a MachineSaved),
}

/// What waits for the start.
struct Parked {
    engines: Vec<Engine>,
    work: Vec<(&'static str, Work)>,
    console: ConsoleWriter,
}

/// A whole computer.
pub struct Machine {
    pub(crate) board: Arc<Board>,
    pub(crate) world: Arc<World>,
    accel: Accel,
    pub(crate) kvm: Option<Arc<KvmVm>>,
    pub(crate) identity: Identity,
    bells: Option<Arc<Doorbells>>,
    shown: Vec<Arc<ShownStats>>,
    /// kvmclock's value at the last pause.
    kvm_clock: Mutex<Option<u64>>,
    sink: Arc<ConsoleSink>,
    parked: Mutex<Option<Parked>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    console_thread: Mutex<Option<JoinHandle<()>>>,
    muxer: Mutex<Option<VsockMuxer>>,
    pub(crate) memory: GuestMemory,
    /// What it has from the start.
    memory_mib: u64,
    /// The last to go: what has a disk besides must be gone by then.
    pub(crate) drives: Drives,
}

pub(crate) fn cpu_fault(error: CpuError) -> Fault {
    let cause = std::error::Error::source(&error).map_or(String::new(), |source| format!(": {source}"));
    Fault::new(
        Kind::Error,
        format!("cannot make the machine's processors: {error}{cause}"),
        "use --accel soft, which needs nothing from the host",
    )
}

fn io_fault(what: &str, error: &std::io::Error) -> Fault {
    Fault::new(
        Kind::Error,
        format!("cannot {what}: {error}"),
        "end programs that use many files, threads or much memory, and try again",
    )
}

/// Which processor the machine gets.
pub(crate) fn resolve(accel: Accel) -> Result<Accel, Fault> {
    if accel == Accel::Soft {
        return Ok(Accel::Soft);
    }
    let report = probe_kvm();
    match (accel, report.worth) {
        (_, KvmWorth::Good) => Ok(Accel::Kvm),
        (Accel::Auto, _) => Ok(Accel::Soft),
        (_, worth) => {
            let kind = if worth == KvmWorth::Denied { Kind::Denied } else { Kind::Error };
            Err(Fault::new(kind, format!("cannot use KVM: {}", report.sentence), report.fix))
        }
    }
}

impl Machine {
    /// Builds the machine that `spec` describes: opens and locks its disks, loads its kernel, makes its vCPUs. It
    /// runs nothing yet.
    pub fn build(spec: &MachineSpec, io: MachineIo) -> Result<Machine, Fault> {
        spec.check()?;
        let kernel = files::read(&spec.kernel, "kernel")?;
        let initrd = spec.initrd.as_deref().map(|path| files::read(path, "initrd")).transpose()?;
        let memory = ram(spec, |regions| match spec.soft.check {
            true => GuestMemory::viewable(regions), // it is looked at twice
            false => GuestMemory::new(regions),
        })?;
        Machine::assemble(spec, io, memory, Origin::Boot { kernel, initrd })
    }

    /// Builds the machine that was saved: `spec` describes it as it was then, with disks that hold what they held then, and
    /// `memory` is its memory, region after region ([`GuestMemory::of_saved`]). It goes on at [`Machine::start`]. Memory that does not
    /// pass its check ends it when it gets there; on KVM all of it is checked here.
    pub fn restore(
        spec: &MachineSpec,
        io: MachineIo,
        saved: &MachineSaved,
        mut memory: SavedMemory,
    ) -> Result<Machine, Fault> {
        spec.check()?;
        if spec.soft.check {
            return Err(Fault::new(
                Kind::Usage,
                "a restored machine cannot run with soft.check",
                "leave it out, or start the VM anew with it",
            ));
        }
        let first = std::mem::take(&mut memory.first);
        let memory = ram(spec, |regions| GuestMemory::of_saved(regions, memory))?;
        if !first.is_empty() {
            // Beside all that is to be done until the guest goes on, and beside the guest.
            let memory = memory.clone();
            let fetching = std::thread::Builder::new().name("fetch".into());
            // Without the thread, it is read when it is reached.
            let _ = fetching.spawn(move || memory.fetch(&first));
        }
        let made = Machine::assemble(spec, io, memory.clone(), Origin::Saved(saved));
        if let Some(what) = memory.damage() {
            return Err(damaged(&what));
        }
        let machine = made?;
        // The machine has the memory, not the memory the machine.
        let world = Arc::downgrade(&machine.world);
        memory.on_damage(move |what| {
            if let Some(world) = world.upgrade() {
                world.end(End::Failed { message: damaged(what).to_string() });
            }
        });
        Ok(machine)
    }

    fn assemble(
        spec: &MachineSpec,
        io: MachineIo,
        memory: GuestMemory,
        origin: Origin<'_>,
    ) -> Result<Machine, Fault> {
        let drives = Drives::open(&spec.disks)?;
        let accel = match &origin {
            Origin::Boot { .. } => resolve(spec.accel)?,
            Origin::Saved(saved) => identity::accel_of(spec.accel, saved)?,
        };
        let cpus: Arc<[CpuSlot]> = (0..spec.cpus).map(CpuSlot::new).collect();
        let known_as = match &origin {
            Origin::Boot { .. } if accel == Accel::Soft && io.beside_kvm => identity::beside_kvm(),
            Origin::Boot { .. } => None,
            Origin::Saved(saved) => identity::known(saved),
        };
        let kvm = (accel == Accel::Kvm)
            .then(|| make_kvm(&memory, spec.cpus, known_as.as_ref()))
            .transpose()
            .map_err(cpu_fault)?;
        let soft = kvm.is_none().then(|| Arc::new(SoftWires::new(cpus.clone())));
        let wires: Arc<dyn Wires> = match (&kvm, &soft) {
            (Some(kvm), _) => Arc::new(KvmWires(kvm.clone())),
            (None, Some(soft)) => soft.clone(),
            (None, None) => unreachable!("a machine without KVM has its own interrupt chips"),
        };
        let world = Arc::new(World::new(wires, cpus));
        let sink = ConsoleSink::new();
        let waker = io.vsock.as_ref().map(|_| Waker::new()).transpose();
        let waker = waker.map_err(|error| io_fault("make an event file", &error))?;
        let tags = spec.shares.iter().enumerate().map(|(index, share)| share.tag_of(index));
        let plan = Plan {
            world: world.clone(),
            soft: soft.clone(),
            kvm: kvm.clone(),
            memory: memory.clone(),
            cpus: spec.cpus,
            hot_memory: memory.regions().last().filter(|_| spec.memory_max_mib.is_some()).copied(),
            disks: drives.with_serials(),
            shares: tags.zip(io.shares).collect(),
            nics: (spec.nics.iter().zip(io.ports))
                .map(|(nic, port)| Nic { id: nic.id, mac: nic.mac, mtu: nic.mtu, port })
                .collect(),
            vsock: waker.clone(),
            sink: sink.clone(),
            console_ports: io.console_ports,
        };
        let Built { board, acpi, work, vsock, bells } =
            plan.build().map_err(|error| io_fault("build the machine's devices", &error))?;
        let time = identity::timebase(known_as.as_ref(), &origin);
        let states = match &origin {
            Origin::Boot { kernel, initrd } => {
                let first = load(spec, &memory, kernel, initrd.as_deref(), &acpi)?;
                let others = || CpuState { activity: Activity::WaitForSipi, ..CpuState::default() };
                std::iter::once(first).chain((1..spec.cpus).map(|_| others())).collect()
            }
            Origin::Saved(saved) => saving::vcpus(&world, saved, kvm.is_none().then_some(&time))?,
        };
        let mut maker = match &kvm {
            Some(kvm) => Maker::Kvm(kvm),
            None => {
                let processor = known_as.clone().unwrap_or_else(soft::processor);
                Maker::Soft(SoftMaker::new(&memory, spec, processor, time, io.translated)?)
            }
        };
        let engines = make_engines(&mut maker, &world, &states).map_err(cpu_fault)?;
        let own = match engines.first() {
            Some(Engine::Kvm(vcpu)) => vcpu.processor().map_err(cpu_fault)?,
            _ => soft::processor(),
        };
        let identity = Identity { processor: known_as.unwrap_or(own), time };
        let shown = match maker {
            Maker::Kvm(_) => Vec::new(),
            Maker::Soft(soft) => soft.shown,
        };
        renew_generation(&memory)?;
        let mut kvm_clock = None;
        if let Origin::Saved(saved) = &origin {
            saving::load_board(&board, kvm.as_ref(), soft.as_ref(), saved)?;
            board.tell_generation();
            kvm_clock = kvm.is_some().then(|| saved.kvm_clock_ns.unwrap_or(saved.clock_ns));
        }
        let muxer = match (&io.vsock, waker) {
            (Some(path), Some(waker)) => Some(start_muxer(path, vsock, waker)?),
            _ => None,
        };
        Ok(Machine {
            board,
            world,
            accel,
            kvm,
            identity,
            bells,
            shown,
            kvm_clock: Mutex::new(kvm_clock),
            sink,
            parked: Mutex::new(Some(Parked { engines, work, console: io.console })),
            threads: Mutex::new(Vec::new()),
            console_thread: Mutex::new(None),
            muxer: Mutex::new(muxer),
            memory,
            memory_mib: spec.memory_mib,
            drives,
        })
    }

    /// What of the memory that it was restored from its guest has reached so far, for [`SavedMemory::first`](crate::SavedMemory); nothing on
    /// KVM, where all of it is checked before.
    pub fn reached(&self) -> Vec<(u64, u64)> {
        if self.kvm.is_some() { Vec::new() } else { self.memory.reached() }
    }

    /// Which processor it has: [`Accel::Kvm`] or [`Accel::Soft`].
    pub fn accel(&self) -> Accel {
        self.accel
    }

    /// Begins to run.
    pub fn start(&self) -> Result<(), Fault> {
        let Some(parked) = lock(&self.parked).take() else {
            return Err(refused("start", self.world.control.phase()));
        };
        let fault = |error: std::io::Error| io_fault("start the machine's threads", &error);
        let sink = self.sink.clone();
        let console =
            threads::spawn("console".to_string(), &self.world, move || sink.serve(&*parked.console));
        *lock(&self.console_thread) = Some(console.map_err(fault)?);
        let mut handles = lock(&self.threads);
        for (index, (name, work)) in parked.work.into_iter().enumerate() {
            // They end when the machine is dropped, and are not waited for: a disk may hang, or a server.
            drop(threads::spawn(format!("{name}-{index}"), &self.world, work).map_err(fault)?);
        }
        let board = self.board.clone();
        let keeper = threads::spawn("timekeeper".to_string(), &self.world, move || {
            threads::sleep_accurately();
            board.keep_time();
        });
        handles.push(keeper.map_err(fault)?);
        if let Some(bells) = self.bells.clone() {
            let doorbells = threads::spawn("doorbells".to_string(), &self.world, move || bells.answer());
            handles.push(doorbells.map_err(fault)?);
        }
        for (index, engine) in parked.engines.into_iter().enumerate() {
            let board = self.board.clone();
            let thread = threads::spawn(format!("vcpu-{index}"), &self.world, move || {
                threads::run_vcpu(engine, board, index);
            });
            handles.push(thread.map_err(fault)?);
        }
        self.thaw()?;
        // A kill may have come first: then the threads end at once.
        let _ = self.world.control.go(&[Phase::Ready], Phase::Running);
        self.world.alarm.wake();
        Ok(())
    }

    /// Stands still: vCPUs and the guest's clock.
    pub fn pause(&self) -> Result<(), Fault> {
        let control = &self.world.control;
        control.go(&[Phase::Running], Phase::Paused).map_err(|phase| refused("pause", phase))?;
        self.world.interrupt_all();
        if !control.wait_standing(self.world.cpus.len(), PAUSE_TIME_MAX) {
            // Back to where it was; a kill meanwhile stands.
            let _ = control.go(&[Phase::Paused], Phase::Running);
            return Err(Fault::new(
                Kind::Error,
                "the machine's processors do not come to a stop",
                "try again; if that does not help, end it with: viv kill",
            ));
        }
        if let Some(kvm) = &self.kvm {
            *lock(&self.kvm_clock) = kvm.clock_ns().ok();
        }
        self.world.clock.freeze();
        self.world.alarm.wake();
        Ok(())
    }

    /// Holds the vCPUs, whose clocks go on, or lets them go: for whoever limits their processor time. A pause is another thing,
    /// and may come in the middle.
    pub fn hold(&self, hold: bool) {
        self.world.control.hold(hold);
        if hold {
            self.world.interrupt_all();
        }
    }

    /// Goes on after a pause.
    pub fn resume(&self) -> Result<(), Fault> {
        let control = &self.world.control;
        if control.phase() != Phase::Paused {
            return Err(refused("resume", control.phase()));
        }
        self.thaw()?;
        // A kill may have come first.
        let _ = control.go(&[Phase::Paused], Phase::Running);
        self.world.alarm.wake();
        Ok(())
    }

    /// The guest's clocks go on from where they stand, and the real-time clock shows the real time.
    fn thaw(&self) -> Result<(), Fault> {
        if let (Some(kvm), Some(clock)) = (&self.kvm, lock(&self.kvm_clock).take()) {
            kvm.set_clock_ns(clock).map_err(cpu_fault)?;
        }
        self.world.clock.thaw();
        self.board.resumed();
        Ok(())
    }

    /// kvmclock as it stands in a pause.
    pub(crate) fn paused_kvm_clock(&self) -> Option<u64> {
        *lock(&self.kvm_clock)
    }

    /// Presses the power button: the guest shuts itself down, if it listens.
    pub fn power_button(&self) {
        self.board.press_power_button();
    }

    /// Asks the guest to have `mib` of memory: to get by with less than it was started with, or to take more, up to
    /// [`MachineSpec::memory_max_mib`]. It does what it can: nothing is lost if it has no driver for this, and nothing
    /// won.
    pub fn resize_memory(&self, mib: u64) -> Result<(), Fault> {
        let (boot, most) = (self.memory_mib, self.memory.size() / MIB);
        if !(MEMORY_MIB_MIN..=most).contains(&mib) {
            return Err(Fault::new(
                Kind::Usage,
                format!("the VM cannot have {mib} MiB of memory: it may have up to {most} MiB"),
                format!("use a size from {MEMORY_MIB_MIN}M to {most}M, or start it anew with --memory-max"),
            ));
        }
        self.board.want_memory(boot.saturating_sub(mib) * MIB, mib.saturating_sub(boot) * MIB);
        Ok(())
    }

    /// Puts a disk behind the others into the running machine; the guest notices by itself. Its files are not opened but
    /// taken from `handed`, where they are there.
    pub fn attach_disk(&self, spec: &DiskSpec, handed: HandedFiles) -> Result<(), Fault> {
        self.drives.add(spec, handed, |disk, serial| self.served("disk", self.board.plug_disk(disk, serial)))
    }

    /// Puts a shared directory into the running machine, with the socket of its server ([`viv_share::link`]).
    pub fn attach_share(&self, tag: &str, server: UnixStream) -> Result<(), Fault> {
        self.served("directory", self.board.plug_share(tag, server)).map(drop)
    }

    /// Puts a network card into the running machine, plugged into `port`.
    pub fn attach_card(&self, nic: &NicSpec, port: Arc<dyn NetPort>) -> Result<(), Fault> {
        let nic = Nic { id: nic.id, mac: nic.mac, mtu: nic.mtu, port };
        self.served("network card", self.board.plug_card(nic)).map(drop)
    }

    /// Lets the threads of a device that has come work. Gives its slot.
    fn served(&self, what: &str, plugged: io::Result<(u8, Vec<NamedWork>)>) -> Result<u8, Fault> {
        let (slot, work) = plugged.map_err(|error| {
            let text = format!("cannot attach the {what}: {error}");
            Fault::new(Kind::NoCapacity, text, "detach another device first")
        })?;
        if let Some(parked) = &mut *lock(&self.parked) {
            parked.work.extend(work);
            return Ok(slot);
        }
        for (index, (name, work)) in work.into_iter().enumerate() {
            threads::spawn(format!("{name}-{slot}-{index}"), &self.world, work)
                .map_err(|error| io_fault("start the device's threads", &error))?;
        }
        Ok(slot)
    }

    /// Asks the guest to let a disk go, counted from 0, and waits until it has. The disk's files are closed then.
    pub fn detach_disk(&self, disk: usize, patience: Duration) -> Result<(), Fault> {
        let slot = self.drives.slot(disk)?;
        self.let_go(slot, "disk", patience)?;
        self.drives.remove(slot);
        Ok(())
    }

    /// Asks the guest to let the shared directory with this tag go, and waits until it has.
    pub fn detach_share(&self, tag: &str, patience: Duration) -> Result<(), Fault> {
        self.detach(&Place::Share(tag.to_string()), "directory", patience)
    }

    /// Asks the guest to let the network card with this number go, and waits until it has.
    pub fn detach_card(&self, id: u8, patience: Duration) -> Result<(), Fault> {
        self.detach(&Place::Card(id), "network card", patience)
    }

    fn detach(&self, place: &Place, what: &str, patience: Duration) -> Result<(), Fault> {
        let missing = || {
            let text = format!("the machine has no such {what}");
            Fault::new(Kind::NotFound, text, "see what it has with: viv inspect")
        };
        self.let_go(self.board.slot_of(place).ok_or_else(missing)?, what, patience)?;
        self.board.forget(place);
        Ok(())
    }

    fn let_go(&self, slot: u8, what: &str, patience: Duration) -> Result<(), Fault> {
        self.board.request_eject(slot);
        let begin = Instant::now();
        while self.board.has_slot(slot) {
            if begin.elapsed() > patience {
                return Err(Fault::new(
                    Kind::StillGoingOn,
                    format!("the guest has not let the {what} go yet"),
                    "see that the guest runs and that its kernel has ACPI hot plug, then ask again",
                ));
            }
            std::thread::sleep(EJECT_LOOK);
        }
        Ok(())
    }

    /// Ends it now.
    pub fn kill(&self) {
        self.world.end(End::Killed);
    }

    /// Lets a disk be as fast as this from now on.
    pub fn limit_disk(&self, index: usize, limits: &DiskLimits) -> Result<(), Fault> {
        self.drives.limit(index, limits)
    }

    /// Gives a disk the size that `size` makes of its present one, and tells the guest. It can only grow.
    pub fn resize_disk(&self, index: usize, size: impl FnOnce(u64) -> u64) -> Result<(), Fault> {
        let (slot, bytes) = self.drives.resize(index, size)?;
        self.board.disk_resized(slot, bytes);
        Ok(())
    }

    /// The disks that wait for room on the host. The machine itself does not stand still meanwhile.
    pub fn shortage(&self) -> Arc<Shortage> {
        self.drives.shortage().clone()
    }

    /// Bytes from the user. They wait in the machine until the guest takes them.
    pub fn console_input(&self, bytes: &[u8]) {
        self.board.input(bytes);
    }

    /// The user's terminal has this size now, in characters.
    pub fn resize_console(&self, cols: u16, rows: u16) {
        self.board.resize_console(cols, rows);
    }

    /// Blocks until the end; all console output has been handed over then.
    pub fn wait(&self) -> End {
        let end = self.world.control.wait_end();
        self.sink.set_free();
        self.world.interrupt_all();
        if let Some(bells) = &self.bells {
            bells.stop();
        }
        let threads: Vec<JoinHandle<()>> = lock(&self.threads).drain(..).collect();
        for thread in threads {
            // Its panic has been told as the machine's end.
            let _ = thread.join();
        }
        drop(lock(&self.muxer).take());
        self.drives.settle();
        self.sink.close();
        if let Some(thread) = lock(&self.console_thread).take() {
            let _ = thread.join();
        }
        end
    }

    /// What it has used so far.
    pub fn stats(&self) -> MachineStats {
        let (given_back, guest_memory) = self.board.guest_memory();
        MachineStats {
            disks: self.drives.counts(),
            given_back,
            taken: self.board.taken_memory(),
            guest_memory,
            uptime_ns: self.world.clock.now(),
            vcpu_time: self.world.cpus.iter().map(threads::cpu_time).collect(),
            soft: self.shown.iter().map(|shown| shown.get()).collect(),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
        self.wait();
    }
}

pub(crate) fn refused(what: &str, phase: Phase) -> Fault {
    let (is, fix) = match phase {
        Phase::Ready => ("not started", "start it first"),
        Phase::Running => ("running", "nothing needs to be done"),
        Phase::Paused => ("paused", "resume it first"),
        Phase::Ended => ("at its end", "start it again"),
    };
    Fault::new(Kind::Conflict, format!("cannot {what} the machine: it is {is}"), fix)
}

/// The RAM of a machine.
fn ram(
    spec: &MachineSpec,
    make: impl FnOnce(&[(Gpa, u64)]) -> Result<GuestMemory, MemError>,
) -> Result<GuestMemory, Fault> {
    files::check_memory(spec.memory_mib)?;
    let mut regions = layout::ram(spec.memory_mib);
    regions.extend(layout::hot_memory(spec.memory_mib, spec.memory_max_mib));
    make(&regions).map_err(|error| {
        Fault::new(
            Kind::NoCapacity,
            format!("the host gives no {} MiB of memory: {error}", spec.memory_mib),
            "use a smaller --memory, or end other programs",
        )
    })
}

fn damaged(what: &str) -> Fault {
    let fix = "it cannot be used any more: use another snapshot, and look after the disk that it is on";
    Fault::new(Kind::Error, what.to_string(), fix)
}

pub(crate) fn make_kvm(
    memory: &GuestMemory,
    cpus: u32,
    known_as: Option<&Processor>,
) -> Result<Arc<KvmVm>, CpuError> {
    let places = KvmPlaces { tss: Gpa(layout::KVM_TSS), identity_map: Gpa(layout::KVM_IDENTITY_MAP) };
    Ok(Arc::new(KvmVm::new(memory, cpus, CpuLevel::V2, places)?.known_as(known_as)))
}

fn load(
    spec: &MachineSpec,
    memory: &GuestMemory,
    kernel: &[u8],
    initrd: Option<&[u8]>,
    acpi: &acpi::AcpiSpec,
) -> Result<CpuState, Fault> {
    let name = spec.kernel.file_name().unwrap_or_default().to_string_lossy();
    let boot_files = BootFiles { kernel, initrd, cmdline: &spec.append, name: &name };
    let map = layout::e820(spec.memory_mib);
    let state = boot::load(memory, &map, ACPI_TABLES, &boot_files)
        .map_err(|error| error.fault(&spec.kernel, spec.initrd.as_deref()))?;
    memory.write(ACPI_TABLES, &acpi::tables(acpi)).map_err(|error| {
        Fault::new(
            Kind::NoCapacity,
            format!("no room for the ACPI tables: {error}"),
            "use --memory with at least 16M",
        )
    })?;
    Ok(state)
}

/// Another machine than any before.
fn renew_generation(memory: &GuestMemory) -> Result<(), Fault> {
    let mut generation = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut generation))
        .map_err(|error| io_fault("read /dev/urandom", &error))?;
    // What is no memory there has been told as damage.
    let _ = memory.write(layout::GENERATION, &generation);
    Ok(())
}

/// Makes vCPUs of one kind.
enum Maker<'a> {
    Kvm(&'a KvmVm),
    Soft(SoftMaker),
}

impl Maker<'_> {
    fn make(&mut self, index: u32) -> Result<Engine, CpuError> {
        match self {
            Maker::Kvm(kvm) => kvm.vcpu(index).map(Engine::Kvm),
            Maker::Soft(soft) => Ok(Engine::Soft(Box::new(soft.make(index)?))),
        }
    }
}

/// Makes software vCPUs that work as they are asked to.
struct SoftMaker {
    shared: Arc<soft::Shared>,
    spec: SoftSpec,
    map: Option<Arc<PerfMap>>,
    /// What was translated before.
    translated: Option<Arc<KeptCode>>,
    /// Where those that were made show what they do.
    shown: Vec<Arc<ShownStats>>,
}

impl SoftMaker {
    fn new(
        memory: &GuestMemory,
        spec: &MachineSpec,
        processor: Processor,
        time: Timebase,
        translated: Option<KeptCode>,
    ) -> Result<SoftMaker, Fault> {
        let map = spec.soft.perf_map.then(PerfMap::open).transpose().map_err(|error| {
            Fault::new(
                Kind::Error,
                format!("cannot open {} for perf: {error}", PerfMap::path().display()),
                "start the VM anew, or leave out soft.perf-map",
            )
        })?;
        let shared = soft::Shared::showing(memory, spec.cpus, processor, time);
        let (map, translated) = (map.map(Arc::new), translated.map(Arc::new));
        Ok(SoftMaker { shared, spec: spec.soft, map, translated, shown: Vec::new() })
    }

    fn make(&mut self, index: u32) -> Result<SoftCpu, CpuError> {
        let mut vcpu = SoftCpu::new(index, self.shared.clone());
        if self.spec.eager {
            vcpu.translate_after(Some(1));
        }
        if self.spec.interpreter {
            vcpu.translate_after(None);
        }
        if self.spec.count {
            vcpu.count_translated();
        }
        if self.spec.check {
            vcpu.check_translated()?;
        }
        if let Some(translated) = &self.translated {
            // That of another build is of no use.
            vcpu.take_translated(translated);
        }
        if let Some(map) = &self.map {
            vcpu.map_translated(map.clone());
        }
        self.shown.push(vcpu.shown_stats());
        Ok(vcpu)
    }
}

fn make_engines(maker: &mut Maker, world: &World, states: &[CpuState]) -> Result<Vec<Engine>, CpuError> {
    let mut engines = Vec::new();
    for (index, (slot, state)) in (0u32..).zip(world.cpus.iter().zip(states)) {
        let mut engine = maker.make(index)?;
        engine.vcpu().load(state)?;
        slot.set_kick(engine.vcpu().kicker());
        engines.push(engine);
    }
    Ok(engines)
}

fn start_muxer(path: &Path, guest: Arc<dyn VsockGuest>, waker: Waker) -> Result<VsockMuxer, Fault> {
    VsockMuxer::start(path, guest, waker).map_err(|error| {
        let cause = std::error::Error::source(&error).map_or(String::new(), |source| format!(": {source}"));
        Fault::new(
            Kind::Error,
            format!("{error}{cause}"),
            "remove what is in its way, or use another directory",
        )
    })
}
