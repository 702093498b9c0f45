//! The bare CPU: the instruction runs in this process, in ring 3, between two signals.
//!
//! INT3 in [`Native::run`] raises SIGTRAP; the handler puts the case's registers into the signal frame and
//! returns: the kernel's sigreturn jumps to the instruction with everything loaded. Whatever comes next
//! (INT3 behind it or at a branch target, or a fault) raises the second signal, whose frame has the
//! results; the handler puts the test's own registers back.

use crate::cases::Case;
use crate::window::{CODE, DATA, DATA_SIZE, Fault, Fx, Outcome, START, State, WRITABLE};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the handler and `run` share. Signals are synchronous and [`BUSY`] admits one thread.
struct Shared {
    inside: bool,
    host: [i64; 23],
    host_fx: Fx,
    gprs: [u64; 16],
    rip: u64,
    rflags: u64,
    code_selector: i64,
    fx: Fx,
    fault: Option<Fault>,
}

struct Cell(UnsafeCell<Shared>);
// SAFETY: only the thread that holds `BUSY` uses it, the handler runs on that thread.
unsafe impl Sync for Cell {}

static SHARED: Cell = Cell(UnsafeCell::new(Shared {
    inside: false,
    host: [0; 23],
    host_fx: Fx([0; 512]),
    gprs: [0; 16],
    rip: 0,
    rflags: 0,
    code_selector: 0,
    fx: Fx([0; 512]),
    fault: None,
}));
static BUSY: AtomicBool = AtomicBool::new(false);

/// General registers of the signal frame in encoding order.
const GREGS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

extern "C" fn handler(signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // The kernel leaves the case's AC flag set, and this code may access memory unaligned.
    // SAFETY: only AC changes.
    unsafe { std::arch::asm!("pushfq", "and dword ptr [rsp], 0xfffbffff", "popfq") };
    // SAFETY: the kernel passes a valid frame; `SHARED` belongs to this thread (see `Cell`). The FXSAVE
    // image and the XSAVE header behind it are part of the frame.
    unsafe {
        let shared = &mut *SHARED.0.get();
        let frame = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
        let registers = &mut frame.gregs;
        let image = &mut *frame.fpregs.cast::<[u8; 512]>();
        if shared.inside {
            for (value, register) in shared.gprs.iter_mut().zip(GREGS) {
                *value = registers[register as usize] as u64;
            }
            shared.rip = registers[libc::REG_RIP as usize] as u64;
            shared.rflags = registers[libc::REG_EFL as usize] as u64;
            shared.fx.0 = *image;
            let vector = registers[libc::REG_TRAPNO as usize] as u8;
            shared.fault = if vector == 3 {
                shared.rip -= 1;
                None
            } else {
                Some(Fault {
                    vector,
                    error: registers[libc::REG_ERR as usize] as u32,
                    address: if vector == 14 { registers[libc::REG_CR2 as usize] as u64 } else { 0 },
                })
            };
            registers.copy_from_slice(&shared.host);
            *image = shared.host_fx.0;
            shared.inside = false;
        } else if signal == libc::SIGTRAP && BUSY.load(Ordering::Relaxed) {
            shared.host.copy_from_slice(registers);
            shared.host_fx.0 = *image;
            for (value, register) in shared.gprs.iter().zip(GREGS) {
                registers[register as usize] = *value as i64;
            }
            registers[libc::REG_RIP as usize] = shared.rip as i64;
            registers[libc::REG_EFL as usize] = shared.rflags as i64;
            let selectors = &mut registers[libc::REG_CSGSFS as usize];
            *selectors = (*selectors & !0xffff) | shared.code_selector;
            image[..416].copy_from_slice(&shared.fx.0[..416]);
            shared.inside = true;
        } else {
            // A real crash of the test.
            libc::signal(signal, libc::SIG_DFL);
            return;
        }
        // XSTATE_BV: x87 and SSE are not in their initial state.
        *frame.fpregs.cast::<u8>().add(512) |= 3;
    }
}

fn map(address: u64, size: usize, protection: i32) {
    // SAFETY: NOREPLACE: nothing that exists is touched.
    let got = unsafe {
        libc::mmap(
            address as *mut libc::c_void,
            size,
            protection,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    assert_eq!(got as u64, address, "cannot map the test window: {}", std::io::Error::last_os_error());
}

fn protect(address: u64, size: usize, protection: i32) {
    // SAFETY: the pages are ours.
    let done = unsafe { libc::mprotect(address as *mut libc::c_void, size, protection) };
    assert_eq!(done, 0, "mprotect: {}", std::io::Error::last_os_error());
}

/// The bare CPU.
pub(crate) struct Native {
    /// Writable alias of the code page: changing code needs no system call.
    code: *mut u8,
    /// Writable alias of the read-only page.
    read_only: *mut u8,
    stack: Vec<u8>,
}

/// Maps a page twice: at `address` with `protection`, and anywhere writable.
fn map_twice(address: u64, protection: i32) -> *mut u8 {
    // SAFETY: plain system calls on a descriptor that is ours; NOREPLACE keeps what exists.
    unsafe {
        let file = libc::memfd_create(c"viv-window".as_ptr(), 0);
        assert!(file >= 0 && libc::ftruncate(file, 4096) == 0, "memfd: {}", std::io::Error::last_os_error());
        let fixed = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE;
        let got = libc::mmap(address as *mut libc::c_void, 4096, protection, fixed, file, 0);
        assert_eq!(got as u64, address, "cannot map the test window: {}", std::io::Error::last_os_error());
        let both = libc::PROT_READ | libc::PROT_WRITE;
        let alias = libc::mmap(std::ptr::null_mut(), 4096, both, libc::MAP_SHARED, file, 0);
        assert_ne!(alias, libc::MAP_FAILED);
        libc::close(file);
        alias.cast()
    }
}

impl Native {
    pub(crate) fn new() -> Self {
        assert!(!BUSY.swap(true, Ordering::Acquire), "one bare CPU at a time");
        let code = map_twice(CODE, libc::PROT_READ | libc::PROT_EXEC);
        // SAFETY: the alias is one page.
        unsafe { std::ptr::write_bytes(code, 0xcc, 4096) };
        map(DATA, WRITABLE as usize, libc::PROT_READ | libc::PROT_WRITE);
        protect(DATA, WRITABLE as usize, libc::PROT_READ | libc::PROT_WRITE);
        let read_only = map_twice(DATA + WRITABLE, libc::PROT_READ);
        let mut stack = vec![0u8; 256 << 10];
        // SAFETY: the stack lives as long as `self`; the handler is async-signal-safe and only touches the
        // frame and `SHARED`.
        unsafe {
            let alternate =
                libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
            assert_eq!(libc::sigaltstack(&alternate, std::ptr::null_mut()), 0);
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            for signal in [libc::SIGTRAP, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE] {
                assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
            }
        }
        // Compatibility mode needs data segments; 64-bit mode does not look at them.
        // SAFETY: 0x2b is Linux's flat user data segment.
        unsafe { std::arch::asm!("mov ds, {s:e}", "mov es, {s:e}", s = in(reg) 0x2b) };
        Self { code, read_only, stack }
    }

    pub(crate) fn run(&mut self, case: &Case) -> Outcome {
        self.execute(&case.bytes, START, case.bits, &case.before)
    }

    /// Runs 64-bit code that ends with the code page, until it gets there or faults.
    pub(crate) fn run_block(&mut self, code: &[u8], before: &State) -> Outcome {
        let end = CODE + 4096;
        let mut outcome = self.execute(code, end - code.len() as u64, 64, before);
        // There is nothing behind the page.
        if outcome.fault.is_some_and(|fault| (fault.vector, fault.address) == (14, end))
            && outcome.state.rip == end
        {
            outcome.fault = None;
        }
        outcome
    }

    fn execute(&mut self, code: &[u8], at: u64, bits: u32, before: &State) -> Outcome {
        let length = code.len();
        let offset = (at - CODE) as usize;
        assert!(offset + length <= 4096, "code beyond its page");
        let data = DATA as *mut u8;
        // SAFETY: the windows are mapped for the life of `self`; the instructions were chosen so that they
        // touch nothing but the window and registers (see `forms`); INT3 and the handler bring control
        // back with all registers restored, and the compiler assumes that memory changed.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.code.add(offset), length);
            std::ptr::copy_nonoverlapping(before.data.as_ptr(), data, WRITABLE as usize);
            std::ptr::copy_nonoverlapping(before.data.as_ptr().add(WRITABLE as usize), self.read_only, 4096);
            {
                let shared = &mut *SHARED.0.get();
                shared.gprs = before.gprs;
                shared.rip = before.rip;
                shared.rflags = before.rflags;
                // Linux's user code segments: 64-bit mode, compatibility mode.
                shared.code_selector = if bits == 64 { 0x33 } else { 0x23 };
                shared.fx = before.fx.clone();
            }
            std::arch::asm!("int3");
            std::ptr::write_bytes(self.code.add(offset), 0xcc, length);
            let shared = &*SHARED.0.get();
            let mut memory = Box::new([0; DATA_SIZE]);
            std::ptr::copy_nonoverlapping(data, memory.as_mut_ptr(), DATA_SIZE);
            Outcome {
                state: State {
                    gprs: shared.gprs,
                    rip: shared.rip,
                    rflags: shared.rflags,
                    fx: shared.fx.clone(),
                    data: memory,
                },
                fault: shared.fault,
            }
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        let off = libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
        // SAFETY: nobody is on the alternate stack; the windows are not used any more.
        unsafe {
            libc::sigaltstack(&off, std::ptr::null_mut());
            libc::munmap(CODE as *mut libc::c_void, 4096);
            libc::munmap(DATA as *mut libc::c_void, DATA_SIZE);
            libc::munmap(self.code.cast(), 4096);
            libc::munmap(self.read_only.cast(), 4096);
        }
        self.stack.clear();
        BUSY.store(false, Ordering::Release);
    }
}
