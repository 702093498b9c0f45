//! Processor time and memory of another process.
use std::fs;

/// User and system time of a process so far, in seconds: the kernel's own clock of it, to the nanosecond.
#[allow(unsafe_code)]
pub(super) fn cpu_seconds(pid: u32) -> Option<f64> {
    #[repr(C)]
    struct Timespec {
        seconds: i64,
        nanoseconds: i64,
    }
    unsafe extern "C" {
        fn clock_gettime(clock: i32, time: *mut Timespec) -> i32;
    }
    // What clock_getcpuclockid makes of a process, on Linux: its number inverted, and "scheduler time of a process".
    let clock = !(pid as i32) << 3 | 2;
    let mut time = Timespec { seconds: 0, nanoseconds: 0 };
    // SAFETY: `time` is a timespec of x86-64 Linux, which the call fills; a bad clock is an error.
    let done = unsafe { clock_gettime(clock, &mut time) };
    (done == 0).then(|| time.seconds as f64 + time.nanoseconds as f64 / 1e9)
}

/// Memory of a process beyond its guest's RAM, in MiB: each page is counted once, however often it is mapped.
pub(super) fn memory_beyond(pid: u32, ram_mib: u64) -> Option<f64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    let (mut total, mut size) = (0, 0);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (name, kib) = (words.next(), words.next().and_then(|kib| kib.parse::<u64>().ok()));
        match (name, kib) {
            (Some("Size:"), Some(kib)) => size = kib,
            (Some("Pss:"), Some(kib)) if size != ram_mib << 10 => total += kib,
            _ => {}
        }
    }
    Some(total as f64 / 1024.0)
}
