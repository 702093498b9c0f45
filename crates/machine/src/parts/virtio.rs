//! A virtio device behind its lock, on either transport, with its host side.
use super::pci::deliver;
use super::{Part, PciSlot};
use crate::core::{World, lock};
use std::fs::File;
use std::io::Read;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex};
use viv_arch::saved::{ChipSaved, FunctionSaved};
use viv_devices::pci::PciFunction;
use viv_devices::virtio::{Rings, Rng, VirtioDevice, VirtioMmio, VirtioPci, VirtioTransport};
use viv_devices::{Access, Unfit, Unsaved};

/// What the machine does for a device after each call to it. Runs under the device's lock: it must not block.
pub(crate) trait HostSide<D>: Send + Sync {
    /// Takes the device's wishes, and grants those that need no waiting.
    fn serve(&self, device: &mut D, rings: &mut Rings<'_>);
}

/// The way back: I/O threads answer the device through this.
pub(crate) trait Hosted<D>: Send + Sync {
    /// Does something to the device, then serves it and delivers its interrupts.
    fn with_device(&self, act: &mut dyn FnMut(&mut D, &mut Rings<'_>));
}

/// See the module.
pub(crate) struct VirtioPart<T, D, H> {
    transport: Mutex<T>,
    host: H,
    line: u32,
    queues: u16,
    world: Arc<World>,
    device: PhantomData<fn() -> D>,
}

impl<T: VirtioTransport<D>, D: VirtioDevice, H: HostSide<D>> VirtioPart<T, D, H> {
    /// `line` is the device's interrupt line, for the times without MSI-X.
    pub(crate) fn new(mut transport: T, host: H, line: u32, world: &Arc<World>) -> Arc<VirtioPart<T, D, H>> {
        let world = world.clone();
        let queues = transport.device().0.queue_sizes().len() as u16;
        let transport = Mutex::new(transport);
        Arc::new(VirtioPart { transport, host, line, queues, world, device: PhantomData })
    }

    fn with<R>(&self, act: impl FnOnce(&mut T) -> R) -> R {
        let mut transport = lock(&self.transport);
        let result = act(&mut transport);
        let (device, mut rings) = transport.device();
        self.host.serve(device, &mut rings);
        let interrupts = transport.take_interrupts();
        // Under the device's lock, so that levels arrive in their order.
        deliver(&self.world, self.line, interrupts);
        result
    }
}

impl<T: VirtioTransport<D>, D: VirtioDevice, H: HostSide<D>> Hosted<D> for VirtioPart<T, D, H> {
    fn with_device(&self, act: &mut dyn FnMut(&mut D, &mut Rings<'_>)) {
        let _going = self.world.going();
        self.with(|transport| {
            let (device, mut rings) = transport.device();
            act(device, &mut rings);
        });
    }
}

impl<D: VirtioDevice, H: HostSide<D>> PciSlot for VirtioPart<VirtioPci<D>, D, H> {
    fn with_function(&self, act: &mut dyn FnMut(&mut dyn PciFunction)) {
        self.with(|transport| act(transport));
    }
    fn save(&self) -> Result<FunctionSaved, Unsaved> {
        lock(&self.transport).save()
    }
    fn queues(&self) -> u16 {
        self.queues
    }
}

impl<D: VirtioDevice, H: HostSide<D>> Part for VirtioPart<VirtioMmio<D>, D, H> {
    fn read(&self, access: Access) -> u64 {
        self.with(|transport| transport.read(access.offset, access.size))
    }
    fn write(&self, access: Access, value: u64) {
        self.with(|transport| transport.write(access.offset, access.size, value));
    }
    fn save(&self) -> Result<ChipSaved, Unsaved> {
        lock(&self.transport).save().map(|saved| ChipSaved::VirtioMmio(Box::new(saved)))
    }
    fn load(&self, saved: &ChipSaved) -> Result<(), Unfit> {
        let ChipSaved::VirtioMmio(saved) = saved else { return Err(Unfit::new("it is another device's")) };
        self.with(|transport| transport.load(saved))
    }
}

/// The entropy source's host side: the kernel's random numbers, from a file that is opened before the sandbox closes.
pub(crate) struct RngHost(Mutex<File>);

impl RngHost {
    pub(crate) fn new() -> std::io::Result<RngHost> {
        Ok(RngHost(Mutex::new(File::open("/dev/urandom")?)))
    }
}

/// Requests that one call may make us answer; the rest waits for the next.
const RNG_BATCH: usize = 64;

impl HostSide<Rng> for RngHost {
    fn serve(&self, device: &mut Rng, rings: &mut Rings<'_>) {
        for _ in 0..RNG_BATCH {
            let Some(len) = device.demand() else { return };
            let mut bytes = vec![0; len];
            if lock(&self.0).read_exact(&mut bytes).is_err() {
                return;
            }
            device.provide(rings, &bytes);
        }
    }
}
