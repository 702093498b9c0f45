//! Descriptors, segment loads, and every way from one code segment to another: far jumps, calls and
//! returns, interrupts and exceptions, IRET, SYSCALL, SYSENTER, task switches (SDM vol. 3 ch. 3, 5, 6, 7).

use super::cpu::{Cpu, Exception, Mode, R, RIP};
use super::mmu::Tlb;
use super::native::Width;
use super::op::Op;
use viv_arch::x86::{Segment, cr0, efer, gpr, rflags, seg, vector};

/// System descriptor types (SDM vol. 3 table 3-2).
mod kind {
    pub(super) const TSS16: u16 = 1;
    pub(super) const LDT: u16 = 2;
    pub(super) const CALL16: u16 = 4;
    pub(super) const TASK_GATE: u16 = 5;
    pub(super) const INT16: u16 = 6;
    pub(super) const TRAP16: u16 = 7;
    pub(super) const TSS32: u16 = 9;
    pub(super) const CALL32: u16 = 12;
    pub(super) const INT32: u16 = 14;
    pub(super) const TRAP32: u16 = 15;
    pub(super) const BUSY: u16 = 2;
}

/// Access rights bits.
mod right {
    pub(super) const ACCESSED: u16 = 1;
    pub(super) const WRITABLE: u16 = 2;
    pub(super) const CONFORMING: u16 = 4;
    pub(super) const CODE: u16 = 8;
    pub(super) const SEGMENT: u16 = 16;
    pub(super) const PRESENT: u16 = 0x80;
}

/// A descriptor as found in a table, and where.
#[derive(Clone, Copy)]
pub(crate) struct Descriptor {
    pub(crate) raw: u64,
    /// Bits 32 to 63 of the base, for 16-byte system descriptors.
    pub(crate) high: u64,
    pub(crate) linear: u64,
}

impl Descriptor {
    pub(crate) fn rights(&self) -> u16 {
        (self.raw >> 40) as u16 & 0xf0ff
    }
    pub(crate) fn dpl(&self) -> u8 {
        (self.raw >> 45 & 3) as u8
    }
    pub(crate) fn present(&self) -> bool {
        self.rights() & right::PRESENT != 0
    }
    pub(crate) fn is_segment(&self) -> bool {
        self.rights() & right::SEGMENT != 0
    }
    pub(crate) fn is_code(&self) -> bool {
        self.is_segment() && self.rights() & right::CODE != 0
    }
    fn conforming(&self) -> bool {
        self.rights() & right::CONFORMING != 0
    }
    pub(crate) fn kind(&self) -> u16 {
        self.rights() & 15
    }
    fn limit(&self) -> u32 {
        let raw = (self.raw & 0xffff) as u32 | (self.raw >> 32) as u32 & 0xf_0000;
        if self.raw >> 55 & 1 != 0 { raw << 12 | 0xfff } else { raw }
    }
    fn base(&self) -> u64 {
        self.raw >> 16 & 0xff_ffff | self.raw >> 32 & 0xff00_0000 | self.high << 32
    }
    pub(crate) fn segment(&self, selector: u16) -> Segment {
        Segment { selector, base: self.base(), limit: self.limit(), rights: self.rights() }
    }
    fn gate_selector(&self) -> u16 {
        (self.raw >> 16) as u16
    }
    fn gate_offset(&self) -> u64 {
        self.raw & 0xffff | self.raw >> 32 & 0xffff_0000 | self.high << 32
    }
}

/// How an event came to be delivered: error codes and privilege checks depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// INT n, INT3, INTO.
    Software,
    /// Exceptions, external interrupts, INT1.
    Hardware,
}

impl Cpu {
    // ---- descriptor tables ------------------------------------------------------------------------

    /// The descriptor that `selector` names; outside its table is `fault` with the selector.
    pub(crate) fn descriptor(&mut self, selector: u16, fault: u8) -> R<Descriptor> {
        let error = Some(u32::from(selector & !3));
        let (base, limit) = if selector & 4 == 0 {
            (self.gdtr.base, u32::from(self.gdtr.limit))
        } else if self.ldtr.rights & right::PRESENT != 0 {
            (self.ldtr.base, self.ldtr.limit)
        } else {
            return self.raise(fault, error);
        };
        if u32::from(selector | 7) > limit {
            return self.raise(fault, error);
        }
        let linear = base.wrapping_add(u64::from(selector & !7));
        let raw = self.load_system::<u64>(linear)?;
        Ok(Descriptor { raw, high: 0, linear })
    }

    /// Completes a 16-byte system descriptor of long mode.
    fn complete(&mut self, d: &mut Descriptor, selector: u16, fault: u8) -> R<()> {
        if !self.long_mode() {
            return Ok(());
        }
        let limit = if selector & 4 == 0 { u32::from(self.gdtr.limit) } else { self.ldtr.limit };
        if u32::from(selector | 7) + 8 > limit {
            return self.raise(fault, Some(u32::from(selector & !3)));
        }
        let high = self.load_system::<u64>(d.linear.wrapping_add(8))?;
        if high >> 40 & 0x1f != 0 {
            return self.raise(fault, Some(u32::from(selector & !3)));
        }
        d.high = high & 0xffff_ffff;
        if (d.kind() == kind::LDT || d.kind() & !kind::BUSY == kind::TSS32)
            && !self.canonical(d.segment(selector).base)
        {
            return self.raise(fault, Some(u32::from(selector & !3)));
        }
        Ok(())
    }

    fn set_accessed(&mut self, d: &mut Descriptor) -> R<()> {
        if d.rights() & right::ACCESSED == 0 {
            d.raw |= u64::from(right::ACCESSED) << 40;
            self.store_system::<u8>(d.linear.wrapping_add(5), (d.raw >> 40) as u8)?;
        }
        Ok(())
    }

    /// Loads a data or stack segment register (MOV, POP, LDS and so on; SDM vol. 2 MOV).
    pub(crate) fn load_segment(&mut self, index: usize, selector: u16) -> R<()> {
        if self.real_like() {
            let s = &mut self.segs[index];
            s.selector = selector;
            s.base = u64::from(selector) << 4;
            if self.rflags & rflags::VM != 0 {
                s.limit = 0xffff;
                s.rights = 0xf3;
            } else {
                s.rights |= 0x80;
            }
            return Ok(());
        }
        let rpl = (selector & 3) as u8;
        let error = u32::from(selector & !3);
        if selector & !3 == 0 {
            if index == seg::SS && (self.mode != Mode::Code64 || self.cpl == 3 || rpl != self.cpl) {
                return self.gp(0);
            }
            // A null selector: unusable. In 64-bit mode FS and GS keep no base.
            let dpl = if index == seg::SS { u16::from(self.cpl) << 5 } else { 0 };
            self.segs[index] = Segment { selector, base: 0, limit: 0, rights: dpl };
            return Ok(());
        }
        let mut d = self.descriptor(selector, vector::GP)?;
        let rights = d.rights();
        let readable = d.is_segment() && (!d.is_code() || rights & right::WRITABLE != 0);
        if index == seg::SS {
            let writable = d.is_segment() && !d.is_code() && rights & right::WRITABLE != 0;
            if rpl != self.cpl || !writable || d.dpl() != self.cpl {
                return self.gp(error);
            }
            if !d.present() {
                return self.raise(vector::SS, Some(error));
            }
        } else {
            let private = !(d.is_code() && d.conforming());
            if !readable || (private && (rpl > d.dpl() || self.cpl > d.dpl())) {
                return self.gp(error);
            }
            if !d.present() {
                return self.raise(vector::NP, Some(error));
            }
        }
        self.set_accessed(&mut d)?;
        self.segs[index] = d.segment(selector);
        if index == seg::SS {
            self.stop = true;
        }
        Ok(())
    }

    /// Checks a code descriptor for a transfer to privilege `cpl` and returns its segment.
    fn code_segment(&mut self, mut d: Descriptor, selector: u16, cpl: u8, fault: u8) -> R<Segment> {
        let error = u32::from(selector & !3);
        if self.long_mode() && d.raw >> 53 & 3 == 3 {
            // L and D both set is reserved.
            return self.raise(fault, Some(error));
        }
        if !d.present() {
            return self.raise(vector::NP, Some(error));
        }
        self.set_accessed(&mut d)?;
        let mut segment = d.segment(selector & !3 | u16::from(cpl));
        if segment.long() {
            segment.base = 0;
        }
        Ok(segment)
    }

    /// Sets CS and RIP after all checks; the caller has set the stack.
    fn enter_code(&mut self, cs: Segment, cpl: u8, rip: u64) {
        self.segs[seg::CS] = cs;
        // CPL lives in SS.DPL, as on the hardware's save area.
        let ss = &mut self.segs[seg::SS];
        if ss.dpl() != cpl {
            ss.rights = ss.rights & !0x60 | u16::from(cpl) << 5;
        }
        self.regs[RIP] = rip;
        self.update_mode();
    }

    fn check_target(&mut self, cs: &Segment, rip: u64) -> R<()> {
        let bad =
            if self.long_mode() && cs.long() { !self.canonical(rip) } else { rip > u64::from(cs.limit) };
        if bad { self.gp(0) } else { Ok(()) }
    }

    // ---- far jumps and calls ------------------------------------------------------------------------

    /// JMP and CALL through a far pointer. `bytes` is the operand size.
    pub(crate) fn far_transfer(&mut self, selector: u16, offset: u64, bytes: u64, call: bool) -> R<()> {
        if self.real_like() {
            let (old_cs, old_ip) = (self.segs[seg::CS].selector, self.rip());
            if offset > 0xffff && !self.segs[seg::CS].big() {
                return self.gp(0);
            }
            if call {
                self.push_many(bytes, &[old_cs.into(), old_ip])?;
            }
            let cs = &mut self.segs[seg::CS];
            cs.selector = selector;
            cs.base = u64::from(selector) << 4;
            self.regs[RIP] = offset;
            self.update_mode();
            return Ok(());
        }
        if selector & !3 == 0 {
            return self.gp(0);
        }
        let error = u32::from(selector & !3);
        let mut d = self.descriptor(selector, vector::GP)?;
        let rpl = (selector & 3) as u8;
        if d.is_code() {
            let allowed =
                if d.conforming() { d.dpl() <= self.cpl } else { rpl <= self.cpl && d.dpl() == self.cpl };
            if !allowed {
                return self.gp(error);
            }
            let cpl = self.cpl;
            let cs = self.code_segment(d, selector, cpl, vector::GP)?;
            let offset = if bytes == 2 {
                offset & 0xffff
            } else if bytes == 4 {
                offset & 0xffff_ffff
            } else {
                offset
            };
            self.check_target(&cs, offset)?;
            if call {
                let old = [self.segs[seg::CS].selector.into(), self.rip()];
                self.push_many(bytes, &old)?;
            }
            self.enter_code(cs, cpl, offset);
            return Ok(());
        }
        if d.is_segment() {
            return self.gp(error);
        }
        let long = self.long_mode();
        match d.kind() {
            kind::CALL32 => {}
            kind::CALL16 if !long => {}
            kind::TASK_GATE | kind::TSS16 | kind::TSS32 if !long => {
                if d.dpl() < self.cpl || d.dpl() < rpl {
                    return self.gp(error);
                }
                let task = if d.kind() == kind::TASK_GATE { d.gate_selector() } else { selector };
                if !d.present() {
                    return self.raise(vector::NP, Some(error));
                }
                return self.switch_task(task, if call { Switch::Call } else { Switch::Jump });
            }
            _ => return self.gp(error),
        }
        // A call gate.
        if d.dpl() < self.cpl || d.dpl() < rpl {
            return self.gp(error);
        }
        if !d.present() {
            return self.raise(vector::NP, Some(error));
        }
        self.complete(&mut d, selector, vector::GP)?;
        let gate_bytes: u64 = if long {
            8
        } else if d.kind() == kind::CALL16 {
            2
        } else {
            4
        };
        let target = d.gate_selector();
        let mut offset = d.gate_offset();
        if gate_bytes == 2 {
            offset &= 0xffff;
        }
        if target & !3 == 0 {
            return self.gp(0);
        }
        let code = self.descriptor(target, vector::GP)?;
        let target_error = u32::from(target & !3);
        if !code.is_code() || code.dpl() > self.cpl || (long && code.raw >> 53 & 3 != 1) {
            return self.gp(target_error);
        }
        let inner = call && !code.conforming() && code.dpl() < self.cpl;
        if !call && !code.conforming() && code.dpl() != self.cpl {
            return self.gp(target_error);
        }
        let cpl = if inner { code.dpl() } else { self.cpl };
        let cs = self.code_segment(code, target, cpl, vector::GP)?;
        self.check_target(&cs, offset)?;
        let (old_cs, old_ip) = (u64::from(self.segs[seg::CS].selector), self.rip());
        if inner {
            let (old_ss, old_sp) = (u64::from(self.segs[seg::SS].selector), self.rsp());
            let count = if long { 0 } else { (d.raw >> 32 & 31) as usize };
            let mut words = vec![old_ss, old_sp];
            for n in (0..count as u64).rev() {
                let word = if gate_bytes == 2 {
                    self.peek::<u16>(n * 2)?.into()
                } else {
                    self.peek::<u32>(n * 4)?.into()
                };
                words.push(word);
            }
            words.extend([old_cs, old_ip]);
            let (ss, sp) = self.inner_stack(cpl, None)?;
            self.push_to(&ss, sp, gate_bytes, &words, cpl)?;
        } else if call {
            self.push_many(gate_bytes, &[old_cs, old_ip])?;
        }
        self.enter_code(cs, cpl, offset);
        Ok(())
    }

    /// Pushes words of `bytes` on the current stack, all or none.
    fn push_many(&mut self, bytes: u64, words: &[u64]) -> R<()> {
        let old = self.rsp();
        for word in words {
            let pushed = match bytes {
                2 => self.push(*word as u16),
                4 => self.push(*word as u32),
                _ => self.push(*word),
            };
            if let Err(trap) = pushed {
                self.regs[gpr::RSP] = old;
                return Err(trap);
            }
        }
        Ok(())
    }

    /// Pushes words on a new stack as privilege `cpl` would, then makes it the stack.
    fn push_to(&mut self, ss: &Segment, sp: u64, bytes: u64, words: &[u64], cpl: u8) -> R<()> {
        let mask = if self.long_mode() {
            u64::MAX
        } else if ss.big() {
            0xffff_ffff
        } else {
            0xffff
        };
        let mmu = if cpl == 3 { Tlb::USER } else { Tlb::SUPERVISOR };
        let mut at = sp;
        for word in words {
            at = at.wrapping_sub(bytes) & mask;
            let linear = if self.long_mode() {
                if !self.canonical(at) {
                    return self.raise(vector::SS, Some(0));
                }
                at
            } else {
                if !inside_stack(ss, at, bytes) {
                    return self.raise(vector::SS, Some(u32::from(ss.selector & !3)));
                }
                ss.base.wrapping_add(at) & 0xffff_ffff
            };
            match bytes {
                2 => self.store_as(mmu, linear, *word as u16)?,
                4 => self.store_as(mmu, linear, *word as u32)?,
                _ => self.store_as(mmu, linear, *word)?,
            }
        }
        self.segs[seg::SS] = *ss;
        self.regs[gpr::RSP] = if mask == 0xffff { self.regs[gpr::RSP] & !mask | at } else { at };
        Ok(())
    }

    /// The stack that the TSS holds for privilege `cpl`, or IST entry `ist` in long mode.
    fn inner_stack(&mut self, cpl: u8, ist: Option<u8>) -> R<(Segment, u64)> {
        let tss = self.tr;
        let ts_error = Some(u32::from(tss.selector & !3));
        if self.long_mode() {
            let offset = match ist {
                Some(n) => 0x24 + 8 * u64::from(n - 1),
                None => 4 + 8 * u64::from(cpl),
            };
            if offset + 7 > u64::from(tss.limit) {
                return self.raise(vector::TS, ts_error);
            }
            let sp: u64 = self.load_system(tss.base.wrapping_add(offset))?;
            let ss = Segment { selector: cpl.into(), base: 0, limit: 0, rights: u16::from(cpl) << 5 };
            return Ok((ss, sp));
        }
        let wide = tss.rights & 8 != 0;
        let offset = if wide { 4 + 8 * u64::from(cpl) } else { 2 + 4 * u64::from(cpl) };
        if offset + if wide { 5 } else { 3 } > u64::from(tss.limit) {
            return self.raise(vector::TS, ts_error);
        }
        let (sp, selector) = if wide {
            let sp = self.load_system::<u32>(tss.base.wrapping_add(offset))?.into();
            (sp, self.load_system::<u16>(tss.base.wrapping_add(offset + 4))?)
        } else {
            let sp = self.load_system::<u16>(tss.base.wrapping_add(offset))?.into();
            (sp, self.load_system::<u16>(tss.base.wrapping_add(offset + 2))?)
        };
        let ss = self.stack_descriptor(selector, cpl, vector::TS)?;
        Ok((ss, sp))
    }

    /// A stack segment for privilege `cpl`, found bad with `fault`.
    fn stack_descriptor(&mut self, selector: u16, cpl: u8, fault: u8) -> R<Segment> {
        let error = Some(u32::from(selector & !3));
        if selector & !3 == 0 {
            return self.raise(fault, Some(0));
        }
        let mut d = self.descriptor(selector, fault)?;
        let writable = d.is_segment() && !d.is_code() && d.rights() & right::WRITABLE != 0;
        if (selector & 3) as u8 != cpl || d.dpl() != cpl || !writable {
            return self.raise(fault, error);
        }
        if !d.present() {
            return self.raise(vector::SS, error);
        }
        self.set_accessed(&mut d)?;
        Ok(d.segment(selector))
    }

    // ---- far returns ----------------------------------------------------------------------------------

    /// RETF; `extra` bytes of parameters leave both stacks.
    pub(crate) fn far_return(&mut self, bytes: u64, extra: u64) -> R<()> {
        let ip = self.peek_size(0, bytes)?;
        let selector = self.peek_size(bytes, bytes)? as u16;
        if self.real_like() {
            if ip > u64::from(self.segs[seg::CS].limit) {
                return self.gp(0);
            }
            self.set_rsp(self.rsp().wrapping_add(2 * bytes + extra));
            self.load_real_cs(selector, ip);
            return Ok(());
        }
        let rpl = (selector & 3) as u8;
        if rpl < self.cpl {
            return self.gp(u32::from(selector & !3));
        }
        let cs = self.return_code(selector, ip)?;
        if rpl == self.cpl {
            self.set_rsp(self.rsp().wrapping_add(2 * bytes + extra));
            self.enter_code(cs, rpl, ip);
            return Ok(());
        }
        let sp = self.peek_size(2 * bytes + extra, bytes)?;
        let ss_selector = self.peek_size(3 * bytes + extra, bytes)? as u16;
        let ss = self.return_stack(ss_selector, rpl, &cs)?;
        self.leave_to_outer(cs, rpl, ip, ss, sp.wrapping_add(extra), bytes);
        Ok(())
    }

    fn load_real_cs(&mut self, selector: u16, ip: u64) {
        let cs = &mut self.segs[seg::CS];
        cs.selector = selector;
        cs.base = u64::from(selector) << 4;
        if self.rflags & rflags::VM != 0 {
            cs.limit = 0xffff;
            cs.rights = 0xfb;
        }
        self.regs[RIP] = ip;
        self.update_mode();
    }

    fn peek_size(&mut self, n: u64, bytes: u64) -> R<u64> {
        match bytes {
            2 => self.peek::<u16>(n).map(u64::from),
            4 => self.peek::<u32>(n).map(u64::from),
            _ => self.peek::<u64>(n),
        }
    }

    /// The code segment of a return to `selector`'s privilege.
    fn return_code(&mut self, selector: u16, ip: u64) -> R<Segment> {
        if selector & !3 == 0 {
            return self.gp(0);
        }
        let error = u32::from(selector & !3);
        let rpl = (selector & 3) as u8;
        let d = self.descriptor(selector, vector::GP)?;
        let level_fits = if d.conforming() { d.dpl() <= rpl } else { d.dpl() == rpl };
        if !d.is_code() || !level_fits {
            return self.gp(error);
        }
        let cs = self.code_segment(d, selector, rpl, vector::GP)?;
        self.check_target(&cs, ip)?;
        Ok(cs)
    }

    fn return_stack(&mut self, selector: u16, cpl: u8, cs: &Segment) -> R<Segment> {
        if selector & !3 == 0 {
            if self.long_mode() && cs.long() && cpl != 3 && (selector & 3) as u8 == cpl {
                return Ok(Segment { selector, base: 0, limit: 0, rights: u16::from(cpl) << 5 });
            }
            return self.gp(0);
        }
        self.stack_descriptor(selector, cpl, vector::GP)
    }

    fn leave_to_outer(&mut self, cs: Segment, cpl: u8, ip: u64, ss: Segment, sp: u64, bytes: u64) {
        self.segs[seg::SS] = ss;
        self.enter_code(cs, cpl, ip);
        let narrow = bytes == 2 || !ss.big();
        if self.code64() || !narrow {
            self.set_rsp(sp);
        } else {
            self.regs[gpr::RSP] = self.regs[gpr::RSP] & !0xffff | sp & 0xffff;
        }
        // Data segments that the outer level may not use become null.
        for index in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let s = self.segs[index];
            let conforming_code = s.rights & 0xc == 0xc;
            if s.rights & right::PRESENT != 0 && !conforming_code && s.dpl() < cpl {
                self.segs[index] = Segment {
                    selector: 0,
                    base: if index >= seg::FS { s.base } else { 0 },
                    limit: 0,
                    rights: 0,
                };
            }
        }
    }

    // ---- interrupts and exceptions ----------------------------------------------------------------------

    /// Delivers an event, or raises the fault that the delivery met.
    pub(crate) fn deliver(&mut self, event: u8, error: Option<u32>, origin: Origin) -> R<()> {
        if !self.protected() {
            return self.deliver_real(event);
        }
        let external = u32::from(origin == Origin::Hardware);
        let size: u64 = if self.long_mode() { 16 } else { 8 };
        let idt_error = u32::from(event) * 8 + 2 + external;
        if u64::from(event) * size + size - 1 > u64::from(self.idtr.limit) {
            return self.gp(idt_error);
        }
        let linear = self.idtr.base.wrapping_add(u64::from(event) * size);
        let raw = self.load_system::<u64>(linear)?;
        let mut gate = Descriptor { raw, high: 0, linear };
        if self.long_mode() {
            gate.high = self.load_system::<u64>(linear.wrapping_add(8))? & 0xffff_ffff;
        }
        let known = match gate.kind() {
            kind::INT32 | kind::TRAP32 => true,
            kind::INT16 | kind::TRAP16 | kind::TASK_GATE => !self.long_mode(),
            _ => false,
        };
        if gate.is_segment() || !known {
            return self.gp(idt_error);
        }
        if origin == Origin::Software && gate.dpl() < self.cpl {
            return self.gp(idt_error & !1);
        }
        if !gate.present() {
            return self.raise(vector::NP, Some(idt_error));
        }
        if gate.kind() == kind::TASK_GATE {
            self.switch_task(gate.gate_selector(), Switch::Interrupt)?;
            if let Some(error) = error {
                return if self.tr.rights & 8 != 0 { self.push(error) } else { self.push(error as u16) };
            }
            return Ok(());
        }
        self.through_gate(gate, error, external)
    }

    fn through_gate(&mut self, gate: Descriptor, error: Option<u32>, external: u32) -> R<()> {
        let long = self.long_mode();
        let selector = gate.gate_selector();
        if selector & !3 == 0 {
            return self.gp(external);
        }
        let code = self.descriptor(selector, vector::GP).inspect_err(|_| self.mark_external(external))?;
        let target_error = u32::from(selector & !3) + external;
        if !code.is_code() || code.dpl() > self.cpl || (long && code.raw >> 53 & 3 != 1) {
            return self.gp(target_error);
        }
        let inner = !code.conforming() && code.dpl() < self.cpl;
        let cpl = if inner { code.dpl() } else { self.cpl };
        if self.v86() && cpl != 0 {
            return self.gp(target_error);
        }
        let cs = self
            .code_segment(code, selector, cpl, vector::GP)
            .inspect_err(|_| self.mark_external(external))?;
        let bytes: u64 = if long {
            8
        } else if gate.kind() < 8 {
            2
        } else {
            4
        };
        let mut offset = gate.gate_offset();
        if bytes == 2 {
            offset &= 0xffff;
        }
        self.check_target(&cs, offset)?;
        let old_flags = self.get_rflags();
        let (old_cs, old_ip) = (u64::from(self.segs[seg::CS].selector), self.rip());
        let (old_ss, old_sp) = (u64::from(self.segs[seg::SS].selector), self.rsp());
        let ist = (gate.raw >> 32 & 7) as u8;
        let mut words: Vec<u64> = Vec::with_capacity(10);
        if self.v86() {
            for index in [seg::GS, seg::FS, seg::DS, seg::ES] {
                words.push(self.segs[index].selector.into());
            }
        }
        if inner || long {
            words.extend([old_ss, old_sp]);
        }
        words.extend([old_flags, old_cs, old_ip]);
        words.extend(error.map(u64::from));
        if inner || (long && ist != 0) {
            let (mut ss, mut sp) = self
                .inner_stack(cpl, (long && ist != 0).then_some(ist))
                .inspect_err(|_| self.mark_external(external))?;
            if long {
                sp &= !15;
                if !inner {
                    ss = self.segs[seg::SS];
                }
            }
            self.push_to(&ss, sp, bytes, &words, cpl)?;
        } else if long {
            let (ss, sp) = (self.segs[seg::SS], old_sp & !15);
            self.push_to(&ss, sp, bytes, &words, cpl)?;
        } else {
            self.push_many(bytes, &words)?;
        }
        if self.v86() {
            for index in [seg::GS, seg::FS, seg::DS, seg::ES] {
                self.segs[index] = Segment::default();
            }
        }
        let mut clear = rflags::TF | rflags::NT | rflags::VM | rflags::RF;
        if gate.kind() & 1 == 0 {
            clear |= rflags::IF;
        }
        self.rflags &= !clear;
        self.enter_code(cs, cpl, offset);
        Ok(())
    }

    /// Faults met while an external event is delivered carry EXT in their error code.
    fn mark_external(&mut self, external: u32) {
        if self.fault.vector != vector::PF
            && let Some(error) = &mut self.fault.error
        {
            *error |= external;
        }
    }

    fn deliver_real(&mut self, event: u8) -> R<()> {
        let entry = u64::from(event) * 4;
        if entry + 3 > u64::from(self.idtr.limit) {
            return self.gp(0);
        }
        let ip: u16 = self.load_system(self.idtr.base.wrapping_add(entry))?;
        let cs: u16 = self.load_system(self.idtr.base.wrapping_add(entry + 2))?;
        let words = [self.get_rflags(), self.segs[seg::CS].selector.into(), self.rip()];
        self.push_many(2, &words)?;
        self.rflags &= !(rflags::IF | rflags::TF | rflags::AC | rflags::RF);
        self.load_real_cs(cs, ip.into());
        Ok(())
    }

    // ---- IRET ---------------------------------------------------------------------------------------------

    pub(crate) fn iret(&mut self, bytes: u64) -> R<()> {
        self.nmi_masked = false;
        if std::mem::take(&mut self.nmi_waits) {
            self.shared.attention(self.index).set(super::Attention::NMI | super::Attention::POKE);
        }
        self.loaded_rf = true;
        if self.real_like() {
            if self.v86() && self.iopl() < 3 {
                return self.gp(0);
            }
            let ip = self.peek_size(0, bytes)?;
            let cs = self.peek_size(bytes, bytes)? as u16;
            let value = self.peek_size(2 * bytes, bytes)?;
            if ip > 0xffff {
                return self.gp(0);
            }
            self.set_rsp(self.rsp().wrapping_add(3 * bytes));
            let keep = if self.v86() { rflags::IOPL } else { 0 } | rflags::VM | rflags::VIF | rflags::VIP;
            let mask = if bytes == 2 { 0xffff } else { 0x3f_ffff } & rflags_writable() & !keep;
            self.set_rflags(value, mask);
            self.load_real_cs(cs, ip);
            return Ok(());
        }
        if self.rflags & rflags::NT != 0 {
            if self.long_mode() {
                return self.gp(0);
            }
            let link: u16 = self.load_system(self.tr.base)?;
            return self.switch_task(link, Switch::Return);
        }
        let ip = self.peek_size(0, bytes)?;
        let selector = self.peek_size(bytes, bytes)? as u16;
        let value = self.peek_size(2 * bytes, bytes)?;
        if value & rflags::VM != 0 && bytes == 4 && self.cpl == 0 && !self.long_mode() {
            return self.iret_to_v86(ip, selector, value);
        }
        let rpl = (selector & 3) as u8;
        if rpl < self.cpl {
            return self.gp(u32::from(selector & !3));
        }
        let cs = self.return_code(selector, ip)?;
        let mut mask =
            rflags_writable() & !(rflags::VM | rflags::IOPL | rflags::IF | rflags::VIF | rflags::VIP);
        if self.cpl == 0 {
            mask |= rflags::IOPL | rflags::VIF | rflags::VIP;
        }
        if self.cpl <= self.iopl() {
            mask |= rflags::IF;
        }
        if bytes == 2 {
            mask &= 0xffff;
        }
        let code64 = self.code64();
        if rpl != self.cpl || code64 {
            let sp = self.peek_size(3 * bytes, bytes)?;
            let ss_selector = self.peek_size(4 * bytes, bytes)? as u16;
            let ss = self.return_stack(ss_selector, rpl, &cs)?;
            if rpl != self.cpl {
                self.set_rflags(value, mask);
                self.leave_to_outer(cs, rpl, ip, ss, sp, bytes);
            } else {
                self.segs[seg::SS] = ss;
                self.set_rflags(value, mask);
                self.enter_code(cs, rpl, ip);
                self.set_rsp(sp);
            }
        } else {
            self.set_rsp(self.rsp().wrapping_add(3 * bytes));
            self.set_rflags(value, mask);
            self.enter_code(cs, rpl, ip);
        }
        Ok(())
    }

    fn iret_to_v86(&mut self, ip: u64, cs: u16, value: u64) -> R<()> {
        let mut words = [0u64; 6];
        for (n, word) in words.iter_mut().enumerate() {
            *word = self.peek_size(12 + 4 * n as u64, 4)?;
        }
        let [sp, ss, es, ds, fs, gs] = words;
        self.set_rflags(value, rflags_writable() | rflags::VM);
        for (index, selector) in
            [(seg::ES, es), (seg::CS, cs.into()), (seg::SS, ss), (seg::DS, ds), (seg::FS, fs), (seg::GS, gs)]
        {
            let selector = selector as u16;
            self.segs[index] =
                Segment { selector, base: u64::from(selector) << 4, limit: 0xffff, rights: 0xf3 };
        }
        self.regs[gpr::RSP] = sp & 0xffff_ffff;
        self.regs[RIP] = ip & 0xffff;
        self.update_mode();
        Ok(())
    }

    // ---- SYSCALL, SYSRET, SYSENTER, SYSEXIT --------------------------------------------------------------

    pub(crate) fn syscall(&mut self) -> R<()> {
        if self.efer & efer::SCE == 0 || self.real_like() {
            return self.ud();
        }
        if !self.long_mode() {
            // Legacy mode (APM vol. 3 SYSCALL): EIP and CS are in STAR, flags are kept but for IF, VM and RF.
            let selector = (self.msrs.star >> 32) as u16 & !3;
            self.regs[gpr::RCX] = self.rip() & 0xffff_ffff;
            self.rflags &= !(rflags::IF | rflags::VM | rflags::RF);
            self.segs[seg::SS] = flat(selector.wrapping_add(8), 0, false);
            self.enter_code(flat_code(selector, 0, false), 0, self.msrs.star & 0xffff_ffff);
            self.trap_late();
            return Ok(());
        }
        let target = if self.code64() { self.msrs.lstar } else { self.msrs.cstar };
        self.regs[gpr::RCX] = self.rip();
        self.regs[11] = self.get_rflags() & !rflags::RF;
        let selector = (self.msrs.star >> 32) as u16 & !3;
        let mask = self.msrs.sfmask | rflags::RF;
        let kept = self.get_rflags() & !mask;
        self.set_rflags(kept, !0x2);
        self.segs[seg::SS] = flat(selector.wrapping_add(8), 0, false);
        self.enter_code(flat_code(selector, 0, true), 0, target);
        self.trap_late();
        Ok(())
    }

    pub(crate) fn sysret(&mut self, bytes: u64) -> R<()> {
        if self.efer & efer::SCE == 0 || self.real_like() {
            return self.ud();
        }
        if self.cpl != 0 {
            return self.gp(0);
        }
        let base = (self.msrs.star >> 48) as u16;
        if !self.long_mode() {
            self.set_rflags(rflags::IF, rflags::IF);
            self.segs[seg::SS] = flat(base.wrapping_add(8) | 3, 3, false);
            self.enter_code(flat_code(base | 3, 3, false), 3, self.regs[gpr::RCX] & 0xffff_ffff);
            self.trap_late();
            return Ok(());
        }
        let long = bytes == 8;
        let target = if long { self.regs[gpr::RCX] } else { self.regs[gpr::RCX] & 0xffff_ffff };
        if long && !self.canonical(target) && !super::host_is_amd() {
            return self.gp(0);
        }
        self.set_rflags(self.regs[11], rflags_writable() & !(rflags::RF | rflags::VM));
        let code = if long { base.wrapping_add(16) } else { base } | 3;
        self.segs[seg::SS] = flat(base.wrapping_add(8) | 3, 3, false);
        self.enter_code(flat_code(code, 3, long), 3, target);
        self.trap_late();
        Ok(())
    }

    pub(crate) fn sysenter(&mut self) -> R<()> {
        let cs = self.msrs.sysenter_cs as u16 & !3;
        if !self.protected() || cs == 0 {
            return self.gp(0);
        }
        self.rflags &= !(rflags::VM | rflags::IF | rflags::RF);
        let long = self.long_mode();
        self.regs[gpr::RSP] =
            if long { self.msrs.sysenter_esp } else { self.msrs.sysenter_esp & 0xffff_ffff };
        let target = if long { self.msrs.sysenter_eip } else { self.msrs.sysenter_eip & 0xffff_ffff };
        self.segs[seg::SS] = flat(cs.wrapping_add(8), 0, false);
        self.enter_code(flat_code(cs, 0, long), 0, target);
        Ok(())
    }

    pub(crate) fn sysexit(&mut self, bytes: u64) -> R<()> {
        let base = self.msrs.sysenter_cs as u16 & !3;
        if !self.protected() || self.cpl != 0 || base == 0 {
            return self.gp(0);
        }
        let long = bytes == 8;
        let (target, stack) = (self.regs[gpr::RDX], self.regs[gpr::RCX]);
        if long && !(self.canonical(target) && self.canonical(stack)) {
            return self.gp(0);
        }
        let cut = |value: u64| if long { value } else { value & 0xffff_ffff };
        let code = base.wrapping_add(if long { 32 } else { 16 }) | 3;
        self.segs[seg::SS] = flat(code.wrapping_add(8), 3, false);
        self.enter_code(flat_code(code, 3, long), 3, cut(target));
        self.regs[gpr::RSP] = cut(stack);
        Ok(())
    }

    // ---- LDTR and TR --------------------------------------------------------------------------------------

    pub(crate) fn load_ldtr(&mut self, selector: u16) -> R<()> {
        let error = u32::from(selector & !3);
        if selector & !3 == 0 {
            self.ldtr = Segment { selector, ..Segment::default() };
            return Ok(());
        }
        if selector & 4 != 0 {
            return self.gp(error);
        }
        let mut d = self.descriptor(selector, vector::GP)?;
        if d.is_segment() || d.kind() != kind::LDT {
            return self.gp(error);
        }
        if !d.present() {
            return self.raise(vector::NP, Some(error));
        }
        self.complete(&mut d, selector, vector::GP)?;
        self.ldtr = d.segment(selector);
        Ok(())
    }

    pub(crate) fn load_tr(&mut self, selector: u16) -> R<()> {
        let error = u32::from(selector & !3);
        if selector & !3 == 0 {
            return self.gp(0);
        }
        if selector & 4 != 0 {
            return self.gp(error);
        }
        let mut d = self.descriptor(selector, vector::GP)?;
        let available = matches!((d.kind(), self.long_mode()), (kind::TSS32, _) | (kind::TSS16, false));
        if d.is_segment() || !available {
            return self.gp(error);
        }
        if !d.present() {
            return self.raise(vector::NP, Some(error));
        }
        self.complete(&mut d, selector, vector::GP)?;
        self.set_busy(&mut d, true)?;
        self.tr = d.segment(selector);
        Ok(())
    }

    fn set_busy(&mut self, d: &mut Descriptor, busy: bool) -> R<()> {
        let mask = u64::from(kind::BUSY) << 40;
        d.raw = if busy { d.raw | mask } else { d.raw & !mask };
        self.store_system::<u8>(d.linear.wrapping_add(5), (d.raw >> 40) as u8)
    }

    // ---- task switches (SDM vol. 3 §7.3), not in long mode ---------------------------------------------------

    fn switch_task(&mut self, selector: u16, switch: Switch) -> R<()> {
        let error = u32::from(selector & !3);
        let fault = if switch == Switch::Return { vector::TS } else { vector::GP };
        if selector & 4 != 0 || selector & !3 == 0 {
            return self.raise(fault, Some(error));
        }
        let mut d = self.descriptor(selector, fault)?;
        let base_kind = d.kind() & !kind::BUSY;
        let busy = d.kind() & kind::BUSY != 0;
        if d.is_segment()
            || !(base_kind == kind::TSS32 || base_kind == kind::TSS16)
            || busy != (switch == Switch::Return)
        {
            return self.raise(fault, Some(error));
        }
        if !d.present() {
            return self.raise(vector::NP, Some(error));
        }
        let wide = base_kind == kind::TSS32;
        let next = d.segment(selector);
        if next.limit < if wide { 0x67 } else { 0x2b } {
            return self.raise(vector::TS, Some(error));
        }
        let old = self.tr;
        let mut saved_flags = self.get_rflags();
        if switch == Switch::Return {
            saved_flags &= !rflags::NT;
        }
        self.save_task(&old, saved_flags)?;
        if matches!(switch, Switch::Jump | Switch::Return) {
            let mut d = self.descriptor(old.selector, vector::TS)?;
            self.set_busy(&mut d, false)?;
        }
        if matches!(switch, Switch::Call | Switch::Interrupt) {
            self.store_system(next.base, old.selector)?;
        }
        if switch != Switch::Return {
            self.set_busy(&mut d, true)?;
        }
        self.tr = d.segment(selector);
        self.tr.rights |= kind::BUSY;
        self.cr0 |= cr0::TS;
        self.load_task(next, wide, matches!(switch, Switch::Call | Switch::Interrupt))
    }

    fn save_task(&mut self, tss: &Segment, eflags: u64) -> R<()> {
        // A base from long mode may lie at the end of the address space.
        let at = |offset: u64| tss.base.wrapping_add(offset);
        if tss.rights & 8 != 0 {
            self.store_system(at(0x20), self.rip() as u32)?;
            self.store_system(at(0x24), eflags as u32)?;
            for n in 0..8 {
                self.store_system(at(0x28 + 4 * n), self.regs[n as usize] as u32)?;
            }
            for n in 0..6 {
                self.store_system(at(0x48 + 4 * n), self.segs[n as usize].selector)?;
            }
        } else {
            self.store_system(at(0xe), self.rip() as u16)?;
            self.store_system(at(0x10), eflags as u16)?;
            for n in 0..8 {
                self.store_system(at(0x12 + 2 * n), self.regs[n as usize] as u16)?;
            }
            for n in 0..4 {
                self.store_system(at(0x22 + 2 * n), self.segs[n as usize].selector)?;
            }
        }
        Ok(())
    }

    fn load_task(&mut self, tss: Segment, wide: bool, nested: bool) -> R<()> {
        // A base from long mode may lie at the end of the address space.
        let at = |offset: u64| tss.base.wrapping_add(offset);
        let mut selectors = [0u16; 6];
        let (eip, mut eflags, ldt);
        if wide {
            if self.cr0 & cr0::PG != 0 {
                self.cr3 = self.load_system::<u32>(at(0x1c))?.into();
                self.flush_tlb(false);
            }
            eip = self.load_system::<u32>(at(0x20))?;
            eflags = u64::from(self.load_system::<u32>(at(0x24))?);
            for n in 0..8 {
                self.regs[n as usize] = self.load_system::<u32>(at(0x28 + 4 * n))?.into();
            }
            for n in 0..6 {
                selectors[n as usize] = self.load_system(at(0x48 + 4 * n))?;
            }
            ldt = self.load_system::<u16>(at(0x60))?;
            let trap: u16 = self.load_system(at(0x64))?;
            if trap & 1 != 0 {
                self.breakpoint_hits |= 1 << 15;
            }
        } else {
            eip = self.load_system::<u16>(at(0xe))?.into();
            eflags = u64::from(self.load_system::<u16>(at(0x10))?);
            for n in 0..8 {
                self.regs[n as usize] = u64::from(self.load_system::<u16>(at(0x12 + 2 * n))?) | 0xffff_0000;
            }
            for n in 0..4 {
                selectors[n as usize] = self.load_system(at(0x22 + 2 * n))?;
            }
            ldt = self.load_system::<u16>(at(0x2a))?;
        }
        if nested {
            eflags |= rflags::NT;
        }
        // From here on faults belong to the new task (SDM vol. 3 §7.3).
        self.regs[RIP] = eip.into();
        self.start = eip.into();
        self.set_rflags(eflags, rflags_writable() | rflags::VM);
        self.dr[5] &= !0x155;
        if eflags & rflags::VM != 0 {
            for (index, selector) in selectors.into_iter().enumerate() {
                self.segs[index] =
                    Segment { selector, base: u64::from(selector) << 4, limit: 0xffff, rights: 0xf3 };
            }
            self.update_mode();
            return self.load_ldtr(ldt);
        }
        self.load_ldtr(ldt).inspect_err(|_| {
            if matches!(self.fault.vector, vector::GP | vector::NP) {
                self.fault.vector = vector::TS;
            }
        })?;
        let selector = selectors[seg::CS];
        let cpl = (selector & 3) as u8;
        let code = self.descriptor(selector, vector::TS)?;
        if !code.is_code() {
            return self.raise(vector::TS, Some(u32::from(selector & !3)));
        }
        let cs = self.code_segment(code, selector, cpl, vector::TS)?;
        let ss = self.stack_descriptor(selectors[seg::SS], cpl, vector::TS)?;
        self.segs[seg::SS] = ss;
        self.enter_code(cs, cpl, eip.into());
        for index in [seg::ES, seg::DS, seg::FS, seg::GS] {
            self.load_segment(index, selectors[index]).inspect_err(|_| {
                if self.fault.vector == vector::GP {
                    self.fault.vector = vector::TS;
                }
            })?;
        }
        Ok(())
    }
}

/// Why a task switch happens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Switch {
    Jump,
    Call,
    Interrupt,
    Return,
}

fn inside_stack(ss: &Segment, at: u64, bytes: u64) -> bool {
    let last = at.wrapping_add(bytes - 1);
    if ss.rights & 0xc == 0x4 {
        let top = if ss.big() { 0xffff_ffff } else { 0xffff };
        at > u64::from(ss.limit) && last <= top
    } else {
        last <= u64::from(ss.limit)
    }
}

/// A flat data segment as SYSCALL and relatives load it.
fn flat(selector: u16, dpl: u16, long: bool) -> Segment {
    let size = if long { 1 << 13 } else { 1 << 14 };
    Segment { selector, base: 0, limit: u32::MAX, rights: 0x8093 | dpl << 5 | size }
}

fn flat_code(selector: u16, dpl: u16, long: bool) -> Segment {
    let data = flat(selector, dpl, long);
    Segment { rights: data.rights | right::CODE, ..data }
}

/// RFLAGS bits that software can set at all.
pub(crate) fn rflags_writable() -> u64 {
    rflags::STATUS
        | rflags::TF
        | rflags::IF
        | rflags::DF
        | rflags::IOPL
        | rflags::NT
        | rflags::RF
        | rflags::AC
        | rflags::VIF
        | rflags::VIP
        | rflags::ID
}

// ---- the instructions --------------------------------------------------------------------------------------

/// Far JMP and CALL with the pointer in the instruction: `op.imm` is the offset, `op.disp` the selector,
/// `op.src` the operand size, `op.dst` 1 for CALL.
pub(crate) fn far_direct(cpu: &mut Cpu, op: &Op) -> R<()> {
    cpu.far_transfer(op.disp as u16, op.imm, op.src.into(), op.dst == 1)
}

/// Far JMP and CALL through memory.
pub(crate) fn far_indirect<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let linear = op.linear(cpu, W::BYTES + 2, super::mmu::Want::Read)?;
    let offset = cpu.load::<W>(linear)?.wide();
    let selector: u16 = cpu.load(linear.wrapping_add(W::BYTES))?;
    cpu.far_transfer(selector, offset, W::BYTES, op.dst == 1)
}

/// RETF: `op.imm` extra bytes, `op.src` the operand size.
pub(crate) fn far_return(cpu: &mut Cpu, op: &Op) -> R<()> {
    cpu.far_return(op.src.into(), op.imm)
}

pub(crate) fn iret(cpu: &mut Cpu, op: &Op) -> R<()> {
    cpu.iret(op.src.into())
}

/// INT n, INT3 and INTO: `op.imm` is the vector.
pub(crate) fn int(cpu: &mut Cpu, op: &Op) -> R<()> {
    let vector = op.imm as u8;
    if cpu.v86() && cpu.iopl() < 3 && op.dst == 0 {
        return cpu.gp(0);
    }
    if op.dst == 2 && cpu.flags & super::flags::bit::OF == 0 {
        return Ok(());
    }
    let (start, sp, task) = (cpu.start, cpu.rsp(), cpu.tr.selector);
    cpu.rflags &= !rflags::RF;
    let done = cpu.deliver(vector, None, Origin::Software);
    cpu.trap_late();
    if done.is_err() && cpu.tr.selector == task {
        cpu.regs[RIP] = start;
        cpu.regs[gpr::RSP] = sp;
    }
    done
}

/// INT1 is a hardware-like trap.
pub(crate) fn int1(cpu: &mut Cpu, _: &Op) -> R<()> {
    cpu.fault = Exception { vector: vector::DB, error: None, address: 0 };
    if cpu.breakpoint_hits != 0 {
        // What the MOV SS before met is part of this exception.
        let hits = std::mem::take(&mut cpu.breakpoint_hits);
        cpu.set_debug_status(hits);
    }
    cpu.deliver(vector::DB, None, Origin::Hardware)?;
    cpu.trap_late();
    Ok(())
}

pub(crate) fn syscall(cpu: &mut Cpu, _: &Op) -> R<()> {
    cpu.syscall()
}
pub(crate) fn sysret(cpu: &mut Cpu, op: &Op) -> R<()> {
    cpu.sysret(op.src.into())
}
pub(crate) fn sysenter(cpu: &mut Cpu, _: &Op) -> R<()> {
    // AMD's processors refuse it in long mode; a guest that was on one of Intel's before knows it there.
    if cpu.long_mode() && !cpu.shared.is_intel() {
        return cpu.ud();
    }
    cpu.sysenter()
}
pub(crate) fn sysexit(cpu: &mut Cpu, op: &Op) -> R<()> {
    if cpu.long_mode() && !cpu.shared.is_intel() {
        return cpu.ud();
    }
    cpu.sysexit(op.src.into())
}

/// LDS, LES, LFS, LGS, LSS: `op.src` is the segment.
pub(crate) fn load_far_pointer<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let linear = op.linear(cpu, W::BYTES + 2, super::mmu::Want::Read)?;
    let offset: W = cpu.load(linear)?;
    let selector: u16 = cpu.load(linear.wrapping_add(W::BYTES))?;
    cpu.load_segment(op.src.into(), selector)?;
    cpu.set_reg(op.dst, offset);
    Ok(())
}
