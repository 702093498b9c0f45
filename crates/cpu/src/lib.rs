//! One vCPU, two makers: the host's processor through KVM ([`kvm`]) and our own software CPU ([`soft`]).
//!
//! ```text
//!  machine ── run(bus) ──► Vcpu (kvm | soft) ── port, MMIO, interrupt, time ──► CpuBus (machine)
//! ```
//! Both share one architectural state, [`viv_arch::x86::CpuState`]. This crate never builds devices,
//! never starts threads and never sleeps: a halted vCPU returns [`Exit::Halted`] and the machine waits.

pub mod kvm;
pub mod soft;
pub mod timebase;

use soft::KeptMark;
use std::sync::Arc;
use viv_arch::x86::CpuState;
use viv_mem::Gpa;

/// Why [`Vcpu::run`] came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Somebody called [`Kick::kick`].
    Kicked,
    /// HLT or MWAIT: nothing to do until an interrupt, an event or a kick. KVM with its in-kernel
    /// interrupt controllers waits inside `run` and never reports this.
    Halted,
    /// Triple fault: the processor shut down.
    Shutdown,
    /// The guest asked for something that this processor cannot do at all; the VM must end.
    Failed(String),
}

/// One virtual processor.
pub trait Vcpu: Send {
    /// Runs until kicked, halted or shut down. Port and memory accesses go to `bus` on the way.
    fn run(&mut self, bus: &dyn CpuBus) -> Exit;
    /// The whole architectural state. Call it only between two runs.
    fn save(&self) -> Result<CpuState, CpuError>;
    /// Replaces the whole architectural state.
    fn load(&mut self, state: &CpuState) -> Result<(), CpuError>;
    /// What it has made of the guest's code and another process could go on with, if it makes anything, and if that is more
    /// than a little beyond an earlier answer that is `known`.
    fn translated(&self, _known: Option<&KeptMark>) -> Option<Vec<u8>> {
        None
    }
    /// A handle that makes [`Vcpu::run`] return soon, from any thread, also before it was entered.
    fn kicker(&self) -> Arc<dyn Kick>;
}

/// Makes a running vCPU come back, or look at its pending interrupts and events.
pub trait Kick: Send + Sync {
    /// `run` returns [`Exit::Kicked`] at the next instruction boundary (or the next call returns at once).
    fn kick(&self);
    /// `run` asks [`CpuBus::interrupt_pending`] and [`CpuBus::take_event`] again soon, without returning.
    /// KVM's in-kernel controllers do that by themselves: a no-op there.
    fn poke(&self);
}

/// An event from outside the instruction stream that is not a maskable interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuEvent {
    /// Non-maskable interrupt.
    Nmi,
    /// INIT: reset to wait-for-SIPI.
    Init,
    /// Start-up IPI: real mode at `vector << 12`.
    Sipi(u8),
}

/// What a vCPU sees of its machine. One object per vCPU: it knows which vCPU asks.
pub trait CpuBus: Sync {
    /// IN: `size` is 1, 2 or 4 bytes.
    fn port_read(&self, port: u16, size: u8) -> u32;
    /// OUT.
    fn port_write(&self, port: u16, size: u8, value: u32);
    /// A read of an address without RAM: `size` is 1, 2, 4 or 8 bytes. The local APIC page is among them.
    fn mmio_read(&self, gpa: Gpa, size: u8) -> u64;
    /// A write to an address without RAM.
    fn mmio_write(&self, gpa: Gpa, size: u8, value: u64);
    /// Whether an interrupt above the task priority waits. Cheap: software CPUs ask after every poke.
    fn interrupt_pending(&self) -> bool;
    /// INTA: takes the vector of the highest interrupt that waits.
    fn acknowledge_interrupt(&self) -> Option<u8>;
    /// Takes the next NMI, INIT or SIPI.
    fn take_event(&self) -> Option<CpuEvent>;
    /// RDMSR of a register that belongs to the local APIC: APIC_BASE, TSC_DEADLINE, the x2APIC range.
    /// `None` means #GP.
    fn msr_read(&self, index: u32) -> Option<u64>;
    /// WRMSR likewise.
    fn msr_write(&self, index: u32, value: u64) -> Option<()>;
    /// Task priority: CR8.
    fn cr8(&self) -> u64;
    /// MOV to CR8.
    fn set_cr8(&self, value: u64);
    /// Nanoseconds on the guest's clock: it starts at the machine's first power-on and stands still in a
    /// pause. The software CPU's TSC counts in this unit (1 GHz).
    fn now_ns(&self) -> u64;
    /// Nanoseconds since 1970 on the wall clock.
    fn wall_ns(&self) -> u64;
}

/// Why a vCPU could not be made, saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// An ioctl or another system call failed.
    #[error("cannot {what}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The host's processor is below the level.
    #[error(
        "level x86-64-v2 needs {what}, which this host's processor (or its KVM) does not have: use the software CPU"
    )]
    Level {
        /// The feature.
        what: &'static str,
    },
    /// The state cannot be taken by this backend.
    #[error("the saved state needs {what}, which this processor does not have")]
    Missing {
        /// The feature, register or mode.
        what: String,
    },
}
