//! A pre-decoded instruction and where its operands are.

use super::cpu::{Cpu, R};
use super::mmu::Want;
use super::native::Width;
use viv_arch::x86::seg;

/// Executes one instruction. RIP already points behind it; on `Err` the loop puts it back.
pub(crate) type Run = fn(&mut Cpu, &Op) -> R<()>;

/// How the effective address becomes linear.
pub(crate) mod ea {
    /// 64-bit mode, no segment base.
    pub(crate) const FLAT: u8 = 0;
    /// 64-bit mode with FS or GS.
    pub(crate) const BASE: u8 = 1;
    /// 64-bit mode with 32-bit addresses, any segment.
    pub(crate) const SHORT: u8 = 2;
    /// Other modes, 32-bit addresses.
    pub(crate) const LEGACY32: u8 = 3;
    /// Other modes, 16-bit addresses.
    pub(crate) const LEGACY16: u8 = 4;
}

/// A pre-decoded instruction: what runs it, and its operands as small numbers.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Op {
    pub(crate) run: Run,
    /// Length of the instruction in bytes.
    pub(crate) len: u8,
    /// One of [`ea`].
    pub(crate) ea: u8,
    /// Segment of the memory operand (the stack segment for stack instructions).
    pub(crate) seg: u8,
    /// First register operand (see [`Cpu::reg`]).
    pub(crate) dst: u8,
    /// Second register operand.
    pub(crate) src: u8,
    pub(crate) base: u8,
    pub(crate) index: u8,
    /// Shift of the index.
    pub(crate) scale: u8,
    pub(crate) disp: i64,
    /// Immediate, sign-extended; or what the instruction's own code wants here.
    pub(crate) imm: u64,
}

impl Op {
    /// Linear address of the memory operand.
    #[inline(always)]
    pub(crate) fn linear(&self, cpu: &mut Cpu, len: u64, want: Want) -> R<u64> {
        let offset = self.offset(cpu);
        if self.ea == ea::FLAT { Ok(offset) } else { self.linear_slow(cpu, offset, len, want) }
    }

    /// The effective address before any segment.
    #[inline(always)]
    pub(crate) fn offset(&self, cpu: &Cpu) -> u64 {
        let base = cpu.regs[(self.base & 31) as usize % 18];
        let index = cpu.regs[(self.index & 31) as usize % 18];
        base.wrapping_add(index << (self.scale & 3)).wrapping_add(self.disp as u64)
    }

    #[inline(never)]
    fn linear_slow(&self, cpu: &mut Cpu, offset: u64, len: u64, want: Want) -> R<u64> {
        let segment = self.seg as usize;
        match self.ea {
            ea::BASE => Ok(cpu.segs[segment].base.wrapping_add(offset)),
            ea::SHORT => {
                let base = if segment >= seg::FS { cpu.segs[segment].base } else { 0 };
                Ok(base.wrapping_add(offset & 0xffff_ffff))
            }
            ea::LEGACY32 => cpu.segment_address(segment, offset & 0xffff_ffff, len, want),
            _ => cpu.segment_address(segment, offset & 0xffff, len, want),
        }
    }

    /// Bits of an address register that count.
    pub(crate) fn address_mask(&self) -> u64 {
        match self.ea {
            ea::FLAT | ea::BASE => u64::MAX,
            ea::SHORT | ea::LEGACY32 => 0xffff_ffff,
            _ => 0xffff,
        }
    }
}

/// An operand that can be read.
pub(crate) trait Source {
    fn get<W: Width>(cpu: &mut Cpu, op: &Op) -> R<W>;
}

/// The register `op.dst`.
pub(crate) struct Dst;
/// The register `op.src`.
pub(crate) struct Src;
/// The immediate.
pub(crate) struct Imm;
/// The memory operand.
pub(crate) struct Mem;

impl Source for Dst {
    #[inline(always)]
    fn get<W: Width>(cpu: &mut Cpu, op: &Op) -> R<W> {
        Ok(cpu.reg(op.dst))
    }
}
impl Source for Src {
    #[inline(always)]
    fn get<W: Width>(cpu: &mut Cpu, op: &Op) -> R<W> {
        Ok(cpu.reg(op.src))
    }
}
impl Source for Imm {
    #[inline(always)]
    fn get<W: Width>(_: &mut Cpu, op: &Op) -> R<W> {
        Ok(W::of(op.imm))
    }
}
impl Source for Mem {
    #[inline(always)]
    fn get<W: Width>(cpu: &mut Cpu, op: &Op) -> R<W> {
        let linear = op.linear(cpu, W::BYTES, Want::Read)?;
        cpu.load_checked(linear)
    }
}

/// An operand that is read, changed and written.
pub(crate) trait Target {
    /// Replaces the operand by what `change` makes of it; its second value goes to the caller.
    fn update<W: Width, T>(cpu: &mut Cpu, op: &Op, change: impl Fn(&Cpu, W) -> (W, T)) -> R<T>;
    /// Whether it is a register.
    const IS_REGISTER: bool;
    fn set<W: Width>(cpu: &mut Cpu, op: &Op, value: W) -> R<()>;
}

impl Target for Dst {
    const IS_REGISTER: bool = true;
    #[inline(always)]
    fn update<W: Width, T>(cpu: &mut Cpu, op: &Op, change: impl Fn(&Cpu, W) -> (W, T)) -> R<T> {
        let old = cpu.reg(op.dst);
        let (new, rest) = change(cpu, old);
        cpu.set_reg(op.dst, new);
        Ok(rest)
    }
    #[inline(always)]
    fn set<W: Width>(cpu: &mut Cpu, op: &Op, value: W) -> R<()> {
        cpu.set_reg(op.dst, value);
        Ok(())
    }
}

impl Target for Mem {
    const IS_REGISTER: bool = false;
    #[inline(always)]
    #[allow(unsafe_code)]
    fn update<W: Width, T>(cpu: &mut Cpu, op: &Op, change: impl Fn(&Cpu, W) -> (W, T)) -> R<T> {
        let linear = op.linear(cpu, W::BYTES, Want::Write)?;
        cpu.check_aligned::<W>(linear)?;
        if let Some(host) = cpu.modify::<W>(linear)? {
            // SAFETY: `modify` gives host memory of guest RAM that holds a whole W.
            let old = unsafe { host.read_unaligned() };
            let (new, rest) = change(cpu, old);
            // SAFETY: as above.
            unsafe { host.write_unaligned(new) };
            return Ok(rest);
        }
        let old = cpu.load(linear)?;
        let (new, rest) = change(cpu, old);
        cpu.store(linear, new)?;
        Ok(rest)
    }
    #[inline(always)]
    fn set<W: Width>(cpu: &mut Cpu, op: &Op, value: W) -> R<()> {
        let linear = op.linear(cpu, W::BYTES, Want::Write)?;
        cpu.store_checked(linear, value)
    }
}

/// The memory operand, changed atomically (a LOCK prefix).
pub(crate) struct Locked;

impl Source for Locked {
    fn get<W: Width>(cpu: &mut Cpu, op: &Op) -> R<W> {
        Mem::get(cpu, op)
    }
}

impl Target for Locked {
    const IS_REGISTER: bool = false;
    #[allow(unsafe_code)]
    fn update<W: Width, T>(cpu: &mut Cpu, op: &Op, change: impl Fn(&Cpu, W) -> (W, T)) -> R<T> {
        let linear = op.linear(cpu, W::BYTES, Want::Write)?;
        cpu.check_aligned::<W>(linear)?;
        let Some(host) = cpu.modify::<W>(linear)? else {
            // A device or two pages: no host atomic reaches it; other vCPUs' split locks wait.
            let shared = cpu.shared.clone();
            let _held = shared.split_lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            return Mem::update(cpu, op, change);
        };
        // SAFETY: `modify` gives host memory of guest RAM that holds a whole W.
        let mut old = unsafe { host.read_unaligned() };
        loop {
            let (new, rest) = change(cpu, old);
            // SAFETY: as above.
            match unsafe { super::native::compare_exchange(host, old, new) } {
                Ok(()) => return Ok(rest),
                Err(found) => old = found,
            }
        }
    }
    fn set<W: Width>(cpu: &mut Cpu, op: &Op, value: W) -> R<()> {
        Locked::update(cpu, op, |_, _| (value, ()))
    }
}
