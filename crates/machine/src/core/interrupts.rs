//! The way of an interrupt from a device to a vCPU: by our own chips for the software CPU, by the kernel's for KVM.
use super::{Clock, CpuSlot, lock};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use viv_cpu::CpuEvent;
use viv_cpu::kvm::KvmVm;
use viv_devices::chips::ioapic::Ioapic;
use viv_devices::chips::lapic::Lapic;
use viv_devices::chips::message::{DeliveryMode, Ipi, LapicView, Message, route, route_ipi};
use viv_devices::chips::pic::Pic;
use viv_devices::{Access, BusDevice};

/// Where interrupts go.
pub(crate) trait Wires: Send + Sync {
    /// The level of a line: global system interrupt 0 to 23.
    fn set_line(&self, gsi: u32, level: bool);
    /// A message-signalled interrupt.
    fn message(&self, address: u64, data: u32);
}

/// Inputs of the IOAPIC.
const GSIS: usize = 24;

/// The interrupt lines, which several devices may share: a line is high while one of them drives it.
pub(crate) struct Lines {
    wires: Arc<dyn Wires>,
    drivers: Mutex<[u16; GSIS]>,
}

impl Lines {
    pub(crate) fn new(wires: Arc<dyn Wires>) -> Lines {
        Lines { wires, drivers: Mutex::new([0; GSIS]) }
    }

    /// A device begins (`true`) or ceases to drive a line; it says so only when that changes.
    pub(crate) fn drive(&self, gsi: u32, level: bool) {
        let mut drivers = lock(&self.drivers);
        let Some(count) = drivers.get_mut(gsi as usize) else { return };
        let before = *count > 0;
        *count = if level { count.saturating_add(1) } else { count.saturating_sub(1) };
        if (*count > 0) != before {
            // Under the lock, so that levels arrive in their order.
            self.wires.set_line(gsi, level);
        }
    }

    /// A short pulse.
    pub(crate) fn pulse(&self, gsi: u32) {
        self.drive(gsi, true);
        self.drive(gsi, false);
    }

    /// A message-signalled interrupt.
    pub(crate) fn message(&self, address: u64, data: u32) {
        self.wires.message(address, data);
    }
}

/// KVM's in-kernel controllers.
pub(crate) struct KvmWires(pub(crate) Arc<KvmVm>);

impl Wires for KvmWires {
    fn set_line(&self, gsi: u32, level: bool) {
        // It fails only for a line that does not exist.
        let _ = self.0.set_line(gsi, level);
    }
    fn message(&self, address: u64, data: u32) {
        // It fails when no local APIC takes the message: as on hardware, nothing happens.
        let _ = self.0.signal_msi(address, data);
    }
}

struct Chips {
    pic: Pic,
    ioapic: Ioapic,
}

/// PIC, IOAPIC and local APICs of the software CPU.
pub(crate) struct SoftWires {
    chips: Mutex<Chips>,
    /// The 8259A's output, so that vCPUs can ask without its lock.
    pic_output: AtomicBool,
    cpus: Arc<[CpuSlot]>,
}

impl SoftWires {
    pub(crate) fn new(cpus: Arc<[CpuSlot]>) -> SoftWires {
        let chips = Chips { pic: Pic::new(), ioapic: Ioapic::new() };
        SoftWires { chips: Mutex::new(chips), pic_output: AtomicBool::new(false), cpus }
    }

    /// Does something to the chips and delivers what follows from it.
    fn with_chips<R>(&self, act: impl FnOnce(&mut Chips) -> R) -> R {
        let mut chips = lock(&self.chips);
        let result = act(&mut chips);
        for message in chips.ioapic.messages() {
            self.deliver(&message);
        }
        let output = chips.pic.output();
        if self.pic_output.swap(output, Ordering::AcqRel) != output && output {
            for cpu in self.cpus.iter() {
                if cpu.lapic(|lapic| lapic.accepts_extint()) {
                    cpu.poke();
                }
            }
        }
        result
    }

    /// The 8259A pair: windows 0 (0x20), 1 (0xa0) and 2 (ELCR).
    pub(crate) fn pic<R>(&self, act: impl FnOnce(&mut Pic) -> R) -> R {
        self.with_chips(|chips| act(&mut chips.pic))
    }

    /// The IOAPIC's registers.
    pub(crate) fn ioapic<R>(&self, act: impl FnOnce(&mut Ioapic) -> R) -> R {
        self.with_chips(|chips| act(&mut chips.ioapic))
    }

    fn views(&self) -> Vec<LapicView> {
        self.cpus.iter().map(|cpu| cpu.lapic(|lapic| lapic.view())).collect()
    }

    fn deliver(&self, message: &Message) {
        for target in route(&self.views(), message) {
            self.accept(target, message);
        }
    }

    fn accept(&self, target: usize, message: &Message) {
        let Some(cpu) = self.cpus.get(target) else { return };
        match message.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                cpu.lapic(|lapic| lapic.accept(message.vector, message.level));
            }
            DeliveryMode::Nmi => cpu.push_event(CpuEvent::Nmi),
            DeliveryMode::Init => {
                cpu.lapic(Lapic::init);
                cpu.push_event(CpuEvent::Init);
            }
            DeliveryMode::Startup => cpu.push_event(CpuEvent::Sipi(message.vector)),
            DeliveryMode::ExtInt => cpu.extint.store(true, Ordering::Release),
            DeliveryMode::Smi | DeliveryMode::Reserved => return,
        }
        cpu.poke();
    }

    /// A vCPU does something to its own local APIC; what leaves that is delivered. Returns the timer's deadline
    /// too.
    pub(crate) fn with_lapic<R>(
        &self,
        index: usize,
        act: impl FnOnce(&mut Lapic) -> R,
    ) -> Option<(R, Option<u64>)> {
        let cpu = self.cpus.get(index)?;
        let (result, ipis, eois, deadline, pending): (R, Vec<Ipi>, Vec<u8>, _, _) = cpu.lapic(|lapic| {
            let result = act(lapic);
            let (ipis, eois) =
                if lapic.has_output() { (lapic.ipis(), lapic.eois()) } else { (Vec::new(), Vec::new()) };
            (result, ipis, eois, lapic.deadline(), lapic.pending().is_some())
        });
        if !eois.is_empty() {
            self.with_chips(|chips| eois.iter().for_each(|vector| chips.ioapic.eoi(*vector)));
        }
        if !ipis.is_empty() {
            let views = self.views();
            for ipi in &ipis {
                for target in route_ipi(&views, index, ipi) {
                    self.accept(target, &ipi.message);
                }
            }
        }
        if pending {
            cpu.poke();
        }
        Some((result, deadline))
    }

    fn takes_extint(&self, cpu: &CpuSlot) -> bool {
        self.pic_output.load(Ordering::Acquire)
            && (cpu.extint.load(Ordering::Acquire) || cpu.lapic(|lapic| lapic.accepts_extint()))
    }

    /// Whether an interrupt waits for vCPU `index`; if its timer has fired meanwhile, also the next deadline.
    pub(crate) fn pending(&self, index: usize, clock: &Clock) -> (bool, Option<Option<u64>>) {
        let Some(cpu) = self.cpus.get(index) else { return (false, None) };
        let (waits, fired) = cpu.lapic(|lapic| {
            let fired = lapic.deadline().is_some_and(|deadline| deadline <= clock.now());
            if fired {
                lapic.tick(clock.now());
            }
            (lapic.pending().is_some(), fired.then(|| lapic.deadline()))
        });
        (waits || self.takes_extint(cpu), fired)
    }

    /// The vector that vCPU `index` takes now.
    pub(crate) fn acknowledge(&self, index: usize) -> Option<u8> {
        let cpu = self.cpus.get(index)?;
        if let Some(vector) = cpu.lapic(|lapic| lapic.acknowledge()) {
            return Some(vector);
        }
        if !self.takes_extint(cpu) {
            return None;
        }
        cpu.extint.store(false, Ordering::Release);
        Some(self.pic(Pic::acknowledge))
    }

    pub(crate) fn read_pic(&self, access: Access, now: u64) -> u64 {
        self.pic(|pic| pic.read(access, now))
    }
    pub(crate) fn write_pic(&self, access: Access, value: u64, now: u64) {
        self.pic(|pic| pic.write(access, value, now));
    }
}

impl Wires for SoftWires {
    fn set_line(&self, gsi: u32, level: bool) {
        self.with_chips(|chips| {
            if gsi < 16 {
                chips.pic.set_line(gsi as u8, level);
            }
            // The MADT says that ISA's line 0 comes to pin 2.
            match gsi {
                0 => chips.ioapic.set_line(2, level),
                2 => {}
                pin => chips.ioapic.set_line(pin as u8, level),
            }
        });
    }

    fn message(&self, address: u64, data: u32) {
        self.deliver(&Message::from_msi(address, data));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_line_is_high_while_one_drives_it() {
        struct Log(Mutex<Vec<(u32, bool)>>);
        impl Wires for Log {
            fn set_line(&self, gsi: u32, level: bool) {
                lock(&self.0).push((gsi, level));
            }
            fn message(&self, _: u64, _: u32) {}
        }
        let log = Arc::new(Log(Mutex::new(Vec::new())));
        let lines = Lines::new(log.clone());
        for level in [true, true, false, false] {
            lines.drive(17, level);
        }
        lines.drive(99, true);
        assert_eq!(*lock(&log.0), [(17, true), (17, false)]);
    }
}
