//! Gets a vCPU thread out of the kernel: `immediate_exit` for the next KVM_RUN, a signal for the present one.
use super::os;
use crate::{CpuError, Kick};
use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};

/// Kick handle of one KVM vCPU. It has its own mapping of the vCPU's shared page, so it may outlive the vCPU.
pub(super) struct KvmKick {
    requested: AtomicBool,
    /// The thread that is inside `run`, or 0.
    thread: AtomicI32,
    page: NonNull<u8>,
}

// SAFETY: `page` is a shared mapping that lives until drop; only one byte of it is touched, atomically.
unsafe impl Send for KvmKick {}
// SAFETY: as above.
unsafe impl Sync for KvmKick {}

const PAGE: usize = 4096;

extern "C" fn on_signal(_: libc::c_int) {}

/// A handler that does nothing: the signal only has to interrupt the ioctl.
fn install_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: an all-zero sigaction is valid; the handler is async-signal-safe, since it does nothing.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(libc::SIGRTMIN(), &action, std::ptr::null_mut());
        }
    });
}

impl KvmKick {
    pub(super) fn new(vcpu: &VcpuFd) -> Result<KvmKick, CpuError> {
        install_handler();
        // SAFETY: a fresh shared mapping of the vCPU's run page (api.rst §4.5); the result is checked.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        let failed = || os("map a vCPU's page")(kvm_ioctls::Error::last());
        if page == libc::MAP_FAILED {
            return Err(failed());
        }
        let page = NonNull::new(page.cast()).ok_or_else(failed)?;
        Ok(KvmKick { requested: AtomicBool::new(false), thread: AtomicI32::new(0), page })
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        let offset = std::mem::offset_of!(kvm_run, immediate_exit);
        // SAFETY: the offset lies inside the page; the kernel and we treat it as one byte that may change at any time.
        unsafe { AtomicU8::from_ptr(self.page.as_ptr().add(offset)) }
    }

    /// The calling thread is about to enter KVM_RUN.
    pub(super) fn enter(&self) -> Entered<'_> {
        // SAFETY: gettid has no conditions.
        self.thread.store(unsafe { libc::gettid() }, Ordering::SeqCst);
        Entered(self)
    }

    /// Whether somebody kicked; takes the kick.
    pub(super) fn take(&self) -> bool {
        let was = self.requested.swap(false, Ordering::SeqCst);
        if was {
            self.immediate_exit().store(0, Ordering::SeqCst);
            // A kick between the two lines set it again before we cleared it; the flag still stands.
            if self.requested.load(Ordering::SeqCst) {
                self.immediate_exit().store(1, Ordering::SeqCst);
            }
        }
        was
    }
}

impl Kick for KvmKick {
    fn kick(&self) {
        self.requested.store(true, Ordering::SeqCst);
        self.immediate_exit().store(1, Ordering::SeqCst);
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != 0 {
            // SAFETY: a signal to a thread of this process; if it is gone, the call fails and nothing happens.
            let result = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGRTMIN()) };
            debug_assert!(result == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH));
        }
    }

    fn poke(&self) {}
}

impl Drop for KvmKick {
    fn drop(&mut self) {
        // SAFETY: what mmap returned.
        unsafe { libc::munmap(self.page.as_ptr().cast(), PAGE) };
    }
}

/// While it lives, kicks signal the thread that made it.
pub(super) struct Entered<'a>(&'a KvmKick);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.thread.store(0, Ordering::SeqCst);
    }
}
