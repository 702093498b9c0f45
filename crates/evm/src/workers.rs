//! Threads for requests that may take long. One that gave way to others ends with its request: only root can raise a
//! thread's priority again, so it must not serve the next.
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Requests that run at one time; others wait their turn.
const THREADS_MAX: usize = 64;
/// A thread without work for so long ends.
const IDLE: Duration = Duration::from_secs(5);
/// The stack of a thread: the EVM keeps its own frames on the heap, JSON nests at most 128 deep.
const STACK: usize = 2 << 20;

type Job = Box<dyn FnOnce() + Send>;

thread_local! {
    static GAVE_WAY: Cell<bool> = const { Cell::new(false) };
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

/// A set of threads that grows with the work.
#[derive(Clone, Default)]
pub struct Workers {
    shared: Arc<(Mutex<Queue>, Condvar)>,
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers").finish_non_exhaustive()
    }
}

impl Workers {
    /// Runs `job` on a thread, now or when one is free.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let (queue, wake) = &*self.shared;
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.jobs.push_back(Box::new(job));
        if queue.idle >= queue.jobs.len() {
            wake.notify_one();
        } else if queue.threads < THREADS_MAX {
            begin(&self.shared, &mut queue);
        }
    }
}

/// Adds a thread. Where there can be none, those that are there come to the work in time.
fn begin(shared: &Arc<(Mutex<Queue>, Condvar)>, queue: &mut Queue) {
    let mine = Arc::clone(shared);
    let thread = thread::Builder::new().name("call".into()).stack_size(STACK).spawn(move || work(&mine));
    queue.threads += usize::from(thread.is_ok());
}

fn work(shared: &Arc<(Mutex<Queue>, Condvar)>) {
    let (queue, wake) = &**shared;
    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    while !GAVE_WAY.get() {
        if let Some(job) = queue.jobs.pop_front() {
            drop(queue);
            // A request that panics is one that gets no answer; the others go on.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            queue = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        queue.idle += 1;
        let (guard, waited) = wake.wait_timeout(queue, IDLE).unwrap_or_else(PoisonError::into_inner);
        queue = guard;
        queue.idle -= 1;
        if waited.timed_out() && queue.jobs.is_empty() {
            break;
        }
    }
    queue.threads -= 1;
    if !queue.jobs.is_empty() {
        begin(shared, &mut queue);
    }
}

/// Puts the calling thread behind the others, for as long as it lives.
pub fn give_way(nice: i32) {
    GAVE_WAY.set(true);
    let thread = rustix::thread::gettid();
    // Without the right to do so it competes as before.
    let _ = rustix::process::setpriority_process(Some(thread), nice);
}
