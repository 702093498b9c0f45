//! A board by hand.
use crate::board::{Board, Built, NamedWork, Nic, Plan};
use crate::bus::CpuView;
use crate::core::{CpuSlot, SoftWires, World, lock};
use crate::layout::{ECAM, HIGH_RAM_START, VIRTIO_MMIO};
use crate::parts::ConsoleSink;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use viv_arch::x86::CpuState;
use viv_block::Disk;
use viv_cpu::soft::{Shared, SoftCpu};
use viv_cpu::{CpuBus, CpuError, Vcpu};
use viv_mem::{Gpa, GuestMemory};
use viv_net::port::NetPort;
use viv_net::vsock::VsockGuest;

/// A board with the software CPU's interrupt chips, without threads (but its disks') and without a kernel.
pub struct Trial {
    board: Arc<Board>,
    world: Arc<World>,
    memory: GuestMemory,
    shared: Arc<Shared>,
    sink: Arc<ConsoleSink>,
    vsock: Arc<dyn VsockGuest>,
    /// After the board, which owns the ends of their queues.
    threads: Mutex<Joined>,
}

impl Trial {
    /// A board with `bytes` of RAM (half of it above 4 GiB if `split`), `cpus` vCPUs and `disks`.
    pub fn new(bytes: u64, split: bool, cpus: u32, disks: Vec<Arc<dyn Disk>>) -> io::Result<Trial> {
        Trial::with(bytes, split, cpus, disks, Vec::new(), None)
    }

    /// The same with shared directories, by their servers' sockets, and a network card that is plugged into `port`.
    pub fn with(
        bytes: u64,
        split: bool,
        cpus: u32,
        disks: Vec<Arc<dyn Disk>>,
        shares: Vec<UnixStream>,
        port: Option<Arc<dyn NetPort>>,
    ) -> io::Result<Trial> {
        let nics =
            port.into_iter().map(|port| Nic { id: 0, mac: [2, 0, 0, 0, 0, 1], mtu: None, port }).collect();
        let half = bytes / 2;
        let layout = if split {
            vec![(Gpa(0), half), (Gpa(HIGH_RAM_START), bytes - half)]
        } else {
            vec![(Gpa(0), bytes)]
        };
        let memory = GuestMemory::new(&layout).map_err(io::Error::other)?;
        let slots: Arc<[CpuSlot]> = (0..cpus).map(CpuSlot::new).collect();
        let soft = Arc::new(SoftWires::new(slots.clone()));
        let world = Arc::new(World::new(soft.clone(), slots));
        let sink = ConsoleSink::new();
        sink.set_free();
        let plan = Plan {
            kvm: None,
            world: world.clone(),
            soft: Some(soft),
            memory: memory.clone(),
            cpus,
            hot_memory: None,
            disks: disks.into_iter().map(|disk| (disk, "trial".to_string())).collect(),
            shares: (0..).zip(shares).map(|(n, server): (u32, _)| (format!("share{n}"), server)).collect(),
            nics,
            vsock: None,
            console_ports: Vec::new(),
            sink: sink.clone(),
        };
        let Built { board, work, vsock, .. } = plan.build()?;
        let threads = Joined(work.into_iter().map(|(_, work)| std::thread::spawn(work)).collect());
        let shared = Shared::new(&memory, cpus);
        world.clock.thaw();
        Ok(Trial { board, world, memory, shared, sink, vsock, threads: Mutex::new(threads) })
    }

    /// A disk comes while the machine runs. Returns its slot.
    pub fn plug_disk(&self, disk: Arc<dyn Disk>) -> io::Result<u8> {
        self.spawn(self.board.plug_disk(disk, "plugged".to_string())?)
    }

    fn spawn(&self, (slot, work): (u8, Vec<NamedWork>)) -> io::Result<u8> {
        lock(&self.threads).0.extend(work.into_iter().map(|(_, work)| std::thread::spawn(work)));
        Ok(slot)
    }

    /// A shared directory comes, with its server's socket. Returns its slot.
    pub fn plug_share(&self, tag: &str, server: UnixStream) -> io::Result<u8> {
        self.spawn(self.board.plug_share(tag, server)?)
    }

    /// A network card comes, plugged into `port`. Returns its slot.
    pub fn plug_card(&self, port: Arc<dyn NetPort>) -> io::Result<u8> {
        self.spawn(self.board.plug_card(Nic { id: 1, mac: [2, 0, 0, 0, 0, 2], mtu: None, port })?)
    }

    /// The guest shall let the device in this slot go.
    pub fn request_eject(&self, slot: u8) {
        self.board.request_eject(slot);
    }

    /// Whether there is a device in this slot.
    pub fn has_slot(&self, slot: u8) -> bool {
        self.board.has_slot(slot)
    }

    /// Its RAM.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// What vCPU `index` sees.
    pub fn bus(&self, index: usize) -> impl CpuBus + use<'_> {
        CpuView { board: self.board.clone(), index }
    }

    /// vCPU `index` in this state. Make each once.
    pub fn cpu(&self, index: u32, state: &CpuState) -> Result<SoftCpu, CpuError> {
        let mut cpu = SoftCpu::new(index, self.shared.clone());
        cpu.load(state)?;
        if let Some(slot) = self.world.cpus.get(index as usize) {
            slot.set_kick(cpu.kicker());
        }
        Ok(cpu)
    }

    /// Time has come to `now` for every chip and local APIC; `None` is the real time.
    pub fn tick(&self, now: Option<u64>) {
        let now = now.unwrap_or_else(|| self.world.clock.now());
        self.board.tick(now);
        for slot in self.world.cpus.iter() {
            slot.tick(now);
        }
    }

    /// Takes what the guest wrote to its consoles.
    pub fn output(&self) -> Vec<u8> {
        self.sink.take()
    }

    /// Bytes from the user.
    pub fn input(&self, bytes: &[u8]) {
        self.board.input(bytes);
    }

    /// The user presses the power button.
    pub fn press_power_button(&self) {
        self.board.press_power_button();
    }

    /// Whether the guest has ended its machine.
    pub fn ended(&self) -> bool {
        self.world.control.ended()
    }

    /// The host's side of vsock.
    pub fn vsock(&self) -> &dyn VsockGuest {
        &*self.vsock
    }

    /// Where devices answer: first address and bytes. PCI BARs are where the guest has put them by now.
    pub fn windows(&self) -> Vec<(u64, u64)> {
        let bus = self.bus(0);
        let mut windows = vec![
            (VIRTIO_MMIO, 0x1000),
            (ECAM, 0x8000),
            (crate::layout::IOAPIC, 0x1000),
            (crate::layout::LAPIC, 0x1000),
        ];
        for slot in 1..8 {
            let bar = ECAM + (slot << 15) + 0x10;
            let (low, high) = (bus.mmio_read(Gpa(bar), 4), bus.mmio_read(Gpa(bar + 4), 4));
            windows.push((low & 0xffff_fff0 | high << 32, 0x8000));
        }
        windows
    }
}

/// Ends with its last queue. A panic there is a finding too.
struct Joined(Vec<JoinHandle<()>>);

impl Drop for Joined {
    fn drop(&mut self) {
        for thread in self.0.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "a disk's thread panicked");
        }
    }
}
