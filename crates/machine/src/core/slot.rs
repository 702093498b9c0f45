//! What the machine keeps of each vCPU: its local APIC (for the software CPU), events on their way, and how to
//! wake it.
use super::lock;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use viv_arch::saved::CpuEventSaved;
use viv_arch::x86::CpuState;
use viv_cpu::soft::KeptMark;
use viv_cpu::{CpuError, CpuEvent, Kick};
use viv_devices::BusDevice;
use viv_devices::chips::lapic::{BASE, Lapic};

/// INIT and SIPI follow each other; more than this waiting means that nobody takes them.
const EVENTS_MAX: usize = 16;

/// Somebody who wants to know what was translated, beyond what is known already.
struct TranslatedAsk {
    known: Option<KeptMark>,
    answer: SyncSender<Option<Vec<u8>>>,
}

/// See the module.
pub(crate) struct CpuSlot {
    lapic: Mutex<Lapic>,
    events: Mutex<VecDeque<CpuEvent>>,
    has_events: AtomicBool,
    /// An ExtINT message has come: the vector is the 8259A's.
    pub(crate) extint: AtomicBool,
    /// Where the guest has put the window of the local APIC.
    pub(crate) lapic_base: AtomicU64,
    /// When the local APIC's timer is due, for the timekeeper; `u64::MAX` when it need not care.
    pub(crate) deadline: AtomicU64,
    kick: OnceLock<Arc<dyn Kick>>,
    woken: Mutex<bool>,
    wake: Condvar,
    /// The vCPU as it was when it last came to a stand.
    stood: Mutex<Option<Result<CpuState, CpuError>>>,
    /// Who wants to know what it has translated.
    asked: Mutex<Option<TranslatedAsk>>,
    /// Kernel thread ID while the thread runs, else 0.
    pub(crate) thread: AtomicU64,
    /// Processor time that the thread had used when it ended, nanoseconds.
    pub(crate) used_ns: AtomicU64,
}

impl CpuSlot {
    /// The slot of vCPU `index`; the first one's local APIC is wired as firmware leaves it.
    pub(crate) fn new(index: u32) -> CpuSlot {
        let mut lapic = Lapic::new(index, index == 0);
        if index == 0 {
            lapic.set_virtual_wire();
        }
        CpuSlot {
            lapic: Mutex::new(lapic),
            events: Mutex::new(VecDeque::new()),
            has_events: AtomicBool::new(false),
            extint: AtomicBool::new(false),
            lapic_base: AtomicU64::new(BASE),
            deadline: AtomicU64::new(u64::MAX),
            kick: OnceLock::new(),
            woken: Mutex::new(false),
            wake: Condvar::new(),
            stood: Mutex::new(None),
            asked: Mutex::new(None),
            thread: AtomicU64::new(0),
            used_ns: AtomicU64::new(0),
        }
    }

    pub(crate) fn set_kick(&self, kick: Arc<dyn Kick>) {
        // Set once, when the vCPU is made.
        let _ = self.kick.set(kick);
    }

    /// Whoever calls holds no other local APIC.
    pub(crate) fn lapic<R>(&self, act: impl FnOnce(&mut Lapic) -> R) -> R {
        act(&mut lock(&self.lapic))
    }

    /// Takes the local APIC's timer to `now`: whether it fired, and when it is due next.
    pub(crate) fn tick(&self, now: u64) -> (bool, Option<u64>) {
        self.lapic(|lapic| {
            let fired = lapic.deadline().is_some_and(|deadline| deadline <= now);
            lapic.tick(now);
            (fired, lapic.deadline())
        })
    }

    pub(crate) fn push_event(&self, event: CpuEvent) {
        let mut events = lock(&self.events);
        if events.len() < EVENTS_MAX {
            events.push_back(event);
        }
        self.has_events.store(true, Ordering::Release);
    }

    /// What waits, oldest first.
    pub(crate) fn saved_events(&self) -> Vec<CpuEventSaved> {
        let each = |event: &CpuEvent| match event {
            CpuEvent::Nmi => CpuEventSaved::Nmi,
            CpuEvent::Init => CpuEventSaved::Init,
            CpuEvent::Sipi(vector) => CpuEventSaved::Sipi(*vector),
        };
        lock(&self.events).iter().map(each).collect()
    }

    /// From a saved state.
    pub(crate) fn load_events(&self, saved: &[CpuEventSaved]) {
        for event in saved {
            self.push_event(match event {
                CpuEventSaved::Nmi => CpuEvent::Nmi,
                CpuEventSaved::Init => CpuEvent::Init,
                CpuEventSaved::Sipi(vector) => CpuEvent::Sipi(*vector),
            });
        }
    }

    /// Asks the vCPU's thread what it has translated beyond what is `known`; it answers between two runs, soon if it runs.
    pub(crate) fn ask_translated(&self, known: Option<KeptMark>) -> Receiver<Option<Vec<u8>>> {
        let (answer, receiver) = sync_channel(1);
        *lock(&self.asked) = Some(TranslatedAsk { known, answer });
        self.kick();
        receiver
    }

    /// The vCPU's thread, between two runs.
    pub(crate) fn answer(&self, translated: impl FnOnce(Option<&KeptMark>) -> Option<Vec<u8>>) {
        let asked = lock(&self.asked).take();
        if let Some(TranslatedAsk { known, answer }) = asked {
            // Who has asked may wait no longer.
            let _ = answer.try_send(translated(known.as_ref()));
        }
    }

    /// The vCPU's thread, when it comes to a stand.
    pub(crate) fn set_stood(&self, state: Result<CpuState, CpuError>) {
        *lock(&self.stood) = Some(state);
    }

    /// The vCPU as it stands.
    pub(crate) fn stood(&self) -> Result<CpuState, CpuError> {
        let missing = || CpuError::Missing { what: "a vCPU that has stood still".to_string() };
        match &*lock(&self.stood) {
            Some(Ok(state)) => Ok(state.clone()),
            Some(Err(error)) => Err(CpuError::Missing { what: format!("a vCPU that can be saved: {error}") }),
            None => Err(missing()),
        }
    }

    pub(crate) fn take_event(&self) -> Option<CpuEvent> {
        if !self.has_events.load(Ordering::Acquire) {
            return None;
        }
        let mut events = lock(&self.events);
        let event = events.pop_front();
        self.has_events.store(!events.is_empty(), Ordering::Release);
        event
    }

    /// There is something new to look at: an interrupt or an event.
    pub(crate) fn poke(&self) {
        if let Some(kick) = self.kick.get() {
            kick.poke();
        }
        self.rouse();
    }

    /// Makes `run` return.
    pub(crate) fn kick(&self) {
        if let Some(kick) = self.kick.get() {
            kick.kick();
        }
        self.rouse();
    }

    fn rouse(&self) {
        *lock(&self.woken) = true;
        self.wake.notify_one();
    }

    /// The halted vCPU's thread sleeps until it is roused, or for `timeout`. What came since it was last asleep counts.
    pub(crate) fn sleep(&self, timeout: Option<Duration>) {
        let mut woken = lock(&self.woken);
        if !*woken {
            woken = match timeout {
                Some(timeout) => {
                    self.wake.wait_timeout(woken, timeout).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.wake.wait(woken).unwrap_or_else(PoisonError::into_inner),
            };
        }
        *woken = false;
    }
}
