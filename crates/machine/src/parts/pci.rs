//! PCI: which function an access belongs to, and the functions behind their locks.
use super::Doorbells;
use crate::core::{World, lock};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use viv_arch::pci::{Bdf, CONFIG_ADDRESS_PORT};
use viv_arch::saved::FunctionSaved;
use viv_devices::pci::{BarRange, PciFunction, PciRoot, Target};
use viv_devices::{Interrupt, Unfit, Unsaved};
use viv_mem::Gpa;

/// A function behind its lock.
pub(crate) trait PciSlot: Send + Sync {
    /// Does something to the function, then tells the world what followed.
    fn with_function(&self, act: &mut dyn FnMut(&mut dyn PciFunction));
    /// The whole state. It is loaded through the function.
    fn save(&self) -> Result<FunctionSaved, Unsaved>;
    /// Virtqueues of a virtio function.
    fn queues(&self) -> u16 {
        0
    }
}

/// Delivers the interrupts of a device that shares line `gsi`.
pub(crate) fn deliver(world: &World, gsi: u32, interrupts: Vec<Interrupt>) {
    for interrupt in interrupts {
        match interrupt {
            Interrupt::Line(level) => world.lines.drive(gsi, level),
            Interrupt::Message { address, data } => world.lines.message(address, data),
        }
    }
}

/// A function without a host side.
pub(crate) struct PlainFunction<F>(Mutex<F>);

impl<F: PciFunction> PlainFunction<F> {
    pub(crate) fn new(function: F) -> Arc<PlainFunction<F>> {
        Arc::new(PlainFunction(Mutex::new(function)))
    }
}

impl<F: PciFunction> PciSlot for PlainFunction<F> {
    fn with_function(&self, act: &mut dyn FnMut(&mut dyn PciFunction)) {
        act(&mut *lock(&self.0));
    }
    fn save(&self) -> Result<FunctionSaved, Unsaved> {
        lock(&self.0).save()
    }
}

/// The root with all functions.
pub(crate) struct Pci {
    root: Mutex<PciRoot>,
    functions: RwLock<BTreeMap<Bdf, Arc<dyn PciSlot>>>,
    /// With KVM.
    bells: Option<Arc<Doorbells>>,
}

/// Last port of the configuration mechanism.
const CONFIG_PORT_LAST: u16 = CONFIG_ADDRESS_PORT + 7;

impl Pci {
    /// The functions have their BARs placed already.
    pub(crate) fn new(
        root: PciRoot,
        functions: BTreeMap<Bdf, Arc<dyn PciSlot>>,
        bells: Option<Arc<Doorbells>>,
    ) -> Pci {
        let pci = Pci { root: Mutex::new(root), functions: RwLock::default(), bells };
        for (bdf, slot) in functions {
            pci.plug(bdf, slot);
        }
        pci
    }

    /// A function comes, its BARs placed.
    pub(crate) fn plug(&self, bdf: Bdf, slot: Arc<dyn PciSlot>) {
        slot.with_function(&mut |function| self.set_bars(bdf, function.bars()));
        self.functions.write().unwrap_or_else(PoisonError::into_inner).insert(bdf, slot);
    }

    /// A function goes: nobody answers there any more.
    pub(crate) fn unplug(&self, bdf: Bdf) {
        if let Some(bells) = &self.bells {
            bells.retire(bdf);
        }
        lock(&self.root).remove(bdf);
        self.functions.write().unwrap_or_else(PoisonError::into_inner).remove(&bdf);
    }

    /// The first slot of these in which there is nothing.
    pub(crate) fn free_slot(&self, mut slots: Range<u8>) -> Option<u8> {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        slots.find(|slot| !functions.contains_key(&Bdf::root(*slot)))
    }

    /// Whether there is a function in this slot.
    pub(crate) fn has(&self, slot: u8) -> bool {
        self.function(Bdf::root(slot)).is_some()
    }

    /// CONFIG_ADDRESS, and each function with its slot.
    pub(crate) fn save(&self) -> Result<(u32, Vec<(u8, FunctionSaved)>), Unsaved> {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        let each = |(bdf, slot): (&Bdf, &Arc<dyn PciSlot>)| Ok((bdf.device, slot.save()?));
        Ok((lock(&self.root).address(), functions.iter().map(each).collect::<Result<_, Unsaved>>()?))
    }

    /// Replaces the state of all functions: the same ones that were saved.
    pub(crate) fn load(&self, address: u32, saved: &[(u8, FunctionSaved)]) -> Result<(), Unfit> {
        let here = self.functions.read().unwrap_or_else(PoisonError::into_inner).len();
        if saved.len() != here {
            return Err(Unfit::new(format!("{} PCI devices, not {here}", saved.len())));
        }
        for (slot, saved) in saved {
            let missing = || Unfit::new(format!("a device in PCI slot {slot}, where there is none"));
            let function = self.function(Bdf::root(*slot)).ok_or_else(missing)?;
            let mut loaded = Ok(Vec::new());
            function.with_function(&mut |function| {
                loaded = function.load(saved).map(|()| function.bars());
            });
            let bars =
                loaded.map_err(|unfit| Unfit::new(format!("the device in PCI slot {slot}: {unfit}")))?;
            self.set_bars(Bdf::root(*slot), bars);
        }
        lock(&self.root).write_address(CONFIG_ADDRESS_PORT, 4, address);
        Ok(())
    }

    fn function(&self, bdf: Bdf) -> Option<Arc<dyn PciSlot>> {
        self.functions.read().unwrap_or_else(PoisonError::into_inner).get(&bdf).cloned()
    }

    fn set_bars(&self, bdf: Bdf, bars: Vec<BarRange>) {
        if let Some(bells) = &self.bells {
            bells.place(bdf, &bars);
        }
        lock(&self.root).set_bars(bdf, bars);
    }

    /// Whether `port` is one of CONFIG_ADDRESS and CONFIG_DATA.
    pub(crate) fn has_port(port: u16) -> bool {
        (CONFIG_ADDRESS_PORT..=CONFIG_PORT_LAST).contains(&port)
    }

    pub(crate) fn port_read(&self, port: u16, size: u8) -> u32 {
        let root = lock(&self.root);
        if port < CONFIG_ADDRESS_PORT + 4 {
            return root.read_address(port, size);
        }
        let target = root.route_port(port);
        drop(root);
        target.map_or(u32::MAX, |target| self.read(target, size) as u32)
    }

    pub(crate) fn port_write(&self, port: u16, size: u8, value: u32) {
        let mut root = lock(&self.root);
        if port < CONFIG_ADDRESS_PORT + 4 {
            root.write_address(port, size, value);
            return;
        }
        let target = root.route_port(port);
        drop(root);
        if let Some(target) = target {
            self.write(target, size, u64::from(value));
        }
    }

    /// A read of `gpa`, if PCI answers there.
    pub(crate) fn mmio_read(&self, gpa: Gpa, size: u8) -> Option<u64> {
        let target = lock(&self.root).route(gpa)?;
        Some(self.read(target, size))
    }

    /// A write to `gpa`; whether PCI answers there.
    pub(crate) fn mmio_write(&self, gpa: Gpa, size: u8, value: u64) -> bool {
        let target = lock(&self.root).route(gpa);
        if let Some(target) = target {
            self.write(target, size, value);
        }
        target.is_some()
    }

    fn read(&self, target: Target, size: u8) -> u64 {
        let (Target::Config { bdf, .. } | Target::Bar { bdf, .. }) = target;
        let mut value = u64::MAX;
        if let Some(slot) = self.function(bdf) {
            slot.with_function(&mut |function| {
                value = match target {
                    // Wider accesses do not exist in configuration space.
                    Target::Config { offset, .. } => u64::from(function.config_read(offset, size.min(4))),
                    Target::Bar { bar, offset, .. } => function.bar_read(bar, offset, size),
                }
            });
        }
        value
    }

    fn write(&self, target: Target, size: u8, value: u64) {
        let (Target::Config { bdf, .. } | Target::Bar { bdf, .. }) = target;
        let Some(slot) = self.function(bdf) else { return };
        let mut moved = None;
        slot.with_function(&mut |function| match target {
            Target::Config { offset, .. } => {
                if function.config_write(offset, size.min(4), value as u32) {
                    moved = Some(function.bars());
                }
            }
            Target::Bar { bar, offset, .. } => function.bar_write(bar, offset, size, value),
        });
        if let Some(bars) = moved {
            self.set_bars(bdf, bars);
        }
    }
}
