//! What every part of a running machine shares: time, interrupt lines, vCPU wake-ups, and how it all ends.
//!
//! Locks are taken downwards only: a device, then the lines, then PIC and IOAPIC, then one local APIC at a
//! time. Nothing below ever calls a device.

mod alarm;
mod clock;
mod control;
mod interrupts;
mod slot;

pub(crate) use alarm::Alarm;
pub(crate) use clock::{Clock, wall_ns};
pub(crate) use control::{Control, Phase};
pub(crate) use interrupts::{KvmWires, Lines, SoftWires, Wires};
pub(crate) use slot::CpuSlot;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Locks, also after a panic of another holder: the panic has already ended the machine, and its end must
/// still be told.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shared by all devices and threads of one machine.
pub(crate) struct World {
    pub(crate) clock: Clock,
    pub(crate) lines: Lines,
    pub(crate) control: Control,
    pub(crate) alarm: Alarm,
    pub(crate) cpus: Arc<[CpuSlot]>,
    hosts: RwLock<()>,
}

impl World {
    pub(crate) fn new(wires: Arc<dyn Wires>, cpus: Arc<[CpuSlot]>) -> World {
        World {
            clock: Clock::new(),
            lines: Lines::new(wires),
            control: Control::new(),
            alarm: Alarm::new(),
            cpus,
            hosts: RwLock::new(()),
        }
    }

    /// For whoever changes devices from the host's side, for as long as it does so: nobody saves them meanwhile. It must not
    /// be asked for twice by one thread.
    pub(crate) fn going(&self) -> RwLockReadGuard<'_, ()> {
        self.hosts.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For whoever saves devices, while no vCPU runs.
    pub(crate) fn standing(&self) -> RwLockWriteGuard<'_, ()> {
        self.hosts.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the machine: the first end counts. Every vCPU comes back soon.
    pub(crate) fn end(&self, end: viv_model::End) {
        self.control.end(end);
        self.interrupt_all();
    }

    /// Makes every thread look at [`Control`].
    pub(crate) fn interrupt_all(&self) {
        for cpu in self.cpus.iter() {
            cpu.kick();
        }
        self.alarm.wake();
    }
}
