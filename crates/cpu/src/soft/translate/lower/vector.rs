//! SSE to SSE4.2, AES and PCLMUL on XMM registers: each becomes itself.

use super::super::super::fpu::{self, Unit};
use super::super::asm::cc;
use super::super::layout;
use super::integer::{Flags, flags_of};
use super::memory::{Access, addressable};
use super::{Late, Lower};
use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

/// Whether all registers of the instruction are XMM or general ones, and it touches none that it does not name.
fn plain_registers(x: &Instruction) -> bool {
    (0..x.op_count()).all(|n| {
        x.op_kind(n) != OpKind::Register
            || x.op_register(n).is_xmm()
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
            | M::Lddqu
    )
}

impl Lower<'_> {
    /// Emits a vector instruction, if it is one that is translated.
    pub(super) fn vector(&mut self, x: &Instruction) -> bool {
        if !self.context.vectors || needs_interpreter(x) || !plain_registers(x) {
            return false;
        }
        let Some(fp) = fpu::decode(x) else { return false };
        if fp.unit() != Unit::Sse {
            return false;
        }
        let has_memory = (0..x.op_count()).any(|n| x.op_kind(n) == OpKind::Memory);
        if has_memory && !addressable(x) {
            return false;
        }
        self.need_vectors();
        let mem = match fp.memory() {
            Some(memory) if has_memory => Some(self.memory_operand(
                x,
                Access { size: memory.bytes.into(), write: memory.store, aligned: memory.align == 16 },
            )),
            _ if has_memory => return false,
            _ => None,
        };
        debug_assert!(!matches!(flags_of(x), Flags::Reads | Flags::Changes));
        self.encode_with_flags(x, mem);
        true
    }

    /// After this the guest's vector registers are in the host's.
    fn need_vectors(&mut self) {
        if self.vectors {
            return;
        }
        self.clobber_flags();
        self.asm.cmp8_imm(layout::vectors(), 0);
        let (from, back) = (self.asm.label(), self.asm.label());
        self.asm.jcc(cc::E, from);
        self.asm.bind(back);
        self.late.push(Late::Vectors { from, back });
        self.vectors = true;
    }
}
