//! SSE to SSE4.2, AES and PCLMUL on XMM registers, and the x87 unit: each instruction becomes itself.

use super::super::super::fpu::{self, Unit};
use super::super::FCW_MASKS;
use super::super::asm::{Alu, Mem, cc};
use super::super::layout::{self, FLAGS, T0};
use super::super::stubs::{ALL_IN, VECTORS_IN};
use super::integer::home_of;
use super::memory::{Access, addressable};
use super::{Late, Lower, Units};
use iced_x86::{Code, Instruction, Mnemonic as M, OpKind, Register};
use viv_arch::x86::gpr;

/// Whether all registers of the instruction are XMM, x87 or general ones.
fn plain_registers(x: &Instruction) -> bool {
    (0..x.op_count()).all(|n| {
        x.op_kind(n) != OpKind::Register
            || x.op_register(n).is_xmm()
            || x.op_register(n).is_st()
            || (x.op_register(n).is_gpr() && x.op_register(n) != Register::None)
    })
}

/// Not as they are: MXCSR decides whether translated vector code may run; these read implied registers or memory.
fn needs_interpreter(x: &Instruction) -> bool {
    matches!(
        x.mnemonic(),
        M::Ldmxcsr
            | M::Stmxcsr
            | M::Maskmovdqu
            | M::Maskmovq
            | M::Pcmpestri
            | M::Pcmpestrm
            | M::Pcmpestri64
            | M::Pcmpestrm64
            | M::Fxsave
            | M::Fxrstor
            | M::Clflush
            | M::Fldenv
            | M::Fnstenv
            | M::Fstenv
            | M::Fnsave
            | M::Fsave
            | M::Frstor
    )
}

impl Lower<'_> {
    /// Emits a vector or x87 instruction, if it is one that is translated.
    pub(super) fn vector(&mut self, x: &Instruction) -> bool {
        if !self.context.units || needs_interpreter(x) || !plain_registers(x) {
            return false;
        }
        let Some(fp) = fpu::decode(x) else { return false };
        let has_memory = (0..x.op_count()).any(|n| x.op_kind(n) == OpKind::Memory);
        if has_memory && (!addressable(x) || fp.memory().is_none()) {
            return false;
        }
        match fp.unit() {
            Unit::Sse => self.need_units(Units::Vectors),
            Unit::X87 | Unit::X87NoWait => self.need_units(Units::All),
            // Nothing can be pending.
            Unit::Wait => return true,
            _ => return false,
        }
        if matches!(x.code(), Code::Fnstsw_AX | Code::Fstsw_AX) {
            self.status_to_accumulator(x);
            return true;
        }
        let mem = fp.memory().map(|memory| {
            let access =
                Access { size: memory.bytes.into(), write: memory.store, aligned: memory.align == 16 };
            self.memory_operand(x, access)
        });
        let mem = match (x.code(), mem) {
            (Code::Fldcw_m2byte, Some(mem)) => Some(self.control_word(x, mem)),
            _ => mem,
        };
        self.encode_with_flags(x, mem);
        true
    }

    /// FNSTSW AX.
    fn status_to_accumulator(&mut self, x: &Instruction) {
        self.save_flags();
        self.asm.mov(T0, FLAGS);
        self.emit(x);
        // MOV of 16 bits: 66 8B.
        self.asm.raw(&[0x66]);
        self.asm.rr(false, &[0x8b], home_of(gpr::RAX), FLAGS);
        self.asm.mov(FLAGS, T0);
    }

    /// A control word that unmasks an exception is the interpreter's. Returns a copy of it, which nobody changes after
    /// it was looked at.
    fn control_word(&mut self, x: &Instruction, mem: Mem) -> Mem {
        self.clobber_flags();
        self.asm.load16(T0, mem);
        self.asm.store16(layout::scratch(0), T0);
        self.asm.alu_imm(false, Alu::And, T0, FCW_MASKS.into());
        self.asm.alu_imm(false, Alu::Cmp, T0, FCW_MASKS.into());
        let rare = self.asm.label();
        self.asm.jcc(cc::NE, rare);
        self.late.push(Late::Interpret(rare, x.ip() as u16, self.pending()));
        layout::scratch(0)
    }

    /// After this the guest's registers are in the host's.
    fn need_units(&mut self, units: Units) {
        if self.known.units >= units {
            return;
        }
        self.clobber_flags();
        let wanted = if units == Units::All { ALL_IN } else { VECTORS_IN };
        self.asm.cmp8_imm(layout::units(), wanted);
        let (from, back) = (self.asm.label(), self.asm.label());
        self.asm.jcc(cc::B, from);
        self.asm.bind(back);
        self.late.push(Late::Units { from, back, units });
        self.known.units = units;
    }
}
