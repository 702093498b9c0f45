//! The board as data: one table says which chips there are, where and with which line; a second one is made from
//! the machine's description and says which virtio devices there are. One loop builds each.
use crate::acpi::{AcpiSpec, GENERATION_GPE, MmioDevice};
use crate::bus::Ranges;
use crate::core::{SoftWires, World, lock, wall_ns};
use crate::hot_plug::{HotPlug, Place};
use crate::layout::{ECAM, PCI_WINDOW, VIRTIO_MMIO, VIRTIO_MMIO_SIZE, pci_window64};
use crate::parts::giving::{self, Giver};
use crate::parts::{
    Chip, ConsoleHost, ConsoleSink, Doorbells, HostSide, Hosted, Part, Pci, PciSlot, PlainFunction,
    PortThread, RngHost, Serial, ShareHost, ShareSaver, VirtioPart, Work,
};
use crate::vsock::{GuestSockets, VsockHost};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;
use viv_arch::pci::{Bdf, DEVICES_PER_BUS};
use viv_arch::saved::ChipSaved;
use viv_block::Disk;
use viv_cpu::kvm::KvmVm;
use viv_devices::chips::i8042::I8042;
use viv_devices::chips::pit::Pit;
use viv_devices::chips::pm::{self, Pm};
use viv_devices::chips::pvpanic::{self, PvPanic};
use viv_devices::chips::rtc::Rtc;
use viv_devices::chips::slots::{self, PciSlots};
use viv_devices::pci::{Allocator, HostBridge, PciRoot};
use viv_devices::virtio::blk::Blk;
use viv_devices::virtio::{
    Balloon, Console, Fs, Giving, GuestMemoryStats, Mem, Rng, VirtioDevice, VirtioMmio, Vsock,
};
use viv_devices::{Access, Unfit, Unsaved};
use viv_mem::{Gpa, GuestMemory, Region};
use viv_model::End;
use viv_net::port::NetPort;
use viv_net::vsock::{VsockGuest, Waker};

/// The chips of the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Serial,
    Rtc,
    Keyboard,
    Power,
    Panic,
    Pic,
    Timer,
    Slots,
}

impl What {
    /// What its saved state is called.
    fn name(self) -> &'static str {
        match self {
            What::Serial => "serial",
            What::Rtc => "rtc",
            What::Keyboard => "keyboard",
            What::Power => "power",
            What::Panic => "panic",
            What::Pic => PIC,
            What::Timer => TIMER,
            What::Slots => "slots",
        }
    }
}

/// With which processor a chip is ours to model; KVM has some in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum With {
    Both,
    SoftOnly,
}

struct Entry {
    what: What,
    /// Windows of ports in the chip's own order: first port and number.
    ports: &'static [(u16, u16)],
    /// Global system interrupt.
    line: Option<u32>,
    with: With,
}

/// First port of the ACPI fixed hardware.
const PM_BASE: u16 = 0x600;
/// First port of the registers of PCI's slots.
const SLOTS_BASE: u16 = 0x640;
/// The ACPI interrupt.
const SCI: u8 = 9;

/// Names of the states of chips that KVM has in the kernel.
pub(crate) const PIC: &str = "pic";
pub(crate) const TIMER: &str = "timer";
pub(crate) const IOAPIC_CHIP: &str = "ioapic";

/// The board.
const BOARD: &[Entry] = &[
    Entry { what: What::Serial, ports: &[(0x3f8, 8)], line: Some(4), with: With::Both },
    Entry { what: What::Rtc, ports: &[(0x70, 2)], line: Some(8), with: With::Both },
    Entry { what: What::Keyboard, ports: &[(0x60, 1), (0x64, 1)], line: None, with: With::Both },
    Entry {
        what: What::Power,
        ports: &[(PM_BASE, pm::WINDOW_LEN)],
        line: Some(SCI as u32),
        with: With::Both,
    },
    Entry { what: What::Panic, ports: &[(pvpanic::PORT, 1)], line: None, with: With::Both },
    Entry { what: What::Slots, ports: &[(SLOTS_BASE, slots::WINDOW_LEN)], line: None, with: With::Both },
    Entry { what: What::Pic, ports: &[(0x20, 2), (0xa0, 2), (0x4d0, 2)], line: None, with: With::SoftOnly },
    Entry { what: What::Timer, ports: &[(0x40, 4), (0x61, 1)], line: None, with: With::SoftOnly },
];

/// A virtio device of this machine.
enum Virtio {
    Rng,
    Vsock,
    Console,
    Disk(Arc<dyn Disk>, String),
    Balloon,
    Mem(Region),
    /// With its tag and its server's socket.
    Share(String, UnixStream),
    Net(Nic),
}

/// How the guest reaches it.
#[derive(Clone, Copy)]
enum Transport {
    Pci,
    /// With this interrupt line.
    Mmio(u32),
}

/// The context ID of every guest: each VM has its own socket, so they need not differ.
const GUEST_CID: u64 = 3;
/// Slots whose devices may come and go: behind those that every machine has.
pub(crate) const HOT_PLUG: Range<u8> = 3..DEVICES_PER_BUS;

/// The console's size in characters, columns and rows, until somebody says another.
const CONSOLE_SIZE: (u16, u16) = (80, 25);

/// How often and how long a guest is waited for that is asked about its memory.
const STATS_TRIES: u32 = 20;
const STATS_WAIT: Duration = Duration::from_millis(2);

/// What a thread does, and its name.
pub(crate) type NamedWork = (&'static str, Work);

/// A network card, and what it is plugged into.
#[derive(Clone)]
pub(crate) struct Nic {
    pub(crate) id: u8,
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: Option<u16>,
    pub(crate) port: Arc<dyn NetPort>,
}

/// What the board is built from.
pub(crate) struct Plan {
    pub(crate) world: Arc<World>,
    /// Our own interrupt chips, or `None` with KVM.
    pub(crate) soft: Option<Arc<SoftWires>>,
    pub(crate) kvm: Option<Arc<KvmVm>>,
    pub(crate) memory: GuestMemory,
    pub(crate) cpus: u32,
    /// The region of `memory` in which the guest may get more.
    pub(crate) hot_memory: Option<Region>,
    /// With their serial numbers.
    pub(crate) disks: Vec<(Arc<dyn Disk>, String)>,
    /// The tags of shared directories, and the sockets of their servers.
    pub(crate) shares: Vec<(String, UnixStream)>,
    pub(crate) nics: Vec<Nic>,
    pub(crate) vsock: Option<Waker>,
    pub(crate) sink: Arc<ConsoleSink>,
    /// The console's named ports, and the sockets for their clients.
    pub(crate) console_ports: Vec<(String, UnixListener)>,
}

/// Everything on the board but vCPUs and memory.
pub(crate) struct Board {
    pub(crate) world: Arc<World>,
    pub(crate) soft: Option<Arc<SoftWires>>,
    pub(crate) ports: Ranges,
    pub(crate) mmio: Ranges,
    pub(crate) pci: Arc<Pci>,
    pub(crate) hot_plug: Mutex<HotPlug>,
    /// The disks by their slots. Those that have gone are forgotten by and by.
    pub(crate) disks: Mutex<BTreeMap<u8, Weak<dyn Hosted<Blk>>>>,
    /// The slots of other devices that may go, now and at the start.
    pub(crate) places: Mutex<BTreeMap<Place, u8>>,
    pub(crate) first_places: BTreeMap<Place, u8>,
    /// The directories that it was started with, by tag.
    pub(crate) shares: Vec<(String, ShareSaver)>,
    pub(crate) slots: Arc<Chip<PciSlots>>,
    /// Chips by the names that their saved states have.
    chips: Vec<(String, Arc<dyn Part>)>,
    serial: Arc<Serial>,
    pub(crate) power: Arc<Chip<Pm>>,
    clock: Arc<Chip<Rtc>>,
    console: Arc<dyn Hosted<Console>>,
    balloon: Arc<dyn Hosted<Balloon>>,
    mem: Option<Arc<dyn Hosted<Mem>>>,
    console_used: Arc<AtomicBool>,
    sink: Arc<ConsoleSink>,
}

/// What comes out of building besides the board.
pub(crate) struct Built {
    pub(crate) board: Arc<Board>,
    pub(crate) acpi: AcpiSpec,
    /// Threads for real I/O, with their names.
    pub(crate) work: Vec<NamedWork>,
    pub(crate) vsock: Arc<dyn VsockGuest>,
    /// With KVM.
    pub(crate) bells: Option<Arc<Doorbells>>,
}

/// The 8259A pair of the software CPU as a part.
struct PicPart(Arc<SoftWires>, Arc<World>);

impl Part for PicPart {
    fn read(&self, access: Access) -> u64 {
        self.0.read_pic(access, self.1.clock.now())
    }
    fn write(&self, access: Access, value: u64) {
        self.0.write_pic(access, value, self.1.clock.now());
    }
    fn save(&self) -> Result<ChipSaved, Unsaved> {
        Ok(ChipSaved::Pic(self.0.pic(|pic| pic.save())))
    }
    fn load(&self, saved: &ChipSaved) -> Result<(), Unfit> {
        let ChipSaved::Pic(saved) = saved else { return Err(Unfit::new("it is another chip's")) };
        self.0.pic(|pic| pic.load(saved));
        Ok(())
    }
}

/// A reset or a triple fault: the end that it looks like, or that of the panic which it followed.
fn end(world: &World, sink: &ConsoleSink, end: End) {
    world.end(if sink.saw_panic() { End::Panic } else { end });
}

impl Plan {
    /// Builds the board.
    pub(crate) fn build(mut self) -> io::Result<Built> {
        let devices = self.virtio_devices();
        let mut console_ports = std::mem::take(&mut self.console_ports);
        let mut shares = Vec::new();
        let world = &self.world;
        let (mut ports, mut chips) = (Ranges::default(), Vec::<(String, Arc<dyn Part>)>::new());
        let serial_line = BOARD.iter().find(|entry| entry.what == What::Serial).and_then(|entry| entry.line);
        let serial = Serial::new(serial_line.unwrap_or(4), world, self.sink.clone());
        let power = self.power();
        let (slots, pci_of_slots) = self.slots();
        let mut clock = Rtc::new((wall_ns() / 1_000_000_000) as i64);
        let low = self.memory.regions().first().map_or(0, |region| region.len);
        let hot = self.hot_memory.map_or(0, |region| region.len);
        clock.set_memory_size(low, self.memory.size() - low - hot);
        let clock = Chip::new(clock, Some(8), world, |_, _| ());
        for entry in BOARD {
            let part: Arc<dyn Part> = match (entry.what, &self.soft) {
                (_, None) if entry.with == With::SoftOnly => continue,
                (What::Serial, _) => serial.clone(),
                (What::Rtc, _) => clock.clone(),
                (What::Power, _) => power.clone(),
                (What::Keyboard, _) => self.keyboard(),
                (What::Panic, _) => self.panic(),
                (What::Pic, Some(soft)) => Arc::new(PicPart(soft.clone(), world.clone())),
                (What::Timer, _) => Chip::new(Pit::new(), None, world, |pit, world| {
                    if pit.take_edges() > 0 {
                        world.lines.pulse(0);
                    }
                }),
                (What::Slots, _) => slots.clone(),
                (What::Pic, None) => continue,
            };
            for (window, (port, len)) in (0u8..).zip(entry.ports) {
                ports.add(u64::from(*port), u64::from(*len), window, part.clone());
            }
            chips.push((entry.what.name().to_string(), part));
        }
        let mut attach = Attach::new(&self);
        let (mut work, mut vsock, mut console) = (Vec::new(), None, None);
        let (mut balloon, mut mem_device) = (None, None);
        let (mut disks, mut places) = (BTreeMap::new(), BTreeMap::new());
        let console_used = Arc::new(AtomicBool::new(false));
        for (device, transport) in devices {
            match device {
                Virtio::Rng => drop(attach.add(Rng::new(), RngHost::new()?, transport)?),
                Virtio::Vsock => {
                    vsock =
                        Some(attach.add(Vsock::new(GUEST_CID), VsockHost(self.vsock.clone()), transport)?);
                }
                Virtio::Console => {
                    let (device, threads) = self.add_console(
                        &mut attach,
                        std::mem::take(&mut console_ports),
                        &console_used,
                        transport,
                    )?;
                    work.extend(threads);
                    console = Some(device);
                }
                Virtio::Disk(disk, serial) => {
                    let slot = attach.next_slot;
                    let (device, threads) = self.add_disk(&mut attach, disk, serial, transport)?;
                    disks.insert(slot, Arc::downgrade(&device));
                    work.extend(threads);
                }
                Virtio::Balloon => {
                    let (device, taker) = self.add_giving(&mut attach, Balloon::new(), transport)?;
                    work.push(("balloon", taker));
                    balloon = Some(device);
                }
                Virtio::Mem(region) => {
                    let mem = Mem::new(region.gpa, region.len);
                    let (device, taker) = self.add_giving(&mut attach, mem, transport)?;
                    work.push(("mem", taker));
                    mem_device = Some(device);
                }
                Virtio::Share(tag, server) => {
                    let slot = attach.next_slot;
                    let (host, requests) = ShareHost::new();
                    shares.push((tag.clone(), host.saver()));
                    let device = attach.add(Fs::new(&tag), host, transport)?;
                    work.extend(attach.hot_plug.share_work((requests, server), &device));
                    places.insert(Place::Share(tag), slot);
                }
                Virtio::Net(nic) => {
                    let (slot, id) = (attach.next_slot, nic.id);
                    let (card, host, parts) = attach.hot_plug.card(nic)?;
                    let device = attach.add(card, host, transport)?;
                    work.extend(attach.hot_plug.card_work(parts, &device));
                    places.insert(Place::Card(id), slot);
                }
            }
        }
        let Attached { mmio, mmio_parts, pci, virtio_mmio, bells, hot_plug } =
            attach.finish(self.kvm.as_ref())?;
        chips.extend(
            (0..).zip(mmio_parts).map(|(index, part): (usize, _)| (format!("virtio-mmio-{index}"), part)),
        );
        let _ = pci_of_slots.set(Arc::downgrade(&pci));
        let missing = || io::Error::other("the board's table lacks a device");
        let board = Board {
            world: world.clone(),
            soft: self.soft.clone(),
            ports,
            mmio,
            pci,
            hot_plug: Mutex::new(hot_plug),
            disks: Mutex::new(disks),
            first_places: places.clone(),
            shares,
            places: Mutex::new(places),
            slots,
            chips,
            serial,
            power,
            clock,
            console: console.ok_or_else(missing)?,
            balloon: balloon.ok_or_else(missing)?,
            mem: mem_device,
            console_used,
            sink: self.sink.clone(),
        };
        let acpi = AcpiSpec {
            cpus: self.cpus,
            pm_base: PM_BASE,
            sci: SCI,
            pci_window: PCI_WINDOW,
            pci_window64: self.pci_window64(),
            virtio_mmio,
            slots_base: SLOTS_BASE,
            hot_plug: HOT_PLUG,
        };
        let vsock = Arc::new(GuestSockets(vsock.ok_or_else(missing)?));
        Ok(Built { board: Arc::new(board), acpi, work, vsock, bells })
    }

    /// The second table: what this machine has besides the chips.
    fn virtio_devices(&mut self) -> Vec<(Virtio, Transport)> {
        let mut devices = vec![
            (Virtio::Rng, Transport::Mmio(5)),
            (Virtio::Vsock, Transport::Pci),
            (Virtio::Console, Transport::Pci),
        ];
        // First of those that may change: disk n is in slot n of these.
        let disk = |(disk, serial): &(Arc<dyn Disk>, String)| {
            (Virtio::Disk(disk.clone(), serial.clone()), Transport::Pci)
        };
        devices.extend(self.disks.iter().map(disk));
        devices.push((Virtio::Balloon, Transport::Pci));
        devices.extend(self.hot_memory.map(|region| (Virtio::Mem(region), Transport::Pci)));
        let shares = self.shares.drain(..);
        devices.extend(shares.map(|(tag, server)| (Virtio::Share(tag, server), Transport::Pci)));
        devices.extend(self.nics.drain(..).map(|nic| (Virtio::Net(nic), Transport::Pci)));
        devices
    }

    fn pci_window64(&self) -> Range<u64> {
        let end = self.memory.regions().last().map_or(0, |region| region.gpa.0 + region.len);
        pci_window64(end)
    }

    fn power(&self) -> Arc<Chip<Pm>> {
        let sink = self.sink.clone();
        Chip::new(Pm::new(), Some(u32::from(SCI)), &self.world, move |pm, world| {
            if pm.sleep_requested() == Some(pm::SLEEP_TYPE_S5) {
                world.end(End::PowerOff);
            }
            if pm.reset_requested() {
                end(world, &sink, End::Reboot);
            }
        })
    }

    /// The registers of the slots. What the guest ejects goes; the bus is told to them when it is there.
    fn slots(&self) -> (Arc<Chip<PciSlots>>, Arc<OnceLock<Weak<Pci>>>) {
        let bus: Arc<OnceLock<Weak<Pci>>> = Arc::default();
        let pci = bus.clone();
        let chip = Chip::new(PciSlots::new(), None, &self.world, move |slots, _| {
            let ejected = slots.take_ejected();
            let Some(pci) = pci.get().and_then(Weak::upgrade) else { return };
            for slot in HOT_PLUG.filter(|slot| ejected >> slot & 1 != 0) {
                pci.unplug(Bdf::root(slot));
            }
        });
        (chip, bus)
    }

    fn keyboard(&self) -> Arc<dyn Part> {
        let sink = self.sink.clone();
        Chip::new(I8042::new(), None, &self.world, move |i8042, world| {
            if i8042.reset_requested() {
                end(world, &sink, End::Reboot);
            }
        })
    }

    fn panic(&self) -> Arc<dyn Part> {
        Chip::new(PvPanic::new(), None, &self.world, |device, world| {
            if device.panicked() && !device.crash_loaded() {
                world.end(End::Panic);
            }
        })
    }

    fn add_giving<D: VirtioDevice + Giving + 'static>(
        &self,
        attach: &mut Attach,
        device: D,
        transport: Transport,
    ) -> io::Result<(Arc<dyn Hosted<D>>, Work)> {
        let (host, given) = Giver::new();
        let device = attach.add(device, host, transport)?;
        let world = self.world.clone();
        let taker = giving::take(given, &device, &self.memory, move || world.control.ended());
        Ok((device, taker))
    }

    fn add_console(
        &self,
        attach: &mut Attach,
        ports: Vec<(String, UnixListener)>,
        used: &Arc<AtomicBool>,
        transport: Transport,
    ) -> io::Result<(Arc<dyn Hosted<Console>>, Vec<NamedWork>)> {
        let wakers = ports.iter().map(|_| Waker::new()).collect::<io::Result<Vec<_>>>()?;
        let names: Vec<String> = ports.iter().map(|(name, _)| name.clone()).collect();
        let host = ConsoleHost { sink: self.sink.clone(), used: used.clone(), wakers: wakers.clone() };
        let (cols, rows) = CONSOLE_SIZE;
        let device = attach.add(Console::with_ports(cols, rows, &names), host, transport)?;
        let mut threads: Vec<NamedWork> = Vec::new();
        for ((number, (_, listener)), waker) in (1..).zip(ports).zip(wakers) {
            let world = self.world.clone();
            let ended = move || world.control.ended();
            threads.push(("port", PortThread::work(&device, number, listener, waker, ended)));
        }
        Ok((device, threads))
    }

    fn add_disk(
        &self,
        attach: &mut Attach,
        disk: Arc<dyn Disk>,
        serial: String,
        transport: Transport,
    ) -> io::Result<(Arc<dyn Hosted<Blk>>, Vec<NamedWork>)> {
        let (device, host, threads) = attach.hot_plug.disk(disk, serial);
        let device = attach.add(device, host, transport)?;
        let work = attach.hot_plug.disk_work(threads, &device);
        Ok((device, work))
    }
}

/// Collects virtio devices on their buses.
struct Attach {
    hot_plug: HotPlug,
    functions: BTreeMap<Bdf, Arc<dyn PciSlot>>,
    next_slot: u8,
    mmio: Ranges,
    mmio_parts: Vec<Arc<dyn Part>>,
    virtio_mmio: Vec<MmioDevice>,
}

struct Attached {
    mmio: Ranges,
    mmio_parts: Vec<Arc<dyn Part>>,
    pci: Arc<Pci>,
    virtio_mmio: Vec<MmioDevice>,
    bells: Option<Arc<Doorbells>>,
    hot_plug: HotPlug,
}

impl Attach {
    fn new(plan: &Plan) -> Attach {
        let high = plan.pci_window64();
        let windows = Allocator::new(
            (Gpa(PCI_WINDOW.start), PCI_WINDOW.end - PCI_WINDOW.start),
            (Gpa(high.start), high.end - high.start),
        );
        let bridge: Arc<dyn PciSlot> = PlainFunction::new(HostBridge::new());
        Attach {
            hot_plug: HotPlug::new(&plan.world, &plan.memory, plan.cpus, windows),
            functions: BTreeMap::from([(Bdf::root(0), bridge)]),
            next_slot: 1,
            mmio: Ranges::default(),
            mmio_parts: Vec::new(),
            virtio_mmio: Vec::new(),
        }
    }

    fn add<D, H>(&mut self, device: D, host: H, transport: Transport) -> io::Result<Arc<dyn Hosted<D>>>
    where
        D: VirtioDevice + 'static,
        H: HostSide<D> + 'static,
    {
        match transport {
            Transport::Pci => {
                let slot = self.next_slot;
                if slot >= DEVICES_PER_BUS {
                    return Err(io::Error::other("the PCI bus has no slot left; use fewer disks or shares"));
                }
                self.next_slot += 1;
                let part = self.hot_plug.function(device, host, slot)?;
                self.functions.insert(Bdf::root(slot), part.clone());
                Ok(part)
            }
            Transport::Mmio(line) => {
                let gpa = Gpa(VIRTIO_MMIO + VIRTIO_MMIO_SIZE * self.virtio_mmio.len() as u64);
                let transport = VirtioMmio::new(device, self.hot_plug.memory.clone());
                let part = VirtioPart::new(transport, host, line, &self.hot_plug.world);
                self.mmio.add(gpa.0, VIRTIO_MMIO_SIZE, 0, part.clone());
                self.mmio_parts.push(part.clone());
                self.virtio_mmio.push(MmioDevice { gpa, len: VIRTIO_MMIO_SIZE as u32, gsi: line });
                Ok(part)
            }
        }
    }

    fn finish(self, kvm: Option<&Arc<KvmVm>>) -> io::Result<Attached> {
        let bells = match kvm {
            Some(kvm) => {
                let world = self.hot_plug.world.clone();
                Some(Arc::new(Doorbells::new(kvm.clone(), &self.functions, world)?))
            }
            None => None,
        };
        let pci = Arc::new(Pci::new(PciRoot::new(Gpa(ECAM), 256), self.functions, bells.clone()));
        let Attach { mmio, mmio_parts, virtio_mmio, hot_plug, .. } = self;
        Ok(Attached { mmio, mmio_parts, pci, virtio_mmio, bells, hot_plug })
    }
}

impl Board {
    /// The guest asked for a reset by a way that is nobody's device.
    pub(crate) fn reset(&self) {
        end(&self.world, &self.sink, End::Reboot);
    }

    /// A processor shut down.
    pub(crate) fn triple_fault(&self) {
        end(&self.world, &self.sink, End::TripleFault);
    }

    /// Bytes from the user.
    pub(crate) fn input(&self, bytes: &[u8]) {
        if self.console_used.load(Ordering::Relaxed) {
            self.console.with_device(&mut |console, rings| {
                // What does not fit is dropped, as on any serial line.
                console.input(rings, 0, bytes);
            });
        } else {
            let _going = self.world.going();
            self.serial.input(bytes);
        }
    }

    /// The user's terminal has this size now, in characters.
    pub(crate) fn resize_console(&self, cols: u16, rows: u16) {
        self.console.with_device(&mut |console, rings| console.resize(rings, cols, rows));
    }

    /// Somebody presses the power button.
    pub(crate) fn press_power_button(&self) {
        let _going = self.world.going();
        self.power.with(|pm, _| pm.press_power_button());
    }

    /// Tells the guest that the machine is of another generation: [`crate::layout::GENERATION`].
    pub(crate) fn tell_generation(&self) {
        self.power.with(|pm, _| pm.raise_gpe(GENERATION_GPE));
    }

    /// The disk in this slot has another size now.
    pub(crate) fn disk_resized(&self, slot: u8, bytes: u64) {
        let device = lock(&self.disks).get(&slot).and_then(Weak::upgrade);
        if let Some(device) = device {
            device.with_device(&mut |blk, rings| blk.resize(rings, bytes));
        }
    }

    /// Asks the guest to do without so much of its memory, and to take so much more, bytes.
    pub(crate) fn want_memory(&self, less: u64, more: u64) {
        self.balloon.with_device(&mut |balloon, rings| balloon.want(rings, less));
        if let Some(mem) = &self.mem {
            mem.with_device(&mut |mem, rings| mem.want(rings, more));
        }
    }

    /// Bytes that the guest has taken in addition.
    pub(crate) fn taken_memory(&self) -> u64 {
        let mut bytes = 0;
        if let Some(mem) = &self.mem {
            mem.with_device(&mut |mem, _| bytes = mem.plugged());
        }
        bytes
    }

    /// Bytes that the guest does without now, and what it says of its memory. Waits a moment for its answer.
    pub(crate) fn guest_memory(&self) -> (u64, GuestMemoryStats) {
        let mut asked = None;
        self.balloon.with_device(&mut |balloon, rings| {
            let before = balloon.stats().1;
            // A guest that has ended answers nothing.
            asked = (!self.world.control.ended() && balloon.ask_stats(rings)).then_some(before);
        });
        let mut now = (0, GuestMemoryStats::default());
        for _ in 0..STATS_TRIES {
            let mut batches = 0;
            self.balloon.with_device(&mut |balloon, _| {
                now = (balloon.held(), balloon.stats().0);
                batches = balloon.stats().1;
            });
            if asked.is_none_or(|before| batches != before) {
                break;
            }
            std::thread::sleep(STATS_WAIT);
        }
        now
    }

    /// The chips, with the names of their states.
    pub(crate) fn chips(&self) -> &[(String, Arc<dyn Part>)] {
        &self.chips
    }

    /// The machine goes on after a pause: the real-time clock shows the real time again.
    pub(crate) fn resumed(&self) {
        self.clock.with(|rtc, now| rtc.set_unix_s((wall_ns() / 1_000_000_000) as i64, now));
    }

    /// Time has come to `now`.
    #[cfg(feature = "trial")]
    pub(crate) fn tick(&self, now: u64) {
        for (_, part) in &self.chips {
            part.tick(now);
        }
    }

    /// The local APIC of vCPU `index` has another deadline now.
    pub(crate) fn publish_deadline(&self, index: usize, deadline: Option<u64>) {
        let Some(cpu) = self.world.cpus.get(index) else { return };
        cpu.deadline.store(deadline.unwrap_or(u64::MAX), Ordering::SeqCst);
        if let Some(deadline) = deadline {
            self.world.alarm.consider(deadline);
        }
    }

    /// The thread that serves deadlines: those of the chips here, those of local APICs by poking their vCPUs.
    pub(crate) fn keep_time(&self) {
        let world = &self.world;
        while !world.control.ended() {
            world.alarm.begin();
            let now = world.clock.now();
            let mut next = u64::MAX;
            let going = world.going();
            for (_, part) in &self.chips {
                if part.deadline().is_some_and(|deadline| deadline <= now) {
                    part.tick(now);
                }
                next = next.min(part.deadline().unwrap_or(u64::MAX));
            }
            drop(going);
            for cpu in world.cpus.iter() {
                let deadline = cpu.deadline.load(Ordering::SeqCst);
                if deadline <= now {
                    // Once only: the vCPU publishes its next deadline itself.
                    let _ =
                        cpu.deadline.compare_exchange(deadline, u64::MAX, Ordering::SeqCst, Ordering::SeqCst);
                    cpu.poke();
                } else {
                    next = next.min(deadline);
                }
            }
            world.alarm.aim(next);
            let timeout = if next == u64::MAX { None } else { world.clock.until(next) };
            world.alarm.sleep(timeout);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_chips_answer_at_one_port() {
        let mut windows: Vec<(u16, u16)> = BOARD.iter().flat_map(|entry| entry.ports).copied().collect();
        windows.push((0xcf8, 8));
        windows.sort_unstable();
        for pair in windows.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
    }
}
