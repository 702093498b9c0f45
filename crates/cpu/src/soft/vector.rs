//! Between the core and the floating-point and vector unit: operands in memory, faults, XSAVE.
#![allow(unsafe_code)]

use super::cpu::{Cpu, R};
use super::flags;
use super::fpu::{self, Effect, Env, FpFault, FpOp, MemUse};
use super::mmu::Want;
use super::op::{Op, Run};
use viv_arch::x86::{cr0, cr4, gpr, rflags, vector};

/// The fastest code that runs `fp`: the common moves and arithmetic have their own.
pub(crate) fn pick(fp: &FpOp) -> Run {
    let plain = !fp.uses_flags();
    match fp.memory() {
        None if plain => register,
        Some(MemUse { bytes: 4, load: true, store: false, .. }) if plain => load_4,
        Some(MemUse { bytes: 8, load: true, store: false, .. }) if plain => load_8,
        Some(MemUse { bytes: 16, load: true, store: false, .. }) if plain => load_16,
        Some(MemUse { bytes: 4, load: false, .. }) if fp.store_can_restart() => store_4,
        Some(MemUse { bytes: 8, load: false, .. }) if fp.store_can_restart() => store_8,
        Some(MemUse { bytes: 16, load: false, .. }) if fp.store_can_restart() => store_16,
        _ => run,
    }
}

/// The decoded form that `op.imm` points to, after its checks.
#[inline(always)]
fn checked<'a>(cpu: &mut Cpu, op: &Op) -> R<&'a FpOp> {
    // SAFETY: the block that holds `op` owns the decoded form and lives while it runs.
    let fp = unsafe { &*(op.imm as *const FpOp) };
    match fp.check(cpu.cr0, cpu.cr4, &cpu.fpu) {
        Ok(()) => Ok(fp),
        Err(fault) => raise(cpu, fault),
    }
}

/// Runs an instruction that has passed its checks and does not look at the status flags.
#[inline(always)]
fn execute_plain(cpu: &mut Cpu, fp: &FpOp) -> R<()> {
    let Some(gprs) = cpu.regs.first_chunk_mut::<16>() else { return Ok(()) };
    let mut env = Env {
        fpu: &mut cpu.fpu,
        gprs,
        flags: &mut 0,
        cr0: cpu.cr0,
        cr4: cpu.cr4,
        rip: cpu.start,
        mem: &mut cpu.fpu_memory,
    };
    match fp.execute_checked(&mut env) {
        Ok(_) => Ok(()),
        Err(fault) => raise(cpu, fault),
    }
}

fn register(cpu: &mut Cpu, op: &Op) -> R<()> {
    let fp = checked(cpu, op)?;
    execute_plain(cpu, fp)
}

fn load_4(cpu: &mut Cpu, op: &Op) -> R<()> {
    let fp = checked(cpu, op)?;
    let linear = op.linear(cpu, 4, Want::Read)?;
    let value: u32 = cpu.load_checked(linear)?;
    fpu::put_operand(&mut cpu.fpu_memory, value.into(), 0);
    execute_plain(cpu, fp)
}

fn load_8(cpu: &mut Cpu, op: &Op) -> R<()> {
    let fp = checked(cpu, op)?;
    let linear = op.linear(cpu, 8, Want::Read)?;
    let value: u64 = cpu.load_checked(linear)?;
    fpu::put_operand(&mut cpu.fpu_memory, value, 0);
    execute_plain(cpu, fp)
}

/// Sixteen bytes that the common code must see to: aligned as they must be, in one page, no alignment check.
#[inline(always)]
fn in_one_page(cpu: &Cpu, fp: &FpOp, linear: u64) -> bool {
    let align = fp.memory().map_or(1, |memory| u64::from(memory.align));
    linear & (align - 1) == 0 && linear & 0xfff <= 0xff0 && cpu.rflags & rflags::AC == 0
}

fn load_16(cpu: &mut Cpu, op: &Op) -> R<()> {
    let fp = checked(cpu, op)?;
    let linear = op.linear(cpu, 16, Want::Read)?;
    if !in_one_page(cpu, fp, linear) {
        return run(cpu, op);
    }
    let (low, high): (u64, u64) = (cpu.load(linear)?, cpu.load(linear + 8)?);
    fpu::put_operand(&mut cpu.fpu_memory, low, high);
    execute_plain(cpu, fp)
}

/// `N` bytes of the operand from `at`.
#[inline(always)]
fn stored<const N: usize>(cpu: &Cpu, at: usize) -> [u8; N] {
    cpu.fpu_memory[at..].first_chunk().copied().unwrap_or([0; N])
}

fn store_4(cpu: &mut Cpu, op: &Op) -> R<()> {
    let fp = checked(cpu, op)?;
    let linear = op.linear(cpu, 4, Want::Write)?;
    execute_plain(cpu, fp)?;
    cpu.store_checked(linear, u32::from_le_bytes(stored(cpu, 0)))
}

fn store_8(cpu: &mut Cpu, op: &Op) -> R<()> {
    let fp = checked(cpu, op)?;
    let linear = op.linear(cpu, 8, Want::Write)?;
    execute_plain(cpu, fp)?;
    cpu.store_checked(linear, u64::from_le_bytes(stored(cpu, 0)))
}

fn store_16(cpu: &mut Cpu, op: &Op) -> R<()> {
    let fp = checked(cpu, op)?;
    let linear = op.linear(cpu, 16, Want::Write)?;
    if !in_one_page(cpu, fp, linear) {
        return run(cpu, op);
    }
    execute_plain(cpu, fp)?;
    cpu.store(linear, u64::from_le_bytes(stored(cpu, 0)))?;
    cpu.store(linear + 8, u64::from_le_bytes(stored(cpu, 8)))
}

/// Runs the instruction whose decoded form `op.imm` points to.
pub(crate) fn run(cpu: &mut Cpu, op: &Op) -> R<()> {
    // SAFETY: the block that holds `op` owns the decoded form and lives while it runs.
    let fp = unsafe { &*(op.imm as *const FpOp) };
    if let Err(fault) = fp.check(cpu.cr0, cpu.cr4, &cpu.fpu) {
        return raise(cpu, fault);
    }
    let Some(memory) = fp.memory() else { return execute(cpu, fp).map(|_| ()) };
    let want = if memory.store { Want::Write } else { Want::Read };
    let linear = op.linear(cpu, memory.bytes.into(), want)?;
    if cpu.rflags & rflags::AC != 0 && (memory.align == 1 || memory.bytes > 16) {
        cpu.check_alignment(linear, natural_alignment(memory))?;
    }
    // Of two mistakes, FXSAVE and FXRSTOR find the non-canonical address first, the others the alignment.
    let misaligned = linear & u64::from(memory.align.saturating_sub(1)) != 0;
    if misaligned && (memory.bytes <= 16 || cpu.canonical(linear)) {
        return cpu.gp(0);
    }
    // A masked store reads what it does not write, but faults as a write.
    if memory.store {
        cpu.probe_write(cpu.mmu, linear, memory.bytes.into())?;
    }
    if memory.load {
        load(cpu, linear, memory)?;
    }
    if execute(cpu, fp)? == Effect::Done && memory.store {
        store(cpu, linear, memory)?;
    }
    Ok(())
}

/// What RFLAGS.AC asks of an operand (SDM vol. 3, table 6-7): environments are arrays of their fields.
fn natural_alignment(memory: MemUse) -> u64 {
    match memory.bytes {
        // MASKMOVDQU stores two halves.
        16 if memory.load && memory.store => 8,
        10 => 8,
        14 | 94 => 2,
        28 | 108 => 4,
        512 => 4,
        bytes => bytes.into(),
    }
}

fn load(cpu: &mut Cpu, linear: u64, memory: MemUse) -> R<()> {
    match memory.bytes {
        4 => {
            let value: u32 = cpu.load(linear)?;
            cpu.fpu_memory[..4].copy_from_slice(&value.to_le_bytes());
        }
        8 => {
            let value: u64 = cpu.load(linear)?;
            cpu.fpu_memory[..8].copy_from_slice(&value.to_le_bytes());
        }
        bytes => {
            let mut data = [0; 512];
            let data = &mut data[..usize::from(bytes).min(512)];
            cpu.read_bytes(cpu.mmu, linear, data)?;
            cpu.fpu_memory[..data.len()].copy_from_slice(data);
        }
    }
    Ok(())
}

fn store(cpu: &mut Cpu, linear: u64, memory: MemUse) -> R<()> {
    let data = *cpu.fpu_memory;
    cpu.write_bytes(cpu.mmu, linear, &data[..usize::from(memory.bytes).min(512)])
}

fn execute(cpu: &mut Cpu, fp: &FpOp) -> R<Effect> {
    let mut status = flags::to_rflags(cpu.flags);
    let Some(gprs) = cpu.regs.first_chunk_mut::<16>() else { return Ok(Effect::Done) };
    let mut env = Env {
        fpu: &mut cpu.fpu,
        gprs,
        flags: &mut status,
        cr0: cpu.cr0,
        cr4: cpu.cr4,
        rip: cpu.start,
        mem: &mut cpu.fpu_memory,
    };
    let done = fp.execute(&mut env);
    cpu.flags = flags::from_rflags(status & rflags::STATUS);
    match done {
        Ok(effect) => Ok(effect),
        Err(fault) => raise(cpu, fault),
    }
}

fn raise<T>(cpu: &mut Cpu, fault: FpFault) -> R<T> {
    match fault {
        FpFault::Ud => cpu.ud(),
        FpFault::Nm => cpu.raise(vector::NM, None),
        FpFault::Mf => cpu.raise(vector::MF, None),
        FpFault::Xm => cpu.raise(vector::XM, None),
        FpFault::Gp => cpu.gp(0),
    }
}

// ---- XSAVE and XRSTOR: the two components x87 and SSE ----------------------------------------------------

fn xsave_checks(cpu: &mut Cpu, op: &Op, want: Want) -> R<(u64, u64)> {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return cpu.ud();
    }
    if cpu.cr0 & cr0::TS != 0 {
        return cpu.raise(vector::NM, None);
    }
    let linear = op.linear(cpu, 576, want)?;
    if linear & 63 != 0 {
        return cpu.gp(0);
    }
    let asked = cpu.regs[gpr::RDX] << 32 | cpu.regs[gpr::RAX] & 0xffff_ffff;
    Ok((linear, asked & cpu.xcr0))
}

/// With REX.W or not (`op.dst`), in 64-bit mode or not.
fn form(cpu: &Cpu, op: &Op) -> fpu::SaveForm {
    fpu::SaveForm { wide: op.dst == 1, long: cpu.code64() }
}

pub(crate) fn xsave(cpu: &mut Cpu, op: &Op) -> R<()> {
    let (linear, components) = xsave_checks(cpu, op, Want::Write)?;
    let mut area = [0; 576];
    cpu.read_bytes(cpu.mmu, linear, &mut area)?;
    cpu.probe_write(cpu.mmu, linear, 576)?;
    fpu::xsave(&cpu.fpu, components, &mut area, form(cpu, op));
    cpu.write_bytes(cpu.mmu, linear, &area)
}

pub(crate) fn xrstor(cpu: &mut Cpu, op: &Op) -> R<()> {
    let (linear, components) = xsave_checks(cpu, op, Want::Read)?;
    let mut area = [0; 576];
    cpu.read_bytes(cpu.mmu, linear, &mut area)?;
    let (form, xcr0) = (form(cpu, op), cpu.xcr0);
    match fpu::xrstor(&mut cpu.fpu, xcr0, components, &area, form) {
        Ok(()) => Ok(()),
        Err(fault) => raise(cpu, fault),
    }
}
