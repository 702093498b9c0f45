//! The threads of a running machine: one for each vCPU, the timekeeper, one for each disk queue, the console's.
#![allow(unsafe_code)]

use crate::board::Board;
use crate::bus::CpuView;
use crate::core::{CpuSlot, World};
use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use viv_arch::x86::msr;
use viv_cpu::kvm::KvmVcpu;
use viv_cpu::{Exit, Vcpu};
use viv_model::End;

/// A vCPU of either kind.
pub(crate) enum Engine {
    Kvm(KvmVcpu),
    Soft(Box<dyn Vcpu>),
}

impl Engine {
    pub(crate) fn vcpu(&mut self) -> &mut dyn Vcpu {
        match self {
            Engine::Kvm(vcpu) => vcpu,
            Engine::Soft(vcpu) => &mut **vcpu,
        }
    }

    /// The TSC, where it runs on while the machine stands still.
    fn tsc(&self) -> Option<u64> {
        match self {
            Engine::Kvm(vcpu) => vcpu.read_msr(msr::TSC).ok(),
            // Its TSC is the guest's clock.
            Engine::Soft(_) => None,
        }
    }

    fn resume(&self, tsc: Option<u64>) {
        if let (Engine::Kvm(vcpu), Some(tsc)) = (self, tsc) {
            // A processor that refuses shows the guest a jump of the TSC, which kvmclock forgives.
            let _ = vcpu.write_msr(msr::TSC, tsc);
            vcpu.tell_paused();
        }
    }
}

/// Starts a thread whose panic ends the machine and nothing else.
pub(crate) fn spawn(
    name: String,
    world: &Arc<World>,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let world = world.clone();
    Builder::new().name(name.clone()).spawn(move || {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            world.end(End::Failed {
                message: format!("{name} failed inside Vivarium: {}", panic_text(&*panic)),
            });
        }
    })
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without words")
}

/// Lets this thread's sleeps end when they should: by default Linux adds up to 50 microseconds.
pub(crate) fn sleep_accurately() {
    // SAFETY: a prctl that changes a number of the calling thread only.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1u64) };
}

fn thread_id() -> u64 {
    // SAFETY: gettid has no conditions.
    unsafe { libc::gettid() as u64 }
}

/// Processor time that a vCPU's thread has used so far.
pub(crate) fn cpu_time(slot: &CpuSlot) -> Duration {
    let id = slot.thread.load(Ordering::Relaxed);
    if id == 0 {
        return Duration::from_nanos(slot.used_ns.load(Ordering::Relaxed));
    }
    // The clock of a thread by its ID: CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED (Linux include/linux/posix-timers.h).
    let clock = (!(id as libc::clockid_t) << 3) | 4 | 2;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is ours; a clock that does not exist is an error and leaves it alone.
    unsafe { libc::clock_gettime(clock, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The life of a vCPU.
pub(crate) fn run_vcpu(engine: Engine, board: Arc<Board>, index: usize) {
    let Some(slot) = board.world.cpus.get(index) else { return };
    slot.thread.store(thread_id(), Ordering::Relaxed);
    let result = catch_unwind(AssertUnwindSafe(|| run_until_end(engine, &board, index)));
    slot.used_ns.store(cpu_time(slot).as_nanos() as u64, Ordering::Relaxed);
    slot.thread.store(0, Ordering::Relaxed);
    if let Err(panic) = result {
        resume_unwind(panic);
    }
}

fn run_until_end(mut engine: Engine, board: &Arc<Board>, index: usize) {
    sleep_accurately();
    let world = board.world.clone();
    let Some(slot) = world.cpus.get(index) else { return };
    let view = CpuView { board: board.clone(), index };
    loop {
        let mut tsc = None;
        let stand = || {
            tsc = engine.tsc();
            slot.set_stood(engine.vcpu().save());
        };
        match world.control.gate(stand) {
            None => return,
            Some(true) => engine.resume(tsc),
            Some(false) => {}
        }
        slot.answer(|known| engine.vcpu().translated(known));
        match engine.vcpu().run(&view) {
            Exit::Kicked => {}
            Exit::Halted => {
                let (fired, deadline) = slot.tick(world.clock.now());
                if !fired {
                    // The timekeeper need not care: this thread wakes itself.
                    slot.deadline.store(u64::MAX, Ordering::SeqCst);
                    slot.sleep(deadline.and_then(|deadline| world.clock.until(deadline)));
                }
                let (_, deadline) = slot.tick(world.clock.now());
                board.publish_deadline(index, deadline);
            }
            Exit::Shutdown => return board.triple_fault(),
            Exit::Failed(message) => return world.end(End::Failed { message }),
        }
    }
}
