//! Near branches, the stack, and string instructions.
#![allow(unsafe_code)]

use super::cpu::{Cpu, R, RIP, Trap};
use super::flags::{self, bit};
use super::mmu::{NOT_CANONICAL, Place, Want};
use super::native::{self, Width};
use super::op::{Op, Source, Target, ea};
use viv_arch::x86::{gpr, rflags, seg, vector};
use viv_mem::PAGE_SIZE;

impl Cpu {
    /// Goes to `target` in the current code segment; `bytes` is the operand size of the branch.
    #[inline(always)]
    pub(crate) fn jump(&mut self, target: u64, bytes: u64) -> R<()> {
        if self.code64() {
            if !self.canonical(target) {
                return self.gp(0);
            }
            self.regs[RIP] = target;
            return Ok(());
        }
        let target = if bytes == 2 { target & 0xffff } else { target & 0xffff_ffff };
        if target > u64::from(self.segs[seg::CS].limit) {
            return self.gp(0);
        }
        self.regs[RIP] = target;
        Ok(())
    }

    /// Linear address of `offset` in the stack segment.
    #[inline(always)]
    fn stack_linear(&mut self, offset: u64, len: u64, want: Want) -> R<u64> {
        if self.code64() { Ok(offset) } else { self.segment_address(seg::SS, offset, len, want) }
    }

    #[inline(always)]
    pub(crate) fn push<W: Width>(&mut self, value: W) -> R<()> {
        let mask = self.stack_mask();
        let offset = self.rsp().wrapping_sub(W::BYTES) & mask;
        let linear = self.stack_linear(offset, W::BYTES, Want::Write)?;
        if self.store_checked(linear, value).is_err() {
            return self.stack_trap();
        }
        self.set_rsp(offset);
        Ok(())
    }

    /// The stack itself faulted, whatever segment the instruction's other operand is in: a
    /// non-canonical address is #SS.
    #[cold]
    fn stack_trap<T>(&mut self) -> R<T> {
        if self.fault.vector == vector::GP && self.fault.address == NOT_CANONICAL {
            self.fault.vector = vector::SS;
        }
        Err(Trap)
    }

    #[inline(always)]
    pub(crate) fn pop<W: Width>(&mut self) -> R<W> {
        let value = self.peek(0)?;
        self.set_rsp(self.rsp().wrapping_add(W::BYTES));
        Ok(value)
    }

    /// The stack's word `n` bytes above its top.
    #[inline(always)]
    pub(crate) fn peek<W: Width>(&mut self, n: u64) -> R<W> {
        let offset = self.rsp().wrapping_add(n) & self.stack_mask();
        let linear = self.stack_linear(offset, W::BYTES, Want::Read)?;
        let value = self.load_checked(linear);
        if value.is_err() { self.stack_trap() } else { value }
    }
}

// ---- branches: `op.src` has the operand size in bytes, `op.disp` the distance --------------------------

pub(crate) fn jmp(cpu: &mut Cpu, op: &Op) -> R<()> {
    cpu.jump(cpu.rip().wrapping_add(op.disp as u64), op.src.into())
}

/// Jcc: the condition is `op.dst`.
pub(crate) fn jcc(cpu: &mut Cpu, op: &Op) -> R<()> {
    if flags::condition(op.dst, cpu.flags) { jmp(cpu, op) } else { Ok(()) }
}

/// JCXZ, JECXZ, JRCXZ and LOOP, LOOPE, LOOPNE: `op.dst` 0, 1, 2 and 3; `op.imm` is the mask of the counter.
pub(crate) fn loop_or_jcxz(cpu: &mut Cpu, op: &Op) -> R<()> {
    let mask = op.imm;
    let count = cpu.regs[gpr::RCX] & mask;
    if op.dst == 0 {
        return if count == 0 { jmp(cpu, op) } else { Ok(()) };
    }
    let count = count.wrapping_sub(1) & mask;
    let zero = cpu.flags & bit::ZF != 0;
    let goes_on = count != 0 && (op.dst == 1 || (op.dst == 2) == zero);
    if goes_on {
        jmp(cpu, op)?;
    }
    let rcx = &mut cpu.regs[gpr::RCX];
    *rcx = if mask == 0xffff { *rcx & !mask | count } else { count };
    Ok(())
}

pub(crate) fn jmp_to<S: Source, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let target: W = S::get(cpu, op)?;
    cpu.jump(target.wide(), W::BYTES)
}

fn call_target<W: Width>(cpu: &mut Cpu, target: u64) -> R<()> {
    let back = cpu.rip();
    cpu.jump(target, W::BYTES)?;
    cpu.push(W::of(back))
}

pub(crate) fn call<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    call_target::<W>(cpu, cpu.rip().wrapping_add(op.disp as u64))
}

pub(crate) fn call_to<S: Source, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let target: W = S::get(cpu, op)?;
    call_target::<W>(cpu, target.wide())
}

/// RET; `op.imm` more bytes leave the stack.
pub(crate) fn ret<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let target: W = cpu.peek(0)?;
    cpu.jump(target.wide(), W::BYTES)?;
    cpu.set_rsp(cpu.rsp().wrapping_add(W::BYTES).wrapping_add(op.imm));
    Ok(())
}

// ---- stack -----------------------------------------------------------------------------------------------

pub(crate) fn push<S: Source, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let value: W = S::get(cpu, op)?;
    cpu.push(value)
}

pub(crate) fn pop_register<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let value: W = cpu.pop()?;
    cpu.set_reg(op.dst, value);
    Ok(())
}

/// POP to memory: an address on RSP uses the value after the pop.
pub(crate) fn pop_memory<T: Target, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let old = cpu.rsp();
    let value: W = cpu.pop()?;
    let done = T::set(cpu, op, value);
    if done.is_err() {
        cpu.regs[gpr::RSP] = old;
    }
    done
}

pub(crate) fn pusha<W: Width>(cpu: &mut Cpu, _: &Op) -> R<()> {
    let old = cpu.rsp();
    // Word by word, as the bare CPU does: what was pushed before a fault stays written, but RSP goes back.
    for index in 0..8u8 {
        let value = if index == gpr::RSP as u8 { W::of(old) } else { cpu.reg(index) };
        if let Err(trap) = cpu.push::<W>(value) {
            cpu.regs[gpr::RSP] = old;
            return Err(trap);
        }
    }
    Ok(())
}

pub(crate) fn popa<W: Width>(cpu: &mut Cpu, _: &Op) -> R<()> {
    let mut values = [W::of(0); 8];
    for (n, value) in values.iter_mut().enumerate() {
        *value = cpu.peek(n as u64 * W::BYTES)?;
    }
    for (n, value) in values.iter().enumerate() {
        let index = 7 - n as u8;
        if index != gpr::RSP as u8 {
            cpu.set_reg(index, *value);
        }
    }
    cpu.set_rsp(cpu.rsp().wrapping_add(8 * W::BYTES));
    Ok(())
}

/// ENTER: `op.imm` is the size, `op.dst` the nesting level.
pub(crate) fn enter<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let (old_sp, old_bp) = (cpu.rsp(), cpu.regs[gpr::RBP]);
    let level = op.dst & 31;
    let mut run = || -> R<()> {
        cpu.push(W::of(old_bp))?;
        let frame = cpu.rsp();
        let mask = cpu.stack_mask();
        for n in 1..u64::from(level) {
            let offset = old_bp.wrapping_sub(n * W::BYTES) & mask;
            let linear = cpu.stack_linear(offset, W::BYTES, Want::Read)?;
            let link: W = cpu.load_checked(linear)?;
            cpu.push(link)?;
        }
        if level > 0 {
            cpu.push(W::of(frame))?;
        }
        let top = cpu.rsp().wrapping_sub(op.imm);
        let linear = cpu.stack_linear(top & mask, 1, Want::Write)?;
        cpu.check_aligned::<W>(linear)?;
        cpu.probe_write(cpu.mmu, linear, 1)?;
        cpu.set_rsp(top);
        cpu.set_reg(gpr::RBP as u8, W::of(frame));
        Ok(())
    };
    let done = run();
    if done.is_err() {
        cpu.regs[gpr::RSP] = old_sp;
    }
    done
}

pub(crate) fn leave<W: Width>(cpu: &mut Cpu, _: &Op) -> R<()> {
    let old = cpu.rsp();
    cpu.set_rsp(cpu.regs[gpr::RBP]);
    match cpu.pop::<W>() {
        Ok(value) => {
            cpu.set_reg(gpr::RBP as u8, value);
            Ok(())
        }
        Err(trap) => {
            cpu.regs[gpr::RSP] = old;
            Err(trap)
        }
    }
}

/// BOUND (not in 64-bit mode).
pub(crate) fn bound<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let linear = op.linear(cpu, 2 * W::BYTES, Want::Read)?;
    let low = cpu.load_checked::<W>(linear)?.signed();
    let high = cpu.load_checked::<W>(linear.wrapping_add(W::BYTES))?.signed();
    let index = cpu.reg::<W>(op.dst).signed();
    if index < low || index > high {
        return cpu.raise(vector::BR, None);
    }
    Ok(())
}

// ---- strings: `op.imm` is the prefix ---------------------------------------------------------------------

/// No prefix.
pub(crate) const ONCE: u64 = 0;
/// REP or REPE.
pub(crate) const REPEAT: u64 = 1;
/// REPNE.
pub(crate) const REPEAT_UNEQUAL: u64 = 2;
/// Elements of a repeated instruction between two looks at interrupts.
const BATCH: u64 = 4096;

impl Cpu {
    fn step_index(&mut self, register: usize, by: u64, mask: u64) {
        let slot = &mut self.regs[register];
        let next = slot.wrapping_add(by);
        *slot = match mask {
            0xffff => *slot & !mask | next & mask,
            _ => next & mask,
        };
    }

    fn string_linear(&mut self, op: &Op, segment: u8, register: usize, len: u64, want: Want) -> R<u64> {
        let offset = self.regs[register] & op.address_mask();
        match op.ea {
            ea::LEGACY16 | ea::LEGACY32 => self.segment_address(segment.into(), offset, len, want),
            _ if usize::from(segment) >= seg::FS => {
                Ok(self.segs[usize::from(segment)].base.wrapping_add(offset))
            }
            _ => Ok(offset),
        }
    }

    /// Runs `element` as often as the prefix says. It tells whether to go on. Long runs stop after a batch
    /// with RIP on the instruction, so that interrupts are taken in between.
    fn repeat<W: Width>(
        &mut self,
        op: &Op,
        mut elements: impl FnMut(&mut Cpu, u64) -> R<(u64, bool)>,
    ) -> R<()> {
        if op.imm == ONCE {
            return elements(self, 1).map(|_| ());
        }
        let single = self.rflags & rflags::TF != 0 || self.dr[5] & 0xff != 0;
        let Some(journal) = &mut self.journal else {
            return self.repeat_batch(op, if single { 1 } else { BATCH }, elements);
        };
        let (batch, before) = (journal.batch(BATCH), self.regs[gpr::RCX]);
        let done = self.repeat_batch(op, batch, elements);
        let elements = before.wrapping_sub(self.regs[gpr::RCX]);
        if let Some(journal) = &mut self.journal {
            journal.repeated(if done.is_ok() { elements } else { BATCH });
        }
        done
    }

    fn repeat_batch(
        &mut self,
        op: &Op,
        mut budget: u64,
        mut elements: impl FnMut(&mut Cpu, u64) -> R<(u64, bool)>,
    ) -> R<()> {
        let mask = op.address_mask();
        let mut left = self.regs[gpr::RCX] & mask;
        while left != 0 {
            let (done, more) = elements(self, left.min(budget))?;
            left -= done;
            self.step_index(gpr::RCX, done.wrapping_neg(), mask);
            if !more {
                return Ok(());
            }
            budget = budget.saturating_sub(done);
            if left != 0 && (budget == 0 || self.stop) {
                self.regs[RIP] = self.start;
                self.stop = true;
                return Ok(());
            }
        }
        Ok(())
    }

    /// Host memory for as many elements of `W` from `linear` as lie in its page, at most `count`.
    fn run_of<W: Width>(&mut self, linear: u64, count: u64, want: Want) -> R<Option<(*mut u8, u64)>> {
        let fit = (PAGE_SIZE - (linear & 0xfff)) / W::BYTES;
        let checked = self.rflags & rflags::AC != 0 && linear & (W::BYTES - 1) != 0;
        if fit == 0 || checked || self.dr[5] & 0xff != 0 {
            return Ok(None);
        }
        let count = fit.min(count);
        match self.place(self.mmu, linear, want, count * W::BYTES)? {
            Place::Ram(host) => Ok(Some((host, count))),
            Place::Device(_) => Ok(None),
        }
    }
}

fn forward(cpu: &Cpu) -> bool {
    cpu.rflags & rflags::DF == 0
}

fn stride<W: Width>(cpu: &Cpu) -> u64 {
    if forward(cpu) { W::BYTES } else { W::BYTES.wrapping_neg() }
}

pub(crate) fn movs<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let (mask, by) = (op.address_mask(), stride::<W>(cpu));
    cpu.repeat::<W>(op, |cpu, count| {
        let from = cpu.string_linear(op, op.seg, gpr::RSI, W::BYTES, Want::Read)?;
        let to = cpu.string_linear(op, seg::ES as u8, gpr::RDI, W::BYTES, Want::Write)?;
        let flat = op.ea == ea::FLAT;
        let mut done = 1;
        if count > 1
            && flat
            && forward(cpu)
            && let Some((source, n)) = cpu.run_of::<W>(from, count, Want::Read)?
            && let Some((target, n)) = cpu.run_of::<W>(to, n, Want::Write)?
        {
            let bytes = (n * W::BYTES) as usize;
            let distance = (target as usize).wrapping_sub(source as usize);
            if distance >= bytes {
                // SAFETY: both runs lie in mapped guest pages; a target at or past the source's end, or before
                // its start, sees the same bytes as an upward element by element copy.
                unsafe { std::ptr::copy(source, target, bytes) };
            } else {
                for i in 0..n as usize {
                    // SAFETY: as above; overlapping upward copies repeat what they wrote.
                    unsafe {
                        target.cast::<W>().add(i).write_unaligned(source.cast::<W>().add(i).read_unaligned())
                    };
                }
            }
            done = n;
        } else {
            let value: W = cpu.load_checked(from)?;
            cpu.store_checked(to, value)?;
        }
        cpu.step_index(gpr::RSI, by.wrapping_mul(done), mask);
        cpu.step_index(gpr::RDI, by.wrapping_mul(done), mask);
        Ok((done, true))
    })
}

pub(crate) fn stos<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let (mask, by) = (op.address_mask(), stride::<W>(cpu));
    let value: W = cpu.reg(gpr::RAX as u8);
    cpu.repeat::<W>(op, |cpu, count| {
        let to = cpu.string_linear(op, seg::ES as u8, gpr::RDI, W::BYTES, Want::Write)?;
        let mut done = 1;
        if count > 1
            && op.ea == ea::FLAT
            && forward(cpu)
            && let Some((target, n)) = cpu.run_of::<W>(to, count, Want::Write)?
        {
            for i in 0..n as usize {
                // SAFETY: the run lies in a mapped guest page.
                unsafe { target.cast::<W>().add(i).write_unaligned(value) };
            }
            done = n;
        } else {
            cpu.store_checked(to, value)?;
        }
        cpu.step_index(gpr::RDI, by.wrapping_mul(done), mask);
        Ok((done, true))
    })
}

pub(crate) fn lods<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let (mask, by) = (op.address_mask(), stride::<W>(cpu));
    cpu.repeat::<W>(op, |cpu, _| {
        let from = cpu.string_linear(op, op.seg, gpr::RSI, W::BYTES, Want::Read)?;
        let value: W = cpu.load_checked(from)?;
        cpu.set_reg(gpr::RAX as u8, value);
        cpu.step_index(gpr::RSI, by, mask);
        Ok((1, true))
    })
}

/// Whether a comparing string instruction goes on.
fn goes_on(cpu: &Cpu, op: &Op) -> bool {
    let equal = cpu.flags & bit::ZF != 0;
    match op.imm {
        REPEAT => equal,
        REPEAT_UNEQUAL => !equal,
        _ => true,
    }
}

pub(crate) fn cmps<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let (mask, by) = (op.address_mask(), stride::<W>(cpu));
    cpu.repeat::<W>(op, |cpu, _| {
        let from = cpu.string_linear(op, op.seg, gpr::RSI, W::BYTES, Want::Read)?;
        let to = cpu.string_linear(op, seg::ES as u8, gpr::RDI, W::BYTES, Want::Read)?;
        let (a, b): (W, W) = (cpu.load_checked(from)?, cpu.load_checked(to)?);
        cpu.flags = W::alu::<native::Cmp>(a, b, cpu.flags).1;
        cpu.step_index(gpr::RSI, by, mask);
        cpu.step_index(gpr::RDI, by, mask);
        Ok((1, goes_on(cpu, op)))
    })
}

pub(crate) fn scas<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let (mask, by) = (op.address_mask(), stride::<W>(cpu));
    let a: W = cpu.reg(gpr::RAX as u8);
    cpu.repeat::<W>(op, |cpu, _| {
        let to = cpu.string_linear(op, seg::ES as u8, gpr::RDI, W::BYTES, Want::Read)?;
        let b: W = cpu.load_checked(to)?;
        cpu.flags = W::alu::<native::Cmp>(a, b, cpu.flags).1;
        cpu.step_index(gpr::RDI, by, mask);
        Ok((1, goes_on(cpu, op)))
    })
}

pub(crate) fn ins<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let (mask, by) = (op.address_mask(), stride::<W>(cpu));
    let port = cpu.regs[gpr::RDX] as u16;
    cpu.check_port(port, W::BYTES)?;
    cpu.repeat::<W>(op, |cpu, _| {
        let to = cpu.string_linear(op, seg::ES as u8, gpr::RDI, W::BYTES, Want::Write)?;
        cpu.probe_write(cpu.mmu, to, W::BYTES)?;
        let value = cpu.port_read(port, W::BYTES);
        cpu.store(to, W::of(value.into()))?;
        cpu.step_index(gpr::RDI, by, mask);
        Ok((1, true))
    })
}

pub(crate) fn outs<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let (mask, by) = (op.address_mask(), stride::<W>(cpu));
    let port = cpu.regs[gpr::RDX] as u16;
    cpu.check_port(port, W::BYTES)?;
    cpu.repeat::<W>(op, |cpu, _| {
        let from = cpu.string_linear(op, op.seg, gpr::RSI, W::BYTES, Want::Read)?;
        let value: W = cpu.load_checked(from)?;
        cpu.port_write(port, W::BYTES, value.wide() as u32);
        cpu.step_index(gpr::RSI, by, mask);
        Ok((1, true))
    })
}
