//! Code that all regions share: the ways in and out, and calls back into the interpreter.

use super::super::cpu::{Cpu, RIP};
use super::super::mmu::Want;
use super::super::op::Op;
use super::Leave;
use super::asm::{Alu, Asm, Mem, cc, host};
use super::layout::{self, CPU, FLAGS, HOMES, T0, T1};
use super::memory::CodeMemory;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Enters translated code: (`Cpu`, code) to the reason for leaving.
type Enter = unsafe extern "C" fn(*mut Cpu, u64) -> u32;

/// Addresses of the stubs.
pub(super) struct Stubs {
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
    /// Called. T0: a linear address, T1: an [`access`]. Keeps all registers but T1; does not come back where the access
    /// is the interpreter's.
    pub(super) fill: u64,
    /// Called. T0: an `Op`, T1: the low bits of its RIP. Comes back if the next instruction simply follows.
    pub(super) interpret: u64,
    /// Called. Loads XMM registers and MXCSR; keeps all others.
    pub(super) load_vectors: u64,
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

const SAVED: [u8; 6] = [host::RBX, host::RBP, host::R12, host::R13, host::R14, host::R15];

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
    asm.ldmxcsr(below(depth, layout::host_mxcsr()));
}

fn load_vectors(asm: &mut Asm, depth: i32) {
    for number in 0..16 {
        asm.movaps_load(number as u8, below(depth, layout::xmm(number)));
    }
    asm.ldmxcsr(below(depth, layout::mxcsr()));
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
        let mut asm = Asm::new(memory.next(), Vec::new());

        let enter = asm.here();
        for register in SAVED {
            asm.push(register);
        }
        asm.store(Mem { base: Some(host::RDI), ..layout::host_rsp() }, host::RSP);
        asm.mov(CPU, host::RDI);
        asm.mov(T1, host::RSI);
        load_guest(&mut asm, 0, |_| true);
        asm.load16(FLAGS, layout::flags());
        asm.jmp_reg(T1);

        let save_and_leave = asm.label();
        let exit_link = asm.here();
        asm.store(layout::link(), T1);
        asm.mov_imm(T1, Leave::Link as u64);
        let add_page = asm.label();
        asm.jmp(add_page);
        let exit_interpret = asm.here();
        asm.mov_imm(T1, Leave::Interpret as u64);
        asm.jmp(add_page);
        let exit_stale = asm.here();
        asm.mov_imm(T1, Leave::Stale as u64);
        asm.jmp(add_page);
        let exit_to = asm.here();
        asm.mov_imm(T1, Leave::Dispatch as u64);
        asm.jmp(save_and_leave);
        let exit_at = asm.here();
        asm.mov_imm(T1, Leave::Dispatch as u64);
        asm.bind(add_page);
        asm.alu_mem(Alu::Add, T0, layout::page());
        asm.bind(save_and_leave);
        asm.store(layout::rip(), T0);
        store_guest(&mut asm, 0, |_| true);
        asm.store16(layout::flags(), FLAGS);
        asm.cmp8_imm(layout::vectors(), 0);
        let no_vectors = asm.label();
        asm.jcc(cc::E, no_vectors);
        store_vectors(&mut asm, 0);
        asm.store8_imm(layout::vectors(), 0);
        asm.bind(no_vectors);
        asm.mov32(host::RAX, T1);
        leave(&mut asm, 0);

        let fill = make_fill(&mut asm);
        let interpret = make_interpret(&mut asm);

        let load = asm.here();
        load_vectors(&mut asm, 8);
        asm.store8_imm(below(8, layout::vectors()), 1);
        asm.ret();

        asm.finish();
        memory.append(&asm.bytes);
        // SAFETY: the code at `enter` follows the C convention for these arguments.
        let enter = unsafe { std::mem::transmute::<u64, Enter>(enter) };
        Stubs {
            enter,
            exit_at,
            exit_to,
            exit_interpret,
            exit_stale,
            exit_link,
            fill,
            interpret,
            load_vectors: load,
            len: memory.used(),
        }
    }
}

fn make_fill(asm: &mut Asm) -> u64 {
    let start = asm.here();
    // The return address, and a word so that the callee's stack is aligned.
    let depth = 16;
    asm.lea(CPU, super::asm::at(CPU, -8));
    store_guest(asm, depth, volatile);
    asm.store16(below(depth, layout::flags()), FLAGS);
    asm.cmp8_imm(below(depth, layout::vectors()), 0);
    let (no_vectors, live) = (asm.label(), asm.label());
    asm.jcc(cc::NE, live);
    asm.bind(no_vectors);
    asm.lea(host::RDI, super::asm::at(CPU, depth));
    asm.mov(host::RSI, T0);
    asm.mov32(host::RDX, T1);
    asm.mov_imm(host::RAX, fill as *const () as u64);
    asm.call_reg(host::RAX);
    asm.test(false, host::RAX, host::RAX);
    let failed = asm.label();
    asm.jcc(cc::NE, failed);
    asm.cmp8_imm(below(depth, layout::vectors()), 0);
    let (back, reload) = (asm.label(), asm.label());
    asm.jcc(cc::NE, reload);
    asm.bind(back);
    load_guest(asm, depth, volatile);
    asm.load16(FLAGS, below(depth, layout::flags()));
    asm.lea(CPU, super::asm::at(CPU, 8));
    asm.ret();
    asm.bind(live);
    store_vectors(asm, depth);
    asm.jmp(no_vectors);
    asm.bind(reload);
    load_vectors(asm, depth);
    asm.jmp(back);
    asm.bind(failed);
    store_guest(asm, depth, |home| !volatile(home));
    asm.store8_imm(below(depth, layout::vectors()), 0);
    asm.mov_imm(host::RAX, Leave::Interpret as u64);
    leave(asm, depth);
    start
}

fn make_interpret(asm: &mut Asm) -> u64 {
    let start = asm.here();
    let depth = 16;
    asm.lea(CPU, super::asm::at(CPU, -8));
    store_guest(asm, depth, |_| true);
    asm.store16(below(depth, layout::flags()), FLAGS);
    asm.cmp8_imm(below(depth, layout::vectors()), 0);
    let (no_vectors, live) = (asm.label(), asm.label());
    asm.jcc(cc::NE, live);
    asm.bind(no_vectors);
    asm.lea(host::RDI, super::asm::at(CPU, depth));
    asm.mov(host::RSI, T0);
    asm.mov32(host::RDX, T1);
    asm.mov_imm(host::RAX, interpret as *const () as u64);
    asm.call_reg(host::RAX);
    asm.alu_imm(false, Alu::Cmp, host::RAX, GO_ON as i32);
    let gone = asm.label();
    asm.jcc(cc::NE, gone);
    load_guest(asm, depth, |_| true);
    asm.load16(FLAGS, below(depth, layout::flags()));
    asm.lea(CPU, super::asm::at(CPU, 8));
    asm.ret();
    asm.bind(gone);
    leave(asm, depth);
    asm.bind(live);
    store_vectors(asm, depth);
    asm.store8_imm(below(depth, layout::vectors()), 0);
    asm.jmp(no_vectors);
    start
}

/// `interpret`: the next instruction follows.
const GO_ON: u32 = 0xff;

/// A TLB miss. Nonzero: the instruction is the interpreter's.
extern "C" fn fill(cpu: *mut Cpu, linear: u64, access: u32) -> u32 {
    // SAFETY: translated code passes its own Cpu, which nobody else touches meanwhile.
    let cpu = unsafe { &mut *cpu };
    let want = if access & 1 << 12 != 0 { Want::Write } else { Want::Read };
    let size = u64::from(access >> 16);
    let misaligned = access & 1 << 13 != 0 && linear & (size - 1) != 0;
    let filled = catch_unwind(AssertUnwindSafe(|| !misaligned && cpu.fill(linear, want, size)));
    match filled {
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

/// One instruction by the interpreter: how translated code goes on.
extern "C" fn interpret(cpu: *mut Cpu, op: *const Op, rip: u32) -> u32 {
    // SAFETY: as in `fill`; the op lives as long as the code that names it.
    let (cpu, op) = unsafe { (&mut *cpu, &*op) };
    let start = cpu.native.page.wrapping_add(u64::from(rip));
    cpu.regs[RIP] = start;
    let context = cpu.context();
    match catch_unwind(AssertUnwindSafe(|| cpu.execute(std::slice::from_ref(op)))) {
        Ok(Err(_)) => Leave::Fault as u32,
        Ok(Ok(())) if cpu.stop => Leave::Stop as u32,
        Ok(Ok(())) if cpu.regs[RIP] != start.wrapping_add(op.len.into()) || cpu.context() != context => {
            Leave::Dispatch as u32
        }
        Ok(Ok(())) => GO_ON,
        Err(panic) => {
            cpu.native.panic = Some(panic);
            Leave::Stop as u32
        }
    }
}
