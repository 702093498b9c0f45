//! Virtio over MMIO, version 2 (virtio 1.2 §4.2).

use viv_arch::virtio::{PCI_VENDOR_ID, mmio};
use viv_mem::GuestMemory;

use super::super::core::Core;
use super::super::{Queue, Rings, VirtioDevice};
use super::VirtioTransport;
use crate::{Interrupt, Unfit, Unsaved};
use viv_arch::saved::VirtioMmioSaved;

/// A virtio device in a window of [`mmio::WINDOW_LEN`] bytes with one level-triggered interrupt line.
pub struct VirtioMmio<D> {
    core: Core<D>,
    interrupt_status: u32,
    line: bool,
}

impl<D: VirtioDevice> VirtioMmio<D> {
    /// Puts `device` behind the registers.
    pub fn new(device: D, memory: GuestMemory) -> VirtioMmio<D> {
        VirtioMmio { core: Core::new(device, memory), interrupt_status: 0, line: false }
    }

    /// The guest reads `size` bytes at `offset` of the window.
    pub fn read(&mut self, offset: u64, size: u8) -> u64 {
        if offset >= mmio::CONFIG {
            let mut data = [0; 8];
            let data = data.get_mut(..usize::from(size.min(8))).unwrap_or_default();
            self.core.device.read_config(offset - mmio::CONFIG, data);
            return data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        }
        // All registers are 32 bits wide and are accessed as such (§4.2.2.2).
        if size != 4 || !offset.is_multiple_of(4) {
            return 0;
        }
        self.collect();
        let state = &self.core.state;
        u64::from(match offset {
            mmio::MAGIC_VALUE => mmio::MAGIC,
            mmio::VERSION => 2,
            mmio::DEVICE_ID => self.core.device.device_type().into(),
            mmio::VENDOR_ID => PCI_VENDOR_ID.into(),
            mmio::DEVICE_FEATURES => state.device_features(),
            mmio::QUEUE_NUM_MAX => state.queue().map_or(0, Queue::size_max).into(),
            mmio::QUEUE_READY => state.queue().is_some_and(Queue::ready).into(),
            mmio::INTERRUPT_STATUS => self.interrupt_status,
            mmio::STATUS => self.core.status().into(),
            mmio::SHM_LEN_LOW..=mmio::SHM_BASE_HIGH => u32::MAX,
            mmio::CONFIG_GENERATION => state.config_generation().into(),
            _ => 0,
        })
    }

    /// The guest writes.
    pub fn write(&mut self, offset: u64, size: u8, value: u64) {
        if offset >= mmio::CONFIG {
            let data = value.to_le_bytes();
            let data = data.get(..usize::from(size)).unwrap_or(&data);
            self.core.device.write_config(offset - mmio::CONFIG, data);
            return;
        }
        if size != 4 || !offset.is_multiple_of(4) {
            return;
        }
        let word = value as u32;
        let state = &mut self.core.state;
        match offset {
            mmio::DEVICE_FEATURES_SEL => state.set_device_feature_select(word),
            mmio::DRIVER_FEATURES => state.set_driver_features(word),
            mmio::DRIVER_FEATURES_SEL => state.set_driver_feature_select(word),
            // An index that no queue can have stays such a one.
            mmio::QUEUE_SEL => state.queue_select = word.try_into().unwrap_or(u16::MAX),
            mmio::QUEUE_NUM => {
                if let (Some(queue), Ok(size)) = (state.queue_mut(), word.try_into()) {
                    queue.set_size(size);
                }
            }
            mmio::QUEUE_READY => match word {
                1 => state.enable_queue(),
                0 => state.disable_queue(),
                _ => {}
            },
            mmio::QUEUE_NOTIFY => {
                if let Ok(queue) = word.try_into() {
                    self.core.notified(queue);
                }
            }
            mmio::INTERRUPT_ACK => {
                self.collect();
                self.interrupt_status &= !word;
            }
            mmio::STATUS => {
                let was_reset = self.core.set_status(word as u8);
                if was_reset {
                    self.interrupt_status = 0;
                }
            }
            mmio::QUEUE_DESC_LOW | mmio::QUEUE_DESC_HIGH => {
                state.set_queue_address(0, offset & 4, 4, word.into());
            }
            mmio::QUEUE_DRIVER_LOW | mmio::QUEUE_DRIVER_HIGH => {
                state.set_queue_address(1, offset & 4, 4, word.into());
            }
            mmio::QUEUE_DEVICE_LOW | mmio::QUEUE_DEVICE_HIGH => {
                state.set_queue_address(2, offset & 4, 4, word.into());
            }
            _ => {}
        }
    }

    /// Back to the state after power-on.
    pub fn reset(&mut self) {
        self.core.reset();
        self.interrupt_status = 0;
    }

    /// The whole state.
    pub fn save(&self) -> Result<VirtioMmioSaved, Unsaved> {
        Ok(VirtioMmioSaved { virtio: self.core.save()?, interrupt_status: self.interrupt_status })
    }

    /// Replaces the whole state of a device that nobody has used.
    pub fn load(&mut self, saved: &VirtioMmioSaved) -> Result<(), Unfit> {
        self.interrupt_status = saved.interrupt_status;
        self.core.load(&saved.virtio)
    }

    fn collect(&mut self) {
        let signals = self.core.take_signals();
        if !signals.queues.is_empty() {
            self.interrupt_status |= mmio::INTERRUPT_QUEUE;
        }
        if signals.config {
            self.interrupt_status |= mmio::INTERRUPT_CONFIG;
        }
    }
}

impl<D: VirtioDevice> VirtioTransport<D> for VirtioMmio<D> {
    fn device(&mut self) -> (&mut D, Rings<'_>) {
        self.core.parts()
    }

    fn take_interrupts(&mut self) -> Vec<Interrupt> {
        self.collect();
        let line = self.interrupt_status != 0;
        if std::mem::replace(&mut self.line, line) == line { Vec::new() } else { vec![Interrupt::Line(line)] }
    }
}
