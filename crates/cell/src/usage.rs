//! What the process has used.
use std::fs;

/// Processor time that this process has used, nanoseconds.
pub fn cpu_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}

/// Processor time that the process with this number has used, nanoseconds, by the kernel's ticks (proc(5), `stat` fields 14 and
/// 15); 0 if there is none.
pub fn cpu_ns_of(process: &str) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // Its name, in brackets, may have anything in it.
    let fields = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ')).into_iter().flatten();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks.saturating_mul(1_000_000_000 / rustix::param::clock_ticks_per_second().max(1))
}

/// Memory that this process has in use, bytes.
pub fn memory_bytes() -> u64 {
    memory_bytes_of("self")
}

/// Memory that the process with this number has in use, bytes (proc(5), `statm` field 2); 0 if there is none.
pub fn memory_bytes_of(process: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/statm")).unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    pages.saturating_mul(rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_has_used_something() {
        assert!(cpu_ns() > 0 && memory_bytes() > 1 << 16);
        assert_eq!((memory_bytes_of("none"), cpu_ns_of("none")), (0, 0));
        let begin = std::time::Instant::now();
        while cpu_ns_of("self") < 50_000_000 {
            assert!(begin.elapsed().as_secs() < 60, "ticks pass");
        }
    }
}
