//! Virtio over PCI, modern only (virtio 1.2 §4.1).

use viv_arch::pci::{CAPABILITY_VENDOR, COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE};
use viv_arch::saved::{FunctionSaved, VirtioFunctionSaved};
use viv_arch::virtio::{PCI_DEVICE_ID_BASE, PCI_VENDOR_ID, pci as reg};
use viv_mem::GuestMemory;

use super::super::core::Core;
use super::super::{Queue, Rings, VirtioDevice};
use super::VirtioTransport;
use crate::pci::{Allocator, BarKind, BarRange, ConfigSpace, Identity, Msix, PciFunction};
use crate::{Interrupt, Unfit, Unsaved};

/// The BAR that holds everything; pages of their own for each structure, so that a host may map notifications.
const BAR: u8 = 0;
const BAR_LEN: u64 = 0x8000;
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
/// Where the notify area begins in BAR 0.
pub const NOTIFY_OFFSET: u64 = 0x3000;
/// Bytes between the notify addresses of two queues (`notify_off_multiplier`, §4.1.4.4).
pub const NOTIFY_MULTIPLIER: u32 = 4;
const MSIX_TABLE: u64 = 0x4000;
const MSIX_PBA: u64 = 0x5000;
const STRUCTURE_LEN: u64 = 0x1000;

/// A virtio device as a PCI function with MSI-X: one vector for each queue and one for the configuration.
pub struct VirtioPci<D> {
    core: Core<D>,
    config: ConfigSpace,
    msix: Option<Msix>,
    /// Offset of the PCI configuration access capability (§4.1.4.9).
    access_capability: Option<u16>,
    config_vector: u16,
    queue_vectors: Vec<u16>,
    isr: u8,
    line: bool,
}

impl<D: VirtioDevice> VirtioPci<D> {
    /// Puts `device` behind a PCI function; `intx_line` is what the interrupt line register shows.
    pub fn new(device: D, memory: GuestMemory, intx_line: u8) -> VirtioPci<D> {
        let mut config = ConfigSpace::new(Identity {
            vendor: PCI_VENDOR_ID,
            device: PCI_DEVICE_ID_BASE + device.device_type(),
            revision: 1,
            class: device.pci_class(),
            subsystem_vendor: PCI_VENDOR_ID,
            subsystem: 0x1100,
        });
        config.use_intx(intx_line);
        config.add_bar(BAR, BarKind::Memory64, BAR_LEN);
        let core = Core::new(device, memory);
        let queues = core.state.queues.len() as u16;
        for (kind, offset, len) in [
            (reg::CAP_COMMON_CFG, COMMON, reg::COMMON_CFG_LEN),
            (reg::CAP_ISR_CFG, ISR, 1),
            (reg::CAP_DEVICE_CFG, DEVICE, STRUCTURE_LEN),
        ] {
            config.add_capability(CAPABILITY_VENDOR, &capability(kind, offset, len, None));
        }
        let notify_len = u64::from(queues) * u64::from(NOTIFY_MULTIPLIER);
        let notify = capability(reg::CAP_NOTIFY_CFG, NOTIFY_OFFSET, notify_len, Some(NOTIFY_MULTIPLIER));
        config.add_capability(CAPABILITY_VENDOR, &notify);
        let access_capability =
            config.add_capability(CAPABILITY_VENDOR, &capability(reg::CAP_PCI_CFG, 0, 0, Some(0)));
        if let Some(at) = access_capability {
            config.allow(at + reg::CAP_BAR, &[0xff]);
            config.allow(at + reg::CAP_OFFSET, &[0xff; 12]);
        }
        let msix = Msix::new(&mut config, queues + 1, BAR, MSIX_TABLE as u32, MSIX_PBA as u32);
        VirtioPci {
            core,
            config,
            msix,
            access_capability,
            config_vector: reg::NO_VECTOR,
            queue_vectors: vec![reg::NO_VECTOR; queues.into()],
            isr: 0,
            line: false,
        }
    }

    fn msix_enabled(&self) -> bool {
        self.msix.as_ref().is_some_and(Msix::enabled)
    }

    fn vector(&self, wanted: u16) -> u16 {
        let vectors = self.msix.as_ref().map_or(0, Msix::vectors);
        if wanted < vectors { wanted } else { reg::NO_VECTOR }
    }

    /// Turns what the device signalled into ISR bits or pending vectors (§4.1.4.5, §4.1.5.3).
    fn collect(&mut self) {
        let signals = self.core.take_signals();
        let by_message = self.msix_enabled();
        if signals.config {
            self.isr |= reg::ISR_CONFIG;
        }
        if !by_message && !signals.queues.is_empty() {
            self.isr |= reg::ISR_QUEUE;
        }
        let Some(msix) = self.msix.as_mut().filter(|_| by_message) else { return };
        if signals.config {
            msix.raise(self.config_vector);
        }
        for queue in signals.queues {
            msix.raise(self.queue_vectors.get(usize::from(queue)).copied().unwrap_or(reg::NO_VECTOR));
        }
    }

    fn line_level(&self) -> bool {
        self.isr != 0 && !self.msix_enabled() && self.config.command() & COMMAND_INTX_DISABLE == 0
    }

    /// The common configuration as its bytes (§4.1.4.3).
    fn common(&self) -> [u8; reg::COMMON_CFG_LEN as usize] {
        let state = &self.core.state;
        let queue = state.queue();
        let [descriptors, available, used] = queue.map(Queue::addresses).unwrap_or_default();
        let selected = usize::from(state.queue_select);
        let mut bytes = [0; reg::COMMON_CFG_LEN as usize];
        let mut put = |offset: u64, data: &[u8]| {
            for (to, from) in bytes.iter_mut().skip(offset as usize).zip(data) {
                *to = *from;
            }
        };
        put(reg::DEVICE_FEATURE_SELECT, &state.device_feature_select().to_le_bytes());
        put(reg::DEVICE_FEATURE, &state.device_features().to_le_bytes());
        put(reg::DRIVER_FEATURE_SELECT, &state.driver_feature_select().to_le_bytes());
        put(reg::DRIVER_FEATURE, &state.driver_features().to_le_bytes());
        put(reg::CONFIG_MSIX_VECTOR, &self.config_vector.to_le_bytes());
        put(reg::NUM_QUEUES, &(state.queues.len() as u16).to_le_bytes());
        put(reg::DEVICE_STATUS, &[self.core.status()]);
        put(reg::CONFIG_GENERATION, &[state.config_generation()]);
        put(reg::QUEUE_SELECT, &state.queue_select.to_le_bytes());
        put(reg::QUEUE_SIZE, &queue.map_or(0, Queue::size).to_le_bytes());
        let vector = self.queue_vectors.get(selected).copied().unwrap_or(reg::NO_VECTOR);
        put(reg::QUEUE_MSIX_VECTOR, &vector.to_le_bytes());
        put(reg::QUEUE_ENABLE, &u16::from(queue.is_some_and(Queue::ready)).to_le_bytes());
        put(reg::QUEUE_NOTIFY_OFF, &queue.map_or(0, |_| state.queue_select).to_le_bytes());
        put(reg::QUEUE_DESC, &descriptors.0.to_le_bytes());
        put(reg::QUEUE_DRIVER, &available.0.to_le_bytes());
        put(reg::QUEUE_DEVICE, &used.0.to_le_bytes());
        bytes
    }

    fn write_common(&mut self, offset: u64, size: u8, value: u64) {
        let selected = usize::from(self.core.state.queue_select);
        let state = &mut self.core.state;
        // Fields are accessed in their own width (§4.1.3.1), 64-bit ones also by halves.
        match (offset, size) {
            (reg::DEVICE_FEATURE_SELECT, 4) => state.set_device_feature_select(value as u32),
            (reg::DRIVER_FEATURE_SELECT, 4) => state.set_driver_feature_select(value as u32),
            (reg::DRIVER_FEATURE, 4) => state.set_driver_features(value as u32),
            (reg::CONFIG_MSIX_VECTOR, 2) => self.config_vector = self.vector(value as u16),
            (reg::DEVICE_STATUS, 1) => {
                let was_reset = self.core.set_status(value as u8);
                if was_reset {
                    self.forget_driver();
                }
            }
            (reg::QUEUE_SELECT, 2) => state.queue_select = value as u16,
            (reg::QUEUE_SIZE, 2) => {
                if let Some(queue) = state.queue_mut() {
                    queue.set_size(value as u16);
                }
            }
            (reg::QUEUE_MSIX_VECTOR, 2) => {
                let vector = self.vector(value as u16);
                if let Some(slot) = self.queue_vectors.get_mut(selected) {
                    *slot = vector;
                }
            }
            (reg::QUEUE_ENABLE, 2) if value as u16 == 1 => state.enable_queue(),
            (reg::QUEUE_DESC..reg::COMMON_CFG_LEN, 4 | 8) if offset.is_multiple_of(u64::from(size)) => {
                let which = ((offset - reg::QUEUE_DESC) / 8) as usize;
                state.set_queue_address(which, offset & 7, size, value);
            }
            _ => {}
        }
    }

    /// The driver reset the device: its vectors and pending interrupts are gone.
    fn forget_driver(&mut self) {
        self.config_vector = reg::NO_VECTOR;
        self.queue_vectors.fill(reg::NO_VECTOR);
        self.isr = 0;
        if let Some(msix) = &mut self.msix {
            msix.clear_pending();
        }
    }

    /// The access that the PCI configuration access capability describes: offset and length (§4.1.4.9).
    fn described_access(&self) -> Option<(u64, u8)> {
        let at = self.access_capability?;
        let [bar] = self.config.get(at + reg::CAP_BAR);
        let offset = u32::from_le_bytes(self.config.get(at + reg::CAP_OFFSET));
        let length = u32::from_le_bytes(self.config.get(at + reg::CAP_LENGTH));
        let fits = bar == BAR && matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length);
        fits.then_some((offset.into(), length as u8))
    }

    fn touches_access_data(&self, offset: u16, size: u8) -> bool {
        self.access_capability.is_some_and(|at| {
            let data = at + reg::CAP_TAIL;
            offset < data + 4 && data < offset.saturating_add(size.into())
        })
    }
}

/// The body of a `struct virtio_pci_cap` behind ID and link, with the field that follows some of them.
fn capability(kind: u8, offset: u64, len: u64, tail: Option<u32>) -> Vec<u8> {
    let cap_len = reg::CAP_LEN + if tail.is_some() { 4 } else { 0 };
    let mut body = vec![cap_len, kind, BAR, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((len as u32).to_le_bytes());
    body.extend(tail.into_iter().flat_map(u32::to_le_bytes));
    body
}

fn value_of(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

impl<D: VirtioDevice> PciFunction for VirtioPci<D> {
    fn config_read(&mut self, offset: u16, size: u8) -> u32 {
        if self.touches_access_data(offset, size)
            && let (Some(at), Some((target, length))) = (self.access_capability, self.described_access())
        {
            let value = self.bar_read(BAR, target, length);
            self.config.set(at + reg::CAP_TAIL, &(value as u32).to_le_bytes());
        }
        self.collect();
        self.config.show_interrupt(self.isr != 0 && !self.msix_enabled());
        self.config.read(offset, size)
    }

    fn config_write(&mut self, offset: u16, size: u8, value: u32) -> bool {
        let moved = self.config.write(offset, size, value);
        if let Some(msix) = &mut self.msix {
            msix.update(&self.config);
        }
        if self.touches_access_data(offset, size)
            && let (Some(at), Some((target, length))) = (self.access_capability, self.described_access())
        {
            let data = u32::from_le_bytes(self.config.get(at + reg::CAP_TAIL));
            self.bar_write(BAR, target, length, data.into());
        }
        moved
    }

    fn bars(&self) -> Vec<BarRange> {
        self.config.bars()
    }

    fn place_bars(&mut self, windows: &mut Allocator) -> bool {
        self.config.place_bars(windows)
    }

    fn bar_read(&mut self, bar: u8, offset: u64, size: u8) -> u64 {
        if bar != BAR {
            return u64::MAX;
        }
        let inner = offset % STRUCTURE_LEN;
        match offset - inner {
            COMMON => {
                self.collect();
                let common = self.common();
                let start = (inner as usize).min(common.len());
                let end = (start + usize::from(size)).min(common.len());
                value_of(common.get(start..end).unwrap_or_default())
            }
            ISR if inner == 0 => {
                self.collect();
                std::mem::take(&mut self.isr).into()
            }
            DEVICE => {
                let mut data = [0; 8];
                let data = data.get_mut(..usize::from(size.min(8))).unwrap_or_default();
                self.core.device.read_config(inner, data);
                value_of(data)
            }
            MSIX_TABLE => self.msix.as_ref().map_or(0, |msix| msix.read_table(inner, size)),
            MSIX_PBA => {
                self.collect();
                self.msix.as_ref().map_or(0, |msix| msix.read_pba(inner, size))
            }
            _ => 0,
        }
    }

    fn bar_write(&mut self, bar: u8, offset: u64, size: u8, value: u64) {
        if bar != BAR {
            return;
        }
        let inner = offset % STRUCTURE_LEN;
        match offset - inner {
            COMMON => self.write_common(inner, size, value),
            DEVICE => {
                let data = value.to_le_bytes();
                let data = data.get(..usize::from(size)).unwrap_or(&data);
                self.core.device.write_config(inner, data);
            }
            NOTIFY_OFFSET => self.core.notified((inner / u64::from(NOTIFY_MULTIPLIER)) as u16),
            MSIX_TABLE => {
                if let Some(msix) = &mut self.msix {
                    msix.write_table(inner, size, value);
                }
            }
            _ => {}
        }
    }

    fn take_interrupts(&mut self) -> Vec<Interrupt> {
        self.collect();
        let bus_master = self.config.command() & COMMAND_BUS_MASTER != 0;
        let mut interrupts = self.msix.as_mut().map_or_else(Vec::new, |msix| msix.take_messages(bus_master));
        let line = self.line_level();
        if std::mem::replace(&mut self.line, line) != line {
            interrupts.push(Interrupt::Line(line));
        }
        interrupts
    }

    fn save(&self) -> Result<FunctionSaved, Unsaved> {
        let virtio = VirtioFunctionSaved {
            virtio: self.core.save()?,
            msix: self.msix.as_ref().map(Msix::save).unwrap_or_default(),
            config_vector: self.config_vector,
            queue_vectors: self.queue_vectors.clone(),
            isr: self.isr,
        };
        Ok(FunctionSaved { config: self.config.save(), virtio: Some(virtio) })
    }

    fn load(&mut self, saved: &FunctionSaved) -> Result<(), Unfit> {
        let virtio = saved.virtio.as_ref().ok_or_else(|| Unfit::new("it is no virtio device's"))?;
        self.config.load(&saved.config)?;
        if let Some(msix) = &mut self.msix {
            msix.load(&virtio.msix)?;
            msix.update(&self.config);
        }
        if virtio.queue_vectors.len() != self.queue_vectors.len() {
            return Err(Unfit::new("it has another number of queues"));
        }
        self.config_vector = self.vector(virtio.config_vector);
        self.queue_vectors = virtio.queue_vectors.iter().map(|vector| self.vector(*vector)).collect();
        self.isr = virtio.isr & (reg::ISR_QUEUE | reg::ISR_CONFIG);
        self.core.load(&virtio.virtio)
    }

    fn reset(&mut self) {
        self.core.reset();
        self.forget_driver();
        self.config.reset();
        if let Some(msix) = &mut self.msix {
            msix.reset();
        }
    }
}

impl<D: VirtioDevice> VirtioTransport<D> for VirtioPci<D> {
    fn device(&mut self) -> (&mut D, Rings<'_>) {
        self.core.parts()
    }

    fn take_interrupts(&mut self) -> Vec<Interrupt> {
        PciFunction::take_interrupts(self)
    }
}
