//! Local APIC (SDM vol. 3 ch. 11, "Advanced Programmable Interrupt Controller"), one per vCPU: xAPIC
//! registers by MMIO and x2APIC registers by MSR over one state.
//!
//! Messages come in with [`Lapic::accept`] and leave with [`Lapic::ipis`] and [`Lapic::eois`]; the vCPU
//! asks [`Lapic::pending`] and takes with [`Lapic::acknowledge`]. The timer counts nanoseconds: the bus
//! clock and the TSC both run at 1 GHz here.

mod register_page;
mod registers_by_msr;
mod spec;
mod timer;

pub use register_page::PAGE_REGISTERS;
pub use spec::{BASE, BUS_HZ, PERIOD_NS_MIN, WINDOW_LEN};

use super::message::{DeliveryMode, Ipi, LapicView, LogicalModel, Message, Shorthand};
use crate::{Access, BusDevice, Ns};
use spec::*;

/// 256 bits, one per vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Vectors([u32; 8]);

impl Vectors {
    fn set(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] |= 1 << (vector & 31);
    }
    fn clear(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] &= !(1 << (vector & 31));
    }
    fn has(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)] & (1 << (vector & 31)) != 0
    }
    fn highest(&self) -> Option<u8> {
        let (word, bits) = self.0.iter().enumerate().rev().find(|(_, bits)| **bits != 0)?;
        Some((word as u8) << 5 | (31 - bits.leading_zeros()) as u8)
    }
}

/// A local APIC. One window of [`WINDOW_LEN`] bytes, and the MSRs of [`Lapic::read_msr`].
#[derive(Clone, Debug)]
pub struct Lapic {
    id: u32,
    base: u64,
    tpr: u8,
    ldr: u32,
    dfr: u32,
    svr: u32,
    irr: Vectors,
    isr: Vectors,
    tmr: Vectors,
    esr: u32,
    errors: u32,
    icr: u64,
    lvt: [u32; LVTS],
    initial: u32,
    divide: u32,
    /// When the timer reaches zero (or the TSC its deadline) next.
    due: Option<Ns>,
    /// Periodic timer interrupts that fell together with another.
    coalesced: u64,
    ipis: Vec<Ipi>,
    eois: Vec<u8>,
}

impl Lapic {
    /// The local APIC of vCPU `id` after power-on, in xAPIC mode and software-disabled (SDM §11.4.7.1).
    pub fn new(id: u32, bootstrap: bool) -> Lapic {
        Lapic::with_base(id, BASE | base::ENABLE | if bootstrap { base::BSP } else { 0 })
    }

    fn with_base(id: u32, base: u64) -> Lapic {
        Lapic {
            id,
            base,
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xff,
            irr: Vectors::default(),
            isr: Vectors::default(),
            tmr: Vectors::default(),
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [LVT_MASKED; LVTS],
            initial: 0,
            divide: 0,
            due: None,
            coalesced: 0,
            ipis: Vec::new(),
            eois: Vec::new(),
        }
    }

    /// INIT: everything but the ID, the base register and what is on its way out (SDM §11.4.7.3).
    pub fn init(&mut self) {
        *self = Lapic {
            coalesced: self.coalesced,
            ipis: std::mem::take(&mut self.ipis),
            eois: std::mem::take(&mut self.eois),
            ..Lapic::with_base(self.id, self.base)
        };
    }

    /// Wires LINT0 to the 8259A and LINT1 to NMI, enabled, as a PC's firmware leaves the bootstrap
    /// processor ("virtual wire mode", MultiProcessor Specification 1.4 §3.6.2.2). For direct boot.
    pub fn set_virtual_wire(&mut self) {
        self.svr |= SVR_ENABLE;
        self.lvt[LINT0] = 0x700;
        self.lvt[LINT1] = 0x400;
    }

    /// The APIC ID.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Where its register window is.
    pub fn base(&self) -> u64 {
        self.base & base::ADDRESS
    }

    /// Whether the x2APIC mode is on.
    pub fn x2apic(&self) -> bool {
        self.base & (base::ENABLE | base::X2APIC) == base::ENABLE | base::X2APIC
    }

    fn hardware_enabled(&self) -> bool {
        self.base & base::ENABLE != 0
    }

    fn software_enabled(&self) -> bool {
        self.svr & SVR_ENABLE != 0
    }

    /// What routing needs to know (see [`super::message::route`]).
    pub fn view(&self) -> LapicView {
        let logical = if self.x2apic() {
            LogicalModel::X2apic(self.logical_id())
        } else if self.dfr >> 28 == 0xf {
            LogicalModel::Flat((self.ldr >> 24) as u8)
        } else {
            LogicalModel::Cluster((self.ldr >> 24) as u8)
        };
        LapicView {
            id: if self.x2apic() { self.id } else { self.id & 0xff },
            logical,
            present: self.hardware_enabled(),
            accepts_vectors: self.hardware_enabled() && self.software_enabled(),
            priority: self.ppr(),
        }
    }

    /// x2APIC mode derives the logical ID from the ID (SDM §11.12.10.2).
    fn logical_id(&self) -> u32 {
        if self.x2apic() { (self.id >> 4) << 16 | 1 << (self.id & 0xf) } else { self.ldr }
    }

    /// A fixed or lowest-priority message has come. Repeated ones before the acknowledge are one.
    pub fn accept(&mut self, vector: u8, level: bool) {
        if !self.hardware_enabled() || !self.software_enabled() {
            return;
        }
        if vector < VECTOR_MIN {
            self.error(esr::RECEIVED_ILLEGAL_VECTOR);
            return;
        }
        self.request(vector, level);
    }

    fn request(&mut self, vector: u8, level: bool) {
        self.irr.set(vector);
        if level {
            self.tmr.set(vector);
        } else {
            self.tmr.clear(vector);
        }
    }

    /// The highest requested vector above the processor priority (SDM §11.8.3.1), if any.
    pub fn pending(&self) -> Option<u8> {
        let vector = self.irr.highest()?;
        (self.hardware_enabled() && vector >> 4 > self.ppr() >> 4).then_some(vector)
    }

    /// Delivers the vector that [`Lapic::pending`] names: from requested to in service.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.irr.clear(vector);
        self.isr.set(vector);
        Some(vector)
    }

    /// The vector for an acknowledge cycle that finds nothing (SDM §11.9).
    pub fn spurious_vector(&self) -> u8 {
        self.svr as u8
    }

    /// Whether the 8259A's output reaches this processor: through LINT0 in ExtINT mode, or directly while
    /// the APIC is switched off (SDM §11.4.3, §11.5.1).
    pub fn accepts_extint(&self) -> bool {
        if !self.hardware_enabled() {
            return self.base & base::BSP != 0;
        }
        self.lvt[LINT0] & (LVT_MASKED | 0x700) == 0x700
    }

    /// Whether a pulse on LINT1 (the NMI button) reaches this processor as an NMI.
    pub fn accepts_nmi_pin(&self) -> bool {
        !self.hardware_enabled() || self.lvt[LINT1] & (LVT_MASKED | 0x700) == 0x400
    }

    /// Takes the interprocessor interrupts that the guest has sent, oldest first.
    pub fn ipis(&mut self) -> Vec<Ipi> {
        std::mem::take(&mut self.ipis)
    }

    /// Takes the vectors of level-triggered interrupts that have ended: each is broadcast to the IOAPICs.
    pub fn eois(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.eois)
    }

    /// Whether [`Lapic::ipis`] or [`Lapic::eois`] has something: cheap enough to ask after each access.
    pub fn has_output(&self) -> bool {
        !self.ipis.is_empty() || !self.eois.is_empty()
    }

    /// Timer interrupts that fell together with another because the machine came late.
    pub fn coalesced(&self) -> u64 {
        self.coalesced
    }

    /// CR8: the task priority's class (SDM §11.8.6).
    pub fn cr8(&self) -> u64 {
        u64::from(self.tpr >> 4)
    }

    /// MOV to CR8; only bits 0 to 3 count (the CPU refuses others).
    pub fn set_cr8(&mut self, value: u64) {
        self.tpr = (value as u8 & 0xf) << 4;
    }

    /// Processor priority (SDM §11.8.3.1).
    fn ppr(&self) -> u8 {
        let serving = self.isr.highest().unwrap_or(0);
        if self.tpr >> 4 >= serving >> 4 { self.tpr } else { serving & 0xf0 }
    }

    fn end_of_interrupt(&mut self) {
        let Some(vector) = self.isr.highest() else { return };
        self.isr.clear(vector);
        if self.tmr.has(vector) && self.eois.len() < OUTPUTS_MAX {
            self.eois.push(vector);
        }
    }

    /// Records an error and raises the error interrupt (SDM §11.5.3).
    fn error(&mut self, bits: u32) {
        let new = bits & !self.errors;
        self.errors |= bits;
        let entry = self.lvt[ERROR];
        if new != 0 && entry & LVT_MASKED == 0 && entry as u8 >= VECTOR_MIN {
            self.request(entry as u8, false);
        }
    }

    fn send(&mut self) {
        let low = self.icr as u32;
        let mode = DeliveryMode::from_bits((low >> 8) as u8);
        let vector = low as u8;
        if mode.is_vectored() && vector < VECTOR_MIN {
            self.error(esr::SEND_ILLEGAL_VECTOR);
            return;
        }
        // The INIT level de-assert only synchronizes arbitration IDs, which are no more (SDM §11.6.1).
        if mode == DeliveryMode::Init && low & (icr::LEVEL | icr::ASSERT) == icr::LEVEL {
            return;
        }
        let high = (self.icr >> 32) as u32;
        let wide = self.x2apic();
        let shorthand = match low >> 18 & 3 {
            0 => Shorthand::None,
            1 => Shorthand::SelfOnly,
            2 => Shorthand::All,
            _ => Shorthand::Others,
        };
        let message = Message {
            destination: if wide { high } else { high >> 24 },
            wide,
            logical: low & icr::LOGICAL != 0,
            mode,
            vector,
            level: false,
        };
        if shorthand == Shorthand::SelfOnly && mode == DeliveryMode::Fixed {
            self.accept(vector, false);
        } else if self.ipis.len() < OUTPUTS_MAX {
            self.ipis.push(Ipi { message, shorthand });
        }
    }

    fn write_lvt(&mut self, entry: usize, value: u32) {
        let mut value = value & LVT_WRITABLE.get(entry).copied().unwrap_or(0);
        if !self.software_enabled() {
            value |= LVT_MASKED;
        }
        let old_mode = self.timer_mode();
        if let Some(slot) = self.lvt.get_mut(entry) {
            *slot = value;
        }
        if entry == TIMER {
            let mode = self.timer_mode();
            let counts = |mode| matches!(mode, TimerMode::OneShot | TimerMode::Periodic);
            if mode != old_mode && !(counts(mode) && counts(old_mode)) {
                // Between counting and TSC-deadline mode the timer is disarmed (SDM §11.5.4.1).
                self.due = None;
                self.initial = 0;
            }
        }
    }

    /// A register's value by its number; `None`: there is no such register.
    fn read_register(&mut self, register: u32, now: Ns) -> Option<u32> {
        self.advance(now);
        Some(match register {
            reg::ID if self.x2apic() => self.id,
            reg::ID => self.id << 24,
            reg::VERSION => VERSION,
            reg::TPR => self.tpr.into(),
            reg::PPR => self.ppr().into(),
            reg::LDR => self.logical_id(),
            reg::DFR => self.dfr,
            reg::SVR => self.svr,
            reg::ISR..=0x17 => self.isr.0[(register & 7) as usize],
            reg::TMR..=0x1f => self.tmr.0[(register & 7) as usize],
            reg::IRR..=0x27 => self.irr.0[(register & 7) as usize],
            reg::ESR => self.esr,
            reg::ICR => self.icr as u32,
            reg::ICR_HIGH => (self.icr >> 32) as u32,
            reg::LVT_TIMER..=reg::LVT_ERROR => self.lvt[(register - reg::LVT_TIMER) as usize],
            reg::TIMER_INITIAL => self.initial,
            reg::TIMER_CURRENT => self.current_count(now),
            reg::TIMER_DIVIDE => self.divide,
            // Arbitration priority and remote read: of older processors (SDM table 11-1, note 1).
            0x09 | 0x0c | reg::EOI => 0,
            _ => return None,
        })
    }

    /// Writes what both modes share; false: there is no such register to write.
    fn write_register(&mut self, register: u32, value: u32, now: Ns) -> bool {
        self.advance(now);
        match register {
            reg::TPR => self.tpr = value as u8,
            reg::EOI => self.end_of_interrupt(),
            reg::SVR => {
                self.svr = value & SVR_WRITABLE;
                if !self.software_enabled() {
                    self.lvt.iter_mut().for_each(|entry| *entry |= LVT_MASKED);
                }
            }
            reg::ESR => self.esr = std::mem::take(&mut self.errors),
            reg::LVT_TIMER..=reg::LVT_ERROR => self.write_lvt((register - reg::LVT_TIMER) as usize, value),
            reg::TIMER_INITIAL if self.timer_mode() == TimerMode::TscDeadline => {}
            reg::TIMER_INITIAL => {
                self.initial = value;
                self.start_timer(now);
            }
            reg::TIMER_DIVIDE => {
                let left = self.current_count(now);
                self.divide = value & 0xb;
                if self.due.is_some() && self.timer_mode() != TimerMode::TscDeadline {
                    self.due = now.checked_add(u64::from(left) * self.divisor());
                }
            }
            _ => return false,
        }
        true
    }
}

impl BusDevice for Lapic {
    /// Registers are 32 bits wide, 16 bytes apart (SDM §11.4.1); in x2APIC mode the window is closed.
    fn read(&mut self, access: Access, now: Ns) -> u64 {
        if !self.hardware_enabled() || self.x2apic() || access.offset >= WINDOW_LEN {
            return u64::MAX >> (64 - 8 * u32::from(access.size.clamp(1, 8)));
        }
        let Some(value) = self.read_register((access.offset >> 4) as u32, now) else {
            self.error(esr::ILLEGAL_REGISTER);
            return 0;
        };
        let lane = access.offset & 0xf;
        let shifted = if lane < 4 { value >> (8 * lane) } else { 0 };
        match access.size {
            1 => u64::from(shifted as u8),
            2 => u64::from(shifted as u16),
            _ => u64::from(shifted),
        }
    }

    fn write(&mut self, access: Access, value: u64, now: Ns) {
        if !self.hardware_enabled() || self.x2apic() || access.offset >= WINDOW_LEN {
            return;
        }
        if access.offset & 0xf != 0 || access.size < 4 {
            return;
        }
        let (register, value) = ((access.offset >> 4) as u32, value as u32);
        match register {
            reg::LDR => self.ldr = value & 0xff00_0000,
            reg::DFR => self.dfr = value | 0x0fff_ffff,
            reg::ICR_HIGH => self.icr = self.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32,
            reg::ICR => {
                self.icr = self.icr & !0xffff_ffff | u64::from(value & icr::WRITABLE);
                self.send();
            }
            // Read-only registers ignore writes.
            reg::ID | reg::VERSION | 0x09 | reg::PPR | 0x0c | reg::ISR..=0x27 | reg::TIMER_CURRENT => {}
            _ => {
                if !self.write_register(register, value, now) {
                    self.error(esr::ILLEGAL_REGISTER);
                }
            }
        }
    }

    /// Whether a vector waits above the processor priority.
    fn irq(&self) -> bool {
        self.pending().is_some()
    }

    fn deadline(&self) -> Option<Ns> {
        if self.lvt[TIMER] & LVT_MASKED != 0 || !self.hardware_enabled() {
            return None;
        }
        let due = self.due?;
        let fast = self.timer_mode() == TimerMode::Periodic && self.period() < PERIOD_NS_MIN;
        if fast { due.checked_add(PERIOD_NS_MIN) } else { Some(due) }
    }

    fn tick(&mut self, now: Ns) {
        self.advance(now);
    }

    /// Power-on: the ID stays, the base register goes back, the bootstrap processor stays the same.
    fn reset(&mut self) {
        *self = Lapic::new(self.id, self.base & base::BSP != 0);
    }
}

#[cfg(test)]
mod tests;
