//! Memory operands: the effective address, and the lookup in the software TLB.

use super::super::asm::{Alu, Label, Mem, Shift, at, at_index, cc};
use super::super::layout::{self, CPU, HOMES, T0, T1};
use super::super::stubs;
use super::{Late, Lower};
use iced_x86::{Instruction, Register};
use viv_arch::x86::seg;
use viv_mem::PAGE_SIZE;

/// What an access needs of the TLB.
#[derive(Clone, Copy)]
pub(super) struct Access {
    pub(super) size: u32,
    pub(super) write: bool,
    /// Faults if it is not aligned to its 16 bytes.
    pub(super) aligned: bool,
}

pub(super) fn read(size: u32) -> Access {
    Access { size, write: false, aligned: false }
}
pub(super) fn write(size: u32) -> Access {
    Access { size, write: true, aligned: false }
}

/// Whether [`Lower::effective_address`] can compute the operand's address.
pub(super) fn addressable(x: &Instruction) -> bool {
    if x.is_ip_rel_memory_operand() {
        let offset = x.ip_rel_memory_address() as i64;
        return i32::try_from(offset).is_ok() && x.memory_base() == Register::RIP;
    }
    let plain = |register: Register| register == Register::None || register.is_gpr64();
    let short = |register: Register| register == Register::None || register.is_gpr32();
    let registers = (x.memory_base(), x.memory_index());
    let none = registers == (Register::None, Register::None);
    i32::try_from(x.memory_displacement64() as i64).is_ok()
        && !(none && x.memory_displ_size() != 8)
        && (plain(registers.0) && plain(registers.1) || short(registers.0) && short(registers.1))
}

/// Segment of the operand, if its base counts in 64-bit mode.
pub(super) fn based_segment(x: &Instruction) -> Option<usize> {
    match x.memory_segment() {
        Register::FS => Some(seg::FS),
        Register::GS => Some(seg::GS),
        _ => None,
    }
}

impl Lower<'_> {
    /// The operand's effective address into `to`, without a segment's base. Uses T0 and T1; changes no flags.
    pub(super) fn effective_address(&mut self, x: &Instruction, to: u8) {
        if x.is_ip_rel_memory_operand() {
            self.asm.load(T0, layout::page());
            self.asm.lea(to, at(T0, x.ip_rel_memory_address() as i32));
            return;
        }
        let mut register = |register: Register, scratch: u8| {
            let number = register.full_register().number();
            (register != Register::None).then(|| match HOMES[number & 15] {
                Some(home) => home,
                None => {
                    self.asm.load(scratch, layout::reg(number));
                    scratch
                }
            })
        };
        let base = register(x.memory_base(), T0);
        let index = register(x.memory_index(), T1);
        let shift = x.memory_index_scale().trailing_zeros() as u8;
        let disp = x.memory_displacement64() as i32;
        let short = x.memory_base().is_gpr32() || x.memory_index().is_gpr32();
        match (base, index) {
            (None, None) => self.asm.mov_imm(to, disp as i64 as u64),
            (Some(base), None) if disp == 0 && !short => {
                if base != to {
                    self.asm.mov(to, base);
                }
            }
            _ => {
                let mem = Mem { base, index: index.map(|index| (index, shift)), disp };
                if short { self.asm.lea32(to, mem) } else { self.asm.lea(to, mem) }
            }
        }
    }

    /// The linear address of the operand into T0. Changes the host's flags where a segment has a base.
    pub(super) fn linear_address(&mut self, x: &Instruction) {
        self.effective_address(x, T0);
        if let Some(segment) = based_segment(x) {
            self.clobber_flags();
            self.asm.alu_mem(Alu::Add, T0, layout::segment_base(segment));
        }
    }

    /// Finds the host memory of the linear address in T0: `[T1 + T0]`. On a miss that cannot be filled, the
    /// instruction at `ip` goes to the interpreter.
    pub(super) fn look_up_address(&mut self, ip: u64, access: Access) -> Mem {
        self.clobber_flags();
        let mmu = self.context.mmu;
        let retry = self.asm.bound();
        self.asm.mov(T1, T0);
        self.asm.shift(true, Shift::Shr, T1, 12 - layout::TLB_SHIFT);
        self.asm.alu_imm(false, Alu::And, T1, layout::TLB_MASK);
        let tag = layout::tlb_tag(mmu, access.write);
        self.asm.alu_mem(Alu::Xor, T0, at_index(CPU, T1, tag));
        let miss = self.asm.label();
        self.miss(access, miss);
        self.asm.load(T1, at_index(CPU, T1, layout::tlb_host(mmu)));
        let access = stubs::access(ip as u16, access.size, access.write, access.aligned);
        self.late.push(Late::Fill { from: miss, retry, access, tag });
        at_index(T1, T0, 0)
    }

    /// Jumps to `miss` unless T0 is an offset in a page at which the access fits.
    fn miss(&mut self, access: Access, miss: Label) {
        if access.aligned {
            self.asm.test_imm(T0, !(PAGE_SIZE as i32 - 16));
            self.asm.jcc(cc::NE, miss);
        } else {
            self.asm.alu_imm(true, Alu::Cmp, T0, (PAGE_SIZE as u32 - access.size) as i32);
            self.asm.jcc(cc::A, miss);
        }
    }

    /// The host memory of the instruction's memory operand.
    pub(super) fn memory_operand(&mut self, x: &Instruction, access: Access) -> Mem {
        self.linear_address(x);
        self.look_up_address(x.ip(), access)
    }
}
