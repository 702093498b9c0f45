//! What a guest tells us: its ports, and the test's side of its exception handlers.
//!
//! A handler writes the address of its stack frame to a port; the board reads the frame from guest memory, turns it
//! into one line of the trace and answers where the guest goes on. So no handler needs logic of its own.
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use viv_cpu::{CpuBus, CpuEvent, Kick};
use viv_mem::{Gpa, GuestMemory};

/// Ports of the board.
pub(crate) mod port {
    /// OUT: number of the probe that begins.
    pub(crate) const PROBE: u32 = 0xe0;
    /// OUT: a value for the trace.
    pub(crate) const VALUE: u32 = 0xe1;
    /// OUT: the low half of a 64-bit value.
    pub(crate) const LOW: u32 = 0xe2;
    /// OUT: its high half; the value goes to the trace.
    pub(crate) const HIGH: u32 = 0xe3;
    /// OUT: linear address of a frame of 64-bit, 32-bit and 16-bit handlers.
    pub(crate) const FRAME64: u32 = 0xe4;
    pub(crate) const FRAME32: u32 = 0xe5;
    pub(crate) const FRAME16: u32 = 0xe6;
    /// IN: where the handler goes on; 0 means IRET.
    pub(crate) const RESUME: u32 = 0xe7;
    /// OUT: the guest has ended.
    pub(crate) const DONE: u32 = 0xe8;
    /// OUT: raise interrupt `value & 0xff`; bit 8 an NMI instead.
    pub(crate) const RAISE: u32 = 0xe9;
    /// IN: where the probe ends.
    pub(crate) const END: u32 = 0xeb;
    /// OUT: kick this vCPU.
    pub(crate) const KICK: u32 = 0xea;
}

/// What a handler does after its event.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Goes on after the probe, in the kernel, with a fresh stack.
    Recover,
    /// Returns with IRET, to the frame as the test left it.
    Resume,
}

/// The part of a handler's frame that tests look at and change.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Frame {
    pub(crate) vector: u64,
    pub(crate) error: u64,
    pub(crate) rip: u64,
    pub(crate) cs: u64,
    pub(crate) flags: u64,
    pub(crate) rsp: u64,
    pub(crate) ss: u64,
    pub(crate) cr2: u64,
    pub(crate) dr6: u64,
    /// Its order among the probe's events, from 0.
    pub(crate) n: usize,
}

/// Decides on an event; `None` is the default of its vector.
pub(crate) type On = fn(&mut Frame) -> Option<Act>;

/// One probe: what is expected, and where its code lies.
pub(crate) struct Probe {
    pub(crate) name: &'static str,
    pub(crate) expected: Vec<&'static str>,
    /// Another trace in the lab, and why.
    pub(crate) in_lab: Option<(Vec<&'static str>, &'static str)>,
    pub(crate) on: Option<On>,
    /// Frames are printed whole.
    pub(crate) full: bool,
    pub(crate) start: u64,
    pub(crate) recover: u64,
    pub(crate) marks: Vec<(&'static str, u64)>,
}

struct State {
    probe: usize,
    events: usize,
    low: u32,
    resume: u64,
    trace: Vec<(usize, String)>,
    pending: Vec<u8>,
    nmis: VecDeque<CpuEvent>,
    cr8: u64,
}

/// How interrupts reach the guest on KVM: vector, or NMI if `None`.
pub(crate) type Raise = Box<dyn Fn(Option<u8>) + Send + Sync>;

/// When the state goes on in a new vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moves {
    Never,
    /// At each probe's begin.
    AtProbes,
    /// In the middle of each OUT: the kick comes while the board handles it.
    AtWrites,
    /// After each block of instructions and each exception.
    AtBlocks,
}

/// The test's machine: one for all vCPUs of a guest.
pub(crate) struct Board {
    pub(crate) memory: GuestMemory,
    pub(crate) probes: Arc<Vec<Probe>>,
    kick: Mutex<Option<Arc<dyn Kick>>>,
    pub(crate) raise: OnceLock<Raise>,
    pub(crate) done: AtomicBool,
    pub(crate) moves: Moves,
    ticks: AtomicU64,
    state: Mutex<State>,
}

/// The user half of memory: an alias of low memory for ring 3 (see `image`).
pub(crate) const ALIAS: u64 = 0x8000_0000;

const NAMES: [&str; 20] = [
    "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "#9", "#TS", "#NP", "#SS", "#GP", "#PF",
    "#15", "#MF", "#AC", "#MC", "#XM",
];
const WITH_ERROR: [u64; 8] = [8, 10, 11, 12, 13, 14, 17, 21];
/// Faults set RF in the pushed flags (SDM vol. 3 §18.3.1.1), nothing else does.
const FAULTS: [u64; 13] = [0, 5, 6, 7, 10, 11, 12, 13, 14, 16, 17, 19, 21];

impl Board {
    pub(crate) fn new(memory: GuestMemory, probes: Arc<Vec<Probe>>, moves: Moves) -> Board {
        Board {
            memory,
            probes,
            kick: Mutex::default(),
            raise: OnceLock::new(),
            done: AtomicBool::new(false),
            moves,
            ticks: AtomicU64::new(1),
            state: Mutex::new(State {
                probe: 0,
                events: 0,
                low: 0,
                resume: 0,
                trace: Vec::new(),
                pending: Vec::new(),
                nmis: VecDeque::new(),
                cr8: 0,
            }),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line of the trace from outside the guest.
    pub(crate) fn note(&self, line: String) {
        let mut state = self.state();
        let probe = state.probe;
        state.trace.push((probe, line));
    }

    /// The trace of each probe.
    pub(crate) fn traces(&self) -> Vec<Vec<String>> {
        let mut all = vec![Vec::new(); self.probes.len()];
        for (probe, line) in &self.state().trace {
            if let Some(lines) = all.get_mut(*probe) {
                lines.push(line.clone());
            }
        }
        all
    }

    pub(crate) fn has_pending(&self) -> bool {
        let state = self.state();
        !state.nmis.is_empty() || !state.pending.is_empty()
    }

    /// Kicks the vCPU that runs now.
    pub(crate) fn stop(&self) {
        if let Some(kick) = &*self.kick.lock().unwrap_or_else(PoisonError::into_inner) {
            kick.kick();
        }
    }

    /// From now on another vCPU runs the guest.
    pub(crate) fn runs_on(&self, kick: Arc<dyn Kick>) {
        *self.kick.lock().unwrap_or_else(PoisonError::into_inner) = Some(kick);
    }

    fn word(&self, at: u64, bytes: u64) -> u64 {
        let mut data = [0; 8];
        let _ = self.memory.read(Gpa(at), &mut data[..bytes as usize]);
        u64::from_le_bytes(data)
    }

    fn frame(&self, at: u64, bytes: u64) {
        let slot = |n: u64| self.word(at + n * bytes, bytes);
        let mut f = if bytes == 2 {
            Frame { vector: slot(1), rip: slot(2), cs: slot(3), flags: slot(4), ..Frame::default() }
        } else {
            Frame {
                dr6: slot(0),
                cr2: slot(1),
                vector: slot(3),
                error: slot(4),
                rip: slot(5),
                cs: slot(6),
                flags: slot(7),
                rsp: slot(8),
                ss: slot(9),
                ..Frame::default()
            }
        };
        let mut state = self.state();
        f.n = state.events;
        state.events += 1;
        let Some(probe) = self.probes.get(state.probe) else { return };
        let line = render(probe, &f, bytes);
        let index = state.probe;
        state.trace.push((index, line));
        let act = match probe.on.and_then(|on| on(&mut f)) {
            Some(act) => act,
            None if matches!(f.vector, 1..=4) || (f.vector >= 0x20 && f.vector != 0x80) => Act::Resume,
            None => Act::Recover,
        };
        state.resume = if act == Act::Resume && f.n < 64 { 0 } else { probe.recover };
        if f.n > 128 {
            self.done.store(true, Ordering::SeqCst);
            self.stop();
        }
        let first = if bytes == 2 { 2 } else { 5 };
        for (n, value) in [(first, f.rip), (first + 1, f.cs), (first + 2, f.flags)] {
            let _ = self.memory.write(Gpa(at + n * bytes), &value.to_le_bytes()[..bytes as usize]);
        }
    }
}

fn place(probe: &Probe, rip: u64) -> String {
    for base in [0, ALIAS] {
        let Some(rip) = rip.checked_sub(base) else { continue };
        if let Some((name, _)) = probe.marks.iter().find(|(_, at)| *at == rip) {
            return format!("@{name}");
        }
        if rip == probe.recover {
            return "@end".to_string();
        }
        if (probe.start..probe.recover).contains(&rip) {
            return format!("+{:x}", rip - probe.start);
        }
    }
    format!("at={rip:x}")
}

fn render(probe: &Probe, f: &Frame, bytes: u64) -> String {
    let mut line = match NAMES.get(f.vector as usize) {
        Some(name) => name.to_string(),
        None => format!("int{:02x}", f.vector),
    };
    if bytes != 2 && WITH_ERROR.contains(&f.vector) {
        line += &format!("({:x})", f.error);
    }
    if f.vector == 14 {
        line += &format!(" cr2={:x}", f.cr2);
    }
    if f.vector == 1 && bytes != 2 {
        line += &format!(" dr6={:x}", f.dr6 & 0xe00f);
    }
    line += &format!(" {}", place(probe, f.rip));
    if bytes != 2 {
        if f.cs & 0xffff != 8 {
            line += &format!(" cs={:x}", f.cs & 0xffff);
        }
        let rf = f.flags >> 16 & 1 != 0;
        if FAULTS.contains(&f.vector) != rf && f.vector != 8 {
            line += if rf { " +rf" } else { " -rf" };
        }
    } else {
        line += &format!(" cs={:x}", f.cs);
    }
    if probe.full {
        line += &format!(" flags={:x} ss={:x} sp={:x}", f.flags & !0x1_0000, f.ss & 0xffff, f.rsp);
    }
    line
}

impl CpuBus for Board {
    fn port_read(&self, port: u16, _size: u8) -> u32 {
        match u32::from(port) {
            port::RESUME => self.state().resume as u32,
            port::END => self.probes.get(self.state().probe).map_or(0, |probe| probe.recover as u32),
            _ => 0xa5a5_0000 | u32::from(port),
        }
    }

    fn port_write(&self, port: u16, _size: u8, value: u32) {
        if self.moves == Moves::AtWrites {
            self.stop();
        }
        match u32::from(port) {
            port::PROBE => {
                let mut state = self.state();
                state.probe = value as usize;
                state.events = 0;
                if self.moves == Moves::AtProbes {
                    self.stop();
                }
            }
            port::VALUE => self.note(format!("={value:x}")),
            port::LOW => self.state().low = value,
            port::HIGH => {
                let low = self.state().low;
                self.note(format!("={:x}", u64::from(value) << 32 | u64::from(low)));
            }
            port::FRAME64 => self.frame(value.into(), 8),
            port::FRAME32 => self.frame(value.into(), 4),
            port::FRAME16 => self.frame((value & 0xffff).into(), 2),
            port::DONE => {
                self.done.store(true, Ordering::SeqCst);
                self.stop();
            }
            port::RAISE => {
                let vector = (value & 0x100 == 0).then_some(value as u8);
                match (self.raise.get(), vector) {
                    (Some(raise), _) => raise(vector),
                    (None, Some(vector)) => self.state().pending.push(vector),
                    (None, None) => self.state().nmis.push_back(CpuEvent::Nmi),
                }
            }
            port::KICK => self.stop(),
            other => self.note(format!("port {other:x}={value:x}")),
        }
    }

    fn mmio_read(&self, gpa: Gpa, size: u8) -> u64 {
        self.note(format!("read{size} {:x}", gpa.0));
        0x1122_3344_5566_7788
    }
    /// The local APIC's page is written for KVM; elsewhere the board has nothing to program.
    fn mmio_write(&self, gpa: Gpa, size: u8, value: u64) {
        if gpa.0 >> 12 != 0xfee00 {
            self.note(format!("write{size} {:x}={value:x}", gpa.0));
        }
    }
    fn interrupt_pending(&self) -> bool {
        let state = self.state();
        state.pending.iter().any(|vector| u64::from(vector >> 4) > state.cr8)
    }
    fn acknowledge_interrupt(&self) -> Option<u8> {
        let mut state = self.state();
        let cr8 = state.cr8;
        let best = state.pending.iter().copied().filter(|vector| u64::from(vector >> 4) > cr8).max()?;
        state.pending.retain(|vector| *vector != best);
        Some(best)
    }
    fn take_event(&self) -> Option<CpuEvent> {
        self.state().nmis.pop_front()
    }
    fn msr_read(&self, index: u32) -> Option<u64> {
        (index == 0x1b).then_some(0xfee0_0900)
    }
    fn msr_write(&self, _: u32, _: u64) -> Option<()> {
        None
    }
    fn cr8(&self) -> u64 {
        self.state().cr8
    }
    fn set_cr8(&self, value: u64) {
        self.state().cr8 = value;
    }
    fn now_ns(&self) -> u64 {
        self.ticks.fetch_add(1000, Ordering::Relaxed)
    }
    fn wall_ns(&self) -> u64 {
        self.now_ns()
    }
}
