//! What the process has used, and others that it has.
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

/// Processor time that this process has used, nanoseconds.
pub fn cpu_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}

/// Memory that this process has in use, bytes.
pub fn memory_bytes() -> u64 {
    resident(&fs::read("/proc/self/statm").unwrap_or_default())
}

/// Pages in use (proc(5), `statm` field 2), as bytes.
fn resident(statm: &[u8]) -> u64 {
    let pages = std::str::from_utf8(statm).ok().and_then(|text| text.split(' ').nth(1)?.parse().ok());
    u64::saturating_mul(pages.unwrap_or_default(), rustix::param::page_size() as u64)
}

/// Another process, which is looked at often: its files stay open, and never mean a later one of its number.
pub struct OtherProcess {
    stat: File,
    statm: File,
}

impl OtherProcess {
    /// The one with this number.
    pub fn open(process: u32) -> io::Result<OtherProcess> {
        let open = |what| File::open(format!("/proc/{process}/{what}"));
        Ok(OtherProcess { stat: open("stat")?, statm: open("statm")? })
    }

    /// Processor time that it has used, nanoseconds, by the kernel's ticks (proc(5), `stat` fields 14 and 15); 0 if it is gone.
    pub fn cpu_ns(&self) -> u64 {
        let mut text = [0; 1024];
        let stat = String::from_utf8_lossy(read(&self.stat, &mut text));
        // Its name, in brackets, may have anything in it.
        let fields = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ')).into_iter().flatten();
        let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        ticks.saturating_mul(1_000_000_000 / rustix::param::clock_ticks_per_second().max(1))
    }

    /// Memory that it has in use, bytes; 0 if it is gone.
    pub fn memory_bytes(&self) -> u64 {
        resident(read(&self.statm, &mut [0; 128]))
    }
}

/// What one of the kernel's files says now.
fn read<'a>(file: &File, text: &'a mut [u8]) -> &'a [u8] {
    let count = file.read_at(text, 0).unwrap_or_default();
    text.get(..count).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_has_used_something() {
        assert!(cpu_ns() > 0 && memory_bytes() > 1 << 16);
    }

    #[test]
    fn another_one_is_seen_until_it_has_gone() {
        let mut spin = std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let seen = OtherProcess::open(spin.id()).unwrap();
        let begin = std::time::Instant::now();
        while seen.cpu_ns() < 50_000_000 {
            assert!(begin.elapsed().as_secs() < 60, "ticks pass");
        }
        assert!(seen.memory_bytes() > 1 << 16);
        spin.kill().unwrap();
        spin.wait().unwrap();
        assert_eq!((seen.cpu_ns(), seen.memory_bytes()), (0, 0));
        assert!(OtherProcess::open(0).is_err());
    }
}
