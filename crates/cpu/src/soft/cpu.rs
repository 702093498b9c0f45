//! The state of one software vCPU and the small accesses to it that every instruction uses.

use super::flags::{self, Flags};
use super::fpu::FpuState;
use super::mmu::Tlb;
use super::native::Width;
use super::translate::{Table, Targets};
use super::{Attention, Shared};
use crate::CpuBus;
use std::ptr::NonNull;
use std::sync::Arc;
use viv_arch::x86::{Activity, Segment, TableRegister, cr0, cr4, efer, gpr, rflags, seg, vector};

/// Index of RIP in [`Cpu::regs`]: RIP-relative addresses are plain base registers.
pub(crate) const RIP: usize = 16;
/// Index of a register that is always zero: "no base" and "no index".
pub(crate) const ZERO: usize = 17;

/// An instruction could not complete; [`Cpu::fault`] says why.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trap;

/// What an instruction returns.
pub(crate) type R<T> = Result<T, Trap>;

/// An exception on its way to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Its vector.
    pub vector: u8,
    /// The error code, for the vectors that push one.
    pub error: Option<u32>,
    /// The faulting linear address of a page fault.
    pub address: u64,
}

/// Code size of the current code segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Mode {
    Code16 = 16,
    Code32 = 32,
    Code64 = 64,
}

/// MSRs that only remember.
#[derive(Clone, Debug, Default)]
pub(crate) struct Msrs {
    pub(crate) star: u64,
    pub(crate) lstar: u64,
    pub(crate) cstar: u64,
    pub(crate) sfmask: u64,
    pub(crate) kernel_gs_base: u64,
    pub(crate) tsc_aux: u64,
    pub(crate) sysenter_cs: u64,
    pub(crate) sysenter_esp: u64,
    pub(crate) sysenter_eip: u64,
    pub(crate) pat: u64,
    pub(crate) tsc_offset: u64,
    pub(crate) mtrr_def_type: u64,
    pub(crate) mtrr_fixed: [u64; 11],
    pub(crate) mtrr_variable: [u64; 16],
    pub(crate) misc_enable: u64,
    pub(crate) spec_ctrl: u64,
    /// CPUID offers no SPEC_CTRL here, but the guest comes from a KVM that did.
    pub(crate) has_spec_ctrl: bool,
    pub(crate) kvm_wall_clock: u64,
    pub(crate) kvm_system_time: u64,
    /// kvmclock's record is to be written anew: it was another processor's.
    pub(crate) renew_system_time: bool,
    pub(crate) hwcr: u64,
    pub(crate) mcg_status: u64,
}

/// Bytes of a RAM page that are about to be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CodeWrite {
    pub(crate) page: u32,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// One software vCPU. Translated code reaches the fields by their offsets; what it needs most stands first.
#[repr(C)]
pub(crate) struct Cpu {
    /// What translated code keeps here.
    pub(crate) native: super::translate::Frame,
    /// General registers, then RIP, then zero.
    pub(crate) regs: [u64; 18],
    /// Status flags.
    pub(crate) flags: Flags,
    /// Leave the current block after this instruction.
    pub(crate) stop: bool,
    /// An interrupt waits that IF or the interrupt shadow held back.
    pub(crate) interrupt_waits: bool,
    /// The current instruction (STI, MOV SS, POP SS) opened an interrupt shadow over the next one.
    pub(crate) shadow: bool,
    /// That shadow is of MOV SS or POP SS: it holds back debug exceptions too.
    pub(crate) stack_shadow: bool,
    /// The current instruction looks at TF when it is complete, not before it (SYSCALL, SYSRET, INT n).
    pub(crate) late_trap: bool,
    pub(crate) mode: Mode,
    /// Base of the code segment; 0 in 64-bit mode.
    pub(crate) code_base: u64,
    pub(crate) cpl: u8,
    /// Which of the TLBs serves plain accesses (see [`super::mmu`]).
    pub(crate) mmu: usize,
    /// RFLAGS without the status flags; bit 1 is always set.
    pub(crate) rflags: u64,
    /// RIP of the instruction being executed.
    pub(crate) start: u64,
    pub(crate) segs: [Segment; 6],
    pub(crate) fault: Exception,
    pub(crate) fpu: FpuState,
    pub(crate) fpu_memory: Box<[u8; 512]>,
    pub(crate) ldtr: Segment,
    pub(crate) tr: Segment,
    pub(crate) gdtr: TableRegister,
    pub(crate) idtr: TableRegister,
    pub(crate) cr0: u64,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) cr8: u64,
    pub(crate) efer: u64,
    /// DR0 to DR3, DR6, DR7.
    pub(crate) dr: [u64; 6],
    /// DR6 bits of a data breakpoint that the current instruction hit.
    pub(crate) breakpoint_hits: u64,
    pub(crate) xcr0: u64,
    pub(crate) msrs: Msrs,
    pub(crate) activity: Activity,
    pub(crate) nmi_masked: bool,
    /// An NMI came while they were masked.
    pub(crate) nmi_waits: bool,
    /// PAUSEs executed: every so often one gives the host CPU away.
    pub(crate) pauses: u32,
    /// The current instruction loaded RF itself (IRET).
    pub(crate) loaded_rf: bool,
    /// Where the current instruction writes code, or what others may decode meanwhile (see [`viv_mem::CodeMap`]).
    pub(crate) wrote_code: Vec<CodeWrite>,
    /// Set when the guest did something that ends the VM.
    pub(crate) failed: Option<String>,
    pub(crate) index: u32,
    pub(crate) shared: Arc<Shared>,
    /// The bus of the present `run`.
    pub(crate) bus: Option<NonNull<dyn CpuBus>>,
    /// Translations changed: what the jump cache must forget.
    pub(crate) flush_jumps: super::block::JumpFlush,
    pub(crate) instructions: u64,
    pub(crate) events: super::stats::Events,
    pub(crate) tlb: Table<Tlb>,
    /// Keeps account for `soft.check`.
    pub(crate) journal: Option<Box<super::check::Journal>>,
    /// Translated code by linear address.
    pub(crate) targets: Table<Targets>,
}

impl Cpu {
    // ---- faults -------------------------------------------------------------------------------

    #[cold]
    pub(crate) fn raise<T>(&mut self, vector: u8, error: Option<u32>) -> R<T> {
        self.fault = Exception { vector, error, address: 0 };
        Err(Trap)
    }
    #[cold]
    pub(crate) fn ud<T>(&mut self) -> R<T> {
        self.raise(vector::UD, None)
    }
    #[cold]
    pub(crate) fn gp<T>(&mut self, error: u32) -> R<T> {
        self.raise(vector::GP, Some(error))
    }
    #[cold]
    pub(crate) fn page_fault<T>(&mut self, address: u64, error: u32) -> R<T> {
        self.fault = Exception { vector: vector::PF, error: Some(error), address };
        Err(Trap)
    }

    // ---- registers ----------------------------------------------------------------------------

    /// Reads a general register; byte registers 0x80 to 0x83 are AH, CH, DH, BH.
    #[inline(always)]
    pub(crate) fn reg<W: Width>(&self, index: u8) -> W {
        if W::BYTES == 1 && index & 0x80 != 0 {
            return W::of(self.regs[(index & 3) as usize] >> 8);
        }
        W::of(self.regs[(index & 31) as usize % 18])
    }

    /// Writes a general register: 32-bit writes clear the upper half, smaller ones keep the rest.
    #[inline(always)]
    pub(crate) fn set_reg<W: Width>(&mut self, index: u8, value: W) {
        if W::BYTES == 1 && index & 0x80 != 0 {
            let slot = &mut self.regs[(index & 3) as usize];
            *slot = *slot & !0xff00 | value.wide() << 8;
            return;
        }
        let slot = &mut self.regs[(index & 15) as usize];
        *slot = match W::BYTES {
            1 => *slot & !0xff | value.wide(),
            2 => *slot & !0xffff | value.wide(),
            _ => value.wide(),
        };
    }

    pub(crate) fn rip(&self) -> u64 {
        self.regs[RIP]
    }
    pub(crate) fn rsp(&self) -> u64 {
        self.regs[gpr::RSP]
    }

    // ---- flags --------------------------------------------------------------------------------

    /// RFLAGS as the guest sees it.
    pub(crate) fn get_rflags(&self) -> u64 {
        self.rflags | flags::to_rflags(self.flags)
    }

    /// Sets the bits of `mask` in RFLAGS from `value`.
    pub(crate) fn set_rflags(&mut self, value: u64, mask: u64) {
        let new = self.get_rflags() & !mask | value & mask;
        self.flags = flags::from_rflags(new);
        let old = self.rflags;
        self.rflags = new & !rflags::STATUS | rflags::FIXED;
        let changed = old ^ self.rflags;
        if changed & rflags::AC != 0 {
            self.update_mmu();
        }
        if changed & self.rflags & rflags::IF != 0 && self.interrupt_waits {
            self.shared.attention(self.index).set(Attention::POKE);
            self.stop = true;
        }
        if changed & (rflags::TF | rflags::RF | rflags::VM) != 0 {
            self.stop = true;
        }
    }

    pub(crate) fn iopl(&self) -> u8 {
        (self.rflags >> 12 & 3) as u8
    }

    /// Whether the last instruction was an IRET that set RF for the next one.
    pub(crate) fn rf_loaded(&mut self) -> bool {
        std::mem::take(&mut self.loaded_rf)
    }

    // ---- mode ---------------------------------------------------------------------------------

    pub(crate) fn protected(&self) -> bool {
        self.cr0 & cr0::PE != 0
    }
    pub(crate) fn v86(&self) -> bool {
        self.rflags & rflags::VM != 0
    }
    /// Real-address or virtual-8086 mode: selectors are paragraph numbers.
    pub(crate) fn real_like(&self) -> bool {
        !self.protected() || self.v86()
    }
    pub(crate) fn long_mode(&self) -> bool {
        self.efer & efer::LMA != 0
    }
    pub(crate) fn code64(&self) -> bool {
        self.mode == Mode::Code64
    }

    /// Derives everything that hangs on CS, CPL, CR0, CR4 and EFLAGS.
    pub(crate) fn update_mode(&mut self) {
        let cs = self.segs[seg::CS];
        self.mode = if self.long_mode() && cs.long() {
            Mode::Code64
        } else if cs.big() && !self.real_like() {
            Mode::Code32
        } else if cs.big() {
            // Big real mode: the hidden part survived the way back from protected mode.
            Mode::Code32
        } else {
            Mode::Code16
        };
        self.code_base = if self.mode == Mode::Code64 { 0 } else { cs.base };
        self.cpl = if !self.protected() {
            0
        } else if self.v86() {
            3
        } else {
            self.segs[seg::SS].dpl()
        };
        self.update_mmu();
        self.stop = true;
    }

    pub(crate) fn update_mmu(&mut self) {
        self.mmu = if self.cpl == 3 {
            Tlb::USER
        } else if self.cr4 & cr4::SMAP != 0 && self.rflags & rflags::AC == 0 {
            Tlb::SUPERVISOR
        } else {
            Tlb::SUPERVISOR_ANY
        };
    }

    /// Bits of the stack pointer that count: 16, 32 or 64.
    pub(crate) fn stack_mask(&self) -> u64 {
        if self.code64() {
            u64::MAX
        } else if self.segs[seg::SS].big() {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    pub(crate) fn set_rsp(&mut self, value: u64) {
        let mask = self.stack_mask();
        let slot = &mut self.regs[gpr::RSP];
        *slot = if mask == 0xffff_ffff { value & mask } else { *slot & !mask | value & mask };
    }

    /// Asks the bus. Only inside `run`, where it is set.
    #[allow(unsafe_code)]
    pub(crate) fn bus(&self) -> &dyn CpuBus {
        let Some(bus) = self.bus else { return &super::NO_BUS };
        // SAFETY: `run` sets the pointer from a reference that outlives the run, and clears it at its end.
        unsafe { bus.as_ref() }
    }

    /// DR6 of a debug exception: which breakpoints were met is written anew, the other bits only gather (SDM vol. 3
    /// §18.2.3).
    pub(crate) fn set_debug_status(&mut self, bits: u64) {
        self.dr[4] = self.dr[4] & !0xf | bits;
    }

    /// After the guest touched a device, an interrupt may have become deliverable.
    pub(crate) fn look_again(&self) {
        self.shared.attention(self.index).set(Attention::POKE);
    }

    /// Single-stepping as SYSCALL, SYSRET and INT n do it: TF counts as they leave it.
    pub(crate) fn trap_late(&mut self) {
        self.late_trap = true;
        self.stop = true;
        if self.rflags & rflags::TF != 0 {
            self.breakpoint_hits |= 1 << 14;
        }
    }

    /// The guest's time-stamp counter.
    pub(crate) fn tsc(&self) -> u64 {
        self.shared.shown.time.tsc(self.bus().now_ns()).wrapping_add(self.msrs.tsc_offset)
    }
}
