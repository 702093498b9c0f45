//! Code that all regions share: the ways in and out, and calls back into the interpreter.

use super::super::cpu::{Cpu, RIP};
use super::super::fpu::MXCSR_MASK;
use super::super::mmu::Want;
use super::Leave;
use super::asm::{Alu, Asm, Label, Mem, at, cc, host};
use super::layout::{self, CPU, FLAGS, HOMES, T0, T1};
use super::memory::CodeMemory;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Enters translated code: (`Cpu`, code) to the reason for leaving.
type Enter = unsafe extern "C" fn(*mut Cpu, u64) -> u32;

/// Addresses of the stubs.
pub(super) struct Stubs {
    /// Where the code memory begins.
    pub(super) start: u64,
    pub(super) enter: Enter,
    /// T0: the low bits of RIP in the running page. Leaves with `Dispatch`.
    pub(super) exit_at: u64,
    /// T0: RIP. Leaves with `Dispatch`.
    pub(super) exit_to: u64,
    /// As `exit_at`, with `Interpret`.
    pub(super) exit_interpret: u64,
    /// As `exit_at`, with `Stale`.
    pub(super) exit_stale: u64,
    /// As `exit_at`, with `Link`; T1: where the jump's distance stands.
    pub(super) exit_link: u64,
    /// As `exit_link`, with `Single`.
    pub(super) exit_single: u64,
    /// Called. T0: a linear address, T1: an [`access`]. Keeps all registers but T1; does not come back where the access
    /// is the interpreter's.
    pub(super) fill: u64,
    /// Called. T0: one of [`super::ops`], T1: the low bits of its RIP. Comes back if the next instruction simply follows.
    pub(super) interpret: u64,
    /// Called. As `interpret` for an instruction across two pages.
    pub(super) straddle: u64,
    /// Called. T0: a linear address without an entry in the table of targets. T1 becomes its code, or 0.
    pub(super) seek: u64,
    /// Called. Loads XMM registers and MXCSR; keeps all others.
    pub(super) load_vectors: u64,
    /// Called. Loads the x87 unit, and XMM registers and MXCSR with it.
    pub(super) load_x87: u64,
    /// Bytes that the stubs take.
    pub(super) len: usize,
}

/// An access for `fill`: the low bits of its instruction's RIP, its size and its kind.
pub(super) fn access(rip: u16, size: u32, write: bool, aligned: bool) -> u64 {
    u64::from(rip) | u64::from(write) << 12 | u64::from(aligned) << 13 | u64::from(size) << 16
}

/// Host registers that the guest's registers live in, which calls do not keep.
fn volatile(host: u8) -> bool {
    !matches!(host, host::RBX | host::RBP | host::R12 | host::R13)
}

/// An access of [`access`] that reads, and whose neighbours soon write: they want that permission as well.
const WRITES_SOON: u64 = 1 << 14;

/// The access that looks up a group: for the page alone, since the group lies in one.
pub(super) fn access_of_group(rip: u16, write: bool, group_writes: bool) -> u64 {
    access(rip, 1, write, false) | if group_writes && !write { WRITES_SOON } else { 0 }
}

const SAVED: [u8; 6] = [host::RBX, host::RBP, host::R12, host::R13, host::R14, host::R15];

/// Nothing of the guest's is in the host's vector and x87 registers.
pub(super) const UNITS_OUT: u8 = 0;
/// XMM registers and MXCSR are.
pub(super) const VECTORS_IN: u8 = 1;
/// The x87 unit is, too.
pub(super) const ALL_IN: u8 = 3;

/// A field of the `Cpu` below so many bytes of stack.
fn below(depth: i32, mem: Mem) -> Mem {
    Mem { disp: mem.disp + depth, ..mem }
}

fn store_guest(asm: &mut Asm, depth: i32, which: impl Fn(u8) -> bool) {
    for (number, home) in HOMES.iter().enumerate() {
        if let Some(home) = home.filter(|home| which(*home)) {
            asm.store(below(depth, layout::reg(number)), home);
        }
    }
}

fn load_guest(asm: &mut Asm, depth: i32, which: impl Fn(u8) -> bool) {
    for (number, home) in HOMES.iter().enumerate() {
        if let Some(home) = home.filter(|home| which(*home)) {
            asm.load(home, below(depth, layout::reg(number)));
        }
    }
}

fn store_vectors(asm: &mut Asm, depth: i32) {
    for number in 0..16 {
        asm.movaps_store(below(depth, layout::xmm(number)), number as u8);
    }
    asm.stmxcsr(below(depth, layout::mxcsr()));
}

fn load_vectors(asm: &mut Asm, depth: i32) {
    for number in 0..16 {
        asm.movaps_load(number as u8, below(depth, layout::xmm(number)));
    }
    asm.ldmxcsr(below(depth, layout::mxcsr()));
}

/// Brings what is in the host's vector and x87 registers back, and gives the host its MXCSR. Uses RCX, RDX and RSI.
fn save_units(asm: &mut Asm, depth: i32) {
    let (out, all, done) = (asm.label(), asm.label(), asm.label());
    asm.cmp8_imm(below(depth, layout::units()), VECTORS_IN);
    asm.jcc(cc::B, out);
    asm.jcc(cc::A, all);
    store_vectors(asm, depth);
    asm.jmp(done);
    asm.bind(all);
    // The saved pointers would be the host's: the guest's stay.
    asm.load16(host::RCX, below(depth, layout::fpu(6)));
    asm.load(host::RDX, below(depth, layout::fpu(8)));
    asm.load(host::RSI, below(depth, layout::fpu(16)));
    asm.fxsave(below(depth, layout::fpu(0)));
    asm.store16(below(depth, layout::fpu(6)), host::RCX);
    asm.store(below(depth, layout::fpu(8)), host::RDX);
    asm.store(below(depth, layout::fpu(16)), host::RSI);
    asm.store32_imm(below(depth, layout::fpu(28)), MXCSR_MASK);
    asm.bind(done);
    asm.ldmxcsr(below(depth, layout::host_mxcsr()));
    asm.bind(out);
}

/// Takes in again what `save_units` brought back.
fn load_units(asm: &mut Asm, depth: i32) {
    let (out, all) = (asm.label(), asm.label());
    asm.cmp8_imm(below(depth, layout::units()), VECTORS_IN);
    asm.jcc(cc::B, out);
    asm.jcc(cc::A, all);
    load_vectors(asm, depth);
    asm.jmp(out);
    asm.bind(all);
    asm.fxrstor(below(depth, layout::fpu(0)));
    asm.bind(out);
}

/// Back to `enter`'s caller; EAX has the reason and everything else is saved.
fn leave(asm: &mut Asm, depth: i32) {
    asm.load(CPU, below(depth, layout::host_rsp()));
    for register in SAVED.iter().rev() {
        asm.pop(*register);
    }
    asm.ret();
}

impl Stubs {
    pub(super) fn make(memory: &mut CodeMemory) -> Stubs {
        let mut asm = Asm::new(memory.start(), Vec::new());
        let enter = make_enter(&mut asm);
        let (add_page, save) = (asm.label(), asm.label());
        let exit_link = make_exit(&mut asm, Leave::Link, add_page);
        let exit_single = make_exit(&mut asm, Leave::Single, add_page);
        let exit_interpret = make_exit(&mut asm, Leave::Interpret, add_page);
        let exit_stale = make_exit(&mut asm, Leave::Stale, add_page);
        let exit_to = make_exit(&mut asm, Leave::Dispatch, save);
        let exit_at = make_exit(&mut asm, Leave::Dispatch, add_page);
        make_leave(&mut asm, add_page, save);
        let fill = make_fill(&mut asm);
        let seek = make_seek(&mut asm);
        let straddle = make_interpret(&mut asm, straddle as *const () as u64);
        let interpret = make_interpret(&mut asm, interpret as *const () as u64);
        let (load_vectors, load_x87) = make_loads(&mut asm);
        asm.finish();
        memory.append(&asm.bytes);
        // SAFETY: the code at `enter` follows the C convention for these arguments.
        let enter = unsafe { std::mem::transmute::<u64, Enter>(enter) };
        Stubs {
            start: memory.start(),
            enter,
            exit_at,
            exit_to,
            exit_interpret,
            exit_stale,
            exit_link,
            exit_single,
            fill,
            interpret,
            straddle,
            seek,
            load_vectors,
            load_x87,
            len: memory.used(),
        }
    }
}

fn make_enter(asm: &mut Asm) -> u64 {
    let start = asm.here();
    for register in SAVED {
        asm.push(register);
    }
    asm.store(Mem { base: Some(host::RDI), ..layout::host_rsp() }, host::RSP);
    asm.mov(CPU, host::RDI);
    asm.mov(T1, host::RSI);
    load_guest(asm, 0, |_| true);
    asm.load16(FLAGS, layout::flags());
    asm.jmp_reg(T1);
    start
}

fn make_exit(asm: &mut Asm, reason: Leave, to: Label) -> u64 {
    let start = asm.here();
    if matches!(reason, Leave::Link | Leave::Single) {
        asm.store(layout::link(), T1);
    }
    asm.mov_imm(T1, reason as u64);
    asm.jmp(to);
    start
}

fn make_leave(asm: &mut Asm, add_page: Label, save: Label) {
    asm.bind(add_page);
    asm.alu_mem(Alu::Add, T0, layout::page());
    asm.bind(save);
    asm.store(layout::rip(), T0);
    store_guest(asm, 0, |_| true);
    asm.store16(layout::flags(), FLAGS);
    save_units(asm, 0);
    asm.store8_imm(layout::units(), UNITS_OUT);
    asm.mov32(host::RAX, T1);
    leave(asm, 0);
}

/// The return address, and a word so that the callee's stack is aligned.
const DEPTH: i32 = 16;

/// Saves what a call does not keep, and calls; the `Cpu` is [`DEPTH`] above RSP then.
fn begin_call(asm: &mut Asm, function: u64, which: impl Fn(u8) -> bool) {
    asm.lea(CPU, at(CPU, -8));
    store_guest(asm, DEPTH, which);
    asm.store16(below(DEPTH, layout::flags()), FLAGS);
    save_units(asm, DEPTH);
    asm.lea(host::RDI, at(CPU, DEPTH));
    asm.mov(host::RSI, T0);
    asm.mov32(host::RDX, T1);
    asm.mov_imm(host::RAX, function);
    asm.call_reg(host::RAX);
}

/// Loads it again and goes back.
fn end_call(asm: &mut Asm, which: impl Fn(u8) -> bool) {
    load_guest(asm, DEPTH, which);
    asm.load16(FLAGS, below(DEPTH, layout::flags()));
    asm.lea(CPU, at(CPU, 8));
    asm.ret();
}

fn make_fill(asm: &mut Asm) -> u64 {
    let start = asm.here();
    begin_call(asm, fill as *const () as u64, volatile);
    asm.test(false, host::RAX, host::RAX);
    let failed = asm.label();
    asm.jcc(cc::NE, failed);
    load_units(asm, DEPTH);
    end_call(asm, volatile);
    asm.bind(failed);
    store_guest(asm, DEPTH, |home| !volatile(home));
    asm.store8_imm(below(DEPTH, layout::units()), UNITS_OUT);
    asm.mov_imm(host::RAX, Leave::Interpret as u64);
    leave(asm, DEPTH);
    start
}

fn make_seek(asm: &mut Asm) -> u64 {
    let start = asm.here();
    begin_call(asm, seek as *const () as u64, volatile);
    asm.mov(T1, host::RAX);
    load_units(asm, DEPTH);
    end_call(asm, volatile);
    start
}

fn make_interpret(asm: &mut Asm, function: u64) -> u64 {
    let start = asm.here();
    begin_call(asm, function, |_| true);
    asm.store8_imm(below(DEPTH, layout::units()), UNITS_OUT);
    let (gone, follows) = (asm.label(), asm.label());
    asm.alu_imm(true, Alu::Cmp, host::RAX, GO_ON as i32);
    asm.jcc(cc::B, gone);
    asm.jcc(cc::E, follows);
    // RAX is the code of where the flow goes.
    asm.mov(T1, host::RAX);
    load_guest(asm, DEPTH, |_| true);
    asm.load16(FLAGS, below(DEPTH, layout::flags()));
    asm.lea(CPU, at(CPU, DEPTH));
    asm.jmp_reg(T1);
    asm.bind(follows);
    end_call(asm, |_| true);
    asm.bind(gone);
    leave(asm, DEPTH);
    start
}

fn make_loads(asm: &mut Asm) -> (u64, u64) {
    let vectors = asm.here();
    load_vectors(asm, 8);
    asm.store8_imm(below(8, layout::units()), VECTORS_IN);
    asm.ret();
    let all = asm.here();
    let vectors_out = asm.label();
    asm.cmp8_imm(below(8, layout::units()), UNITS_OUT);
    asm.jcc(cc::E, vectors_out);
    store_vectors(asm, 8);
    asm.bind(vectors_out);
    asm.fxrstor(below(8, layout::fpu(0)));
    asm.store8_imm(below(8, layout::units()), ALL_IN);
    asm.ret();
    (vectors, all)
}

/// `interpret`: the next instruction follows. Greater answers are code to go to, smaller ones a [`Leave`].
const GO_ON: u64 = 0xff;

/// A TLB miss. Nonzero: the instruction is the interpreter's.
extern "C" fn fill(cpu: *mut Cpu, linear: u64, access: u32) -> u32 {
    // SAFETY: translated code passes its own Cpu, which nobody else touches meanwhile.
    let cpu = unsafe { &mut *cpu };
    let want = if access & 1 << 12 != 0 { Want::Write } else { Want::Read };
    let size = u64::from(access >> 16);
    let misaligned = access & 1 << 13 != 0 && linear & (size - 1) != 0;
    let writes_soon = u64::from(access) & WRITES_SOON != 0;
    match catch_unwind(AssertUnwindSafe(|| !misaligned && cpu.fill(linear, want, size, writes_soon))) {
        Ok(true) => 0,
        Ok(false) => {
            cpu.regs[RIP] = cpu.native.page.wrapping_add(u64::from(access & 0xfff));
            1
        }
        Err(panic) => {
            cpu.native.panic = Some(panic);
            1
        }
    }
}

/// Code for a linear address that the table of targets has not; 0: none.
extern "C" fn seek(cpu: *mut Cpu, linear: u64) -> u64 {
    // SAFETY: as in `fill`.
    let cpu = unsafe { &mut *cpu };
    // SAFETY: the translator outlives its code.
    let translator = unsafe { &mut *cpu.native.translator };
    match catch_unwind(AssertUnwindSafe(|| translator.seek(cpu, linear))) {
        Ok(code) => code.unwrap_or(0),
        // It will come again, where it can be reported.
        Err(_) => 0,
    }
}

/// As [`interpret`] for an instruction that begins in one page and ends in the next, if its bytes are still there.
extern "C" fn straddle(cpu: *mut Cpu, number: u32, rip: u32) -> u64 {
    // SAFETY: as in `interpret`.
    let state = unsafe { &mut *cpu };
    // SAFETY: the translator outlives its code.
    let translator = unsafe { &mut *state.native.translator };
    let start = state.native.page.wrapping_add(u64::from(rip));
    let bytes = translator.ops.get_mut(number).map_or(&[][..], |given| given.bytes());
    match catch_unwind(AssertUnwindSafe(|| state.code_is(start, bytes))) {
        Ok(true) => interpret(cpu, number, rip),
        _ => {
            state.regs[RIP] = start;
            Leave::Interpret as u64
        }
    }
}

/// One instruction by the interpreter: how translated code goes on.
extern "C" fn interpret(cpu: *mut Cpu, number: u32, rip: u32) -> u64 {
    // SAFETY: as in `fill`.
    let cpu = unsafe { &mut *cpu };
    // SAFETY: the translator outlives its code.
    let op = unsafe { (*cpu.native.translator).ops.op(number) };
    let start = cpu.native.page.wrapping_add(u64::from(rip));
    cpu.regs[RIP] = start;
    let Some(op) = op else { return Leave::Interpret as u64 };
    // SAFETY: it lives as long as the code that names it.
    let op = unsafe { &*op };
    let context = cpu.context();
    // The interpreter counts it. Nobody asks where translated code does not count.
    cpu.native.counted.take_back();
    match catch_unwind(AssertUnwindSafe(|| cpu.execute(std::slice::from_ref(op)))) {
        Ok(Err(_)) => Leave::Fault as u64,
        Ok(Ok(())) => {
            let next = cpu.regs[RIP];
            // What serializes must see code that another vCPU has changed: the guards look.
            let goes_on = !cpu.stop && next == start.wrapping_add(op.len.into()) && !cpu.attention_wanted();
            if goes_on && cpu.context() == context {
                return GO_ON;
            }
            if cpu.must_stop() {
                return if cpu.stop { Leave::Stop } else { Leave::Dispatch } as u64;
            }
            // SAFETY: the translator outlives its code.
            let translator = unsafe { &mut *cpu.native.translator };
            match translator.go_on(cpu) {
                Some(code) => {
                    cpu.native.page = next & !(viv_mem::PAGE_SIZE - 1);
                    code
                }
                None => Leave::Dispatch as u64,
            }
        }
        Err(panic) => {
            cpu.native.panic = Some(panic);
            Leave::Stop as u64
        }
    }
}
