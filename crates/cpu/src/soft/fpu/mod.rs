//! x87, MMX and SSE to SSE4.2, AES, PCLMUL: the guest's floating-point and vector unit.
//!
//! The host is an x86-64 too, so every instruction that rounds, saturates or compares runs natively on
//! the guest's operands: the results are right by construction. The guest's registers live in an
//! FXSAVE64 image ([`FpuState`]); [`decode`] turns an instruction into an [`FpOp`] once, and
//! [`FpOp::execute`] runs it with everything it may touch in an [`Env`].
//!
//! ```text
//!  core: decode ─► FpOp ─► check ─► load operand / probe destination ─► execute ─► store operand
//! ```
//! The core owns addresses, paging and exceptions; this module never sees guest memory.
//! One table ([`table`]) lists the instructions; the instruction tests read the same table.

#![allow(unsafe_code)]

mod mmx;
mod moves;
mod save;
mod scalar;
mod state;
mod strings;
pub mod table;
mod vector;
mod x87;

#[cfg(test)]
mod tests;

pub use save::{SaveForm, xrstor, xsave};
pub use state::{FpuState, MXCSR_MASK, MXCSR_RESET};
pub use table::decode;

use core::arch::x86_64::{__m128i, _mm_set_epi64x};

/// Everything that an instruction may read or change.
pub struct Env<'a> {
    /// x87, MMX and XMM registers with their control and status registers.
    pub fpu: &'a mut FpuState,
    /// RAX to R15 in encoding order.
    pub gprs: &'a mut [u64; 16],
    /// Status flags (OF SF ZF AF PF CF) in RFLAGS layout, in and out. Other bits pass through.
    pub flags: &'a mut u64,
    /// CR0.
    pub cr0: u64,
    /// CR4.
    pub cr4: u64,
    /// Address of the instruction: becomes the x87 instruction pointer.
    pub rip: u64,
    /// The memory operand: filled before `execute` for loads, read after it for stores.
    pub mem: &'a mut [u8; 512],
}

/// The exception that an instruction raises instead of completing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FpFault {
    /// #UD, vector 6.
    Ud,
    /// #NM, vector 7.
    Nm,
    /// #MF, vector 16.
    Mf,
    /// #XM, vector 19.
    Xm,
    /// #GP(0), vector 13.
    Gp,
}

/// What the core has to do with a memory operand after [`FpOp::execute`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Completed: write the operand back if the instruction stores.
    Done,
    /// An x87 store met an unmasked exception: completed, but memory stays as it was
    /// (the exception comes with the next waiting instruction).
    NoStore,
}

type Outcome = Result<Effect, FpFault>;
type Run = fn(&FpOp, &mut Env<'_>) -> Outcome;

/// A memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemUse {
    /// Size in bytes: 1 to 512.
    pub bytes: u16,
    /// Bring `Env::mem[..bytes]` in before [`FpOp::execute`].
    pub load: bool,
    /// Write `Env::mem[..bytes]` back after it. Probe the destination before: once `execute` ran, the
    /// registers have changed, and a page fault would come too late.
    pub store: bool,
    /// Required alignment in bytes (1, 16); a violation is #GP(0), before any page fault.
    pub align: u16,
}

/// Which unit an instruction belongs to: decides the checks of CR0 and CR4 (SDM vol. 3, tables 2-2 and 13-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// x87 that first reports pending exceptions.
    X87,
    /// x87 that does not wait: FNINIT, FNCLEX, FNSTCW, FNSTSW, FNSTENV, FNSAVE.
    X87NoWait,
    /// WAIT/FWAIT.
    Wait,
    /// MMX registers.
    Mmx,
    /// XMM registers, MXCSR.
    Sse,
    /// Conversions and moves between MMX and XMM registers.
    SseMmx,
    /// FXSAVE and FXRSTOR.
    Fxsr,
    /// No register of this unit: fences, prefetches, MOVNTI.
    Plain,
}

/// One decoded instruction.
#[derive(Clone, Copy)]
pub struct FpOp {
    run: Run,
    arg: u16,
    bytes: u16,
    bits: u8,
    unit: Unit,
    dst: u8,
    src: u8,
    imm: u8,
}

/// A memory operand exists.
const MEM: u8 = 1;
/// The memory operand is read.
const LOAD: u8 = 2;
/// The memory operand is written.
const STORE: u8 = 4;
/// The memory operand must be 16-byte aligned.
const ALIGN16: u8 = 8;
/// The operand size is 64 bits (general register), or the save image is the 64-bit one.
const WIDE: u8 = 16;
/// Decoded in 64-bit mode: sixteen XMM registers.
const LONG: u8 = 32;
/// Status flags are read or written.
const FLAGS: u8 = 64;

const CR0_MP: u64 = 1 << 1;
const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;

/// OF SF ZF AF PF CF.
const STATUS_FLAGS: u64 = 0x8d5;

impl FpOp {
    /// The memory operand, if there is one. Prefetches and the like have none: they never fault.
    pub fn memory(&self) -> Option<MemUse> {
        (self.bits & (LOAD | STORE) != 0).then_some(MemUse {
            bytes: self.bytes,
            load: self.bits & LOAD != 0,
            store: self.bits & STORE != 0,
            align: if self.bits & ALIGN16 != 0 { 16 } else { 1 },
        })
    }

    /// The unit that the instruction belongs to.
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// Whether the instruction reads or writes status flags: else `Env::flags` may be anything.
    pub fn uses_flags(&self) -> bool {
        self.bits & FLAGS != 0
    }

    /// Whether a store leaves all registers as they are, so that it may fault after [`FpOp::execute`].
    pub fn store_can_restart(&self) -> bool {
        matches!(self.unit, Unit::Sse | Unit::Plain) && self.bits & LOAD == 0
    }

    /// The checks that come before the memory operand is touched: is the unit there (#UD), does the
    /// system want to switch it lazily (#NM), is an x87 exception pending (#MF)?
    #[inline]
    pub fn check(&self, cr0: u64, cr4: u64, fpu: &FpuState) -> Result<(), FpFault> {
        if self.unit == Unit::Plain
            || (self.unit == Unit::Sse && cr0 & (CR0_EM | CR0_TS) == 0 && cr4 & CR4_OSFXSR != 0)
        {
            return Ok(());
        }
        self.check_slowly(cr0, cr4, fpu)
    }

    fn check_slowly(&self, cr0: u64, cr4: u64, fpu: &FpuState) -> Result<(), FpFault> {
        let emulate = cr0 & CR0_EM != 0;
        let switched = cr0 & CR0_TS != 0;
        let (undefined, missing, waits) = match self.unit {
            Unit::Plain => (false, false, false),
            Unit::X87 => (false, emulate || switched, true),
            Unit::X87NoWait | Unit::Fxsr => (false, emulate || switched, false),
            Unit::Wait => (false, switched && cr0 & CR0_MP != 0, true),
            Unit::Mmx => (emulate, switched, true),
            Unit::Sse => (emulate || cr4 & CR4_OSFXSR == 0, switched, false),
            Unit::SseMmx => (emulate || cr4 & CR4_OSFXSR == 0, switched, true),
        };
        if undefined {
            Err(FpFault::Ud)
        } else if missing {
            Err(FpFault::Nm)
        } else if waits && fpu.exception_pending() {
            Err(FpFault::Mf)
        } else {
            Ok(())
        }
    }

    /// Runs the instruction, checks included.
    #[inline]
    pub fn execute(&self, env: &mut Env<'_>) -> Result<Effect, FpFault> {
        self.check(env.cr0, env.cr4, env.fpu)?;
        (self.run)(self, env)
    }

    /// Runs the instruction after [`FpOp::check`] has passed.
    #[inline]
    pub fn execute_checked(&self, env: &mut Env<'_>) -> Result<Effect, FpFault> {
        (self.run)(self, env)
    }

    /// Whether the r/m operand is in memory.
    #[inline]
    fn in_memory(&self) -> bool {
        self.bits & MEM != 0
    }

    /// The source operand of a vector instruction. Bytes beyond the operand's size are garbage.
    #[inline]
    fn vector_source(&self, env: &Env<'_>) -> __m128i {
        if self.in_memory() { state::vector(env.mem) } else { env.fpu.xmm(self.src) }
    }

    /// The low 64 bits of an XMM source operand.
    #[inline]
    fn low_source(&self, env: &Env<'_>) -> u64 {
        if self.in_memory() { memory_u64(env.mem) } else { env.fpu.xmm_u64(self.src, 0) }
    }

    /// A general register or memory source, zero-extended from the operand's size.
    #[inline]
    fn general_source(&self, env: &Env<'_>) -> u64 {
        if self.in_memory() {
            match self.bytes {
                1 => env.mem[0].into(),
                2 => u16::from_le_bytes([env.mem[0], env.mem[1]]).into(),
                4 => memory_u32(env.mem).into(),
                _ => memory_u64(env.mem),
            }
        } else {
            let value = env.gprs[usize::from(self.src & 15)];
            if self.bits & WIDE != 0 { value } else { value & 0xffff_ffff }
        }
    }

    /// Writes a general register (zero-extended), or the operand's bytes of memory.
    #[inline]
    fn set_general(&self, env: &mut Env<'_>, value: u64) {
        if self.in_memory() {
            env.mem[..8].copy_from_slice(&value.to_le_bytes());
        } else {
            env.gprs[usize::from(self.dst & 15)] = value;
        }
    }
}

/// Fills the memory operand with 16 bytes in one piece: the host forwards a store only to loads that it covers.
#[inline]
pub fn put_operand(mem: &mut [u8; 512], low: u64, high: u64) {
    // SAFETY: SSE2 is part of x86-64.
    state::store_vector(mem, unsafe { _mm_set_epi64x(high as i64, low as i64) });
}

/// The first 4 bytes of the memory operand.
#[inline]
fn memory_u32(mem: &[u8; 512]) -> u32 {
    u32::from_le_bytes([mem[0], mem[1], mem[2], mem[3]])
}

/// The first 8 bytes of the memory operand.
#[inline]
fn memory_u64(mem: &[u8; 512]) -> u64 {
    mem.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Replaces the status flags.
#[inline]
fn set_status_flags(env: &mut Env<'_>, flags: u64) {
    *env.flags = (*env.flags & !STATUS_FLAGS) | (flags & STATUS_FLAGS);
}
