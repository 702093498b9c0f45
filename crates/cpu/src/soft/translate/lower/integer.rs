//! General-purpose instructions.

use super::super::super::native;
use super::super::asm::{Alu, Mem, Shift, at, cc, host};
use super::super::layout::{self, FLAGS, HOMES, T0, T1};
use super::effect::GS;
use super::memory::{RSP, addressable, read, write};
use super::operand::writes;
use super::{Late, Lower};
use iced_x86::{Code, Instruction, Mnemonic as M, OpKind, Register};
use viv_arch::x86::{gpr, rflags, seg};

/// Instructions that become themselves: any operands but high bytes.
fn is_plain(x: &Instruction) -> bool {
    match x.mnemonic() {
        M::Add | M::Or | M::Adc | M::Sbb | M::And | M::Sub | M::Xor | M::Cmp | M::Test => true,
        M::Inc | M::Dec | M::Neg | M::Not | M::Bswap | M::Movzx | M::Movsx | M::Movsxd => true,
        // OF of a byte or word rotated all the way through carry is the interpreter's.
        M::Rcl | M::Rcr => size_of_first(x) >= 4,
        M::Rol | M::Ror | M::Shl | M::Sal | M::Shr | M::Sar | M::Shld | M::Shrd => true,
        M::Movbe | M::Movnti => true,
        M::Popcnt => std::arch::is_x86_feature_detected!("popcnt"),
        M::Crc32 => std::arch::is_x86_feature_detected!("sse4.2"),
        M::Imul => x.op_count() > 1,
        M::Xchg => true,
        M::Xadd => true,
        M::Bt | M::Bts | M::Btr | M::Btc => {
            x.op0_kind() == OpKind::Register || x.op1_kind() == OpKind::Immediate8
        }
        _ => x.is_setcc_or_cmovcc(),
    }
}

/// The count of a rotation by an immediate, as the processor takes it.
fn rotation(x: &Instruction) -> Option<u8> {
    let mask = if size_of_first(x) == 8 { 63 } else { 31 };
    (x.op1_kind() == OpKind::Immediate8).then(|| x.immediate8() & mask)
}

trait Conditional {
    fn is_setcc_or_cmovcc(&self) -> bool;
}
impl Conditional for Instruction {
    fn is_setcc_or_cmovcc(&self) -> bool {
        self.condition_code() != iced_x86::ConditionCode::None
            && !self.is_jcc_short_or_near()
            && !self.is_loopcc()
            && matches!(self.op0_kind(), OpKind::Register | OpKind::Memory)
    }
}

fn has_memory(x: &Instruction) -> bool {
    (0..x.op_count()).any(|n| x.op_kind(n) == OpKind::Memory)
}

impl Lower<'_> {
    /// Emits a general-purpose instruction, if it is one that is translated.
    pub(super) fn integer(&mut self, x: &Instruction) -> bool {
        if !Self::registers_fit(x) {
            return false;
        }
        if has_memory(x) && x.mnemonic() != M::Lea && !addressable(x) {
            return false;
        }
        match x.mnemonic() {
            M::Mov => self.mov(x),
            M::Lea => self.lea(x),
            M::Push => self.push(x),
            M::Pop => self.pop(x),
            M::Leave => self.leave(x),
            M::Cbw | M::Cwde | M::Cdqe | M::Cwd | M::Cdq | M::Cqo => self.extend(x),
            M::Mul | M::Imul if x.op_count() == 1 => self.multiply(x),
            M::Div | M::Idiv => self.divide(x),
            M::Bsf | M::Bsr => self.bit_scan(x),
            M::Cmpxchg => self.compare_exchange(x),
            M::Cmpxchg16b => self.compare_exchange_16(x),
            M::Pushfq => self.push_flags(x),
            M::Cli if self.supervisor() => self.cli(),
            M::Swapgs if self.supervisor() => self.swap_gs(),
            // Shadow stacks are off.
            M::Rdsspd | M::Rdsspq => true,
            M::Nop | M::Reservednop | M::Endbr64 | M::Endbr32 => true,
            M::Prefetchw | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 | M::Prefetchnta | M::Prefetch => {
                true
            }
            M::Lfence | M::Sfence | M::Mfence => {
                self.emit(x);
                true
            }
            M::Bt | M::Bts | M::Btr | M::Btc if has_memory(x) && x.op1_kind() == OpKind::Register => {
                self.bit_far(x)
            }
            M::Rol | M::Ror if self.loses_overflow(x) => {
                self.rotate_by_steps(x);
                true
            }
            _ if is_plain(x) => {
                self.plain(x);
                true
            }
            _ => false,
        }
    }

    /// Whether a rotation would leave another OF on this host than the interpreter's, which counts by CL, and somebody may see it. What
    /// lives in memory is rotated there ([`super::operand`]).
    fn loses_overflow(&self, x: &Instruction) -> bool {
        let register = x.op0_register();
        let in_register = register.size() == 4 || HOMES[register.full_register().number() & 15].is_some();
        x.op0_kind() == OpKind::Register
            && in_register
            && rotation(x).is_some_and(|count| count > 1)
            && !self.flags_stay_unseen()
            && native::fixed_rotates_keep_of()
    }

    /// A rotation of a register by a fixed count above 1, the first step for itself: on such a host that is what makes OF by CL, and
    /// the others keep it.
    fn rotate_by_steps(&mut self, x: &Instruction) {
        let bits = size_of_first(x) as u8 * 8;
        let left = rotation(x).unwrap_or(1) - 1;
        // One more step would make it anew: all the way round but one, and two.
        let steps = if left == 1 { [1, bits - 1, 2] } else { [1, left, 0] };
        for count in steps.into_iter().filter(|count| *count != 0) {
            let mut step = *x;
            step.set_immediate8(count);
            self.plain(&step);
        }
    }

    /// An instruction that becomes itself.
    fn plain(&mut self, x: &Instruction) {
        let mem = self.operand(x);
        self.encode_with_flags(x, mem);
    }

    /// The host memory of the memory operand, if there is one.
    fn operand(&mut self, x: &Instruction) -> Option<Mem> {
        let place = (0..x.op_count()).find(|n| x.op_kind(*n) == OpKind::Memory)?;
        let size = x.memory_size().size() as u32;
        let access = if writes(self.infos.info(x).op_access(place)) { write(size) } else { read(size) };
        Some(self.memory_operand(x, access))
    }

    fn mov(&mut self, x: &Instruction) -> bool {
        let plain = |n: u32| match x.op_kind(n) {
            OpKind::Register => x.op_register(n).is_gpr(),
            _ => true,
        };
        if !plain(0) || !plain(1) || is_offset_form(x.code()) {
            return false;
        }
        self.plain(x);
        true
    }

    /// Guest register `register` in a host register: its home, or `scratch` after a load.
    pub(super) fn in_register(&mut self, register: Register, scratch: u8) -> u8 {
        let number = register.full_register().number() & 15;
        HOMES[number].unwrap_or_else(|| {
            self.asm.load(scratch, layout::reg(number));
            scratch
        })
    }

    fn lea(&mut self, x: &Instruction) -> bool {
        if !addressable(x) {
            return false;
        }
        let to = x.op0_register();
        let number = to.full_register().number() & 15;
        if to.size() == 8
            && let Some(home) = HOMES[number]
        {
            self.effective_address(x, home);
            return true;
        }
        self.effective_address(x, T0);
        match (to.size(), HOMES[number]) {
            (8, None) => self.asm.store(layout::reg(number), T0),
            (4, home) => {
                self.asm.mov32(home.unwrap_or(T0), T0);
                if home.is_none() {
                    self.asm.store(layout::reg(number), T0);
                }
            }
            (_, Some(home)) => {
                // MOV of 16 bits: 66 8B.
                self.asm.raw(&[0x66]);
                self.asm.rr(false, &[0x8b], home, T0);
            }
            (_, None) => self.asm.store16(layout::reg(number), T0),
        }
        true
    }

    /// BT and relatives on memory with the bit number in a register: it reaches any word around the address.
    fn bit_far(&mut self, x: &Instruction) -> bool {
        let size = size_of_first(x);
        if size < 4 {
            return false;
        }
        let number = x.op1_register();
        self.linear_address(x);
        self.clobber_flags();
        let from = self.in_register(number, T1);
        if size == 8 {
            self.asm.mov(T1, from);
        } else {
            self.asm.movsxd(T1, from);
        }
        self.asm.shift(true, Shift::Sar, T1, if size == 8 { 6 } else { 5 });
        let scale = if size == 8 { 3 } else { 2 };
        self.asm.lea(T0, Mem { base: Some(T0), index: Some((T1, scale)), disp: 0 });
        let writes = x.mnemonic() != M::Bt;
        let access = if writes { write(size as u32) } else { read(size as u32) };
        let mem = self.look_up_address(x.ip(), access);
        self.asm.lea(T1, mem);
        let from = self.in_register(number, T0);
        self.asm.mov(T0, from);
        self.asm.alu_imm(false, Alu::And, T0, size as i32 * 8 - 1);
        self.restore_flags();
        if x.has_lock_prefix() {
            self.asm.raw(&[0xf0]);
        }
        let opcode = match x.mnemonic() {
            M::Bt => 0xa3,
            M::Bts => 0xab,
            M::Btr => 0xb3,
            _ => 0xbb,
        };
        self.asm.rm(size == 8, &[0x0f, opcode], T0, at(T1, 0));
        self.flags_made(None);
        true
    }

    /// BSF and BSR. Processors differ in the flags besides ZF, and in what a source of zero leaves: here the flags are
    /// TEST's of the source, and zero leaves the register alone.
    fn bit_scan(&mut self, x: &Instruction) -> bool {
        let size = size_of_first(x);
        match self.one_operand(x) {
            Some(mem) if size == 8 => self.asm.load(T0, mem),
            Some(mem) if size == 4 => self.asm.rm(false, &[0x8b], T0, mem),
            Some(mem) => self.asm.load16(T0, mem),
            None => {
                let from = self.in_register(x.op1_register(), T0);
                match size {
                    8 => self.asm.mov(T0, from),
                    4 => self.asm.mov32(T0, from),
                    _ => self.asm.rr(false, &[0x0f, 0xb7], T0, from),
                }
            }
        }
        // TZCNT where the host has it, which is faster and else BSF: they differ in zero and in flags only.
        if x.mnemonic() == M::Bsf {
            self.asm.raw(&[0xf3]);
        }
        let opcode = if x.mnemonic() == M::Bsf { 0xbc } else { 0xbd };
        self.asm.rr(true, &[0x0f, opcode], T1, T0);
        self.operand_size(size);
        self.asm.test(size == 8, T0, T0);
        let number = x.op0_register().number() & 15;
        // CMOVNZ into the home; without one CMOVZ of what is there, and back. A double word's is of 64 bits, because
        // CMOV clears the upper half also where it moves nothing.
        self.operand_size(size);
        match HOMES[number] {
            Some(home) => self.asm.rr(size != 2, &[0x0f, 0x45], home, T1),
            None => {
                self.asm.rm(size != 2, &[0x0f, 0x44], T1, layout::reg(number));
                match size {
                    2 => self.asm.store16(layout::reg(number), T1),
                    _ => self.asm.store(layout::reg(number), T1),
                }
            }
        }
        self.flags_made(None);
        true
    }

    /// The prefix of 16-bit operands, if `size` is that.
    fn operand_size(&mut self, size: usize) {
        if size == 2 {
            self.asm.raw(&[0x66]);
        }
    }

    // ---- stack ------------------------------------------------------------------------------------------------

    fn push(&mut self, x: &Instruction) -> bool {
        if x.stack_pointer_increment() != -8 {
            return false;
        }
        let register = x.op0_kind() == OpKind::Register;
        if register && !x.op0_register().is_gpr64() {
            return false;
        }
        if has_memory(x) {
            let mem = self.memory_operand(x, read(8));
            self.asm.load(T0, mem);
            self.push_scratch(x);
            return true;
        }
        let rsp = home_of(gpr::RSP);
        let place = self.stack_operand(x, RSP, -8, true);
        if register {
            match HOMES[x.op0_register().number() & 15] {
                Some(home) => self.asm.store(place, home),
                None => {
                    let place = self.without_t0(place);
                    self.asm.load(T0, layout::reg(x.op0_register().number()));
                    self.asm.store(place, T0);
                }
            }
        } else {
            self.asm.store_imm(place, immediate(x));
        }
        self.asm.lea(rsp, at(rsp, -8));
        true
    }

    /// Pushes T0.
    fn push_scratch(&mut self, x: &Instruction) {
        self.asm.store(layout::scratch(0), T0);
        let place = self.stack_operand(x, RSP, -8, true);
        let place = self.without_t0(place);
        self.asm.load(T0, layout::scratch(0));
        self.asm.store(place, T0);
        let rsp = home_of(gpr::RSP);
        self.asm.lea(rsp, at(rsp, -8));
    }

    fn pop(&mut self, x: &Instruction) -> bool {
        if x.stack_pointer_increment() != 8 || has_memory(x) || !x.op0_register().is_gpr64() {
            return false;
        }
        let rsp = home_of(gpr::RSP);
        let place = self.stack_operand(x, RSP, 0, false);
        let number = x.op0_register().number() & 15;
        match HOMES[number] {
            Some(home) => self.asm.load(home, place),
            None => {
                self.asm.load(T0, place);
                self.asm.store(layout::reg(number), T0);
            }
        }
        if number != gpr::RSP {
            self.asm.lea(rsp, at(rsp, 8));
        }
        true
    }

    fn leave(&mut self, x: &Instruction) -> bool {
        if x.code() != Code::Leaveq {
            return false;
        }
        let (rsp, rbp) = (home_of(gpr::RSP), home_of(gpr::RBP));
        let place = self.stack_operand(x, gpr::RBP, 0, false);
        self.asm.lea(rsp, at(rbp, 8));
        self.asm.load(rbp, place);
        true
    }

    /// PUSHFQ: the status flags with the rest of RFLAGS.
    fn push_flags(&mut self, x: &Instruction) -> bool {
        self.restore_flags();
        // The host's own: PUSHFQ; POP T0.
        self.asm.raw(&[0x9c]);
        self.asm.pop(T0);
        self.clobber_flags();
        self.asm.alu_imm(true, Alu::And, T0, rflags::STATUS as i32);
        self.asm.alu_mem(Alu::Or, T0, layout::rflags());
        self.asm.alu_imm(true, Alu::And, T0, !(rflags::VM | rflags::RF) as i32);
        self.push_scratch(x);
        true
    }

    // ---- the processor's state ------------------------------------------------------------------------------------

    fn swap_gs(&mut self) -> bool {
        let (base, kernel) = (layout::segment_base(seg::GS), layout::kernel_gs_base());
        self.asm.load(T0, base);
        self.asm.load(T1, kernel);
        self.asm.store(base, T1);
        self.asm.store(kernel, T0);
        self.known.groups.renew(GS);
        self.leaves_turn();
        true
    }

    /// STI at CPL 0, where another instruction of the block or region follows: that one is its shadow, since nobody looks at
    /// interrupts in between. If an interrupt waits, the interpreter does it, and leaves: a CLI may come before anybody looks.
    pub(super) fn sti(&mut self, x: &Instruction) {
        self.leaves_turn();
        self.save_flags();
        let quick = self.asm.label();
        self.asm.cmp8_imm(layout::interrupt_waits(), 0);
        self.asm.jcc(cc::E, quick);
        self.interpret(x);
        self.asm.bind(quick);
        // OR dword [..], imm32: 81 /1.
        self.asm.rm(false, &[0x81], 1, layout::rflags());
        self.asm.raw(&(rflags::IF as u32).to_le_bytes());
    }

    /// CLI at CPL 0.
    fn cli(&mut self) -> bool {
        self.clobber_flags();
        // AND dword [..], imm32: 81 /4.
        self.asm.rm(false, &[0x81], 4, layout::rflags());
        self.asm.raw(&(!(rflags::IF as u32)).to_le_bytes());
        true
    }

    // ---- the accumulator ------------------------------------------------------------------------------------------

    /// CBW to CQO.
    fn extend(&mut self, x: &Instruction) -> bool {
        let (rax, rdx) = (home_of(gpr::RAX), home_of(gpr::RDX));
        match x.mnemonic() {
            // MOVSX r16, r8 and MOVSX r32, r16.
            M::Cbw => {
                self.asm.raw(&[0x66]);
                self.asm.rr(false, &[0x0f, 0xbe], rax, rax);
            }
            M::Cwde => self.asm.rr(false, &[0x0f, 0xbf], rax, rax),
            M::Cdqe => self.asm.movsxd(rax, rax),
            M::Cwd => {
                self.clobber_flags();
                self.asm.rr(false, &[0x0f, 0xbf], T0, rax);
                self.asm.shift(false, Shift::Sar, T0, 16);
                self.asm.raw(&[0x66]);
                self.asm.rr(false, &[0x8b], rdx, T0);
            }
            M::Cdq => {
                self.clobber_flags();
                self.asm.mov32(rdx, rax);
                self.asm.shift(false, Shift::Sar, rdx, 31);
            }
            _ => {
                self.clobber_flags();
                self.asm.mov(rdx, rax);
                self.asm.shift(true, Shift::Sar, rdx, 63);
            }
        }
        true
    }

    /// The one operand of `x`, unless it is in memory, as a register; in memory it is looked up.
    fn one_operand(&mut self, x: &Instruction) -> Option<Mem> {
        has_memory(x).then(|| self.memory_operand(x, read(x.memory_size().size() as u32)))
    }

    /// `x` with its register operand, if that is RAX, read from where RAX lives.
    fn multiply(&mut self, x: &Instruction) -> bool {
        let mem = self.one_operand(x);
        let byte = matches!(x.code(), Code::Mul_rm8 | Code::Imul_rm8);
        self.encode(x, mem, |lower| lower.asm.mov(host::RAX, home_of(gpr::RAX)));
        self.accumulator_back(byte || size_of_first(x) == 2, size_of_first(x) == 4);
        self.flags_made(None);
        self.known.flags.rough = true;
        true
    }

    /// RAX from the host's to its home.
    fn accumulator_back(&mut self, word: bool, half: bool) {
        let rax = home_of(gpr::RAX);
        if word {
            self.asm.raw(&[0x66]);
            self.asm.rr(false, &[0x8b], rax, host::RAX);
        } else if half {
            self.asm.mov32(rax, host::RAX);
        } else {
            self.asm.mov(rax, host::RAX);
        }
    }

    /// Division, where the quotient fits for sure; the interpreter has the rest, with its exception.
    fn divide(&mut self, x: &Instruction) -> bool {
        let (size, signed) = (size_of_first(x), x.mnemonic() == M::Idiv);
        if size < 4 {
            return false;
        }
        let wide_operand = size == 8;
        self.save_flags();
        let divisor = match self.one_operand(x) {
            Some(mem) => {
                if wide_operand {
                    self.asm.load(T0, mem);
                } else {
                    self.asm.rm(false, &[0x8b], T0, mem);
                }
                T0
            }
            None => {
                let from = self.in_register(x.op0_register(), T0);
                if from != T0 {
                    self.asm.mov(T0, from);
                }
                T0
            }
        };
        self.clobber_flags();
        let rare = self.asm.label();
        self.late.push(Late::Interpret(rare, x.ip() as u16, self.pending()));
        let (rax, rdx) = (home_of(gpr::RAX), home_of(gpr::RDX));
        if signed {
            // The dividend is the sign extension of RAX, and the divisor neither 0 nor -1.
            self.asm.mov(T1, rax);
            self.asm.shift(wide_operand, Shift::Sar, T1, if wide_operand { 63 } else { 31 });
            self.compare(wide_operand, T1, rdx);
            self.asm.jcc(cc::NE, rare);
            self.asm.rm(wide_operand, &[0x8d], T1, at(divisor, 1));
            self.asm.alu_imm(wide_operand, Alu::Cmp, T1, 1);
            self.asm.jcc(cc::BE, rare);
        } else {
            // The upper half is less than the divisor, which is therefore not 0.
            self.compare(wide_operand, rdx, divisor);
            self.asm.jcc(cc::AE, rare);
        }
        // The guest's flags stay: undefined, but the same as before.
        self.asm.mov(T1, FLAGS);
        self.asm.mov(host::RAX, rax);
        // DIV and IDIV: F7 /6 and /7.
        self.asm.rr(wide_operand, &[0xf7], if signed { 7 } else { 6 }, divisor);
        self.asm.mov(rax, host::RAX);
        self.asm.mov(FLAGS, T1);
        true
    }

    fn compare(&mut self, wide_operand: bool, a: u8, b: u8) {
        if wide_operand {
            self.asm.alu(Alu::Cmp, a, b);
        } else {
            self.asm.alu32(Alu::Cmp, a, b);
        }
    }

    fn compare_exchange(&mut self, x: &Instruction) -> bool {
        if x.op0_kind() == OpKind::Register {
            // RAX as an operand would be the host's.
            return false;
        }
        let mem = self.memory_operand(x, write(x.memory_size().size() as u32));
        self.encode(x, Some(mem), |lower| lower.asm.mov(host::RAX, home_of(gpr::RAX)));
        self.asm.mov(home_of(gpr::RAX), host::RAX);
        self.flags_made(None);
        true
    }

    fn compare_exchange_16(&mut self, x: &Instruction) -> bool {
        let access = super::memory::Access { size: 16, write: true, aligned: true };
        let mem = self.memory_operand(x, access);
        // Only ZF changes: the others pass through.
        self.encode(x, Some(mem), |lower| {
            lower.restore_flags();
            lower.asm.mov(host::RAX, home_of(gpr::RAX));
        });
        self.asm.mov(home_of(gpr::RAX), host::RAX);
        self.flags_made(None);
        true
    }
}

/// Bytes of the first operand.
fn size_of_first(x: &Instruction) -> usize {
    match x.op0_kind() {
        OpKind::Register => x.op0_register().size(),
        _ => x.memory_size().size(),
    }
}

/// The home of a guest register that always has one.
pub(super) fn home_of(number: usize) -> u8 {
    HOMES[number & 15].unwrap_or(T0)
}

/// The sign-extended immediate of a PUSH.
fn immediate(x: &Instruction) -> i32 {
    match x.op0_kind() {
        OpKind::Immediate8to64 => x.immediate8to64() as i32,
        OpKind::Immediate32to64 => x.immediate32to64() as i32,
        _ => x.immediate32() as i32,
    }
}

fn is_offset_form(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        Mov_AL_moffs8
            | Mov_AX_moffs16
            | Mov_EAX_moffs32
            | Mov_RAX_moffs64
            | Mov_moffs8_AL
            | Mov_moffs16_AX
            | Mov_moffs32_EAX
            | Mov_moffs64_RAX
    )
}
