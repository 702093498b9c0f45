//! From iced's instruction to ours: the one table of what the interpreter knows.
//!
//! [`decode`] names for each mnemonic the code that runs it, chosen by operand size and operand kinds once,
//! so that running it looks at neither again. The instruction tests ask [`supports`].

use super::control as c;
use super::cpu::{Mode, RIP, ZERO};
use super::fpu::{self, FpOp};
use super::integer as i;
use super::integer::Cl as ShiftCount;
use super::native as n;
use super::op::{Dst, Imm, Locked, Mem, Op, Run, Src, ea};
use super::system as s;
use super::transfer as t;
use super::vector;
use iced_x86::{Code, ConditionCode, FlowControl, Instruction, Mnemonic as M, OpKind, Register};
use viv_arch::x86::{gpr, seg};

/// An instruction ready to run.
pub(crate) struct Decoded {
    pub(crate) op: Op,
    /// Its vector or x87 part; the block keeps it and `op.imm` becomes its address.
    pub(crate) fp: Option<FpOp>,
    /// Nothing may follow it in its block.
    pub(crate) ends: bool,
}

/// Whether the software CPU knows the instruction in 64-bit mode.
pub fn supports(instruction: &Instruction) -> bool {
    pick(instruction, Mode::Code64, &mut empty(0)).is_some() || fpu::decode(instruction).is_some()
}

fn empty(len: u8) -> Op {
    Op {
        run: s::ud,
        len,
        ea: ea::FLAT,
        seg: seg::DS as u8,
        dst: 0,
        src: 0,
        base: ZERO as u8,
        index: ZERO as u8,
        scale: 0,
        disp: 0,
        imm: 0,
    }
}

/// Longest instruction; a longer one is #GP, not #UD (SDM vol. 2 §2.3.11).
const INSTRUCTION_MAX: usize = 15;

/// Decodes for a code segment of `mode`. What is not known runs as #UD.
pub(crate) fn decode(instruction: &Instruction, mode: Mode) -> Decoded {
    let mut op = empty(instruction.len() as u8);
    let ends = instruction.flow_control() != FlowControl::Next;
    if instruction.is_invalid() {
        if usize::from(op.len) >= INSTRUCTION_MAX {
            op.run = s::too_long;
        }
        return Decoded { op, fp: None, ends: true };
    }
    memory(instruction, mode, &mut op);
    if let Some(fp) = fpu::decode(instruction) {
        op.run = vector::pick(&fp);
        return Decoded { op, fp: Some(fp), ends: false };
    }
    match pick(instruction, mode, &mut op) {
        Some(run) => op.run = run,
        None => return Decoded { op: empty(op.len), fp: None, ends: true },
    }
    Decoded { op, fp: None, ends }
}

/// Our number of a general register (see `Cpu::reg`).
fn number(register: Register) -> u8 {
    match register {
        Register::AH => 0x80,
        Register::CH => 0x81,
        Register::DH => 0x82,
        Register::BH => 0x83,
        byte if byte.is_gpr8() => byte.full_register().number() as u8,
        other => other.number() as u8,
    }
}

fn segment_number(register: Register) -> u8 {
    match register {
        Register::ES => 0,
        Register::CS => 1,
        Register::SS => 2,
        Register::FS => 4,
        Register::GS => 5,
        _ => 3,
    }
}

/// Fills in the memory operand, if there is one.
fn memory(x: &Instruction, mode: Mode, op: &mut Op) {
    let has_memory = (0..x.op_count()).any(|n| is_memory(x.op_kind(n)));
    if !has_memory {
        op.ea = match mode {
            Mode::Code64 => ea::FLAT,
            Mode::Code32 => ea::LEGACY32,
            Mode::Code16 => ea::LEGACY16,
        };
        op.seg = seg::SS as u8;
        return;
    }
    op.seg = segment_number(x.memory_segment());
    if mode == Mode::Code64 && op.seg < seg::FS as u8 {
        // Overrides but FS and GS are ignored; the base decides between #SS and #GP.
        let stack = matches!(x.memory_base().full_register(), Register::RSP | Register::RBP);
        op.seg = if stack { seg::SS as u8 } else { seg::DS as u8 };
    }
    let string = (0..x.op_count()).any(|n| is_memory(x.op_kind(n)) && x.op_kind(n) != OpKind::Memory);
    let address_bits = if string { string_address_bits(x) } else { memory_address_bits(x, mode) };
    op.ea = match (mode, address_bits) {
        (Mode::Code64, 32) => ea::SHORT,
        (Mode::Code64, _) if op.seg >= seg::FS as u8 => ea::BASE,
        (Mode::Code64, _) => ea::FLAT,
        (_, 16) => ea::LEGACY16,
        _ => ea::LEGACY32,
    };
    if string {
        // MASKMOVQ and MASKMOVDQU take their address from here, string instructions have their own.
        op.base = gpr::RDI as u8;
        return;
    }
    let address_register = |register: Register| match register {
        Register::None => ZERO as u8,
        Register::RIP | Register::EIP => RIP as u8,
        other => other.number() as u8,
    };
    op.base = address_register(x.memory_base());
    op.index = address_register(x.memory_index());
    op.scale = x.memory_index_scale().trailing_zeros() as u8;
    op.disp = x.memory_displacement64() as i64;
    if x.is_ip_rel_memory_operand() {
        op.disp = x.ip_rel_memory_address().wrapping_sub(x.next_ip()) as i64;
    }
}

fn is_memory(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Memory
            | OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemorySegDI
            | OpKind::MemorySegEDI
            | OpKind::MemorySegRDI
            | OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI
    )
}

fn string_address_bits(x: &Instruction) -> u32 {
    for n in 0..x.op_count() {
        match x.op_kind(n) {
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => return 16,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => return 32,
            _ => {}
        }
    }
    64
}

fn memory_address_bits(x: &Instruction, mode: Mode) -> u32 {
    let sized = [x.memory_base(), x.memory_index()].into_iter().find(|r| *r != Register::None);
    match (sized, x.memory_displ_size()) {
        (Some(register), _) => register.size() as u32 * 8,
        // No register: the displacement has the address's size, but for the sign-extended 32 bits of 64-bit mode.
        (None, 2) => 16,
        (None, 4) if mode == Mode::Code64 => 32,
        (None, 4) => 32,
        (None, 8) => 64,
        _ => mode as u32,
    }
}

/// Picks the code for an operand of `$w` bytes.
macro_rules! sized {
    ($w:expr, $f:path $(, $g:ty)*) => {
        match $w {
            1 => { use $f as f; f::<$($g,)* u8> as Run }
            2 => { use $f as f; f::<$($g,)* u16> as Run }
            4 => { use $f as f; f::<$($g,)* u32> as Run }
            _ => { use $f as f; f::<$($g,)* u64> as Run }
        }
    };
}
/// The same without a byte form.
macro_rules! sized_word {
    ($w:expr, $f:path $(, $g:tt)*) => {
        match $w {
            2 => { use $f as f; f::<$($g,)* u16> as Run }
            4 => { use $f as f; f::<$($g,)* u32> as Run }
            _ => { use $f as f; f::<$($g,)* u64> as Run }
        }
    };
}

/// Kinds of the two main operands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    RegReg,
    RegMem,
    RegImm,
    MemReg,
    MemImm,
    Reg,
    Mem,
    Imm,
    None,
}

fn form(x: &Instruction) -> Form {
    let class = |n: u32| {
        if n >= x.op_count() {
            return ' ';
        }
        match x.op_kind(n) {
            OpKind::Register => 'r',
            kind if is_memory(kind) => 'm',
            _ => 'i',
        }
    };
    match (class(0), class(1)) {
        ('r', 'r') => Form::RegReg,
        ('r', 'm') => Form::RegMem,
        ('r', 'i') => Form::RegImm,
        ('m', 'r') => Form::MemReg,
        ('m', 'i') => Form::MemImm,
        ('r', _) => Form::Reg,
        ('m', _) => Form::Mem,
        ('i', _) => Form::Imm,
        _ => Form::None,
    }
}

/// Bytes of operand `n`.
fn size(x: &Instruction, n: u32) -> usize {
    match x.op_kind(n) {
        OpKind::Register => x.op_register(n).size(),
        _ => x.memory_size().size(),
    }
}

/// Operand size of instructions without sized operands, from the code's name.
fn by_code(x: &Instruction, w: &[Code], d: &[Code]) -> u8 {
    if w.contains(&x.code()) {
        2
    } else if d.contains(&x.code()) {
        4
    } else {
        8
    }
}

fn repeat(x: &Instruction) -> u64 {
    if x.has_repne_prefix() {
        c::REPEAT_UNEQUAL
    } else if x.has_rep_prefix() {
        c::REPEAT
    } else {
        c::ONCE
    }
}

fn condition(x: &Instruction) -> u8 {
    match x.condition_code() {
        ConditionCode::o => 0,
        ConditionCode::no => 1,
        ConditionCode::b => 2,
        ConditionCode::ae => 3,
        ConditionCode::e => 4,
        ConditionCode::ne => 5,
        ConditionCode::be => 6,
        ConditionCode::a => 7,
        ConditionCode::s => 8,
        ConditionCode::ns => 9,
        ConditionCode::p => 10,
        ConditionCode::np => 11,
        ConditionCode::l => 12,
        ConditionCode::ge => 13,
        ConditionCode::le => 14,
        _ => 15,
    }
}

/// ADD and its kind: destination and source in every form, locked or not.
macro_rules! alu {
    ($a:ty, $form:expr, $w:expr, $lock:expr) => {
        match ($form, $lock) {
            (Form::RegReg, _) => sized!($w, i::alu, $a, Dst, Src),
            (Form::RegMem, _) => sized!($w, i::alu, $a, Dst, Mem),
            (Form::RegImm, _) => sized!($w, i::alu, $a, Dst, Imm),
            (Form::MemReg, false) => sized!($w, i::alu, $a, Mem, Src),
            (Form::MemImm, false) => sized!($w, i::alu, $a, Mem, Imm),
            (Form::MemReg, true) => sized!($w, i::alu, $a, Locked, Src),
            (Form::MemImm, true) => sized!($w, i::alu, $a, Locked, Imm),
            _ => return None,
        }
    };
}
macro_rules! compare {
    ($a:ty, $form:expr, $w:expr) => {
        match $form {
            Form::RegReg => sized!($w, i::compare, $a, Dst, Src),
            Form::RegMem => sized!($w, i::compare, $a, Dst, Mem),
            Form::RegImm => sized!($w, i::compare, $a, Dst, Imm),
            Form::MemReg => sized!($w, i::compare, $a, Mem, Src),
            Form::MemImm => sized!($w, i::compare, $a, Mem, Imm),
            _ => return None,
        }
    };
}
macro_rules! unary {
    ($u:ty, $form:expr, $w:expr, $lock:expr) => {
        match ($form, $lock) {
            (Form::Reg, _) => sized!($w, i::unary, $u, Dst),
            (Form::Mem, false) => sized!($w, i::unary, $u, Mem),
            (Form::Mem, true) => sized!($w, i::unary, $u, Locked),
            _ => return None,
        }
    };
}
macro_rules! shift {
    ($k:ty, $form:expr, $w:expr) => {
        match $form {
            Form::RegReg => sized!($w, i::shift, $k, Dst, i::Cl),
            Form::RegImm => sized!($w, i::shift, $k, Dst, Imm),
            Form::MemReg => sized!($w, i::shift, $k, Mem, i::Cl),
            Form::MemImm => sized!($w, i::shift, $k, Mem, Imm),
            _ => return None,
        }
    };
}
macro_rules! bits {
    ($b:ty, $form:expr, $w:expr, $lock:expr) => {
        match ($form, $lock) {
            (Form::RegReg, _) => sized_word!($w, i::bit_test, $b, Dst, Src),
            (Form::RegImm, _) => sized_word!($w, i::bit_test, $b, Dst, Imm),
            (Form::MemImm, false) => sized_word!($w, i::bit_test, $b, Mem, Imm),
            (Form::MemImm, true) => sized_word!($w, i::bit_test, $b, Locked, Imm),
            (Form::MemReg, false) => sized_word!($w, i::bit_test_far, $b, Mem),
            (Form::MemReg, true) => sized_word!($w, i::bit_test_far, $b, Locked),
            _ => return None,
        }
    };
}
/// A read-only source: register `src` or memory.
macro_rules! source {
    ($form:expr, $w:expr, $f:path $(, $g:tt)*) => {
        match $form {
            Form::RegReg => sized_word!($w, $f $(, $g)*, Src),
            Form::RegMem => sized_word!($w, $f $(, $g)*, Mem),
            _ => return None,
        }
    };
}

/// Chooses the code, and sets what it reads from `op`. `None`: not an instruction of this processor.
fn pick(x: &Instruction, mode: Mode, op: &mut Op) -> Option<Run> {
    let form = form(x);
    let lock = x.has_lock_prefix();
    let w = if x.op_count() > 0 && !matches!(form, Form::Imm | Form::None) { size(x, 0) } else { 0 };
    match form {
        Form::RegReg => {
            op.dst = number(x.op0_register());
            op.src = number(x.op1_register());
        }
        Form::RegMem | Form::RegImm | Form::Reg => op.dst = number(x.op0_register()),
        Form::MemReg => op.src = number(x.op1_register()),
        _ => {}
    }
    if matches!(form, Form::RegImm | Form::MemImm) && !x.is_jcc_short_or_near() {
        op.imm = immediate(x, 1);
    }
    let code = x.code();
    Some(match x.mnemonic() {
        M::Add => alu!(n::Add, form, w, lock),
        M::Or => alu!(n::Or, form, w, lock),
        M::Adc => alu!(n::Adc, form, w, lock),
        M::Sbb => alu!(n::Sbb, form, w, lock),
        M::And => alu!(n::And, form, w, lock),
        M::Sub => alu!(n::Sub, form, w, lock),
        M::Xor => alu!(n::Xor, form, w, lock),
        M::Cmp => compare!(n::Cmp, form, w),
        M::Test => compare!(n::Test, form, w),
        M::Inc => unary!(n::Inc, form, w, lock),
        M::Dec => unary!(n::Dec, form, w, lock),
        M::Neg => unary!(n::Neg, form, w, lock),
        M::Not => unary!(n::Not, form, w, lock),
        M::Rol => shift!(n::Rol, form, w),
        M::Ror => shift!(n::Ror, form, w),
        M::Rcl => shift!(n::Rcl, form, w),
        M::Rcr => shift!(n::Rcr, form, w),
        M::Shl | M::Sal => shift!(n::Shl, form, w),
        M::Shr => shift!(n::Shr, form, w),
        M::Sar => shift!(n::Sar, form, w),
        M::Shld | M::Shrd => return double_shift(x, form, w, op),
        M::Bt => bits!(i::Keep, form, w, false),
        M::Bts => bits!(i::Set, form, w, lock),
        M::Btr => bits!(i::Reset, form, w, lock),
        M::Btc => bits!(i::Complement, form, w, lock),
        M::Bsf => source!(form, w, i::bit_scan, true),
        M::Bsr => source!(form, w, i::bit_scan, false),
        M::Popcnt => source!(form, w, i::popcnt),
        M::Crc32 => {
            let from = size(x, 1);
            if form == Form::RegReg { sized!(from, i::crc32, Src) } else { sized!(from, i::crc32, Mem) }
        }

        M::Mov => return mov(x, form, w, op),
        M::Movzx => match (form, size(x, 1), w) {
            (Form::RegReg, 1, 2) => i::movzx::<Src, u8, u16>,
            (Form::RegReg, 1, 4) => i::movzx::<Src, u8, u32>,
            (Form::RegReg, 1, _) => i::movzx::<Src, u8, u64>,
            (Form::RegReg, _, 2) => i::movzx::<Src, u16, u16>,
            (Form::RegReg, _, 4) => i::movzx::<Src, u16, u32>,
            (Form::RegReg, _, _) => i::movzx::<Src, u16, u64>,
            (_, 1, 2) => i::movzx::<Mem, u8, u16>,
            (_, 1, 4) => i::movzx::<Mem, u8, u32>,
            (_, 1, _) => i::movzx::<Mem, u8, u64>,
            (_, _, 2) => i::movzx::<Mem, u16, u16>,
            (_, _, 4) => i::movzx::<Mem, u16, u32>,
            (_, _, _) => i::movzx::<Mem, u16, u64>,
        },
        M::Movsx | M::Movsxd => match (form, size(x, 1), w) {
            (Form::RegReg, 1, 2) => i::movsx::<Src, u8, u16>,
            (Form::RegReg, 1, 4) => i::movsx::<Src, u8, u32>,
            (Form::RegReg, 1, _) => i::movsx::<Src, u8, u64>,
            (Form::RegReg, 2, 2) => i::movsx::<Src, u16, u16>,
            (Form::RegReg, 2, 4) => i::movsx::<Src, u16, u32>,
            (Form::RegReg, 2, _) => i::movsx::<Src, u16, u64>,
            (Form::RegReg, _, 2) => i::movsx::<Src, u32, u16>,
            (Form::RegReg, _, 4) => i::movsx::<Src, u32, u32>,
            (Form::RegReg, _, _) => i::movsx::<Src, u32, u64>,
            (_, 1, 2) => i::movsx::<Mem, u8, u16>,
            (_, 1, 4) => i::movsx::<Mem, u8, u32>,
            (_, 1, _) => i::movsx::<Mem, u8, u64>,
            (_, 2, 2) => i::movsx::<Mem, u16, u16>,
            (_, 2, 4) => i::movsx::<Mem, u16, u32>,
            (_, 2, _) => i::movsx::<Mem, u16, u64>,
            (_, _, 2) => i::movsx::<Mem, u32, u16>,
            (_, _, 4) => i::movsx::<Mem, u32, u32>,
            (_, _, _) => i::movsx::<Mem, u32, u64>,
        },
        M::Movbe => {
            if form == Form::RegMem {
                sized_word!(w, i::movbe, Dst, Mem)
            } else {
                sized_word!(w, i::movbe, Mem, Src)
            }
        }
        M::Lea => {
            // Only the offset counts: no segment, no canonical check.
            sized_word!(w, i::lea)
        }
        M::Xchg => match form {
            Form::RegReg => sized!(w, i::xchg, Dst),
            _ => sized!(w, i::xchg, Locked),
        },
        M::Xadd => match (form, lock) {
            (Form::RegReg, _) => sized!(w, i::xadd, Dst),
            (_, false) => sized!(w, i::xadd, Mem),
            _ => sized!(w, i::xadd, Locked),
        },
        M::Cmpxchg => match (form, lock) {
            (Form::RegReg, _) => sized!(w, i::cmpxchg, Dst),
            (_, false) => sized!(w, i::cmpxchg, Mem),
            _ => sized!(w, i::cmpxchg, Locked),
        },
        M::Cmpxchg8b => {
            if lock {
                i::cmpxchg8b::<Locked>
            } else {
                i::cmpxchg8b::<Mem>
            }
        }
        M::Cmpxchg16b => i::cmpxchg16b,
        M::Bswap => sized_word!(w, i::bswap),
        M::Cbw => i::extend_accumulator::<u8, u16>,
        M::Cwde => i::extend_accumulator::<u16, u32>,
        M::Cdqe => i::extend_accumulator::<u32, u64>,
        M::Cwd => i::spread_sign::<u16>,
        M::Cdq => i::spread_sign::<u32>,
        M::Cqo => i::spread_sign::<u64>,
        M::Xlatb => {
            op.base = viv_arch::x86::gpr::RBX as u8;
            op.index = ZERO as u8;
            i::xlat
        }
        M::Mul => match form {
            Form::Reg => sized!(w, mul_helpers::mul, Dst),
            _ => sized!(w, mul_helpers::mul, Mem),
        },
        M::Imul => return imul(x, form, w, op),
        M::Div => match form {
            Form::Reg => sized!(w, mul_helpers::div, Dst),
            _ => sized!(w, mul_helpers::div, Mem),
        },
        M::Idiv => match form {
            Form::Reg => sized!(w, mul_helpers::idiv, Dst),
            _ => sized!(w, mul_helpers::idiv, Mem),
        },
        M::Salc => i::salc,
        M::Daa => i::decimal_adjust::<false>,
        M::Das => i::decimal_adjust::<true>,
        M::Aaa => i::ascii_adjust::<false>,
        M::Aas => i::ascii_adjust::<true>,
        M::Aam | M::Aad => {
            op.imm = x.immediate8().into();
            if x.mnemonic() == M::Aam { i::aam } else { i::aad }
        }
        M::Lahf => i::lahf,
        M::Sahf => i::sahf,
        M::Clc | M::Stc | M::Cmc => {
            op.imm = match x.mnemonic() {
                M::Clc => 0,
                M::Stc => 1,
                _ => 2,
            };
            i::carry
        }
        M::Cld | M::Std => {
            op.imm = (x.mnemonic() == M::Std).into();
            i::direction
        }

        M::Push => return push(x, form, op),
        M::Pop => return pop(x, form, op),
        M::Pusha => c::pusha::<u16>,
        M::Pushad => c::pusha::<u32>,
        M::Popa => c::popa::<u16>,
        M::Popad => c::popa::<u32>,
        M::Pushf => s::pushf::<u16>,
        M::Pushfd => s::pushf::<u32>,
        M::Pushfq => s::pushf::<u64>,
        M::Popf => s::popf::<u16>,
        M::Popfd => s::popf::<u32>,
        M::Popfq => s::popf::<u64>,
        M::Enter => {
            op.imm = x.immediate16().into();
            op.dst = x.immediate8_2nd();
            sized_word!(by_code(x, &[Code::Enterw_imm16_imm8], &[Code::Enterd_imm16_imm8]), c::enter)
        }
        M::Leave => sized_word!(by_code(x, &[Code::Leavew], &[Code::Leaved]), c::leave),
        M::Bound => {
            if code == Code::Bound_r16_m1616 {
                c::bound::<u16>
            } else {
                c::bound::<u32>
            }
        }

        M::Movsb | M::Movsw | M::Movsd | M::Movsq if x.is_string_instruction() => {
            op.imm = repeat(x);
            sized!(x.memory_size().size(), c::movs)
        }
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => {
            op.imm = repeat(x);
            sized!(x.memory_size().size(), c::stos)
        }
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => {
            op.imm = repeat(x);
            sized!(x.memory_size().size(), c::lods)
        }
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => {
            op.imm = repeat(x);
            sized!(x.memory_size().size(), c::scas)
        }
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq if x.is_string_instruction() => {
            op.imm = repeat(x);
            sized!(x.memory_size().size(), c::cmps)
        }
        M::Insb | M::Insw | M::Insd => {
            op.imm = repeat(x);
            sized!(x.memory_size().size(), c::ins)
        }
        M::Outsb | M::Outsw | M::Outsd => {
            op.imm = repeat(x);
            sized!(x.memory_size().size(), c::outs)
        }

        _ if x.is_jcc_short_or_near() => {
            near(x, op);
            op.dst = condition(x);
            c::jcc
        }
        _ if x.is_loop() || x.is_loopcc() || x.is_jcx_short() => {
            near(x, op);
            op.dst = match x.mnemonic() {
                M::Loop => 1,
                M::Loope => 2,
                M::Loopne => 3,
                _ => 0,
            };
            op.imm = counter_mask(x);
            c::loop_or_jcxz
        }
        M::Jmp | M::Call => return branch(x, form, op),
        M::Ret => {
            op.imm = if x.op_count() > 0 { x.immediate16().into() } else { 0 };
            let w = by_code(x, &[Code::Retnw, Code::Retnw_imm16], &[Code::Retnd, Code::Retnd_imm16]);
            sized_word!(w, c::ret)
        }
        M::Retf => {
            op.imm = if x.op_count() > 0 { x.immediate16().into() } else { 0 };
            op.src = by_code(x, &[Code::Retfw, Code::Retfw_imm16], &[Code::Retfd, Code::Retfd_imm16]);
            t::far_return
        }
        M::Iret => iret(op, 2),
        M::Iretd => iret(op, 4),
        M::Iretq => iret(op, 8),
        M::Int => {
            op.imm = x.immediate8().into();
            t::int
        }
        M::Int3 => {
            (op.imm, op.dst) = (3, 1);
            t::int
        }
        M::Into => {
            (op.imm, op.dst) = (4, 2);
            t::int
        }
        M::Int1 => t::int1,
        M::Syscall => t::syscall,
        M::Sysret | M::Sysretq => {
            op.src = if code == Code::Sysretq { 8 } else { 4 };
            t::sysret
        }
        M::Sysenter => t::sysenter,
        M::Sysexit | M::Sysexitq => {
            op.src = if code == Code::Sysexitq { 8 } else { 4 };
            t::sysexit
        }
        M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => {
            op.src = match x.mnemonic() {
                M::Lds => seg::DS,
                M::Les => seg::ES,
                M::Lfs => seg::FS,
                M::Lgs => seg::GS,
                _ => seg::SS,
            } as u8;
            sized_word!(w, t::load_far_pointer)
        }

        M::Seto
        | M::Setno
        | M::Setb
        | M::Setae
        | M::Sete
        | M::Setne
        | M::Setbe
        | M::Seta
        | M::Sets
        | M::Setns
        | M::Setp
        | M::Setnp
        | M::Setl
        | M::Setge
        | M::Setle
        | M::Setg => {
            op.imm = condition(x).into();
            if form == Form::Reg { i::setcc::<Dst> } else { i::setcc::<Mem> }
        }
        M::Cmovo
        | M::Cmovno
        | M::Cmovb
        | M::Cmovae
        | M::Cmove
        | M::Cmovne
        | M::Cmovbe
        | M::Cmova
        | M::Cmovs
        | M::Cmovns
        | M::Cmovp
        | M::Cmovnp
        | M::Cmovl
        | M::Cmovge
        | M::Cmovle
        | M::Cmovg => {
            op.imm = condition(x).into();
            source!(form, w, i::cmovcc)
        }

        M::Cli => s::cli,
        M::Sti => s::sti,
        M::Clac | M::Stac => {
            op.imm = (x.mnemonic() == M::Stac).into();
            s::set_ac
        }
        M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => {
            let fs = matches!(x.mnemonic(), M::Rdfsbase | M::Wrfsbase);
            op.src = if fs { seg::FS } else { seg::GS } as u8;
            if matches!(x.mnemonic(), M::Rdfsbase | M::Rdgsbase) {
                sized_word!(w, s::read_base)
            } else {
                sized_word!(w, s::write_base)
            }
        }
        M::Swapgs => s::swapgs,
        M::Lgdt | M::Lidt => {
            op.imm = (x.mnemonic() == M::Lidt).into();
            op.src = if matches!(code, Code::Lgdt_m1632_16 | Code::Lidt_m1632_16) { 2 } else { 4 };
            s::load_table
        }
        M::Sgdt | M::Sidt => {
            op.imm = (x.mnemonic() == M::Sidt).into();
            s::store_table
        }
        M::Sldt | M::Str | M::Smsw => {
            op.imm = match x.mnemonic() {
                M::Sldt => 0,
                M::Str => 1,
                _ => 2,
            };
            if form == Form::Reg {
                sized_word!(w, s::store_system_word, Dst)
            } else {
                s::store_system_word::<Mem, u16>
            }
        }
        M::Lldt | M::Ltr => {
            op.imm = (x.mnemonic() == M::Ltr).into();
            if form == Form::Reg { s::load_system_selector::<Dst> } else { s::load_system_selector::<Mem> }
        }
        M::Lmsw => {
            if form == Form::Reg {
                s::lmsw::<Dst>
            } else {
                s::lmsw::<Mem>
            }
        }
        M::Clts => s::clts,
        M::Verr | M::Verw => {
            op.imm = (x.mnemonic() == M::Verw).into();
            if form == Form::Reg { s::inspect_selector::<Dst, u16> } else { s::inspect_selector::<Mem, u16> }
        }
        M::Lar | M::Lsl => {
            op.imm = if x.mnemonic() == M::Lar { 2 } else { 3 };
            source!(form, w, s::inspect_selector)
        }
        M::Arpl => {
            if form == Form::RegReg {
                s::arpl::<Dst>
            } else {
                s::arpl::<Mem>
            }
        }
        M::Invlpg => s::invlpg,
        M::Invpcid => {
            if mode == Mode::Code64 {
                s::invpcid::<u64>
            } else {
                s::invpcid::<u32>
            }
        }
        M::Wbinvd | M::Invd => s::privileged_nop,
        M::Clflush => s::clflush,
        M::Prefetchw
        | M::Prefetch
        | M::Prefetchwt1
        | M::Endbr64
        | M::Endbr32
        | M::Nop
        | M::Reservednop
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2 => s::nop,
        // Hints of newer processors: without them these opcodes are reserved NOPs (SDM vol. 2, opcode map A-3).
        M::Cldemote | M::Prefetchit0 | M::Prefetchit1 => s::nop,
        // Without shadow stacks (CR4.CET) they do nothing (SDM vol. 2, RDSSPD).
        M::Rdsspd | M::Rdsspq => s::nop,
        M::Wait => return None,
        M::Lfence | M::Sfence | M::Mfence => s::fence,
        M::Pause => s::pause,
        M::Cpuid => s::cpuid,
        M::Rdtsc => s::rdtsc,
        M::Rdtscp => {
            op.imm = 1;
            s::rdtsc
        }
        M::Rdpid => s::rdpid,
        M::Rdrand | M::Rdseed => sized_word!(w, s::random),
        M::Rdpmc => s::rdpmc,
        M::Rdmsr => s::rdmsr,
        M::Wrmsr => s::wrmsr,
        M::Xgetbv => s::xgetbv,
        M::Xsetbv => s::xsetbv,
        M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 => {
            op.dst = matches!(x.mnemonic(), M::Xsave64 | M::Xsaveopt64).into();
            vector::xsave
        }
        M::Xrstor | M::Xrstor64 => {
            op.dst = (x.mnemonic() == M::Xrstor64).into();
            vector::xrstor
        }
        M::In => {
            if x.op1_kind() == OpKind::Register {
                sized!(w, s::port_in, s::Dx)
            } else {
                op.imm = x.immediate8().into();
                sized!(w, s::port_in, Imm)
            }
        }
        M::Out => {
            let w = x.op1_register().size();
            if x.op0_kind() == OpKind::Register {
                sized!(w, s::port_out, s::Dx)
            } else {
                op.imm = x.immediate8().into();
                sized!(w, s::port_out, Imm)
            }
        }
        M::Hlt => s::hlt,
        M::Monitor => {
            op.base = 0;
            op.index = ZERO as u8;
            s::monitor
        }
        M::Mwait => s::mwait,
        M::Vmcall | M::Vmmcall => s::hypercall,
        _ => return None,
    })
}

/// MUL, DIV and IDIV with their sign fixed, in the parameter order that the size macros want.
mod mul_helpers {
    use super::super::cpu::{Cpu, R};
    use super::super::integer::{divide, multiply};
    use super::super::native::Width;
    use super::super::op::{Op, Source};

    pub(super) fn mul<S: Source, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
        multiply::<false, S, W>(cpu, op)
    }
    pub(super) fn imul<S: Source, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
        multiply::<true, S, W>(cpu, op)
    }
    pub(super) fn div<S: Source, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
        divide::<false, S, W>(cpu, op)
    }
    pub(super) fn idiv<S: Source, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
        divide::<true, S, W>(cpu, op)
    }
}

/// The immediate operand `n`, sign-extended to the operation's size.
fn immediate(x: &Instruction, n: u32) -> u64 {
    match x.op_kind(n) {
        OpKind::Immediate8 => x.immediate8().into(),
        OpKind::Immediate8_2nd => x.immediate8_2nd().into(),
        OpKind::Immediate16 => x.immediate16().into(),
        OpKind::Immediate32 => x.immediate32().into(),
        OpKind::Immediate64 => x.immediate64(),
        OpKind::Immediate8to16 => x.immediate8to16() as u64,
        OpKind::Immediate8to32 => x.immediate8to32() as u64,
        OpKind::Immediate8to64 => x.immediate8to64() as u64,
        OpKind::Immediate32to64 => x.immediate32to64() as u64,
        _ => 0,
    }
}

fn iret(op: &mut Op, bytes: u8) -> Run {
    op.src = bytes;
    t::iret
}

/// Distance and operand size of a near branch.
fn near(x: &Instruction, op: &mut Op) {
    op.disp = x.near_branch_target().wrapping_sub(x.next_ip()) as i64;
    op.src = match x.op0_kind() {
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 => 4,
        _ => 8,
    };
}

/// LOOP and JCXZ count in CX, ECX or RCX by address size.
fn counter_mask(x: &Instruction) -> u64 {
    use Code::*;
    match x.code() {
        Loop_rel8_16_CX | Loop_rel8_32_CX | Loope_rel8_16_CX | Loope_rel8_32_CX | Loopne_rel8_16_CX
        | Loopne_rel8_32_CX | Jcxz_rel8_16 | Jcxz_rel8_32 => 0xffff,
        Loop_rel8_64_RCX | Loop_rel8_16_RCX | Loope_rel8_64_RCX | Loope_rel8_16_RCX | Loopne_rel8_64_RCX
        | Loopne_rel8_16_RCX | Jrcxz_rel8_64 | Jrcxz_rel8_16 => u64::MAX,
        _ => 0xffff_ffff,
    }
}

fn branch(x: &Instruction, form: Form, op: &mut Op) -> Option<Run> {
    let call = x.mnemonic() == M::Call;
    if x.is_jmp_short_or_near() || x.is_call_near() {
        near(x, op);
        return Some(match (call, op.src) {
            (false, _) => c::jmp,
            (true, 2) => c::call::<u16>,
            (true, 4) => c::call::<u32>,
            (true, _) => c::call::<u64>,
        });
    }
    if x.is_jmp_far() || x.is_call_far() {
        let wide = x.op0_kind() == OpKind::FarBranch32;
        op.imm = if wide { x.far_branch32().into() } else { x.far_branch16().into() };
        op.disp = x.far_branch_selector().into();
        op.src = if wide { 4 } else { 2 };
        op.dst = call.into();
        return Some(t::far_direct);
    }
    if x.is_jmp_far_indirect() || x.is_call_far_indirect() {
        op.dst = call.into();
        return Some(match x.code() {
            Code::Jmp_m1616 | Code::Call_m1616 => t::far_indirect::<u16>,
            Code::Jmp_m1632 | Code::Call_m1632 => t::far_indirect::<u32>,
            _ => t::far_indirect::<u64>,
        });
    }
    let w = size(x, 0);
    Some(match (call, form) {
        (false, Form::Reg) => sized_word!(w, c::jmp_to, Dst),
        (false, _) => sized_word!(w, c::jmp_to, Mem),
        (true, Form::Reg) => sized_word!(w, c::call_to, Dst),
        (true, _) => sized_word!(w, c::call_to, Mem),
    })
}

fn double_shift(x: &Instruction, form: Form, w: usize, op: &mut Op) -> Option<Run> {
    let left = x.mnemonic() == M::Shld;
    op.src = number(x.op1_register());
    let by_cl = x.op2_kind() == OpKind::Register;
    if !by_cl {
        op.imm = x.immediate8().into();
    }
    Some(match (left, form == Form::RegReg, by_cl) {
        (true, true, true) => sized_word!(w, i::double_shift, true, Dst, ShiftCount),
        (true, true, false) => sized_word!(w, i::double_shift, true, Dst, Imm),
        (true, false, true) => sized_word!(w, i::double_shift, true, Mem, ShiftCount),
        (true, false, false) => sized_word!(w, i::double_shift, true, Mem, Imm),
        (false, true, true) => sized_word!(w, i::double_shift, false, Dst, ShiftCount),
        (false, true, false) => sized_word!(w, i::double_shift, false, Dst, Imm),
        (false, false, true) => sized_word!(w, i::double_shift, false, Mem, ShiftCount),
        (false, false, false) => sized_word!(w, i::double_shift, false, Mem, Imm),
    })
}

fn imul(x: &Instruction, form: Form, w: usize, op: &mut Op) -> Option<Run> {
    Some(match (x.op_count(), form) {
        (1, Form::Reg) => sized!(w, mul_helpers::imul, Dst),
        (1, _) => sized!(w, mul_helpers::imul, Mem),
        (2, Form::RegReg) => sized_word!(w, i::imul, Dst, Src),
        (2, _) => sized_word!(w, i::imul, Dst, Mem),
        (_, form) => {
            op.imm = immediate(x, 2);
            if form == Form::RegReg {
                sized_word!(w, i::imul, Src, Imm)
            } else {
                sized_word!(w, i::imul, Mem, Imm)
            }
        }
    })
}

fn mov(x: &Instruction, form: Form, w: usize, op: &mut Op) -> Option<Run> {
    let class = |register: Register| {
        if register.is_segment_register() {
            's'
        } else if register.is_cr() {
            'c'
        } else if register.is_dr() {
            'd'
        } else {
            'g'
        }
    };
    let to = if x.op0_kind() == OpKind::Register { class(x.op0_register()) } else { 'g' };
    let from = if x.op1_kind() == OpKind::Register { class(x.op1_register()) } else { 'g' };
    Some(match (to, from) {
        ('s', _) => {
            op.imm = segment_number(x.op0_register()).into();
            if op.imm == seg::CS as u64 {
                return None;
            }
            if form == Form::RegReg {
                op.src = number(x.op1_register());
                s::mov_to_segment::<Src>
            } else {
                s::mov_to_segment::<Mem>
            }
        }
        (_, 's') => {
            op.src = segment_number(x.op1_register());
            if form == Form::RegReg {
                sized_word!(w, s::mov_from_segment, Dst)
            } else {
                s::mov_from_segment::<Mem, u16>
            }
        }
        ('c', _) | ('d', _) => {
            op.imm = x.op0_register().number() as u64;
            op.dst = number(x.op1_register());
            let w = x.op1_register().size();
            if to == 'c' { sized_word!(w, s::mov_to_cr) } else { sized_word!(w, s::mov_to_dr) }
        }
        (_, 'c') | (_, 'd') => {
            op.imm = x.op1_register().number() as u64;
            if from == 'c' { sized_word!(w, s::mov_from_cr) } else { sized_word!(w, s::mov_from_dr) }
        }
        _ => match form {
            Form::RegReg => sized!(w, i::mov, Dst, Src),
            Form::RegMem => sized!(w, i::mov, Dst, Mem),
            Form::RegImm => sized!(w, i::mov, Dst, Imm),
            Form::MemReg => sized!(w, i::mov, Mem, Src),
            Form::MemImm => sized!(w, i::mov, Mem, Imm),
            _ => return None,
        },
    })
}

fn push(x: &Instruction, form: Form, op: &mut Op) -> Option<Run> {
    // The stack moves by the operand size, which the immediate forms carry in their code.
    let w = x.stack_pointer_increment().unsigned_abs() as usize;
    Some(match form {
        Form::Reg if x.op0_register().is_segment_register() => {
            op.imm = segment_number(x.op0_register()).into();
            sized_word!(w, s::push_segment)
        }
        Form::Reg => sized_word!(w, c::push, Dst),
        Form::Mem => sized_word!(w, c::push, Mem),
        _ => {
            op.imm = immediate(x, 0);
            sized_word!(w, c::push, Imm)
        }
    })
}

fn pop(x: &Instruction, form: Form, op: &mut Op) -> Option<Run> {
    let w = x.stack_pointer_increment().unsigned_abs() as usize;
    Some(match form {
        Form::Reg if x.op0_register().is_segment_register() => {
            op.imm = segment_number(x.op0_register()).into();
            sized_word!(w, s::pop_segment)
        }
        Form::Reg => sized_word!(w, c::pop_register),
        _ => sized_word!(w, c::pop_memory, Mem),
    })
}
