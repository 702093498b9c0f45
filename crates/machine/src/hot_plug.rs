//! Devices that may come and go while the machine runs, and those of the same kinds that are there at its start.
use crate::acpi::{HOT_PLUG_GPE, intx_gsi};
use crate::board::{Board, HOT_PLUG, NamedWork, Nic};
use crate::core::{World, lock};
use crate::parts::{
    CardHost, CardThread, DiskHost, DiskThreads, HostSide, Hosted, ShareHost, ShareRequests, VirtioPart,
};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use viv_arch::pci::Bdf;
use viv_block::Disk;
use viv_devices::pci::{Allocator, PciFunction};
use viv_devices::virtio::blk::{Blk, BlkSettings};
use viv_devices::virtio::{Fs, Net, NetSettings, VirtioDevice, VirtioPci};
use viv_mem::GuestMemory;
use viv_net::port::NetPort;
use viv_net::switch::address::MTU;
use viv_net::vsock::Waker;

/// Queues of a disk: one for each vCPU up to this many.
const DISK_QUEUES_MAX: u32 = 4;
/// Pairs of queues of a network card: one for each vCPU up to this many.
const CARD_PAIRS_MAX: u32 = 4;
/// Block size that guests are told, bytes.
const DISK_BLOCK_SIZE: u32 = 512;

/// A device other than a disk that may go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// A shared directory, by its tag.
    Share(String),
    /// A network card, by its number.
    Card(u8),
}

/// What a network card's thread holds: the port, and what wakes it.
type CardThreads = (Arc<dyn NetPort>, Waker);

/// A device that has come.
struct Plugged<D> {
    slot: u8,
    device: Arc<dyn Hosted<D>>,
    work: Vec<NamedWork>,
}

/// What it takes to make devices, also while the machine runs.
pub(crate) struct HotPlug {
    pub(crate) world: Arc<World>,
    pub(crate) memory: GuestMemory,
    cpus: u32,
    windows: Allocator,
}

impl HotPlug {
    pub(crate) fn new(world: &Arc<World>, memory: &GuestMemory, cpus: u32, windows: Allocator) -> HotPlug {
        HotPlug { world: world.clone(), memory: memory.clone(), cpus, windows }
    }

    pub(crate) fn disk(&self, disk: Arc<dyn Disk>, serial: String) -> (Blk, DiskHost, DiskThreads) {
        let queues = self.cpus.clamp(1, DISK_QUEUES_MAX) as u16;
        let settings = BlkSettings {
            bytes: disk.size(),
            read_only: disk.read_only(),
            block_size: DISK_BLOCK_SIZE,
            queues,
            id: serial,
        };
        let (host, threads) = DiskHost::new(disk, queues);
        (Blk::new(settings), host, threads)
    }

    pub(crate) fn disk_work(&self, threads: DiskThreads, device: &Arc<dyn Hosted<Blk>>) -> Vec<NamedWork> {
        let world = self.world.clone();
        let work = threads.work(device, &self.memory, move || world.control.ended());
        work.into_iter().map(|work| ("disk", work)).collect()
    }

    pub(crate) fn card(&self, nic: Nic) -> io::Result<(Net, CardHost, CardThreads)> {
        let pairs = self.cpus.clamp(1, CARD_PAIRS_MAX) as u16;
        let card = Net::new(NetSettings { mac: nic.mac, mtu: nic.mtu.unwrap_or(MTU), pairs });
        let waker = Waker::new()?;
        Ok((card, CardHost(waker.clone()), (nic.port, waker)))
    }

    pub(crate) fn card_work(&self, parts: CardThreads, device: &Arc<dyn Hosted<Net>>) -> Vec<NamedWork> {
        let (world, (port, waker)) = (self.world.clone(), parts);
        vec![("net", CardThread::work(device, port, waker, move || world.control.ended()))]
    }

    pub(crate) fn share_work(
        &self,
        (requests, server): (ShareRequests, UnixStream),
        device: &Arc<dyn Hosted<Fs>>,
    ) -> Vec<NamedWork> {
        vec![("share", requests.work(server, device, &self.memory))]
    }

    /// A device as a function for this slot.
    pub(crate) fn function<D, H>(
        &mut self,
        device: D,
        host: H,
        slot: u8,
    ) -> io::Result<Arc<VirtioPart<VirtioPci<D>, D, H>>>
    where
        D: VirtioDevice + 'static,
        H: HostSide<D> + 'static,
    {
        let line = intx_gsi(slot, 0);
        let mut function = VirtioPci::new(device, self.memory.clone(), line as u8);
        if !function.place_bars(&mut self.windows) {
            return Err(io::Error::other("the PCI windows have no room left"));
        }
        Ok(VirtioPart::new(function, host, line, &self.world))
    }
}

impl Board {
    /// Puts a device into a free slot and tells the guest. `make` makes it, and what `work` makes its threads' work from.
    fn plug<D, H, T>(
        &self,
        make: impl FnOnce(&HotPlug) -> io::Result<(D, H, T)>,
        work: impl FnOnce(&HotPlug, T, &Arc<dyn Hosted<D>>) -> Vec<NamedWork>,
    ) -> io::Result<Plugged<D>>
    where
        D: VirtioDevice + 'static,
        H: HostSide<D> + 'static,
    {
        let _going = self.world.going();
        let mut hot_plug = lock(&self.hot_plug);
        let slot = self.pci.free_slot(HOT_PLUG).ok_or_else(|| io::Error::other("no PCI slot is free"))?;
        let (device, host, threads) = make(&hot_plug)?;
        let function = hot_plug.function(device, host, slot)?;
        self.pci.plug(Bdf::root(slot), function.clone());
        let device: Arc<dyn Hosted<D>> = function;
        let work = work(&hot_plug, threads, &device);
        self.slots.with(|slots, _| slots.plugged(slot));
        self.power.with(|pm, _| pm.raise_gpe(HOT_PLUG_GPE));
        Ok(Plugged { slot, device, work })
    }

    /// A disk comes. Returns its slot, and what its threads do.
    pub(crate) fn plug_disk(&self, disk: Arc<dyn Disk>, serial: String) -> io::Result<(u8, Vec<NamedWork>)> {
        let make = |hot_plug: &HotPlug| Ok(hot_plug.disk(disk, serial));
        let Plugged { slot, device, work } = self.plug(make, HotPlug::disk_work)?;
        lock(&self.disks).insert(slot, Arc::downgrade(&device));
        Ok((slot, work))
    }

    /// A shared directory comes, with the socket of its server.
    pub(crate) fn plug_share(&self, tag: &str, server: UnixStream) -> io::Result<(u8, Vec<NamedWork>)> {
        let make = |_: &HotPlug| {
            let (host, requests) = ShareHost::new();
            Ok((Fs::new(tag), host, (requests, server)))
        };
        let Plugged { slot, work, .. } = self.plug(make, HotPlug::share_work)?;
        lock(&self.places).insert(Place::Share(tag.to_string()), slot);
        Ok((slot, work))
    }

    /// A network card comes.
    pub(crate) fn plug_card(&self, nic: Nic) -> io::Result<(u8, Vec<NamedWork>)> {
        let id = nic.id;
        let make = |hot_plug: &HotPlug| hot_plug.card(nic);
        let Plugged { slot, work, .. } = self.plug(make, HotPlug::card_work)?;
        lock(&self.places).insert(Place::Card(id), slot);
        Ok((slot, work))
    }

    /// The slot of a device that is no disk, if it is there.
    pub(crate) fn slot_of(&self, place: &Place) -> Option<u8> {
        lock(&self.places).get(place).copied()
    }

    /// A device that is no disk has gone.
    pub(crate) fn forget(&self, place: &Place) {
        lock(&self.places).remove(place);
    }

    /// Whether the devices that may go are those of the start, in the slots that they had then; disks aside.
    pub(crate) fn is_as_started(&self) -> bool {
        *lock(&self.places) == self.first_places
    }

    /// Asks the guest to let the device in this slot go; it is gone when [`Board::has_slot`] says no.
    pub(crate) fn request_eject(&self, slot: u8) {
        let _going = self.world.going();
        self.slots.with(|slots, _| slots.request_eject(slot));
        self.power.with(|pm, _| pm.raise_gpe(HOT_PLUG_GPE));
    }

    /// Whether there is a device in this slot.
    pub(crate) fn has_slot(&self, slot: u8) -> bool {
        self.pci.has(slot)
    }
}
