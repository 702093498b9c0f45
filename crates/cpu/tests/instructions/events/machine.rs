//! The machine that the loops run on: long mode with handlers for every vector, and a board that hears of each event.
//!
//! A handler saves everything, tells the board, does what that has written into the mailbox (an entry of a page table, what to
//! flush), and returns. So the guest itself changes its page tables, and the board decides how.

use crate::soft::Tier;
use crate::window::{CODE, DATA};
use iced_x86::code_asm::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use viv_arch::x86::{CpuState, Segment, TableRegister, cr0, cr4, efer, gpr, rflags};
use viv_cpu::soft::{Shared, SoftCpu};
use viv_cpu::{CpuBus, CpuEvent, Exit, Kick, Vcpu};
use viv_mem::{Gpa, GuestMemory};

pub(super) const PRESENT: u64 = 1;
pub(super) const WRITE: u64 = 2;
pub(super) const USER: u64 = 4;
pub(super) const NO_EXECUTE: u64 = 1 << 63;

const PML4: u64 = 0x1000;
/// Page tables of the first and the second 2 MiB. The second is where the loops live.
const LOW: u64 = 0x4000;
pub(super) const TABLE: u64 = 0x5000;
const GDT: u64 = 0x6000;
const TSS: u64 = 0x6800;
const IDT: u64 = 0x7000;
const STUBS: u64 = 0x8000;
const HANDLER: u64 = 0x9000;
const STACK_TOP: u64 = 0xb000;
const FX: u64 = 0xc000;
const MAILBOX: u64 = 0xc800;

/// Two pages of code.
pub(super) const CODE_PAGES: u64 = 2;
/// Pages of data, the third read-only at first.
pub(super) const DATA_PAGES: u64 = 3;
/// The loop's own page: its counter, what it puts into the units.
pub(super) const CONTROL: u64 = 0x31_0000;
pub(super) const COUNTER: u64 = CONTROL;
pub(super) const DEFAULT_MXCSR: u64 = CONTROL + 8;
/// What pieces of code may become; data that nobody looks at.
pub(super) const VARIANTS: u64 = CONTROL + 0x100;
pub(super) const SPARE: u64 = CONTROL + 0x800;
/// Where the other processor's program is: 16 bytes from RSI to RDI.
const OTHER: u64 = 0xd000;
#[rustfmt::skip]
const COPY: [u8; 15] = [
    0x48, 0x8b, 0x06, 0x48, 0x8b, 0x56, 0x08, // mov rax, [rsi]; mov rdx, [rsi+8]
    0x48, 0x89, 0x07, 0x48, 0x89, 0x57, 0x08, // mov [rdi], rax; mov [rdi+8], rdx
    0xf4, //                                      hlt
];
/// A linear address of a device.
pub(super) const DEVICE: u64 = 0x3f_0000;
const DEVICE_GPA: u64 = 0xd000_0000;
/// The code pages once more, writable.
pub(super) const ALIAS: u64 = 0x32_0000;

/// Vectors of the program's own calls.
pub(super) const END: u8 = 0x40;
pub(super) const ASK: u8 = 0x41;
const INTERRUPT: u8 = 0x50;

const PORT: u16 = 0xe0;
/// Loops that go wrong must end, too.
const EVENTS_MAX: usize = 400;

/// The entry of the page table that maps a page of the loops.
pub(super) fn entry_of(linear: u64) -> u64 {
    TABLE + 8 * (linear >> 12 & 511)
}

/// What a handler found.
#[derive(Clone)]
pub(super) struct Event {
    pub(super) vector: u64,
    pub(super) error: u64,
    pub(super) cr2: u64,
    pub(super) rip: u64,
    pub(super) state: u64,
    pub(super) gprs: [u64; 16],
    pub(super) rflags: u64,
}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "vector {:x} error {:x} rip {:x} cr2 {:x}", self.vector, self.error, self.rip, self.cr2)
    }
}

impl Event {
    pub(super) fn difference(&self, other: &Event) -> Option<String> {
        let what = |event: &Event| (event.vector, event.error, event.rip, event.cr2);
        if what(self) != what(other) {
            return Some(format!("not {other:x?}"));
        }
        if self.gprs != other.gprs {
            return Some(format!("registers {:x?}, {:x?}", self.gprs, other.gprs));
        }
        if self.rflags != other.rflags {
            return Some(format!("flags {:x}, {:x}", self.rflags, other.rflags));
        }
        (self.state != other.state).then(|| "units or memory".to_string())
    }
}

/// A store into a page table, and what is flushed behind it.
#[derive(Clone, Copy)]
pub(super) struct Mapping {
    pub(super) entry: u64,
    pub(super) value: u64,
    pub(super) flush: Flush,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Flush {
    Nothing,
    Page(u64),
    All,
}

/// What a handler does behind an event.
pub(super) enum Then {
    Resume(Option<Mapping>),
    GoTo(u64),
    Halt,
}

/// Decides on an event, and on interrupts after a question to the bus.
pub(super) trait Script: Send {
    fn event(&mut self, event: &Event, memory: &GuestMemory) -> Then;
    /// Whether an interrupt comes now, that the bus was asked something.
    fn interrupts(&mut self) -> bool {
        false
    }
}

/// What the guest sees.
pub(super) struct Board {
    memory: GuestMemory,
    inner: Mutex<Inner>,
    pub(super) pending: AtomicBool,
    pub(super) done: AtomicBool,
    pub(super) taken: AtomicU64,
    pub(super) kick: Arc<dyn Kick>,
}

struct Inner {
    script: Box<dyn Script>,
    events: Vec<Event>,
    interrupted: Vec<Event>,
    calls: u64,
}

impl Board {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An interrupt comes.
    pub(super) fn interrupt(&self) {
        self.pending.store(true, Ordering::SeqCst);
        self.kick.poke();
    }

    /// A question with what was said: the answer is a number that depends on all questions before.
    fn call(&self, words: [u64; 3]) -> u64 {
        let mut inner = self.inner();
        for word in words {
            inner.calls = fold(inner.calls, word);
        }
        let answer = inner.calls;
        if inner.script.interrupts() {
            drop(inner);
            self.interrupt();
        }
        answer
    }

    /// A handler has saved its state at `frame`.
    fn hear(&self, frame: u64) {
        let word =
            |at: u64| u64::from_le_bytes(self.memory.read_array(Gpa(at)).expect("the stack is in RAM"));
        let put = |at: u64, value: u64| {
            self.memory.write(Gpa(at), &value.to_le_bytes()).expect("the handlers' pages are in RAM");
        };
        let mut gprs: [u64; 16] = std::array::from_fn(|n| word(frame + 8 * n as u64));
        // In place of RSP the handler has pushed its own.
        let tail = frame + 128;
        gprs[gpr::RSP] = word(tail + 40);
        let fx: [u8; 512] = self.memory.read_array(Gpa(FX)).expect("the save area is in RAM");
        let vector = word(tail);
        let event = Event {
            vector,
            error: word(tail + 8),
            cr2: if vector == 14 { word(MAILBOX) } else { 0 },
            rip: word(tail + 16),
            rflags: word(tail + 32) & !rflags::RF,
            state: fold(units(&fx), contents(&self.memory)),
            gprs,
        };
        let mut inner = self.inner();
        let then = if vector == INTERRUPT.into() {
            inner.interrupted.push(event);
            Then::Resume(None)
        } else {
            inner.events.push(event.clone());
            let full = inner.events.len() >= EVENTS_MAX;
            if full { Then::Halt } else { inner.script.event(&event, &self.memory) }
        };
        drop(inner);
        let mapping = match then {
            Then::Resume(mapping) => mapping,
            Then::GoTo(rip) => {
                put(tail + 16, rip);
                None
            }
            Then::Halt => {
                self.done.store(true, Ordering::SeqCst);
                None
            }
        };
        put(MAILBOX + 8, mapping.map_or(0, |mapping| mapping.entry));
        put(MAILBOX + 16, mapping.map_or(0, |mapping| mapping.value));
        let (kind, address) = match mapping.map_or(Flush::Nothing, |mapping| mapping.flush) {
            Flush::Nothing => (0, 0),
            Flush::Page(address) => (1, address),
            Flush::All => (2, 0),
        };
        put(MAILBOX + 24, kind);
        put(MAILBOX + 32, address);
        put(MAILBOX + 40, u64::from(self.done.load(Ordering::SeqCst)));
    }
}

/// Mixes a word into a sum.
pub(super) fn fold(sum: u64, word: u64) -> u64 {
    let x = (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ x >> 29
}

fn sum(bytes: &[u8]) -> u64 {
    // Four sums side by side are fast.
    let mut sums = [1u64, 2, 3, 4];
    for chunk in bytes.chunks_exact(32) {
        for (sum, word) in sums.iter_mut().zip(chunk.chunks_exact(8)) {
            *sum = fold(*sum, word.try_into().map_or(0, u64::from_le_bytes));
        }
    }
    sums.into_iter().fold(0, fold)
}

/// Sum of the FXSAVE image, without pointers and what is no state.
pub(super) fn units(fx: &[u8]) -> u64 {
    let mut image = [0u8; 416];
    image.copy_from_slice(&fx[..416]);
    image[5..24].fill(0);
    image[28..32].fill(0);
    for register in 0..8 {
        image[42 + 16 * register..48 + 16 * register].fill(0);
    }
    sum(&image)
}

/// Sum of the loops' data.
pub(super) fn contents(memory: &GuestMemory) -> u64 {
    let mut data = [0u8; (DATA_PAGES << 12) as usize];
    memory.read(Gpa(DATA), &mut data).expect("the data pages are in RAM");
    let control: [u8; 32] = memory.read_array(Gpa(CONTROL)).expect("the control page is in RAM");
    fold(sum(&data), sum(&control))
}

impl CpuBus for Board {
    fn port_read(&self, port: u16, size: u8) -> u32 {
        self.call([1, port.into(), size.into()]) as u32
    }
    fn port_write(&self, port: u16, size: u8, value: u32) {
        if port == PORT {
            return self.hear(value.into());
        }
        self.call([2 + u64::from(size), port.into(), value.into()]);
    }
    fn mmio_read(&self, gpa: Gpa, size: u8) -> u64 {
        self.call([10, gpa.0, size.into()])
    }
    fn mmio_write(&self, gpa: Gpa, size: u8, value: u64) {
        self.call([20 + u64::from(size), gpa.0, value]);
    }
    fn interrupt_pending(&self) -> bool {
        self.pending.load(Ordering::SeqCst)
    }
    fn acknowledge_interrupt(&self) -> Option<u8> {
        self.pending.swap(false, Ordering::SeqCst).then(|| {
            self.taken.fetch_add(1, Ordering::SeqCst);
            INTERRUPT
        })
    }
    fn take_event(&self) -> Option<CpuEvent> {
        None
    }
    fn msr_read(&self, _: u32) -> Option<u64> {
        None
    }
    fn msr_write(&self, _: u32, _: u64) -> Option<()> {
        None
    }
    fn cr8(&self) -> u64 {
        0
    }
    fn set_cr8(&self, _: u64) {}
    fn now_ns(&self) -> u64 {
        self.call([30, 0, 0])
    }
    fn wall_ns(&self) -> u64 {
        0
    }
}

/// How a program begins.
pub(super) struct Start {
    pub(super) gprs: [u64; 16],
    pub(super) rflags: u64,
    pub(super) fx: [u8; 512],
    pub(super) data: Vec<u8>,
    pub(super) code: Vec<u8>,
    pub(super) rip: u64,
    pub(super) rounds: u64,
    /// In ring 3.
    pub(super) user: bool,
    /// CR4.SMEP and CR4.SMAP.
    pub(super) guarded: bool,
    /// Pages of code may be written.
    pub(super) writable_code: bool,
    pub(super) variants: Vec<u8>,
}

impl Default for Start {
    /// Nothing at all, in ring 0.
    fn default() -> Start {
        let mut fx = [0; 512];
        fx[..2].copy_from_slice(&0x37fu16.to_le_bytes());
        fx[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        Start {
            gprs: [0; 16],
            rflags: rflags::FIXED,
            fx,
            data: vec![0; (DATA_PAGES << 12) as usize],
            code: Vec::new(),
            rip: CODE,
            rounds: 1,
            user: false,
            guarded: false,
            writable_code: false,
            variants: Vec::new(),
        }
    }
}

/// What a run came to.
pub(super) struct Run {
    pub(super) exit: Exit,
    pub(super) events: Vec<Event>,
    /// States that interrupts found.
    pub(super) interrupted: Vec<Event>,
    pub(super) calls: u64,
    pub(super) memory: Vec<u8>,
}

pub(super) struct Machine {
    pub(super) memory: GuestMemory,
    pub(super) cpu: SoftCpu,
    shared: Arc<Shared>,
}

fn descriptor(rights: u64) -> u64 {
    0x000f_0000_0000_ffff | (rights & 0xff) << 40 | (rights >> 12) << 52
}

impl Machine {
    /// With another processor, that waits.
    pub(super) fn new(tier: Tier) -> Machine {
        let memory = GuestMemory::new(&[(Gpa(0), 4 << 20)]).expect("4 MiB of guest memory");
        let put = |at: u64, value: u64| {
            memory.write(Gpa(at), &value.to_le_bytes()).expect("the tables are in RAM");
        };
        let all = PRESENT | WRITE | USER;
        for (table, value) in [(PML4, 0x2000), (0x2000, 0x3000), (0x3000, LOW), (0x3008, TABLE)] {
            put(table, value | all);
        }
        for page in 0..16 {
            put(LOW + 8 * page, page << 12 | PRESENT | WRITE);
        }
        for (at, rights) in [(8, 0xa09b), (0x10, 0xc093), (0x1b, 0xc0f3), (0x23, 0xa0fb)] {
            put(GDT + (at & !7), descriptor(rights));
        }
        put(GDT + 0x28, 0x0000_8900_0000_0067 | (TSS & 0xffff) << 16);
        put(TSS + 4, STACK_TOP);
        put(TSS + 0x24, STACK_TOP);
        put(TSS + 0x60, 0x0068_0000_0000_0000);
        for vector in 0..256 {
            let stub = STUBS + 16 * vector;
            let dpl: u64 = if vector == END.into() || vector == ASK.into() { 3 } else { 0 };
            let gate = stub & 0xffff | 8 << 16 | 1 << 32 | (0x8e | dpl << 5) << 40 | (stub >> 16) << 48;
            put(IDT + 16 * vector, gate);
        }
        memory.write(Gpa(STUBS), &stubs().expect("stubs")).expect("the stubs are in RAM");
        memory.write(Gpa(OTHER), &COPY).expect("the other's program is in RAM");
        memory.write(Gpa(HANDLER), &handler().expect("handler")).expect("the handler is in RAM");
        let shared = Shared::new(&memory, 2);
        let mut cpu = SoftCpu::new(0, shared.clone());
        cpu.translate_after((tier == Tier::Translator).then_some(0));
        Machine { memory, cpu, shared }
    }

    /// The loops' memory and tables as they are at the start.
    fn prepare(&self, start: &Start) {
        let put = |at: u64, value: u64| {
            self.memory.write(Gpa(at), &value.to_le_bytes()).expect("the tables are in RAM");
        };
        self.memory.fill(Gpa(TABLE), 4096, 0).expect("the table is in RAM");
        let user = if start.user { USER } else { 0 };
        for page in 0..CODE_PAGES {
            let at = CODE + (page << 12);
            let write = if start.writable_code { WRITE } else { 0 };
            put(entry_of(at), at | PRESENT | user | write);
            put(entry_of(ALIAS + (page << 12)), at | PRESENT | user | WRITE | NO_EXECUTE);
        }
        for page in 0..DATA_PAGES {
            let at = DATA + (page << 12);
            let write = if page < 2 { WRITE } else { 0 };
            put(entry_of(at), at | PRESENT | user | write | NO_EXECUTE);
        }
        put(entry_of(CONTROL), CONTROL | PRESENT | user | WRITE | NO_EXECUTE);
        put(entry_of(DEVICE), DEVICE_GPA | PRESENT | user | WRITE | NO_EXECUTE);
        // The program may change its own table.
        put(entry_of(TABLE_WINDOW), TABLE | PRESENT | user | WRITE | NO_EXECUTE);
        self.memory.fill(Gpa(CODE), CODE_PAGES << 12, 0xcc).expect("the code pages are in RAM");
        self.memory.write(Gpa(start.rip), &start.code).expect("the code pages are in RAM");
        self.memory.write(Gpa(DATA), &start.data).expect("the data pages are in RAM");
        self.memory.fill(Gpa(CONTROL), 4096, 0).expect("the control page is in RAM");
        put(COUNTER, start.rounds);
        put(DEFAULT_MXCSR, 0x1f80);
        self.memory.write(Gpa(VARIANTS), &start.variants).expect("the control page is in RAM");
    }

    /// The machine's other processor.
    pub(super) fn other(&self, tier: Tier) -> SoftCpu {
        let mut cpu = SoftCpu::new(1, self.shared.clone());
        cpu.translate_after((tier == Tier::Translator).then_some(0));
        cpu
    }

    /// The state in which that copies.
    pub(super) fn other_state(&self) -> CpuState {
        CpuState { rip: OTHER, ..self.state(&Start::default()) }
    }

    /// The state in which `start` begins.
    fn state(&self, start: &Start) -> CpuState {
        let segment = |selector, rights| Segment { selector, base: 0, limit: u32::MAX, rights };
        let (code, data) = if start.user {
            (segment(0x23, 0xa0fb), segment(0x1b, 0xc0f3))
        } else {
            (segment(8, 0xa09b), segment(0x10, 0xc093))
        };
        let mut state = CpuState {
            gprs: start.gprs,
            rip: start.rip,
            rflags: start.rflags,
            segments: [data, code, data, data, data, data],
            gdtr: TableRegister { base: GDT, limit: 0x37 },
            idtr: TableRegister { base: IDT, limit: 0xfff },
            tr: Segment { selector: 0x28, base: TSS, limit: 0x67, rights: 0x8b },
            cr0: cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG,
            cr3: PML4,
            cr4: cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::PGE,
            efer: efer::SCE | efer::LME | efer::LMA | efer::NXE,
            xcr0: 3,
            xsave: vec![0; 576],
            ..CpuState::default()
        };
        if start.guarded {
            state.cr4 |= cr4::SMEP | cr4::SMAP;
        }
        state.xsave[..416].copy_from_slice(&start.fx[..416]);
        state.xsave[512] = 3;
        state
    }

    /// Everything is as `start` says, and a board hears what comes of it.
    pub(super) fn begin(&mut self, start: &Start, script: Box<dyn Script>) -> Arc<Board> {
        self.prepare(start);
        self.cpu.load(&self.state(start)).expect("a state that the software CPU takes");
        let inner = Inner { script, events: Vec::new(), interrupted: Vec::new(), calls: 0 };
        Arc::new(Board {
            memory: self.memory.clone(),
            inner: Mutex::new(inner),
            pending: AtomicBool::new(false),
            done: AtomicBool::new(false),
            taken: AtomicU64::new(0),
            kick: self.cpu.kicker(),
        })
    }

    /// What became of it.
    pub(super) fn end(&self, board: &Board, exit: Exit) -> Run {
        let mut inner = board.inner();
        let mut memory = Vec::new();
        for (at, len) in COMPARED {
            let start = memory.len();
            memory.resize(start + len, 0);
            self.memory.read(Gpa(at), &mut memory[start..]).expect("the loops' pages are in RAM");
        }
        // Accessed and dirty bits come when processors like.
        for entry in memory[..4096].chunks_exact_mut(8) {
            entry[0] &= !0x60;
        }
        Run {
            exit,
            events: std::mem::take(&mut inner.events),
            interrupted: std::mem::take(&mut inner.interrupted),
            calls: inner.calls,
            memory,
        }
    }

    /// Runs `start` to its end.
    pub(super) fn run(&mut self, start: &Start, script: Box<dyn Script>) -> Run {
        let board = self.begin(start, script);
        let exit = self.cpu.run(&*board);
        self.end(&board, exit)
    }

    /// The address of a byte of [`Run::memory`].
    pub(super) fn compared(mut at: usize) -> u64 {
        for (start, len) in COMPARED {
            if at < len {
                return start + at as u64;
            }
            at -= len;
        }
        0
    }
}

/// What is compared at the end: table, code, data, control.
const COMPARED: [(u64, usize); 4] =
    [(TABLE, 4096), (CODE, (CODE_PAGES << 12) as usize), (DATA, (DATA_PAGES << 12) as usize), (CONTROL, 32)];

/// Where the program sees the table.
pub(super) const TABLE_WINDOW: u64 = 0x33_0000;

fn stubs() -> Result<Vec<u8>, IcedError> {
    let mut all = Vec::new();
    for vector in 0..256u64 {
        let mut a = CodeAssembler::new(64)?;
        if !matches!(vector, 8 | 10..=14 | 17 | 21) {
            a.push(0)?;
        }
        a.push(vector as i32)?;
        a.jmp(HANDLER)?;
        let mut bytes = a.assemble(STUBS + 16 * vector)?;
        bytes.resize(16, 0xcc);
        all.extend(bytes);
    }
    Ok(all)
}

fn handler() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let pushed = [r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rsp, rbx, rdx, rcx, rax];
    let (mut mapped, mut not_page, mut flushed, mut halt) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    for register in pushed {
        a.push(register)?;
    }
    a.cld()?;
    a.fxsave64(ptr(FX))?;
    a.mov(rax, cr2)?;
    a.mov(qword_ptr(MAILBOX), rax)?;
    a.mov(rax, rsp)?;
    a.out(u32::from(PORT), eax)?;
    a.mov(rdi, qword_ptr(MAILBOX + 8))?;
    a.test(rdi, rdi)?;
    a.je(mapped)?;
    a.mov(rax, qword_ptr(MAILBOX + 16))?;
    a.mov(qword_ptr(rdi), rax)?;
    a.set_label(&mut mapped)?;
    a.mov(eax, dword_ptr(MAILBOX + 24))?;
    a.cmp(eax, 1)?;
    a.jne(not_page)?;
    a.mov(rax, qword_ptr(MAILBOX + 32))?;
    a.invlpg(ptr(rax))?;
    a.jmp(flushed)?;
    a.set_label(&mut not_page)?;
    a.cmp(eax, 2)?;
    a.jne(flushed)?;
    a.mov(rax, cr3)?;
    a.mov(cr3, rax)?;
    a.set_label(&mut flushed)?;
    a.cmp(dword_ptr(MAILBOX + 40), 0)?;
    a.jne(halt)?;
    for register in pushed.into_iter().rev() {
        if register == rsp {
            a.add(rsp, 8)?;
        } else {
            a.pop(register)?;
        }
    }
    a.add(rsp, 16)?;
    a.iretq()?;
    a.set_label(&mut halt)?;
    a.hlt()?;
    a.jmp(halt)?;
    a.assemble(HANDLER)
}
