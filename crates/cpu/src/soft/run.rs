//! The loop of one software vCPU: blocks, interrupts, exceptions, single steps.
#![allow(unsafe_code)]

use super::block::Blocks;
use super::check::Checker;
use super::cpu::{CodeWrite, Cpu, Exception, Mode, Msrs, R, RIP, Trap};
use super::fpu::FpuState;
use super::mmu::Tlb;
use super::perf::PerfMap;
use super::stats::{Events, ShownStats, Translated};
use super::transfer::Origin;
use super::translate::{CpuBox, Frame, KeptCode, KeptMark, Leave, Translator, TranslatorStats};
use super::{Attention, Shared};
use crate::{CpuBus, CpuError, CpuEvent, Exit, Kick, Vcpu};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use viv_arch::x86::{Activity, CpuState, PendingEvent, Segment, TableRegister, rflags, seg, vector};

/// A virtual processor in software.
pub struct SoftCpu {
    pub(crate) cpu: CpuBox,
    pub(super) blocks: Blocks,
    pub(super) translator: Option<Translator>,
    /// Does again what translated code did.
    pub(super) checker: Option<Box<Checker>>,
    shown: Arc<ShownStats>,
    /// An event of the loaded state that is still to be delivered.
    pending: Option<PendingEvent>,
}

// SAFETY: the bus pointer is only set inside `run`, which the borrow of the bus outlives; everything else is owned.
unsafe impl Send for SoftCpu {}

impl SoftCpu {
    /// vCPU `index` of the machine. vCPU 0 is in its reset state, the others wait for a start-up IPI.
    pub fn new(index: u32, shared: Arc<Shared>) -> SoftCpu {
        let make = |tlb, targets| Cpu {
            regs: [0; 18],
            flags: 0,
            native: Frame::new(shared.attention(index).word(), shared.memory.code().versions()),
            stop: false,
            interrupt_waits: false,
            shadow: false,
            stack_shadow: false,
            late_trap: false,
            mode: Mode::Code16,
            code_base: 0,
            cpl: 0,
            mmu: Tlb::SUPERVISOR_ANY,
            rflags: rflags::FIXED,
            start: 0,
            segs: [Segment::default(); 6],
            fault: Exception { vector: 0, error: None, address: 0 },
            fpu: FpuState::new(),
            fpu_memory: Box::new([0; 512]),
            ldtr: Segment::default(),
            tr: Segment::default(),
            gdtr: TableRegister::default(),
            idtr: TableRegister::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            efer: 0,
            dr: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
            breakpoint_hits: 0,
            xcr0: 1,
            msrs: Msrs::default(),
            activity: Activity::Running,
            nmi_masked: false,
            nmi_waits: false,
            loaded_rf: false,
            wrote_code: Vec::new(),
            failed: None,
            index,
            shared,
            bus: None,
            flush_jumps: super::block::JumpFlush::All,
            instructions: 0,
            events: Events::default(),
            pauses: 0,
            tlb,
            journal: None,
            targets,
        };
        let mut soft = SoftCpu {
            cpu: CpuBox::new(make),
            blocks: Blocks::new(),
            translator: Translator::new(),
            checker: None,
            shown: Arc::default(),
            pending: None,
        };
        soft.reset();
        if index != 0 {
            soft.cpu.activity = Activity::WaitForSipi;
        }
        soft
    }

    fn reset(&mut self) {
        // The reset state is one that this processor can take.
        let _ = self.load(&CpuState::default());
    }

    /// Instructions executed, and instructions decoded, since the start.
    pub fn counts(&self) -> (u64, u64) {
        (self.cpu.instructions, self.blocks.decoded)
    }

    /// Executes one instruction and nothing else: no interrupt, no delivery of its exception. For tests that hold the
    /// processor against another one.
    pub fn step(&mut self, bus: &dyn CpuBus) -> Result<(), Exception> {
        self.enter(bus);
        let cpu = &mut *self.cpu;
        let done = self.blocks.find(cpu).and_then(|block| {
            // SAFETY: `find` keeps the block until it is called again.
            let block = unsafe { &*block };
            block.first().map_or(Ok(()), |ops| cpu.execute(ops))
        });
        self.finish_code_write();
        self.leave();
        done.map_err(|_| self.cpu.fault)
    }

    /// As [`SoftCpu::step`], by a translation of at most so many instructions, if they can be translated. They may leave
    /// the rest to further calls.
    pub fn step_translated(&mut self, bus: &dyn CpuBus, longest: usize) -> Result<(), Exception> {
        let Some(translator) = &mut self.translator else { return self.step(bus) };
        translator.translate_at_once(longest);
        self.enter(bus);
        // Only attention from outside would make it leave early.
        self.cpu.shared.attention(self.cpu.index).take();
        let done = self.step_by_translation();
        self.finish_code_write();
        self.leave();
        done.map_err(|_| self.cpu.fault)
    }

    fn step_by_translation(&mut self) -> R<()> {
        let mut code = self.taken();
        let cpu = &mut *self.cpu;
        if code.is_none() {
            let block = self.blocks.find(cpu)?;
            // SAFETY: `find` keeps the block until it is called again.
            let block = unsafe { &*block };
            let Some(translator) = &mut self.translator else { return Ok(()) };
            code = cpu.context().and_then(|context| translator.for_block(cpu, &self.blocks, block, context));
        }
        while let Some(entry) = code {
            let Some(translator) = &mut self.translator else { return Ok(()) };
            match translator.enter(&mut self.cpu, entry) {
                Leave::Interpret => break,
                Leave::Fault => return Err(Trap),
                Leave::Single => code = self.single(),
                _ => return Ok(()),
            }
        }
        let cpu = &mut *self.cpu;
        let block = self.blocks.find(cpu)?;
        // SAFETY: as above.
        unsafe { &*block }.first().map_or(Ok(()), |ops| cpu.execute(ops))
    }

    fn enter(&mut self, bus: &dyn CpuBus) {
        let bus = NonNull::from(bus);
        // SAFETY: only the lifetime changes; `leave` forgets the pointer before the borrow ends.
        self.cpu.bus =
            Some(unsafe { std::mem::transmute::<NonNull<dyn CpuBus + '_>, NonNull<dyn CpuBus>>(bus) });
        self.cpu.shared.attention(self.cpu.index).running.store(true, Ordering::SeqCst);
        self.cpu.answer_flush();
        if std::mem::take(&mut self.cpu.msrs.renew_system_time) {
            self.cpu.write_system_time();
        }
    }

    fn leave(&mut self) {
        self.cpu.bus = None;
        let slot = self.cpu.shared.attention(self.cpu.index).clone();
        slot.running.store(false, Ordering::SeqCst);
    }

    /// A write into what may be decoded code took effect: whoever decoded the old bytes meanwhile is stale too.
    pub(super) fn finish_code_write(&mut self) {
        let Cpu { wrote_code, shared, .. } = &mut *self.cpu;
        if wrote_code.is_empty() {
            return;
        }
        // Whoever marks code reads its bytes behind that: either we see the mark, or they see our bytes.
        fence(Ordering::SeqCst);
        let code = shared.memory.code();
        for CodeWrite { page, offset, len } in wrote_code.drain(..) {
            if code.touches(page, offset, len) {
                code.invalidate(page);
            }
        }
    }

    /// Like [`Vcpu::run`], but interpreted, and also comes back, as [`Exit::Kicked`], after so many blocks and exceptions: for tests
    /// that must end, whatever the guest does, and always at the same place.
    pub fn run_for(&mut self, bus: &dyn CpuBus, rounds: u64) -> Exit {
        self.enter(bus);
        let exit = self.execute::<true>(rounds);
        self.leave();
        exit
    }

    fn execute<const LIMITED: bool>(&mut self, rounds: u64) -> Exit {
        let slot = self.cpu.shared.attention(self.cpu.index).clone();
        slot.set(Attention::POKE);
        if !self.resume_events(&slot) {
            return self.shut_down();
        }
        let mut left = rounds;
        loop {
            if LIMITED {
                if left == 0 {
                    return Exit::Kicked;
                }
                left -= 1;
            }
            if slot.any()
                && let Some(exit) = self.attend(&slot)
            {
                return exit;
            }
            let cpu = &mut *self.cpu;
            if cpu.shadow || cpu.rflags & (rflags::TF | rflags::RF) != 0 || cpu.dr[5] & 0xff != 0 {
                if let Some(exit) = self.careful_step() {
                    return exit;
                }
                continue;
            }
            // Translated code counts no rounds: what must end at a certain place is interpreted.
            let exit = match if LIMITED { None } else { self.translation() } {
                Some(code) => self.run_translated(code),
                None => self.run_block::<LIMITED>(),
            };
            if let Some(exit) = exit {
                return exit;
            }
        }
    }

    /// Events that the loaded state left to be done. False: triple fault.
    fn resume_events(&mut self, slot: &Attention) -> bool {
        let cpu = &mut self.cpu;
        if cpu.nmi_waits && !cpu.nmi_masked {
            cpu.nmi_waits = false;
            slot.set(Attention::NMI);
        }
        let Some(event) = self.pending.take() else { return true };
        let PendingEvent { vector, error_code: error, payload } = event;
        cpu.activity = Activity::Running;
        match vector {
            vector::DB => {
                if let Some(bits) = payload {
                    cpu.set_debug_status(bits);
                }
            }
            vector::NMI => cpu.nmi_masked = true,
            32.. => return self.raise_interrupt(vector),
            _ => {}
        }
        let address = payload.unwrap_or(cpu.cr2);
        self.raise(Exception { vector, error, address })
    }

    /// Translated code for RIP that is at hand.
    #[inline(always)]
    fn translation(&mut self) -> Option<u64> {
        let context = self.cpu.context()?;
        self.translator.as_mut()?.at_hand(&mut self.cpu, context)
    }

    /// One block by the interpreter; or, if it is hot, its translation.
    fn run_block<const INTERPRETED: bool>(&mut self) -> Option<Exit> {
        let block = match self.blocks.known(&mut self.cpu) {
            Ok(Some(block)) => Ok(block),
            Ok(None) => match if INTERPRETED { None } else { self.taken() } {
                Some(code) => return self.run_translated(code),
                None => self.blocks.decode(&mut self.cpu),
            },
            Err(trap) => Err(trap),
        };
        let cpu = &mut *self.cpu;
        let done = match block {
            Ok(block) => {
                // SAFETY: `blocks` keeps it until it is called again.
                let block = unsafe { &*block };
                if !INTERPRETED
                    && let Some(translator) = &mut self.translator
                    && let Some(context) = cpu.context()
                    && let Some(code) = translator.for_block(cpu, &self.blocks, block, context)
                {
                    return self.run_translated(code);
                }
                cpu.execute(&block.ops)
            }
            Err(trap) => {
                cpu.start = cpu.rip();
                Err(trap)
            }
        };
        self.after(done.is_err())
    }

    /// Code for RIP that was translated in another process: it need not be decoded.
    fn taken(&mut self) -> Option<u64> {
        let translator = self.translator.as_mut().filter(|translator| translator.has_taken())?;
        let rip = self.cpu.rip();
        translator.seek(&mut self.cpu, rip)
    }

    fn run_translated(&mut self, mut code: u64) -> Option<Exit> {
        let mut resumed = false;
        loop {
            let leave = match self.checker {
                None => self.translator.as_mut()?.enter(&mut self.cpu, code),
                Some(_) => self.enter_checked(code, resumed)?,
            };
            match leave {
                Leave::Dispatch => return None,
                Leave::Link => {
                    self.link();
                    return None;
                }
                Leave::Interpret => return self.run_one(),
                Leave::Fault => return self.after(true),
                Leave::Stop => return self.after(false),
                Leave::Stale => {
                    let (mmu, rip) = (self.cpu.mmu, self.cpu.rip());
                    self.cpu.targets.remove(mmu, rip);
                    return None;
                }
                Leave::Single => (code, resumed) = (self.single()?, true),
            }
        }
    }

    /// One instruction by the interpreter.
    fn run_one(&mut self) -> Option<Exit> {
        let cpu = &mut *self.cpu;
        let done = match self.blocks.find(cpu) {
            // SAFETY: `find` keeps the block until it is called again.
            Ok(block) => unsafe { &*block }.first().map_or(Ok(()), |ops| cpu.execute(ops)),
            Err(trap) => {
                cpu.start = cpu.rip();
                Err(trap)
            }
        };
        self.after(done.is_err())
    }

    /// Lets the jump that just left lead to the translation of its target, if there is one.
    fn link(&mut self) {
        let cpu = &mut *self.cpu;
        let Some(context) = cpu.context() else { return };
        let Some(translator) = &mut self.translator else { return };
        let generation = translator.generation;
        let Ok(block) = self.blocks.find(cpu) else { return };
        // SAFETY: `find` keeps the block until it is called again.
        let block = unsafe { &*block };
        if translator.for_block(cpu, &self.blocks, block, context).is_some() {
            translator.link(cpu, block, context, generation);
        }
    }

    /// Code for RIP that looks up each access.
    fn single(&mut self) -> Option<u64> {
        let cpu = &mut *self.cpu;
        let context = cpu.context()?;
        let translator = self.translator.as_mut()?;
        let block = self.blocks.find(cpu).ok()?;
        // SAFETY: `find` keeps the block until it is called again.
        translator.single(cpu, &self.blocks, unsafe { &*block }, context)
    }

    /// Translates a block after so many runs by the interpreter; 0: at once. `None`: never, the interpreter does all.
    pub fn translate_after(&mut self, runs: Option<u32>) {
        match runs {
            None => {
                self.translator = None;
                self.cpu.targets.flush();
            }
            Some(runs) => {
                if let Some(translator) = &mut self.translator {
                    translator.set_hot(runs);
                }
            }
        }
    }

    /// Takes what [`Vcpu::translated`] gave, before anything is translated here: each page of it is used if the guest
    /// has the same code there when it gets there. False, and nothing is taken: this is another build, or another processor.
    ///
    /// The bytes are executed: they must come from whom we trust as ourselves.
    pub fn take_translated(&mut self, code: &Arc<KeptCode>) -> bool {
        // What is checked is translated here.
        if self.checker.is_some() {
            return false;
        }
        self.translator.as_mut().is_some_and(|translator| translator.take(code))
    }

    /// What the translator did so far.
    pub fn translator_stats(&self) -> Option<TranslatorStats> {
        self.translator.as_ref().map(|translator| translator.stats)
    }

    /// Where it shows its [`SoftCpu::stats`] while it runs.
    pub fn shown_stats(&self) -> Arc<ShownStats> {
        self.shown.clone()
    }

    /// Translated code counts its instructions and blocks from now on. That takes time, more where instructions are short.
    pub fn count_translated(&mut self) {
        if let Some(translator) = &mut self.translator {
            translator.count(&mut self.cpu);
        }
    }

    /// What translated code has counted; `None`: it does not count.
    pub(super) fn counted(&self) -> Option<Translated> {
        self.translator.as_ref().filter(|translator| translator.counts()).map(|_| self.cpu.native.counted)
    }

    /// Names what is translated from now on in `map`.
    pub fn map_translated(&mut self, map: Arc<PerfMap>) {
        if let Some(translator) = &mut self.translator {
            translator.map_to(map);
        }
    }

    /// What a block or a step left behind: faults, code writes, halts.
    #[inline(always)]
    fn after(&mut self, faulted: bool) -> Option<Exit> {
        if !faulted && !self.cpu.stop {
            return None;
        }
        self.after_slow(faulted)
    }

    #[inline(never)]
    fn after_slow(&mut self, faulted: bool) -> Option<Exit> {
        self.finish_code_write();
        if let Some(reason) = self.cpu.failed.take() {
            return Some(Exit::Failed(reason));
        }
        if faulted {
            self.cpu.breakpoint_hits = 0;
            let fault = self.cpu.fault;
            // Faults restart their instruction: RF keeps its breakpoint from hitting twice. Traps do not.
            if fault.vector != vector::DB {
                self.cpu.rflags |= rflags::RF;
            }
            if !self.raise(fault) {
                return Some(self.shut_down());
            }
        } else if self.cpu.breakpoint_hits != 0 && !self.cpu.stack_shadow {
            let hits = std::mem::take(&mut self.cpu.breakpoint_hits);
            if !self.debug_trap(hits) {
                return Some(self.shut_down());
            }
        }
        match self.cpu.activity {
            Activity::Running => None,
            Activity::Shutdown => Some(Exit::Shutdown),
            _ => {
                // An interrupt that came meanwhile is taken before the wait.
                self.cpu.look_again();
                None
            }
        }
    }

    fn shut_down(&mut self) -> Exit {
        self.cpu.activity = Activity::Shutdown;
        Exit::Shutdown
    }

    /// One instruction with everything that may happen around it: interrupt shadow, RF, TF, code breakpoints.
    fn careful_step(&mut self) -> Option<Exit> {
        let cpu = &mut *self.cpu;
        let shadow = std::mem::take(&mut cpu.shadow);
        let stack_shadow = std::mem::take(&mut cpu.stack_shadow);
        cpu.late_trap = false;
        cpu.loaded_rf = false;
        let trap = cpu.rflags & rflags::TF != 0;
        let resume = cpu.rflags & rflags::RF != 0;
        if !resume && !stack_shadow {
            let hits = code_breakpoints(cpu);
            if hits != 0 {
                // The handler sets RF itself, or meets the breakpoint again (APM vol. 2 §13.1.3.1).
                cpu.set_debug_status(hits);
                let fault = Exception { vector: vector::DB, error: None, address: 0 };
                return if self.raise(fault) { None } else { Some(self.shut_down()) };
            }
        }
        let rip = cpu.rip();
        let done = match self.blocks.find(cpu) {
            Ok(block) => {
                // SAFETY: `find` keeps the block until it is called again.
                let block = unsafe { &*block };
                cpu.execute(&block.ops[..block.ops.len().min(1)])
            }
            Err(trap) => {
                cpu.start = rip;
                Err(trap)
            }
        };
        if done.is_err() {
            return self.after(true);
        }
        if resume && !cpu.rf_loaded() {
            cpu.rflags &= !rflags::RF;
        }
        // TF is looked at before the instruction; a repeated string instruction traps after each element.
        if trap && !cpu.late_trap && !cpu.stack_shadow {
            cpu.breakpoint_hits |= 1 << 14;
        }
        cpu.stop = true;
        let exit = self.after(false);
        if exit.is_none() && self.cpu.shadow {
            return None;
        }
        if shadow {
            self.cpu.look_again();
        }
        exit
    }

    /// #DB after an instruction: `hits` are DR6 bits.
    fn debug_trap(&mut self, hits: u64) -> bool {
        // A trap after HLT ends the wait.
        self.cpu.activity = Activity::Running;
        self.cpu.set_debug_status(hits);
        self.raise(Exception { vector: vector::DB, error: None, address: 0 })
    }

    /// Interrupts, events, kicks and flushes.
    #[inline(never)]
    fn attend(&mut self, slot: &Attention) -> Option<Exit> {
        let bits = slot.take();
        self.shown.try_set(self.stats());
        self.cpu.answer_flush();
        // An interrupt shadow holds NMIs back as well (APM vol. 2 §15.21.5); they are looked at again behind it.
        if self.cpu.shadow {
            slot.set(bits & (Attention::NMI | Attention::POKE));
        }
        let bits = if self.cpu.shadow { bits & Attention::KICK } else { bits };
        if bits & Attention::NMI != 0 {
            self.event(CpuEvent::Nmi);
        }
        if bits & Attention::POKE != 0 {
            while let Some(event) = self.cpu.bus().take_event() {
                self.event(event);
            }
            let cpu = &mut *self.cpu;
            if cpu.activity != Activity::WaitForSipi && !cpu.shadow && cpu.activity != Activity::Shutdown {
                if cpu.rflags & rflags::IF == 0 {
                    cpu.interrupt_waits = cpu.bus().interrupt_pending();
                } else if let Some(vector) = cpu.bus().acknowledge_interrupt() {
                    cpu.activity = Activity::Running;
                    // Another may wait behind it.
                    cpu.interrupt_waits = true;
                    if !self.raise_interrupt(vector) {
                        return Some(self.shut_down());
                    }
                } else {
                    cpu.interrupt_waits = false;
                }
            } else if cpu.shadow {
                cpu.interrupt_waits = true;
            }
        }
        if bits & Attention::KICK != 0 {
            return Some(Exit::Kicked);
        }
        match self.cpu.activity {
            Activity::Running => None,
            Activity::Shutdown => Some(Exit::Shutdown),
            Activity::Halted | Activity::WaitForSipi => Some(Exit::Halted),
        }
    }

    fn event(&mut self, event: CpuEvent) {
        match event {
            CpuEvent::Nmi => {
                if self.cpu.activity == Activity::WaitForSipi {
                    return;
                }
                self.cpu.activity = Activity::Running;
                if self.cpu.nmi_masked {
                    self.cpu.nmi_waits = true;
                    return;
                }
                self.cpu.nmi_masked = true;
                if !self.raise(Exception { vector: vector::NMI, error: None, address: 0 }) {
                    self.shut_down();
                }
            }
            CpuEvent::Init => {
                // INIT keeps the FPU and most MSRs (SDM vol. 3 table 9-1).
                let fpu = self.cpu.fpu.clone();
                let msrs = self.cpu.msrs.clone();
                self.reset();
                self.cpu.fpu = fpu;
                self.cpu.msrs = msrs;
                self.cpu.activity = Activity::WaitForSipi;
            }
            CpuEvent::Sipi(page) => {
                if self.cpu.activity == Activity::WaitForSipi {
                    let cs = &mut self.cpu.segs[seg::CS];
                    cs.selector = u16::from(page) << 8;
                    cs.base = u64::from(page) << 12;
                    self.cpu.regs[RIP] = 0;
                    self.cpu.activity = Activity::Running;
                    self.cpu.update_mode();
                }
            }
        }
    }

    fn raise_interrupt(&mut self, vector: u8) -> bool {
        self.cpu.events.interrupts += 1;
        self.raise_as(Exception { vector, error: None, address: 0 }, Class::Benign)
    }

    /// Delivers an exception or interrupt with its follow-ups (SDM vol. 3 table 6-5). False: triple fault.
    ///
    /// A benign fault of the delivery itself (#AC for a misaligned stack of CPL 3) meets itself again and again. Real
    /// processors hang in that; here the guest goes back to the instruction, where a kick or an interrupt finds it.
    fn raise(&mut self, exception: Exception) -> bool {
        self.cpu.events.exceptions += 1;
        self.raise_as(exception, class(exception.vector))
    }

    /// The same for an event whose class its vector does not say: interrupts are benign.
    fn raise_as(&mut self, first: Exception, class: Class) -> bool {
        let (mut current, mut class) = (first, class);
        for _ in 0..DELIVERIES_MAX {
            let cpu = &mut *self.cpu;
            if current.vector == vector::PF && class != Class::Benign {
                cpu.cr2 = current.address;
            }
            let (rip, rsp) = (cpu.rip(), cpu.rsp());
            let (segs, flags, task) = (cpu.segs, cpu.rflags, cpu.tr.selector);
            let delivered = cpu.deliver(current.vector, current.error, Origin::Hardware).is_ok();
            self.finish_code_write();
            if delivered {
                return true;
            }
            let cpu = &mut *self.cpu;
            if cpu.tr.selector == task {
                cpu.regs[RIP] = rip;
                cpu.regs[viv_arch::x86::gpr::RSP] = rsp;
                cpu.segs = segs;
                cpu.rflags = flags;
            }
            cpu.update_mode();
            let second = cpu.fault;
            let second_class = self::class(second.vector);
            if class == Class::DoubleFault {
                return second_class == Class::Benign && self.raise_benign(second);
            }
            let doubles = match class {
                Class::Contributory => second_class == Class::Contributory,
                Class::PageFault => second_class != Class::Benign,
                _ => false,
            };
            (current, class) = if doubles {
                if second.vector == vector::PF {
                    self.cpu.cr2 = second.address;
                }
                (Exception { vector: vector::DF, error: Some(0), address: 0 }, Class::DoubleFault)
            } else {
                (second, second_class)
            };
        }
        true
    }

    fn raise_benign(&mut self, exception: Exception) -> bool {
        self.cpu.deliver(exception.vector, exception.error, Origin::Hardware).is_ok()
    }
}

/// Faults in faults that are followed at once; contributory ones and page faults end in a triple fault sooner.
const DELIVERIES_MAX: usize = 8;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

fn class(event: u8) -> Class {
    match event {
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Class::Contributory,
        vector::PF => Class::PageFault,
        vector::DF => Class::DoubleFault,
        _ => Class::Benign,
    }
}

/// DR6 bits of the code breakpoints at RIP.
fn code_breakpoints(cpu: &Cpu) -> u64 {
    let linear =
        if cpu.code64() { cpu.rip() } else { cpu.segs[seg::CS].base.wrapping_add(cpu.rip()) & 0xffff_ffff };
    (0..4)
        .filter(|n| cpu.breakpoint(*n).is_some_and(|(at, _, kind)| kind == 0 && at == linear))
        .fold(0, |hits, n| hits | 1 << n)
}

impl Vcpu for SoftCpu {
    fn run(&mut self, bus: &dyn CpuBus) -> Exit {
        self.enter(bus);
        let exit = self.execute::<false>(0);
        self.leave();
        self.cpu.events.halts += u64::from(exit == Exit::Halted);
        self.shown.set(self.stats());
        exit
    }

    fn save(&self) -> Result<CpuState, CpuError> {
        let state = super::state::save(&self.cpu);
        Ok(CpuState { pending: self.pending.or(state.pending), ..state })
    }

    fn load(&mut self, state: &CpuState) -> Result<(), CpuError> {
        super::state::load(&mut self.cpu, state)?;
        self.pending = state.pending.filter(|_| !super::state::held_back(state));
        Ok(())
    }

    /// All that was translated and is not stale; `None`: nothing, about as much as is `known`, or too much to be carried.
    fn translated(&self, known: Option<&KeptMark>) -> Option<Vec<u8>> {
        let translator = self.translator.as_ref()?;
        if known.is_some_and(|known| translator.is_about(known)) {
            return None;
        }
        translator.kept(&self.cpu.shared.memory)
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.cpu.shared.attention(self.cpu.index).clone()
    }
}
