//! Is this host's KVM worth using?
//!
//! Some hosts have a /dev/kvm whose guests run kernel code hundreds of times too slowly (a nested hypervisor that
//! emulates it). So a tiny guest runs a loop in ring 0, and the same loop runs here in ring 3: KVM is good when
//! the guest's is at least a sixteenth as fast. Absolute numbers would call every emulated test machine bad.
use super::kick::KvmKick;
use super::{create_vm, os};
use crate::{CpuError, Kick};
use kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use std::{io, thread};
use viv_mem::{Gpa, GuestMemory};

/// What KVM is worth on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvmWorth {
    /// There is no /dev/kvm, or the processor does not do it.
    Missing,
    /// There is one, and this user may not open it.
    Denied,
    /// It runs guests' kernels too slowly, or not at all.
    Unusable,
    /// Use it.
    Good,
}

impl KvmWorth {
    /// One word for tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            KvmWorth::Missing => "missing",
            KvmWorth::Denied => "denied",
            KvmWorth::Unusable => "unusable",
            KvmWorth::Good => "good",
        }
    }
}

/// What [`probe_kvm`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvmReport {
    /// The verdict.
    pub worth: KvmWorth,
    /// Instructions per second of a ring-0 loop in a guest, if it ran.
    pub guest_rate: Option<u64>,
    /// Instructions per second of the same loop on the host.
    pub host_rate: Option<u64>,
    /// What was found, one sentence without a full stop.
    pub sentence: String,
    /// What to do about it; empty if nothing needs to be done.
    pub fix: String,
}

/// The guest's loop must be at least this part of the host's.
const WORTH_PART: u64 = 16;
/// Iterations between two reports of the guest, and of the same loop on the host.
const ITERATIONS: u32 = 1_000_000;
/// Reports that are taken: the best counts, since other programs may hold up the processor in between.
const REPORTS: usize = 20;
/// Instructions in an iteration.
const LOOP_INSTRUCTIONS: u64 = 2;
/// The guest is thrown out after this, and judged by how far it got.
const TIME_MAX: Duration = Duration::from_millis(100);
/// A guest that is slower than this part of the host is not tried again.
const HOPELESS_PART: u64 = 1024;
/// So many guests are tried before the verdict is bad.
const ATTEMPTS: usize = 3;
/// By a write to this port the guest reports.
const DONE_PORT: u16 = 0x80;

/// Finds out what KVM is worth here; takes a third of a second at most.
pub fn probe_kvm() -> KvmReport {
    let report = |worth, sentence: String, fix: &str| KvmReport {
        worth,
        guest_rate: None,
        host_rate: None,
        sentence,
        fix: fix.to_string(),
    };
    const SOFT: &str = "nothing is lost but speed: the software CPU runs every VM";
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            return match error.errno() {
                libc::ENOENT => report(
                    KvmWorth::Missing,
                    "this host has no /dev/kvm".to_string(),
                    "on bare metal, switch virtualization on in the firmware setup and load the module kvm-intel or \
                     kvm-amd; in a virtual machine, ask for nested virtualization",
                ),
                libc::EACCES | libc::EPERM => report(
                    KvmWorth::Denied,
                    "/dev/kvm exists and this user may not open it".to_string(),
                    "join its group: sudo usermod -aG kvm $USER, then log in again",
                ),
                errno => report(
                    KvmWorth::Missing,
                    format!("/dev/kvm does not open: {}", io::Error::from_raw_os_error(errno)),
                    SOFT,
                ),
            };
        }
    };
    match measure(&kvm) {
        Ok((guest, host)) => judge(guest, host),
        Err(error) => {
            let cause =
                std::error::Error::source(&error).map_or(String::new(), |source| format!(": {source}"));
            report(KvmWorth::Unusable, format!("KVM does not run a guest here: {error}{cause}"), SOFT)
        }
    }
}

fn is_good(guest: u64, host: u64) -> bool {
    guest >= host / WORTH_PART
}

/// The verdict on two rates, in instructions per second.
fn judge(guest: u64, host: u64) -> KvmReport {
    let good = is_good(guest, host);
    let millions = |rate: u64| {
        if rate < 10_000_000 {
            format!("{}.{}", rate / 1_000_000, rate / 100_000 % 10)
        } else {
            format!("{}", rate / 1_000_000)
        }
    };
    let (worth, sentence, fix) = if good {
        let sentence =
            format!("KVM runs a guest's kernel at {} million instructions per second", millions(guest));
        (KvmWorth::Good, sentence, String::new())
    } else {
        let sentence = format!(
            "KVM runs a guest's kernel at only {} million instructions per second, {} times slower than this \
             host's own processor",
            millions(guest),
            host / guest.max(1)
        );
        let fix = "use the software CPU (--accel soft, or auto which does it by itself), or a host whose \
                   hypervisor supports nested virtualization in hardware";
        (KvmWorth::Unusable, sentence, fix.to_string())
    };
    KvmReport { worth, guest_rate: Some(guest), host_rate: Some(host), sentence, fix }
}

/// Rates of guest and host, instructions per second.
fn measure(kvm: &Kvm) -> Result<(u64, u64), CpuError> {
    let host = (0..5).map(|_| host_rate(ITERATIONS)).max().unwrap_or(1);
    // The first guest since the host's start pays for much, and other programs may be in the way.
    let mut best = 0;
    for _ in 0..ATTEMPTS {
        best = best.max(guest_rate(kvm)?);
        if is_good(best, host) || best < host / HOPELESS_PART {
            break;
        }
    }
    Ok((best, host))
}

fn rate(iterations: u32, time: Duration) -> u64 {
    let nanos = time.as_nanos().max(1);
    (u128::from(iterations) * u128::from(LOOP_INSTRUCTIONS) * 1_000_000_000 / nanos) as u64
}

/// The loop on this processor, in ring 3.
fn host_rate(iterations: u32) -> u64 {
    let start = Instant::now();
    // SAFETY: a loop on one register.
    unsafe {
        std::arch::asm!(
            "2:",
            "dec {count:e}",
            "jnz 2b",
            count = inout(reg) iterations => _,
            options(nomem, nostack)
        );
    }
    rate(iterations, start.elapsed())
}

/// The loop in ring 0 of a guest in 32-bit protected mode, without interrupt controllers.
fn guest_rate(kvm: &Kvm) -> Result<u64, CpuError> {
    const CODE: Gpa = Gpa(0x1000);
    let vm = create_vm(kvm)?;
    let missing = |_| CpuError::Missing { what: "memory for the probe".to_string() };
    let memory = GuestMemory::new(&[(Gpa(0), 0x2000)]).map_err(missing)?;
    let [c0, c1, c2, c3] = ITERATIONS.to_le_bytes();
    // begin: mov ecx, N; l: dec ecx; jnz l; out DONE_PORT, al; jmp begin
    let code = [0xb9, c0, c1, c2, c3, 0x49, 0x75, 0xfd, 0xe6, DONE_PORT as u8, 0xeb, 0xf4];
    memory.write(CODE, &code).map_err(missing)?;
    let range = memory.host_range(Gpa(0), 0x2000).map_err(missing)?;
    let slot = kvm_userspace_memory_region {
        memory_size: range.len as u64,
        userspace_addr: range.ptr as u64,
        ..Default::default()
    };
    // SAFETY: `memory` outlives the VM of this function.
    unsafe { vm.set_user_memory_region(slot) }.map_err(os("give the probe its memory"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(os("make the probe's vCPU"))?;
    let mut sregs = vcpu.get_sregs().map_err(os("read the probe's registers"))?;
    sregs.cr0 |= 1;
    for segment in [&mut sregs.cs, &mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
        (segment.base, segment.limit, segment.selector) = (0, !0, 0x10);
        (segment.db, segment.g, segment.s, segment.present) = (1, 1, 1, 1);
        segment.type_ = 3;
    }
    (sregs.cs.selector, sregs.cs.type_) = (8, 11);
    vcpu.set_sregs(&sregs).map_err(os("load the probe's registers"))?;
    let regs = kvm_regs { rip: CODE.0, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs).map_err(os("load the probe's registers"))?;
    timed_run(&mut vcpu)
}

/// Takes reports until there are enough or the time is over; without a single one, the rate comes from how far the
/// guest got.
fn timed_run(vcpu: &mut VcpuFd) -> Result<u64, CpuError> {
    let kick = Arc::new(KvmKick::new(vcpu)?);
    let (done, waits) = mpsc::channel::<()>();
    let guard = kick.clone();
    let watchdog = thread::spawn(move || {
        if waits.recv_timeout(TIME_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
            guard.kick();
        }
    });
    let result = {
        let _entered = kick.enter();
        let mut start = Instant::now();
        let (mut best, mut reports) = (0, 0);
        loop {
            match vcpu.run() {
                Ok(VcpuExit::IoOut(DONE_PORT, _)) => {
                    best = best.max(rate(ITERATIONS, start.elapsed()));
                    reports += 1;
                    if reports == REPORTS {
                        break Ok(best);
                    }
                    start = Instant::now();
                }
                Ok(other) => {
                    let what = format!("a processor that runs the probe (it left with {other:?})");
                    break Err(CpuError::Missing { what });
                }
                Err(error) if error.errno() == libc::EINTR => {
                    if kick.take() {
                        let left = vcpu.get_regs().map_err(os("read the probe's registers"))?.rcx as u32;
                        let partial = rate(ITERATIONS.saturating_sub(left), start.elapsed());
                        break Ok(if reports > 0 { best } else { partial });
                    }
                }
                Err(error) => break Err(os("run the probe")(error)),
            }
        }
    };
    drop(done);
    // The watchdog only ever waits and kicks; it cannot have panicked.
    let _ = watchdog.join();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_is_a_ratio_and_a_bad_one_has_a_fix() {
        assert_eq!(judge(3_000_000_000, 4_000_000_000).worth, KvmWorth::Good);
        assert_eq!(judge(8_000_000, 100_000_000).worth, KvmWorth::Good);
        let bad = judge(2_000_000, 4_000_000_000);
        assert_eq!(bad.worth, KvmWorth::Unusable);
        assert!(bad.sentence.contains("only 2.0 million") && bad.sentence.contains("2000 times"), "{bad:?}");
        assert!(!bad.fix.is_empty());
    }

    /// Whatever this host has, the probe comes back in time and with words.
    #[test]
    fn the_probe_always_answers() {
        let start = Instant::now();
        let report = probe_kvm();
        assert!(start.elapsed() < Duration::from_secs(5));
        assert!(!report.sentence.is_empty());
        assert_eq!(report.worth == KvmWorth::Good, report.fix.is_empty());
        println!("{report:?} in {:?}", start.elapsed());
    }
}
