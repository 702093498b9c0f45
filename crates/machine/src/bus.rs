//! Where an access of a vCPU goes: ranges of ports and addresses, PCI, and the interrupt chips.
use crate::board::Board;
use crate::core::wall_ns;
use crate::layout::IOAPIC;
use crate::parts::{Part, Pci};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use viv_cpu::{CpuBus, CpuEvent};
use viv_devices::chips::lapic::WINDOW_LEN;
use viv_devices::{Access, BusDevice};
use viv_mem::Gpa;

struct Range {
    start: u64,
    len: u64,
    window: u8,
    part: Arc<dyn Part>,
}

/// Devices by address, disjoint and ascending.
#[derive(Default)]
pub(crate) struct Ranges(Vec<Range>);

impl Ranges {
    /// Adds a device's window. The board's table has no overlaps: a test checks it.
    pub(crate) fn add(&mut self, start: u64, len: u64, window: u8, part: Arc<dyn Part>) {
        let at = self.0.partition_point(|range| range.start < start);
        self.0.insert(at, Range { start, len, window, part });
    }

    fn find(&self, address: u64, size: u8) -> Option<(&dyn Part, Access)> {
        let at = self.0.partition_point(|range| range.start <= address);
        let range = self.0.get(at.checked_sub(1)?)?;
        let offset = address - range.start;
        (offset < range.len).then(|| (&*range.part, Access { window: range.window, offset, size }))
    }
}

/// Reset control register of PC chipsets: bit 2 resets.
const RESET_CONTROL_PORT: u16 = 0xcf9;
const RESET_CONTROL_RESET: u32 = 1 << 2;

/// The board as one vCPU sees it.
pub(crate) struct CpuView {
    pub(crate) board: Arc<Board>,
    pub(crate) index: usize,
}

impl CpuView {
    fn now(&self) -> u64 {
        self.board.world.clock.now()
    }

    /// Does something to this vCPU's local APIC; `None` with KVM, which has its own.
    fn lapic<R>(&self, act: impl FnOnce(&mut viv_devices::chips::lapic::Lapic, u64) -> R) -> Option<R> {
        let now = self.now();
        let (result, deadline) = self.board.soft.as_ref()?.with_lapic(self.index, |lapic| act(lapic, now))?;
        self.board.publish_deadline(self.index, deadline);
        Some(result)
    }
}

impl CpuView {
    fn in_lapic(&self, gpa: Gpa) -> Option<u64> {
        let base = self.board.world.cpus.get(self.index)?.lapic_base.load(Ordering::Relaxed);
        gpa.0.checked_sub(base).filter(|offset| *offset < WINDOW_LEN)
    }
}

fn in_ioapic(gpa: Gpa) -> Option<u64> {
    gpa.0.checked_sub(IOAPIC).filter(|offset| *offset < 0x1000)
}

impl CpuBus for CpuView {
    fn port_read(&self, port: u16, size: u8) -> u32 {
        if let Some((part, access)) = self.board.ports.find(u64::from(port), size) {
            return part.read(access) as u32;
        }
        if Pci::has_port(port) { self.board.pci.port_read(port, size) } else { u32::MAX }
    }

    fn port_write(&self, port: u16, size: u8, value: u32) {
        if let Some((part, access)) = self.board.ports.find(u64::from(port), size) {
            part.write(access, u64::from(value));
        } else if port == RESET_CONTROL_PORT && size == 1 {
            if value & RESET_CONTROL_RESET != 0 {
                self.board.reset();
            }
        } else if Pci::has_port(port) {
            self.board.pci.port_write(port, size, value);
        }
    }

    fn mmio_read(&self, gpa: Gpa, size: u8) -> u64 {
        if let Some(soft) = &self.board.soft {
            if let Some(offset) = self.in_lapic(gpa) {
                let access = Access { window: 0, offset, size };
                return self.lapic(|lapic, now| lapic.read(access, now)).unwrap_or(u64::MAX);
            }
            if let Some(offset) = in_ioapic(gpa) {
                let access = Access { window: 0, offset, size };
                return soft.ioapic(|ioapic| ioapic.read(access, 0));
            }
        }
        if let Some((part, access)) = self.board.mmio.find(gpa.0, size) {
            return part.read(access);
        }
        self.board.pci.mmio_read(gpa, size).unwrap_or(u64::MAX)
    }

    fn mmio_write(&self, gpa: Gpa, size: u8, value: u64) {
        if let Some(soft) = &self.board.soft {
            if let Some(offset) = self.in_lapic(gpa) {
                let access = Access { window: 0, offset, size };
                self.lapic(|lapic, now| lapic.write(access, value, now));
                return;
            }
            if let Some(offset) = in_ioapic(gpa) {
                let access = Access { window: 0, offset, size };
                soft.ioapic(|ioapic| ioapic.write(access, value, 0));
                return;
            }
        }
        if let Some((part, access)) = self.board.mmio.find(gpa.0, size) {
            part.write(access, value);
        } else {
            self.board.pci.mmio_write(gpa, size, value);
        }
    }

    fn interrupt_pending(&self) -> bool {
        let Some(soft) = &self.board.soft else { return false };
        let (waits, fired) = soft.pending(self.index, &self.board.world.clock);
        if let Some(deadline) = fired {
            self.board.publish_deadline(self.index, deadline);
        }
        waits
    }

    fn acknowledge_interrupt(&self) -> Option<u8> {
        // The poke may be the timekeeper's, once only: the timer fires when its vCPU looks.
        if !self.interrupt_pending() {
            return None;
        }
        self.board.soft.as_ref()?.acknowledge(self.index)
    }

    fn take_event(&self) -> Option<CpuEvent> {
        self.board.world.cpus.get(self.index)?.take_event()
    }

    fn msr_read(&self, index: u32) -> Option<u64> {
        self.lapic(|lapic, now| lapic.read_msr(index, now)).flatten()
    }

    fn msr_write(&self, index: u32, value: u64) -> Option<()> {
        let (done, base) = self.lapic(|lapic, now| (lapic.write_msr(index, value, now), lapic.base()))?;
        if let Some(cpu) = self.board.world.cpus.get(self.index) {
            cpu.lapic_base.store(base, Ordering::Relaxed);
        }
        done
    }

    fn cr8(&self) -> u64 {
        let cpu = self.board.world.cpus.get(self.index);
        cpu.map_or(0, |cpu| cpu.lapic(|lapic| lapic.cr8()))
    }

    fn set_cr8(&self, value: u64) {
        self.lapic(|lapic, _| lapic.set_cr8(value));
    }

    fn now_ns(&self) -> u64 {
        self.now()
    }

    fn wall_ns(&self) -> u64 {
        wall_ns()
    }
}
