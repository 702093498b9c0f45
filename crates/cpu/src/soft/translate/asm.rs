//! The emitter: the few host instructions that translated code needs around the guest's own.
//!
//! Only what stands here, and what the encoder makes of a guest instruction that [`super::lower`] admits, ever becomes
//! executable. Encodings: SDM vol. 2 chapter 2 (REX, ModRM, SIB) and the opcode map of its appendix A.

/// Host register numbers.
pub(super) mod host {
    pub(in super::super) const RAX: u8 = 0;
    pub(in super::super) const RCX: u8 = 1;
    pub(in super::super) const RDX: u8 = 2;
    pub(in super::super) const RBX: u8 = 3;
    pub(in super::super) const RSP: u8 = 4;
    pub(in super::super) const RBP: u8 = 5;
    pub(in super::super) const RSI: u8 = 6;
    pub(in super::super) const RDI: u8 = 7;
    pub(in super::super) const R8: u8 = 8;
    pub(in super::super) const R9: u8 = 9;
    pub(in super::super) const R10: u8 = 10;
    pub(in super::super) const R11: u8 = 11;
    pub(in super::super) const R12: u8 = 12;
    pub(in super::super) const R13: u8 = 13;
    pub(in super::super) const R14: u8 = 14;
    pub(in super::super) const R15: u8 = 15;
}

/// The ADD group by its number in the opcode.
#[derive(Clone, Copy)]
pub(super) enum Alu {
    Add = 0,
    Or = 1,
    And = 4,
    Sub = 5,
    Xor = 6,
    Cmp = 7,
}

/// The shift group by its ModRM digit.
#[derive(Clone, Copy)]
pub(super) enum Shift {
    Shr = 5,
    Sar = 7,
}

/// Condition codes (SDM vol. 2 appendix B.1.4.7).
pub(super) mod cc {
    pub(in super::super) const B: u8 = 2;
    pub(in super::super) const AE: u8 = 3;
    pub(in super::super) const E: u8 = 4;
    pub(in super::super) const NE: u8 = 5;
    pub(in super::super) const BE: u8 = 6;
    pub(in super::super) const A: u8 = 7;
}

/// A memory operand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mem {
    pub(super) base: Option<u8>,
    /// Register and shift.
    pub(super) index: Option<(u8, u8)>,
    pub(super) disp: i32,
}

/// `[base + disp]`.
pub(super) fn at(base: u8, disp: i32) -> Mem {
    Mem { base: Some(base), index: None, disp }
}

/// `[base + index + disp]`.
pub(super) fn at_index(base: u8, index: u8, disp: i32) -> Mem {
    Mem { base: Some(base), index: Some((index, 0)), disp }
}

/// A place in the code that jumps name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(u32);

const UNBOUND: u32 = u32::MAX;

/// Code on its way into the code memory.
pub(super) struct Asm {
    pub(super) bytes: Vec<u8>,
    /// Where the first byte will be executed.
    base: u64,
    labels: Vec<u32>,
    /// Places of 32-bit distances, and what they lead to.
    fixups: Vec<(u32, Label)>,
    /// R15 may have been changed since this was cleared.
    pub(super) r15_changed: bool,
}

impl Asm {
    pub(super) fn new(base: u64, mut bytes: Vec<u8>) -> Asm {
        bytes.clear();
        Asm { bytes, base, labels: Vec::new(), fixups: Vec::new(), r15_changed: true }
    }

    /// Address at which the next byte will be executed.
    pub(super) fn here(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    pub(super) fn label(&mut self) -> Label {
        self.labels.push(UNBOUND);
        Label(self.labels.len() as u32 - 1)
    }

    pub(super) fn bind(&mut self, label: Label) {
        self.labels[label.0 as usize] = self.bytes.len() as u32;
    }

    pub(super) fn bound(&mut self) -> Label {
        let label = self.label();
        self.bind(label);
        label
    }

    /// Address of a bound label.
    pub(super) fn address(&self, label: Label) -> u64 {
        self.base + u64::from(self.labels[label.0 as usize])
    }

    /// Writes all distances. Every label must be bound.
    pub(super) fn finish(&mut self) {
        for (at, label) in std::mem::take(&mut self.fixups) {
            let target = self.labels[label.0 as usize];
            debug_assert_ne!(target, UNBOUND);
            let distance = target.wrapping_sub(at + 4);
            self.bytes[at as usize..at as usize + 4].copy_from_slice(&distance.to_le_bytes());
        }
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn imm32(&mut self, value: i32) {
        self.raw(&value.to_le_bytes());
    }

    // ---- ModRM --------------------------------------------------------------------------------------

    fn prefix(&mut self, wide: bool, reg: u8, index: u8, base: u8) {
        let rex = 0x40 | u8::from(wide) << 3 | reg >> 3 << 2 | index >> 3 << 1 | base >> 3;
        if rex != 0x40 {
            self.bytes.push(rex);
        }
    }

    /// Opcode with a register (or digit) and a register.
    pub(super) fn rr(&mut self, wide: bool, opcode: &[u8], reg: u8, rm: u8) {
        self.r15_changed |= reg == host::R15 || rm == host::R15;
        self.prefix(wide, reg, 0, rm);
        self.raw(opcode);
        self.bytes.push(0xc0 | (reg & 7) << 3 | rm & 7);
    }

    /// Opcode with a register (or digit) and a memory operand.
    pub(super) fn rm(&mut self, wide: bool, opcode: &[u8], reg: u8, mem: Mem) {
        self.r15_changed |= reg == host::R15;
        let (index, base) = (mem.index.map_or(0, |i| i.0), mem.base.unwrap_or(0));
        self.prefix(wide, reg, index, base);
        self.raw(opcode);
        let reg = (reg & 7) << 3;
        let Some(base) = mem.base else {
            // No base: SIB with base 5 and a 32-bit displacement.
            let sib = mem.index.map_or(0x20, |(i, shift)| shift << 6 | (i & 7) << 3) | 5;
            self.raw(&[reg | 4, sib]);
            return self.imm32(mem.disp);
        };
        let (mode, short) = match i8::try_from(mem.disp) {
            Ok(0) if base & 7 != 5 => (0, None),
            Ok(disp) => (0x40, Some(disp)),
            Err(_) => (0x80, None),
        };
        if mem.index.is_some() || base & 7 == 4 {
            let sib = mem.index.map_or(0x20, |(i, shift)| shift << 6 | (i & 7) << 3) | base & 7;
            self.raw(&[mode | reg | 4, sib]);
        } else {
            self.bytes.push(mode | reg | base & 7);
        }
        match (mode, short) {
            (0x40, Some(disp)) => self.bytes.push(disp as u8),
            (0x80, _) => self.imm32(mem.disp),
            _ => {}
        }
    }

    // ---- moves ----------------------------------------------------------------------------------------

    pub(super) fn mov(&mut self, to: u8, from: u8) {
        self.rr(true, &[0x8b], to, from);
    }
    /// Clears the upper half.
    pub(super) fn mov32(&mut self, to: u8, from: u8) {
        self.rr(false, &[0x8b], to, from);
    }
    pub(super) fn movsxd(&mut self, to: u8, from: u8) {
        self.rr(true, &[0x63], to, from);
    }
    pub(super) fn load(&mut self, to: u8, from: Mem) {
        self.rm(true, &[0x8b], to, from);
    }
    pub(super) fn store(&mut self, to: Mem, from: u8) {
        self.rm(true, &[0x89], from, to);
    }
    /// 16 bits, zero-extended.
    pub(super) fn load16(&mut self, to: u8, from: Mem) {
        self.rm(false, &[0x0f, 0xb7], to, from);
    }
    pub(super) fn store16(&mut self, to: Mem, from: u8) {
        self.raw(&[0x66]);
        self.rm(false, &[0x89], from, to);
    }
    pub(super) fn store8_imm(&mut self, to: Mem, value: u8) {
        self.rm(false, &[0xc6], 0, to);
        self.bytes.push(value);
    }
    pub(super) fn store32_imm(&mut self, to: Mem, value: u32) {
        self.rm(false, &[0xc7], 0, to);
        self.imm32(value as i32);
    }
    /// 64 bits from a sign-extended immediate.
    pub(super) fn store_imm(&mut self, to: Mem, value: i32) {
        self.rm(true, &[0xc7], 0, to);
        self.imm32(value);
    }
    pub(super) fn mov_imm(&mut self, to: u8, value: u64) {
        self.r15_changed |= to == host::R15;
        if let Ok(short) = u32::try_from(value) {
            self.prefix(false, 0, 0, to);
            self.bytes.push(0xb8 | to & 7);
            self.raw(&short.to_le_bytes());
        } else if let Ok(short) = i32::try_from(value as i64) {
            self.rr(true, &[0xc7], 0, to);
            self.imm32(short);
        } else {
            self.prefix(true, 0, 0, to);
            self.bytes.push(0xb8 | to & 7);
            self.raw(&value.to_le_bytes());
        }
    }
    pub(super) fn lea(&mut self, to: u8, of: Mem) {
        self.rm(true, &[0x8d], to, of);
    }
    /// Clears the upper half.
    pub(super) fn lea32(&mut self, to: u8, of: Mem) {
        self.rm(false, &[0x8d], to, of);
    }

    // ---- arithmetic -------------------------------------------------------------------------------------

    pub(super) fn alu(&mut self, op: Alu, to: u8, from: u8) {
        self.rr(true, &[(op as u8) << 3 | 3], to, from);
    }
    pub(super) fn alu32(&mut self, op: Alu, to: u8, from: u8) {
        self.rr(false, &[(op as u8) << 3 | 3], to, from);
    }
    pub(super) fn alu_mem(&mut self, op: Alu, to: u8, from: Mem) {
        self.rm(true, &[(op as u8) << 3 | 3], to, from);
    }
    pub(super) fn alu_imm(&mut self, wide: bool, op: Alu, to: u8, value: i32) {
        if let Ok(short) = i8::try_from(value) {
            self.rr(wide, &[0x83], op as u8, to);
            self.bytes.push(short as u8);
        } else {
            self.rr(wide, &[0x81], op as u8, to);
            self.imm32(value);
        }
    }
    /// CMP of 32 bits in memory.
    pub(super) fn cmp32_imm(&mut self, mem: Mem, value: i32) {
        if let Ok(short) = i8::try_from(value) {
            self.rm(false, &[0x83], 7, mem);
            self.bytes.push(short as u8);
        } else {
            self.rm(false, &[0x81], 7, mem);
            self.imm32(value);
        }
    }
    /// CMP of a byte in memory.
    pub(super) fn cmp8_imm(&mut self, mem: Mem, value: u8) {
        self.rm(false, &[0x80], 7, mem);
        self.bytes.push(value);
    }
    pub(super) fn shift(&mut self, wide: bool, op: Shift, to: u8, count: u8) {
        self.rr(wide, &[0xc1], op as u8, to);
        self.bytes.push(count);
    }
    pub(super) fn test(&mut self, wide: bool, a: u8, b: u8) {
        self.rr(wide, &[0x85], b, a);
    }
    /// 64 bits against a sign-extended immediate.
    pub(super) fn test_imm(&mut self, a: u8, value: i32) {
        self.rr(true, &[0xf7], 0, a);
        self.imm32(value);
    }
    /// RORX of 64 bits: VEX.LZ.F2.0F3A.W1 F0 /r ib. Changes no flags.
    pub(super) fn rorx(&mut self, to: u8, from: u8, count: u8) {
        self.r15_changed |= to == host::R15;
        let (r, b) = ((!to >> 3 & 1) << 7, (!from >> 3 & 1) << 5);
        self.raw(&[0xc4, r | 0x40 | b | 3, 0xfb, 0xf0, 0xc0 | (to & 7) << 3 | from & 7, count]);
    }
    /// A product's low 32 bits.
    pub(super) fn imul32_imm(&mut self, to: u8, from: u8, value: i32) {
        self.rr(false, &[0x69], to, from);
        self.imm32(value);
    }

    // ---- flow -----------------------------------------------------------------------------------------------

    /// Returns where the distance stands.
    pub(super) fn jcc(&mut self, condition: u8, to: Label) -> u64 {
        self.raw(&[0x0f, 0x80 | condition]);
        self.distance(to)
    }
    /// Returns where the distance stands.
    pub(super) fn jmp(&mut self, to: Label) -> u64 {
        self.raw(&[0xe9]);
        self.distance(to)
    }
    fn distance(&mut self, to: Label) -> u64 {
        let at = self.bytes.len() as u32;
        self.fixups.push((at, to));
        self.imm32(0);
        self.base + u64::from(at)
    }
    pub(super) fn jmp_mem(&mut self, to: Mem) {
        self.rm(false, &[0xff], 4, to);
    }
    pub(super) fn jmp_reg(&mut self, to: u8) {
        self.rr(false, &[0xff], 4, to);
    }
    pub(super) fn call_reg(&mut self, to: u8) {
        self.rr(false, &[0xff], 2, to);
    }
    /// To an address in the same code memory.
    pub(super) fn call_at(&mut self, target: u64) {
        self.raw(&[0xe8]);
        self.distance_to(target);
    }
    /// To an address in the same code memory.
    pub(super) fn jcc_at(&mut self, condition: u8, target: u64) {
        self.raw(&[0x0f, 0x80 | condition]);
        self.distance_to(target);
    }
    /// To an address in the same code memory.
    pub(super) fn jmp_at(&mut self, target: u64) {
        self.raw(&[0xe9]);
        self.distance_to(target);
    }
    fn distance_to(&mut self, target: u64) {
        let next = self.here() + 4;
        self.imm32(target.wrapping_sub(next) as i32);
    }
    pub(super) fn ret(&mut self) {
        self.raw(&[0xc3]);
    }
    pub(super) fn push(&mut self, reg: u8) {
        self.prefix(false, 0, 0, reg);
        self.bytes.push(0x50 | reg & 7);
    }
    pub(super) fn pop(&mut self, reg: u8) {
        self.r15_changed |= reg == host::R15;
        self.prefix(false, 0, 0, reg);
        self.bytes.push(0x58 | reg & 7);
    }

    // ---- flags and vectors --------------------------------------------------------------------------------------

    /// LAHF; SETO AL: the flag word of [`super::super::flags`] in AX.
    pub(super) fn flags_to_ax(&mut self) {
        self.raw(&[0x9f, 0x0f, 0x90, 0xc0]);
    }
    /// ADD AL, 127; SAHF: the host's flags from AX, whose AL is lost.
    pub(super) fn flags_from_ax(&mut self) {
        self.raw(&[0x04, 0x7f, 0x9e]);
    }
    /// AND AH, mask.
    pub(super) fn keep_in_ah(&mut self, mask: u8) {
        self.raw(&[0x80, 0xe4, mask]);
    }
    /// TEST AH, mask.
    pub(super) fn test_ah(&mut self, mask: u8) {
        self.raw(&[0xf6, 0xc4, mask]);
    }
    /// TEST AL, mask.
    pub(super) fn test_al(&mut self, mask: u8) {
        self.raw(&[0xa8, mask]);
    }
    pub(super) fn movaps_load(&mut self, xmm: u8, from: Mem) {
        self.rm(false, &[0x0f, 0x28], xmm, from);
    }
    pub(super) fn movaps_store(&mut self, to: Mem, xmm: u8) {
        self.rm(false, &[0x0f, 0x29], xmm, to);
    }
    /// FXSAVE64.
    pub(super) fn fxsave(&mut self, to: Mem) {
        self.rm(true, &[0x0f, 0xae], 0, to);
    }
    /// FXRSTOR64.
    pub(super) fn fxrstor(&mut self, from: Mem) {
        self.rm(true, &[0x0f, 0xae], 1, from);
    }
    pub(super) fn ldmxcsr(&mut self, from: Mem) {
        self.rm(false, &[0x0f, 0xae], 2, from);
    }
    pub(super) fn stmxcsr(&mut self, to: Mem) {
        self.rm(false, &[0x0f, 0xae], 3, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    fn shown(emit: impl Fn(&mut Asm)) -> String {
        let mut asm = Asm::new(0x1000, Vec::new());
        emit(&mut asm);
        asm.finish();
        let mut decoder = Decoder::with_ip(64, &asm.bytes, 0x1000, DecoderOptions::NONE);
        let mut text = Vec::new();
        while decoder.can_decode() {
            let x = decoder.decode();
            assert!(!x.is_invalid());
            text.push(format!("{x}"));
        }
        text.join("; ")
    }

    /// Every base and index, with every displacement size, means what it says (SDM vol. 2 tables 2-2 and 2-3).
    #[test]
    fn memory_operands_are_what_the_decoder_reads() {
        for base in 0..16 {
            for index in (0..16).filter(|index| *index != host::RSP) {
                for disp in [0, 1, -128, 127, 128, -129, i32::MAX, i32::MIN] {
                    let mut asm = Asm::new(0, Vec::new());
                    asm.load(host::R9, Mem { base: Some(base), index: Some((index, 2)), disp });
                    asm.store(at(base, disp), host::RDX);
                    let mut decoder = Decoder::with_ip(64, &asm.bytes, 0, DecoderOptions::NONE);
                    let first = decoder.decode();
                    assert_eq!(first.memory_base().number(), base as usize);
                    assert_eq!(first.memory_index().number(), index as usize);
                    assert_eq!(first.memory_index_scale(), 4);
                    assert_eq!(first.memory_displacement64() as i64, i64::from(disp));
                    let second = decoder.decode();
                    assert_eq!(second.memory_base().number(), base as usize);
                    assert_eq!(second.memory_displacement64() as i64, i64::from(disp));
                    assert!(!decoder.can_decode());
                }
            }
        }
    }

    #[test]
    fn instructions_read_back() {
        let text = shown(|asm| {
            asm.alu_imm(true, Alu::And, host::R14, -4096);
            asm.shift(true, Shift::Shr, host::R15, 7);
            asm.cmp8_imm(at(host::RSP, 300), 0);
            asm.mov_imm(host::R15, 0x1234_5678_9abc);
            let label = asm.bound();
            asm.jcc(cc::NE, label);
            asm.flags_to_ax();
            asm.flags_from_ax();
            asm.jmp_mem(at_index(host::RSP, host::R15, 64));
            asm.imul32_imm(host::R15, host::R14, 77);
            asm.rorx(host::R14, host::RBX, 8);
            asm.rorx(host::RDX, host::R15, 56);
        });
        assert_eq!(
            text,
            "and r14,0FFFFFFFFFFFFF000h; shr r15,7; cmp byte ptr [rsp+12Ch],0; mov r15,123456789ABCh; \
             jne 000000000000101Dh; lahf; seto al; add al,7Fh; sahf; jmp qword ptr [rsp+r15+40h]; \
             imul r15d,r14d,4Dh; rorx r14,rbx,8; rorx rdx,r15,38h"
        );
    }
}
