//! The map by which `perf` names translated code: a line `START SIZE NAME` for each piece, numbers in hexadecimal, in
//! `/tmp/perf-PID.map` (Linux tools/perf/Documentation/jit-interface.txt).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// The map of this process. Code that is dropped stays in it: where its place is used again, the later line counts.
pub struct PerfMap(File);

impl PerfMap {
    /// Where `perf` looks for it.
    pub fn path() -> PathBuf {
        format!("/tmp/perf-{}.map", std::process::id()).into()
    }

    /// Makes the file. Everybody may write to its directory: what already has its name, from a process long gone or from
    /// somebody who hopes that we write there, goes first, and if it does not go, that is an error.
    pub fn reserve() -> io::Result<()> {
        match std::fs::remove_file(PerfMap::path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(PerfMap::path()).map(drop)
    }

    /// An empty map in the file that [`PerfMap::reserve`] made; one from before is emptied.
    pub fn open() -> io::Result<PerfMap> {
        let mut options = OpenOptions::new();
        options.append(true).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(PerfMap::path())?;
        file.set_len(0)?;
        Ok(PerfMap(file))
    }

    /// Names `len` bytes of code at `start`. A full disk costs the name and nothing else.
    pub(super) fn name(&self, start: u64, len: usize, name: &str) {
        // One write for each line: vCPUs write at the same time.
        let _ = (&self.0).write_all(line(start, len, name).as_bytes());
    }
}

fn line(start: u64, len: usize, name: &str) -> String {
    format!("{start:x} {len:x} {name}\n")
}

/// The name of guest code, by its address when it was translated.
pub(super) fn guest_name(rip: u64, kernel: bool) -> String {
    format!("guest_{rip:x} [{}]", if kernel { "kernel" } else { "user" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_perf_reads_them() {
        let name = guest_name(0xffff_ffff_8100_0000, true);
        assert_eq!(line(0x7f00_1000, 0x40, &name), "7f001000 40 guest_ffffffff81000000 [kernel]\n");
        assert_eq!(guest_name(0x40_1000, false), "guest_401000 [user]");
    }
}
